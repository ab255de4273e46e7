"""Questions and contexts as windows, in which the two ends of an answer are to be found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmpeft.data.language.rows import BadRowError
from mmpeft.data.language.task_config import ReadingData
from mmpeft.data.language.task_rows import Fields, TaskRow, read_task_rows, split_rows, text_of
from mmpeft.data.language.task_splits import Item, TaskSplit, TaskSplits, input_fills

Span = tuple[int, int]
"""A part of a text, from its first character to behind its last."""


def load_reading(config: ReadingData, tokenizer: Any) -> TaskSplits:
    """Read, check and split questions, and cut their contexts into windows: see `windows` for a sample.

    Raises:
        ValueError: For anything wrong with the data or the tokenizer: rows are named, and how many there are.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"model: {type(tokenizer).__name__} has no fast version, which says where a token comes from")
    if config.stride >= config.max_length:
        raise ValueError(f"data.stride: {config.stride} must be less than data.max_length: {config.max_length}")
    kept, bad, total = read_task_rows(config, lambda fields: _checked(fields, config, tokenizer))
    parts, notes = split_rows(config, kept, bad, total)
    train, val, test = (_split(part, config, tokenizer) for part in parts.values())
    return TaskSplits(train, val, test, notes=notes)


def windows(tokenizer: Any, question: str, context: str, spans: Sequence[Span], config: ReadingData) -> list[Item]:
    """Return a question with each window of its context, as a model's inputs.

    Further, ``allowed`` (tokens,) is 1 where an answer may begin or end: in the context, and at the token that stands
    for none, ``nowhere``: the tokenizer's ``[CLS]``, or where there is none an end of text behind the context, which
    alone has seen everything in a decoder. ``start`` and ``end`` are the first answer's first and last token, or
    nowhere where it does not lie in the window as a whole; ``offsets`` are the tokens' places in the context.
    """
    first = tokenizer.cls_token_id
    tokenized = tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=config.max_length - (first is None),
        stride=config.stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    return [_window(tokenizer, tokenized, window, spans, context) for window in range(len(tokenized["input_ids"]))]


def _window(tokenizer: Any, tokenized: Any, window: int, spans: Sequence[Span], context: str) -> Item:
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in tokenized]
    item: Item = {name: list(tokenized[name][window]) for name in names}
    inside = [part == 1 for part in tokenized.sequence_ids(window)]
    offsets = [
        tuple(at) if in_context else (0, 0)
        for at, in_context in zip(tokenized["offset_mapping"][window], inside, strict=True)
    ]
    if tokenizer.cls_token_id is None:
        ends = {"input_ids": tokenizer.eos_token_id, "attention_mask": 1, "token_type_ids": 0}
        item = {name: [*values, ends[name]] for name, values in item.items()}
        inside, offsets, nowhere = [*inside, False], [*offsets, (0, 0)], len(inside)
    else:
        nowhere = item["input_ids"].index(tokenizer.cls_token_id)
    found_ends = _ends(spans[0], offsets, inside) if spans else None
    start, end = found_ends or (nowhere, nowhere)
    allowed = [int(in_context or index == nowhere) for index, in_context in enumerate(inside)]
    known = {"nowhere": nowhere, "start": start, "end": end, "allowed": allowed, "offsets": offsets}
    return item | known | {"context": context}


def _ends(span: Span, offsets: Sequence[Span], inside: Sequence[bool]) -> Span | None:
    """Return the first and last token that hold characters of a span, if the window has all of it."""
    places = [
        index
        for index, ((start, end), in_context) in enumerate(zip(offsets, inside, strict=True))
        if in_context and start < span[1] and end > span[0]
    ]
    shown = [offset for offset, in_context in zip(offsets, inside, strict=True) if in_context]
    if not places or shown[0][0] > span[0] or shown[-1][1] < span[1]:
        return None
    return places[0], places[-1]


def _checked(fields: Fields, config: ReadingData, tokenizer: Any) -> Fields:
    context, question = text_of(fields, "context"), text_of(fields, "question")
    texts, starts = _answers(fields["answers"])
    if not texts and not config.unanswerable:
        raise BadRowError("has no answers: remove it, or set data.unanswerable: true")
    for text, start in zip(texts, starts, strict=True):
        if not text.strip():
            raise BadRowError("has an empty answer: remove it")
        if context[start : start + len(text)] != text:
            position = context.find(text)
            where = "does not contain it" if position < 0 else f"has it at {position}"
            raise BadRowError(f"has the answer {text!r} at {start}, but its context {where}: correct answer_start")
    asked = len(tokenizer(question, add_special_tokens=False)["input_ids"])
    if asked + config.stride + tokenizer.num_special_tokens_to_add(pair=True) + 1 >= config.max_length:
        raise BadRowError(
            f"has a question of {asked} tokens, which leaves no room for new context in windows of data.max_length: "
            f"{config.max_length} that share data.stride: {config.stride}"
        )
    spans = [_trimmed(text, start) for text, start in zip(texts, starts, strict=True)]
    return {"context": context, "question": question, "texts": texts, "spans": spans}


def _answers(answers: Any) -> tuple[list[str], list[int]]:
    if not isinstance(answers, Mapping) or not {"text", "answer_start"} <= answers.keys():
        raise BadRowError("has answers without text and answer_start, two lists as SQuAD's")
    texts, starts = answers["text"], answers["answer_start"]
    if not (isinstance(texts, list) and isinstance(starts, list)) or not all(isinstance(text, str) for text in texts):
        raise BadRowError("has answers whose text and answer_start are not two lists, one of texts")
    if not all(isinstance(start, int) and start >= 0 for start in starts):
        raise BadRowError("has an answer_start that is no place in the context")
    if len(texts) != len(starts):
        raise BadRowError(f"has {len(texts)} answers and {len(starts)} places of them (answer_start)")
    return texts, starts


def _trimmed(text: str, start: int) -> Span:
    """Return the place of an answer without the white space around it, which no token need hold."""
    first = start + len(text) - len(text.lstrip())
    return first, first + len(text.strip())


def _split(rows: Sequence[TaskRow], config: ReadingData, tokenizer: Any) -> TaskSplit:
    ids, items = [], []
    for row in rows:
        fields = row.fields
        parts = windows(tokenizer, fields["question"], fields["context"], fields["spans"], config)
        ids += [row.id if len(parts) == 1 else f"{row.id} window {n}" for n in range(1, len(parts) + 1)]
        items += [part | {"asked": row.id, "question": fields["question"], "truths": fields["texts"]} for part in parts]
    return TaskSplit(ids, items, input_fills(tokenizer) | {"allowed": 0}, lambda item: _described(item, tokenizer))


def _described(item: Item, tokenizer: Any) -> str:
    learned = tokenizer.decode(item["input_ids"][item["start"] : item["end"] + 1])
    answer = "no answer here" if item["start"] == item["nowhere"] else f"answer {learned!r}"
    return f"{len(item['input_ids'])} tokens, {answer} to {item['question']!r}"
