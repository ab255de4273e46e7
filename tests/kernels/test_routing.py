"""Stacked weights for the samples of one batch, against a loop over the samples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmpeft.kernels.routing import BatchLayout, routed_affine, routed_low_rank, routed_scale

BATCH, WIDTH, OUT, RANK = 6, 5, 7, 4
GROUPS: dict[str, list[list[int]]] = {
    "one each, in order": [[0], [1], [2], [3], [4], [5]],
    "one each": [[3], [0], [5], [1], [4], [2]],
    "in order": [[0, 1], [2, 3], [4, 5]],
    "in order, but for their numbers": [[0, 1], [2], [3], [4], [5]],
    "uneven": [[4, 1, 2, 5], [0], [3]],
    "all by one": [[0, 1, 2, 3, 4, 5]],
    "some frozen": [[5, 2], [0]],
    "one served": [[3]],
}


@pytest.fixture(params=GROUPS.values(), ids=GROUPS)
def groups(request: pytest.FixtureRequest) -> list[list[int]]:
    torch.manual_seed(0)
    found: list[list[int]] = request.param
    return found


def layout_of(groups: list[list[int]]) -> BatchLayout:
    return BatchLayout(groups, BATCH, torch.device("cpu"))


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def check(found: Tensor, y: Tensor, groups: list[list[int]], expected: dict[int, Tensor], each: int) -> None:
    """Compare each adapter's rows with its own result, and the others, to the bit, with what they were."""
    parts, before = found.unflatten(0, (BATCH, each)), y.unflatten(0, (BATCH, each))
    assert found.shape == y.shape
    for number, own in enumerate(groups):
        torch.testing.assert_close(
            parts[own], expected[number].unflatten(0, (BATCH, each))[own], rtol=1e-12, atol=1e-12
        )
    frozen = [sample for sample in range(BATCH) if not any(sample in own for own in groups)]
    assert torch.equal(parts[frozen], before[frozen])


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(("length", "each"), [((), 1), ((1,), 1), ((9,), 1), ((3, 2), 1), ((1,), 2), ((9,), 2)])
def test_low_rank_by_sample(groups: list[list[int]], length: tuple[int, ...], each: int, own: bool) -> None:
    y, x = random(BATCH * each, *length, OUT), random(BATCH * each, *length, WIDTH)
    a, b = random(len(groups), RANK, WIDTH), random(len(groups), RANK, OUT)
    before = y.clone()
    found = routed_low_rank(y, x, a, b, layout_of(groups), in_place=own)
    assert (found is y) == own and (own or torch.equal(y, before))
    check(found, before, groups, {n: before + x @ a[n].T @ b[n] for n in range(len(groups))}, each)


def test_low_rank_writes_into_some_columns(groups: list[list[int]]) -> None:
    whole, x = random(BATCH, 9, 3 * OUT), random(BATCH, 9, WIDTH)
    a, b = random(len(groups), RANK, WIDTH), random(len(groups), RANK, OUT)
    before, part = whole.clone(), whole[..., OUT : 2 * OUT]
    assert routed_low_rank(part, x, a, b, layout_of(groups), in_place=True) is part
    own = before[..., OUT : 2 * OUT]
    check(part, own, groups, {n: own + x @ a[n].T @ b[n] for n in range(len(groups))}, 1)
    assert torch.equal(whole[..., :OUT], before[..., :OUT]) and torch.equal(
        whole[..., 2 * OUT :], before[..., 2 * OUT :]
    )


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("each", [1, 2])
def test_scales_by_sample(groups: list[list[int]], each: int, own: bool) -> None:
    y, scale = random(BATCH * each, 3, OUT), random(len(groups), OUT)
    y[0, 0, 0] = -0.0
    before = y.clone()
    found = routed_scale(y, scale, layout_of(groups), in_place=own)
    assert (found is y) == own
    check(found, before, groups, {n: before * scale[n] for n in range(len(groups))}, each)


@pytest.mark.parametrize(("shape", "axis"), [((3, OUT), -1), ((OUT, 2, 2), 1)])
def test_affine_by_sample(groups: list[list[int]], shape: tuple[int, ...], axis: int) -> None:
    y, scale, shift = random(BATCH * 2, *shape), random(len(groups), OUT), random(len(groups), OUT)
    wide = [-1 if place == axis % y.ndim else 1 for place in range(y.ndim)]
    expected = {n: y * scale[n].view(wide) + shift[n].view(wide) for n in range(len(groups))}
    check(routed_affine(y, scale, shift, layout_of(groups), axis), y, groups, expected, 2)


@pytest.mark.parametrize("length", [1, 4])
def test_gradients_in_double_precision(groups: list[list[int]], length: int) -> None:
    shapes = [(BATCH, length, OUT), (BATCH, length, WIDTH), (len(groups), 3, WIDTH), (len(groups), 3, OUT)]
    tensors = [random(*shape).requires_grad_() for shape in shapes]
    layout = layout_of(groups)
    assert torch.autograd.gradcheck(lambda *own: routed_low_rank(*own, layout), tensors)


def test_slots_hold_few_copies_and_few_idle_places() -> None:
    layout = layout_of([[0, 1, 2, 3], [4], [5]])
    assert layout.in_slots(random(BATCH, 1, WIDTH)).shape == (4, 2, WIDTH)
    (weights,) = layout.of_slots((torch.arange(3),))
    assert weights.tolist() == [0, 0, 1, 2]


def test_a_batch_of_another_size_is_an_error() -> None:
    with pytest.raises(ValueError, match="route: 6 names for a batch of 4"):
        routed_scale(random(4, OUT), random(1, OUT), layout_of([[0]]))
