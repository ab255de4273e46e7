"""Sources with their targets, for encoder-decoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmpeft.data.language.task_config import PairedTexts
from mmpeft.data.language.task_rows import Fields, TaskRow, read_task_rows, split_rows, text_of
from mmpeft.data.language.task_splits import Item, TaskSplit, TaskSplits, input_fills


def load_paired(config: PairedTexts, tokenizer: Any) -> TaskSplits:
    """Read, check, encode and split sources and targets.

    A sample has the source's ``input_ids`` and ``attention_mask``, the target's tokens as ``labels`` with a weight of 1
    each, and the ``target`` as a text.

    Raises:
        ValueError: For anything wrong with the data: rows are named, and how many there are.
    """
    parts, notes = split_rows(config, *read_task_rows(config, _checked))
    train, val, test = (_split(part, config, tokenizer) for part in parts.values())
    return TaskSplits(train, val, test, notes=notes)


def encode_source(tokenizer: Any, source: str, config: PairedTexts) -> Item:
    """Return the inputs of the encoder."""
    tokenized = tokenizer(config.prefix + source, truncation=True, max_length=config.max_length)
    return {"input_ids": tokenized["input_ids"], "attention_mask": tokenized["attention_mask"]}


def _checked(fields: Fields) -> Fields:
    return {name: text_of(fields, name) for name in ("source", "target")}


def _split(rows: Sequence[TaskRow], config: PairedTexts, tokenizer: Any) -> TaskSplit:
    def item(row: TaskRow) -> Item:
        target = row.fields["target"]
        labels = tokenizer(text_target=target, truncation=True, max_length=config.max_target_length)["input_ids"]
        learned = {"labels": labels, "weights": [1.0] * len(labels), "target": target}
        return encode_source(tokenizer, row.fields["source"], config) | learned

    def describe(item: Item) -> str:
        source, target = tokenizer.decode(item["input_ids"]), tokenizer.decode(item["labels"])
        return f"{len(item['labels'])} tokens learned: {target!r} for {source!r}"

    fills = input_fills(tokenizer)
    return TaskSplit(
        [row.id for row in rows],
        [item(row) for row in rows],
        fills | {"labels": fills["input_ids"], "weights": 0.0},
        describe,
    )
