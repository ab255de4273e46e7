"""Labelled texts: what labels may be, bad rows in one error, and batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_language import tokenizer, write_rows

from mmpeft.data.language.labelled import load_labelled
from mmpeft.data.language.task_config import LabelledTexts
from mmpeft.data.language.task_splits import TaskSplits


def load(path: str, **data: Any) -> TaskSplits:
    return load_labelled(LabelledTexts(path=path, validation=1, test=1, **data), tokenizer())


def rows(*labels: Any) -> list[dict[str, Any]]:
    words = ["one", "two", "three", "four", "five", "six", "cat", "dog", "sun", "moon"]
    return [{"text": f"a {words[place]}", "label": label} for place, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (("no", "yes", "no", "yes"), ("no", "yes")),
        ((0, 2, 10, 2), ("0", "2", "10")),
        (("1", "0", "1", "0"), ("0", "1")),
        ((True, False, True, False), ("0", "1")),
    ],
)
def test_classes_are_those_of_the_rows(tmp_path: Path, labels: tuple[Any, ...], classes: tuple[str, ...]) -> None:
    found = load(write_rows(tmp_path / "rows.jsonl", rows(*labels)))
    assert found.classes == classes
    assert len(found.train) == 2


def test_numbers_are_places_among_named_classes(tmp_path: Path) -> None:
    found = load(write_rows(tmp_path / "rows.jsonl", rows(0, 1, "glad", 0)), classes=("sad", "glad"))
    items = [split[place] for split in (found.train, found.val, found.test) for place in range(len(split))]
    assert {item["id"]: item["label"] for item in items} == {
        f"rows.jsonl:{n + 1}": v for n, v in enumerate((0, 1, 1, 0))
    }


def test_bad_rows_are_one_error_that_names_each(tmp_path: Path) -> None:
    bad = [
        {"text": " ", "label": 0},
        {"text": "a cat", "label": 7},
        {"text": "a", "label": None},
        {"text": 3, "label": 0},
    ]
    path = write_rows(tmp_path / "rows.jsonl", [*rows(0, 1, 0, 1), *bad])
    with pytest.raises(ValueError, match="4 of 8 rows can't be learned from") as caught:
        load(path, classes=("no", "yes"))
    for said in (
        "rows.jsonl:5 has an empty text",
        "rows.jsonl:6 has the label 7, which is none of no, yes",
        "rows.jsonl:7 has no label",
        "rows.jsonl:8 has int as its text",
        "data.on_bad_row=skip",
    ):
        assert said in str(caught.value)
    found = load(path, classes=("no", "yes"), on_bad_row="skip")
    assert "4 of 8" in found.notes[0]
    assert sum(map(len, (found.train, found.val, found.test))) == 4


def test_other_errors_say_what_to_do(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", rows(0, 1, -1, 1))
    with pytest.raises(ValueError, match="-1 is how test labels are hidden"):
        load(path)
    with pytest.raises(ValueError, match=r"has no column 'sentence'.*data.columns.text"):
        load(path, columns={"text": "sentence"})
    with pytest.raises(ValueError, match=r"columns.txt: this task reads only text, text_pair, label.*text"):
        load(path, columns={"txt": "sentence"})
    with pytest.raises(ValueError, match="there is nothing to tell apart"):
        load(write_rows(tmp_path / "same.jsonl", rows(0, 0, 0, 0)))
    with pytest.raises(ValueError, match="all labels are calm: there is nothing to tell apart"):
        load(write_rows(tmp_path / "calm.jsonl", rows("calm", "calm", "calm", "calm")), classes=["calm", "wild"])
    with pytest.raises(ValueError, match="a number is wanted"):
        load(write_rows(tmp_path / "words.jsonl", rows("much", 0.5, 1, 2)), labels="number")


def test_a_label_that_training_lacks_is_an_error(tmp_path: Path) -> None:
    for split, labels in (("train", (0, 1, 0)), ("validation", (1, 0)), ("test", (0, 2))):
        write_rows(tmp_path / f"{split}.jsonl", rows(*labels))
    with pytest.raises(ValueError, match=r"test.jsonl:2 has the label 2, which is none of 0, 1"):
        load(str(tmp_path))


def test_texts_are_padded_at_the_end_and_the_longer_one_is_cut(tmp_path: Path) -> None:
    pairs = [
        {"text": "a cat", "text_pair": "a dog and a sun and a moon", "label": 0},
        {"text": "the sun", "text_pair": "a moon", "label": 1},
        {"text": "two", "text_pair": "three", "label": 0},
        {"text": "four", "text_pair": "five", "label": 1},
    ]
    found = load(write_rows(tmp_path / "pairs.jsonl", pairs), max_length=6)
    items = [split[place] for split in (found.train, found.val, found.test) for place in range(len(split))]
    batch = found.train.collate(sorted(items, key=lambda item: item["id"]))
    assert batch["attention_mask"].sum(1).tolist() == [6, 4, 2, 2]
    assert batch["input_ids"][2:, 2:].eq(0).all()
    assert batch["label"].tolist() == [0, 1, 0, 1]


def test_generated_sets_load_by_their_own_columns() -> None:
    for path, labels in (("tiny_moods", "classes"), ("tiny_inferences", "classes"), ("tiny_likeness", "number")):
        found = load_labelled(LabelledTexts(path=path, generated=(20, 5, 7), labels=labels), tokenizer())
        assert [len(found.train), len(found.val), len(found.test)] == [20, 5, 7]
