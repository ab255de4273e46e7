"""Files of every kind, splits without shared prompts, bad rows, packs, refusals, and pairs for comparisons."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_language import PLAIN_TEMPLATE, conversation, tokenizer, write_rows

from mmpeft.data.language.config import LanguageData
from mmpeft.data.language.packing import cut_pieces, fill_packs
from mmpeft.data.language.rows import read_rows
from mmpeft.data.language.splits import TextSplit, TextSplits
from mmpeft.data.language.text_sets import load_texts

THINGS = ["cat", "dog", "sun", "moon", "car", "bank", "bike", "one", "two", "three"]


def pairs(count: int = 30) -> list[dict[str, Any]]:
    return [{"prompt": f"what is a {THINGS[i % 10]}", "completion": f"{' red' * (i % 4 + 1)}"} for i in range(count)]


def load(
    path: str, name: str = "prompt_completion", shape: Any = "sequences", questions: bool = False, **o: Any
) -> TextSplits:
    config = LanguageData.model_validate({"name": name, "path": path, "validation": 4, "test": 4, **o})
    return load_texts(config, tokenizer(PLAIN_TEMPLATE), shape, questions=questions)


def texts(split: TextSplit) -> list[str]:
    return [split.style.decode(split.sequences(i)[0].tokens) for i in range(len(split))]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        write_rows(path, rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        import pandas

        pandas.DataFrame(rows).to_parquet(path)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_files_of_every_kind(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"rows{suffix}", pairs())
    rows = read_rows(str(path), LanguageData(name="prompt_completion", path=str(path)))
    assert [dict(rows[index]) for index in range(len(rows))] == pairs()
    assert rows.id(11) == f"rows{suffix}:12"
    data = load(str(path))
    assert len(data.train) + len(data.val) + len(data.test) == 30


def test_folders_say_the_splits(tmp_path: Path) -> None:
    for name, part in (("train", pairs()[:20]), ("test-00000-of-00001", pairs()[20:])):
        write(tmp_path / f"{name}.jsonl", part)
    data = load(str(tmp_path), validation=2)
    assert {name.split(":")[0] for name in data.test.ids} == {"test-00000-of-00001.jsonl"}
    assert len(data.test) == 10
    assert len(data.train) + len(data.val) == 20


def test_a_data_set_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []

    def fetch(*arguments: Any, **options: Any) -> Any:
        asked.append((arguments, options))
        if len(asked) > 1:
            raise OSError("no connection")
        parts = {"train": pairs()[:20], "dev": pairs()[20:25], "test": pairs()[25:], "other": pairs()}
        return datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in parts.items()})

    monkeypatch.setattr(datasets, "load_dataset", fetch)
    data = load("owner/name@abc", subset="small")
    assert asked == [(("owner/name", "small"), {"revision": "abc"})]
    assert (len(data.train), len(data.val), len(data.test)) == (20, 5, 5)
    assert data.val.ids[0] == "dev:1"
    with pytest.raises(ValueError, match="could not be fetched: no connection"):
        load("owner/name")


def test_generated_sets() -> None:
    data = load("tiny_logbook", "text", generated=(20, 5, 6))
    assert (len(data.train), len(data.val), len(data.test)) == (20, 5, 6)
    assert data.test.ids[2] == "tiny_logbook/test:3"
    with pytest.raises(ValueError, match=r"nor generated .did you mean 'tiny_logbook'"):
        load("tiny_logbok", "text")


def test_rows_with_the_same_prompt_stay_together(tmp_path: Path) -> None:
    data = load(write_rows(tmp_path / "rows.jsonl", pairs()))
    parts = [{text.split(" red")[0] for text in texts(split)} for split in (data.train, data.val, data.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 10
    assert [len(split) for split in (data.train, data.val, data.test)] == [18, 6, 6]
    other = load(write_rows(tmp_path / "more.jsonl", [*pairs(), {"prompt": "a", "completion": " b"}]))
    assert texts(other.val) == texts(data.val)
    assert texts(load(str(tmp_path / "rows.jsonl"), split_seed=1).val) != texts(data.val)


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_bad_rows_are_named_or_skipped(tmp_path: Path, suffix: str) -> None:
    rows = pairs()
    rows[6]["completion"], rows[20] = "", {"prompt": "a"}
    path = str(write(tmp_path / f"rows{suffix}", rows))
    with pytest.raises(ValueError) as caught:
        load(path)
    message = str(caught.value)
    assert f"2 of 30 rows can't be learned from: rows{suffix}:7 has an empty completion" in message
    assert f"rows{suffix}:21 has no column 'completion'" in message
    assert message.endswith("leave them out by data.on_bad_row=skip")
    data = load(path, on_bad_row="skip")
    assert len(data.train) + len(data.val) + len(data.test) == 28
    assert "2 of 30 rows" in data.notes[0]


def test_a_line_that_is_no_json_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(write_rows(path, pairs()) and path.read_text() + "{broken\n\n[1]\n")
    with pytest.raises(ValueError, match=r"rows.jsonl:31 is no JSON.*; rows.jsonl:32 is list, not an object"):
        load(str(path))


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    for path, message in (
        ("nothing.jsonl", "neither a file nor a folder"),
        (str(tmp_path), "has no file of .jsonl"),
        (str(write_rows(tmp_path / "rows.xyz", pairs())), "a file of .jsonl"),
    ):
        with pytest.raises(ValueError, match=message):
            load(path)


def test_packs_are_full_and_hold_every_row_once() -> None:
    lengths = np.random.default_rng(0).integers(1, 60, 300).tolist()
    packs = fill_packs(lengths, 64)
    assert sorted(row for pack in packs for row in pack) == list(range(300))
    assert max(sum(lengths[row] for row in pack) for pack in packs) <= 64
    assert len(packs) < 1.05 * sum(lengths) / 64 + 1


def test_pieces_hold_every_token_once() -> None:
    lengths = [5, 1, 30, 7, 2]
    pieces = cut_pieces(lengths, 8)
    assert [sum(end - start for _, start, end in piece) for piece in pieces] == [8, 8, 8, 8, 8, 5]
    rows = [(row, place) for piece in pieces for row, start, end in piece for place in range(start, end)]
    assert rows == [(row, place) for row, length in enumerate(lengths) for place in range(length)]


@pytest.mark.parametrize("packing", ["whole", "wrapped"])
def test_packed_splits(tmp_path: Path, packing: str) -> None:
    path = write_rows(tmp_path / "rows.jsonl", pairs())
    plain, packed = load(path), load(path, packing=packing, max_length=32)
    tokens = [
        sum(len(split.sequences(i)[0].tokens) for i in range(len(split))) for split in (plain.train, packed.train)
    ]
    assert tokens[0] == tokens[1]
    assert len(packed.train) < len(plain.train)
    batch = packed.train.collate([packed.train[i] for i in range(2)])
    assert "attention_mask" not in batch
    assert (batch["weights"][batch["position_ids"] == 0] == 0).all()


def test_refusals_are_mixed_by_their_share(tmp_path: Path) -> None:
    wanted = [{"messages": conversation(f"what is a {thing} ?", "red")} for thing in THINGS * 3]
    unsafe = [{"messages": conversation(f"steal a {thing}", "sorry i cannot help")} for thing in THINGS]
    benign = [{"messages": conversation(f"wash a {thing}", "yes")} for thing in THINGS[:3]]
    paths = [write_rows(tmp_path / f"{i}.jsonl", rows) for i, rows in enumerate((wanted, unsafe, benign))]
    refusals = {"path": paths[1], "share": 0.25, "benign_path": paths[2]}
    data = load(paths[0], "messages", questions=True, refusals=refusals)
    steals = [text for text in texts(data.train) if "steal" in text]
    assert len(steals) / len(data.train) == pytest.approx(0.25, abs=0.02)
    assert len(set(data.train.ids)) == len(data.train)
    assert data.test.question is not None
    kinds = [data.test.question(i)[2] for i in range(len(data.test))]
    assert [kinds.count(kind) for kind in range(3)] == [6, 4, 3]
    batch = data.test.collate([data.test[i] for i in range(len(data.test))])
    assert batch["kind"].tolist() == kinds
    assert batch["reference"][kinds.index(2)] == "yes"
    assert (batch["prompt_mask"][:, -1] == 1).all()
    assert data.notes == ["refusals: 6 of 24 training rows, each up to 3 times"]


def test_harmless_requests_of_a_training_split_are_learned_too() -> None:
    refusals = {"path": "tiny_unsafe", "share": 0.25, "benign_path": "tiny_benign"}
    data = load("tiny_tasks", "messages", questions=True, refusals=refusals, generated=(12, 4, 5))
    assert len(data.train) == 12 + 12 + 8
    assert data.test.question is not None
    assert [data.test.question(i)[2] for i in range(len(data.test))].count(2) == 5


def test_pairs_and_labels(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"a {thing} ?", "chosen": " yes", "rejected": " no no", "margin": i}
        for i, thing in enumerate(THINGS)
    ]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    data = load(path, "preference", "pairs", validation=2, test=2)
    batch = data.train.collate([data.train[i] for i in range(3)])
    assert batch["input_ids"].shape == (6, 7)
    assert batch["weights"].sum(1).tolist() == [2, 2, 2, 3, 3, 3]
    assert batch["margin"].shape == (3,)
    labels = load(path, "preference", "labels", validation=2, test=2)
    assert len(labels.train) == 2 * len(data.train)
    batch = labels.train.collate([labels.train[i] for i in range(4)])
    assert batch["label"].tolist() == [True, False, True, False]
    for own, other in zip(batch["input_ids"][:4], batch["input_ids"][4:], strict=True):
        assert own[2] == other[2]  # the same prompt
    with pytest.raises(ValueError, match="name: 'preference' has no sequences"):
        load(path, "preference")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "preference", "packing": "whole"}, "packing"),
        ({"name": "text", "template": "chat"}, "all of a text is learned as it is"),
        ({"name": "messages", "template": "plain"}, "turns are put together by a chat template"),
        ({"name": "alpaca", "columns": {"promt": "x"}}, "columns.promt"),
        ({"name": "messages", "roles": {"bot": "robot"}}, "roles"),
    ],
)
def test_contradictions(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LanguageData.model_validate({"path": "x", **options})
