from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from mmpeft.training.sampler import BatchOrder, Key


def positions(order: BatchOrder) -> list[list[int]]:
    return [[key.position for key in batch if key.counted] for batch in order]


def test_every_sample_once_in_an_order_of_seed_and_epoch() -> None:
    order = BatchOrder(10, 4, seed=0)
    first = positions(order)
    assert [len(batch) for batch in first] == [4, 4, 2]
    assert sorted(position for batch in first for position in batch) == list(range(10))
    assert positions(BatchOrder(10, 4, seed=0)) == first
    assert positions(BatchOrder(10, 4, seed=1)) != first
    order.epoch = 1
    assert positions(order) != first


def test_entering_in_the_middle_gives_the_rest() -> None:
    order = BatchOrder(10, 4, seed=0)
    whole = positions(order)
    order.batch = 2
    assert positions(order) == whole[2:]


def test_processes_share_the_same_global_batches() -> None:
    alone = positions(BatchOrder(11, 6, seed=3))
    shares = [positions(BatchOrder(11, 3, seed=3, process=rank, processes=2)) for rank in range(2)]
    assert [sorted(first + second) for first, second in zip(*shares, strict=True)] == [sorted(batch) for batch in alone]


def test_a_process_without_a_share_makes_a_pass_that_does_not_count() -> None:
    batches = [list(BatchOrder(5, 2, process=rank, processes=2)) for rank in range(2)]
    assert batches[0][-1] == [Key(0, 4)]
    assert batches[1][-1] == [Key(0, 4, counted=False)]


def test_drop_last() -> None:
    assert len(BatchOrder(10, 4, drop_last=True)) == len(list(BatchOrder(10, 4, drop_last=True))) == 2
    with pytest.raises(ValueError, match=r"train\.drop_last: true leaves no batch: 3 samples"):
        BatchOrder(3, 4, drop_last=True)


@pytest.mark.parametrize("drop_last", [False, True])
def test_batches_of_one_group(drop_last: bool) -> None:
    groups = [0, 1, 1, 0, 2, 1, 0, 0, 1, 0, 1]
    order = BatchOrder(11, 2, seed=0, groups=groups, drop_last=drop_last)
    batches = [[key.position for key in batch] for batch in order]
    assert len(batches) == len(order) == (4 if drop_last else 7)
    assert all(len({groups[position] for position in batch}) == 1 for batch in batches)
    if not drop_last:
        assert sorted(position for batch in batches for position in batch) == list(range(11))
    order.batch = 2
    assert [[key.position for key in batch] for batch in order] == batches[2:]
    order.epoch, order.batch = 1, 0
    assert [[key.position for key in batch] for batch in order] != batches


class Looked(Sequence[int]):
    """Groups of samples that count how often one is looked at."""

    def __init__(self, samples: int) -> None:
        self.samples, self.looks = samples, 0

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: Any) -> Any:
        self.looks += 1
        return index % 100

    def __iter__(self) -> Iterator[int]:
        return (self[index] for index in range(self.samples))


def test_the_number_of_batches_is_counted_once() -> None:
    """It is asked for twice in every step; with a look at each sample, and at each for every group, that was slow."""
    groups = Looked(1000)
    order = BatchOrder(1000, 4, groups=groups)
    assert groups.looks == 1000
    assert [len(order) for _ in range(50)] == [300] * 50
    assert groups.looks == 1000
    assert len(list(order)) == 300
