"""Texts, or pairs of them, with a class or a number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmpeft.data.language.rows import BadRowError
from mmpeft.data.language.task_config import LabelledTexts
from mmpeft.data.language.task_rows import Fields, TaskRow, read_task_rows, recheck, split_rows, text_of
from mmpeft.data.language.task_splits import Item, TaskSplit, TaskSplits, input_fills
from mmpeft.data.samples import listed


@dataclass(frozen=True)
class LabelledRows:
    """Checked rows of each split, whose ``label`` is a number: a place in ``classes``, if there are some."""

    parts: dict[str, list[TaskRow]]
    classes: tuple[str, ...]
    notes: list[str]
    """What is worth saying of how they were made."""


def load_labelled(config: LabelledTexts, tokenizer: Any) -> TaskSplits:
    """Read, check, encode and split labelled texts; a sample has the tokenizer's inputs and its ``label``.

    Raises:
        ValueError: For anything wrong with the data: rows are named, and how many there are.
    """
    rows = read_labelled(config)
    train, val, test = (_split(part, rows.classes, config, tokenizer) for part in rows.parts.values())
    return TaskSplits(train, val, test, classes=rows.classes, notes=rows.notes)


def read_labelled(config: LabelledTexts) -> LabelledRows:
    """Read, check and split labelled texts; they stay texts.

    Raises:
        ValueError: For anything wrong with the data: rows are named, and how many there are.
    """
    kept, bad, total = read_task_rows(config, _checked)
    classes = () if config.labels == "number" else config.classes or _found(kept)
    places = {name: index for index, name in enumerate(classes)}
    kept, wrong = recheck(kept, lambda fields: fields | {"label": _label(fields["label"], places, config)})
    parts, notes = split_rows(config, kept, bad + wrong, total)
    present = sorted({row.fields["label"] for row in kept})
    if config.labels == "classes" and len(present) < 2:
        names = listed([classes[label] for label in present])
        raise ValueError(f"data {config.path!r}: all labels are {names}: there is nothing to tell apart")
    return LabelledRows(parts, classes, notes)


def encode_texts(tokenizer: Any, text: str, text_pair: str | None, max_length: int) -> Item:
    """Return a model's inputs: ``input_ids``, ``attention_mask`` and, of those that have them, ``token_type_ids``."""
    tokenized = tokenizer(text, text_pair, truncation=True, max_length=max_length)
    return {name: tokenized[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in tokenized}


def _checked(fields: Fields) -> Fields:
    text_of(fields, "text")
    if fields["text_pair"] is not None:
        text_of(fields, "text_pair")
    label = fields["label"]
    if label in (None, ""):
        raise BadRowError("has no label: give it one, or remove it")
    if not isinstance(label, str | int | float) or (isinstance(label, float) and not math.isfinite(label)):
        raise BadRowError(f"has the label {listed([repr(label)])}: a name or a number is wanted")
    return fields


def _found(rows: Sequence[TaskRow]) -> tuple[str, ...]:
    """Return the labels of the rows to train on, sorted, numbers by their value."""
    names = {_name(row.fields["label"]) for row in rows if row.split in (None, "train")} - {"-1"}
    numbers = all(map(_is_number, names))
    return tuple(sorted(names, key=(lambda name: (int(name), name)) if numbers else (lambda name: (0, name))))


def _name(label: Any) -> str:
    return str(int(label)) if isinstance(label, bool | float) and label == int(label) else str(label)


def _is_number(name: str) -> bool:
    return name.isdecimal() and len(name) < 10


def _label(label: Any, places: Mapping[str, int], config: LabelledTexts) -> int | float:
    if config.labels == "number":
        return _number(label)
    name = _name(label)
    if name in places:
        return places[name]
    if config.classes is not None and _is_number(name) and int(name) < len(places):
        return int(name)
    hidden = "; -1 is how test labels are hidden: take a split that has them" if name == "-1" else ""
    raise BadRowError(f"has the label {listed([repr(label)])}, which is none of {listed(places)}{hidden}")


def _number(label: Any) -> float:
    try:
        value = float(label)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise BadRowError(f"has the label {label!r}: a number is wanted (data.labels: classes takes names)")
    return value


def _split(rows: Sequence[TaskRow], classes: Sequence[str], config: LabelledTexts, tokenizer: Any) -> TaskSplit:
    def item(row: TaskRow) -> Item:
        text, pair = row.fields["text"], row.fields["text_pair"]
        return encode_texts(tokenizer, text, pair, config.max_length) | {"label": row.fields["label"]}

    def describe(item: Item) -> str:
        label = classes[item["label"]] if classes else f"{item['label']:g}"
        return f"{len(item['input_ids'])} tokens, label {label}: {tokenizer.decode(item['input_ids'])!r}"

    return TaskSplit([row.id for row in rows], [item(row) for row in rows], input_fills(tokenizer), describe)
