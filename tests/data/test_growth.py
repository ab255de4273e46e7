"""What is done with rows takes time in proportion to them: at these sizes a quadratic way takes minutes to hours.

Each takes a second or a few as it is. A bound of CPU time stands only where the quadratic way would take less than the
suite's limit of 300 s, and it is 20 times above what is needed.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest

from mmpeft.data.language.demonstrations import draw_examples
from mmpeft.data.language.encoding import _between, _inside
from mmpeft.data.language.labelled import _label
from mmpeft.data.language.packing import cut_pieces, fill_packs
from mmpeft.data.language.row_splits import cut_rows
from mmpeft.data.language.source_config import TextSource
from mmpeft.data.language.task_config import LabelledTexts
from mmpeft.data.language.task_rows import TaskRow
from mmpeft.data.language.text_sets import next_others
from mmpeft.data.samples import ImageSplit, Sample


class Row(NamedTuple):
    row: int
    key: str
    split: str | None = None


def test_rows_are_split_in_linear_time():
    count = 600_000
    rows = [Row(number, f"{number:07d}") for number in range(count)]
    start = time.process_time()
    parts = cut_rows(rows, TextSource(path="rows", validation=0.45, test=0.45))
    assert time.process_time() - start < 20  # 1 s; 41 s when groups were popped off the front of a list
    assert [len(part) for part in parts.values()] == [60_000, 270_000, 270_000]


def test_splits_are_those_of_groups_in_the_order_of_their_keys():
    draw = random.Random(0)
    rows = [Row(number, f"{draw.randrange(40):02d}") for number in range(200)]
    parts = cut_rows(rows, TextSource(path="rows", validation=30, test=50))
    keys = {name: {row.key for row in part} for name, part in parts.items()}
    assert max(keys["validation"]) < min(keys["test"]) < max(keys["test"]) < min(keys["train"])
    assert [30 <= len(parts["validation"]) < 40, 50 <= len(parts["test"]) < 60] == [True, True]


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing as it is defined: of the packs with enough room that with the least, the first of these."""
    packs: list[list[int]] = []
    rooms: list[int] = []
    for member in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        fitting = [(room, pack) for pack, room in enumerate(rooms) if room >= lengths[member]]
        if not fitting:
            packs.append([])
            rooms.append(capacity)
        pack = min(fitting)[1] if fitting else len(packs) - 1
        packs[pack].append(member)
        rooms[pack] -= lengths[member]
    return [sorted(pack) for pack in packs]


@pytest.mark.parametrize("capacity", [7, 64, 1000])
def test_packs_are_those_of_best_fit_decreasing(capacity):
    draw = random.Random(capacity)
    lengths = [draw.randint(1, capacity) for _ in range(300)]
    assert fill_packs(lengths, capacity) == best_fit(lengths, capacity)


def test_packs_are_filled_in_linear_time():
    count = 150_000
    packs = fill_packs([1024] * count + [1] * count, 2047)
    assert (len(packs), sum(map(len, packs))) == (count, 2 * count)
    assert len(cut_pieces([3] * count, 2)) == 3 * count // 2


def test_examples_are_drawn_in_one_pass():
    count, classes = 200_000, [str(label) for label in range(20_000)]
    rows = [TaskRow(str(n), n, None, {"label": n % len(classes)}, str(n)) for n in range(count)]
    drawn = draw_examples({"train": rows, "test": []}, classes, 20_000, 0)
    assert sorted(row.fields["label"] for row in drawn) == list(range(20_000))


def test_labels_are_found_at_once():
    names = {f"class {label}": label for label in range(20_000)}
    config = LabelledTexts(path="rows")
    assert [_label(name, names, config) for name in names for _ in range(10)][-1] == 19_999


def test_the_next_answer_to_another_prompt():
    draw = random.Random(0)
    for _ in range(50):
        keys = [draw.choice("abc") for _ in range(draw.randint(1, 12))]
        around = [[(place + step) % len(keys) for step in range(1, len(keys))] for place in range(len(keys))]
        wanted = [next((o for o in others if keys[o] != keys[p]), -1) for p, others in enumerate(around)]
        assert next_others(keys) == wanted
    assert next_others(["a"] * 300_000 + ["b"])[:2] == [300_000, 300_000]


def test_thoughts_that_never_end():
    text = "<think>" * 300_000
    assert _between(text, "<think>", "</think>") == []
    assert _between("a<think>b</think><think>c<think></think></think>", "<think>", "</think>") == [(1, 17), (17, 40)]


def test_tokens_in_spans_are_those_of_the_definition():
    draw = np.random.default_rng(0)
    for _ in range(50):
        cuts = np.sort(draw.choice(40, 8, replace=False))
        spans = [(int(a), int(b)) for a, b in cuts.reshape(-1, 2)]
        starts = np.sort(draw.integers(0, 40, 15))
        covers = [
            (int(start), int(start + length)) for start, length in zip(starts, draw.integers(0, 5, 15), strict=True)
        ]
        wanted = [start < end and any(start < stop and end > begin for begin, stop in spans) for start, end in covers]
        assert _inside(covers, spans).tolist() == wanted
    many = [(2 * place, 2 * place + 1) for place in range(300_000)]
    assert _inside(many, many).all()


def test_ids_are_listed_once():
    split = ImageSplit([Sample(str(n), 0, lambda: None) for n in range(3)], [0] * 3, ("a",), lambda image: image)
    assert split.ids == ["0", "1", "2"]
    assert split.ids is split.ids
