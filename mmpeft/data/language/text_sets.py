"""From a configuration and a tokenizer to splits of encoded texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from mmpeft.data.language.batches import fill_of
from mmpeft.data.language.config import LanguageData, Refusals
from mmpeft.data.language.encoding import Encoded, Encoder
from mmpeft.data.language.packing import cut, cut_pieces, fill_packs, join_pack
from mmpeft.data.language.pools import BENIGN, REFUSAL, KeptRows, read_pool
from mmpeft.data.language.row_splits import cut_rows
from mmpeft.data.language.splits import Corpus, Question, Style, TextSplit, TextSplits

Shape = Literal["sequences", "pairs", "labels"]
"""What a sample is: one answer, a chosen and a rejected one, or one with a label (and one of another prompt)."""

SHAPES: dict[Shape, tuple[str, ...]] = {
    "sequences": ("text", "messages", "prompt_completion", "alpaca", "sharegpt"),
    "pairs": ("preference",),
    "labels": ("unpaired", "preference"),
}
"""The formats that have each."""


def load_texts(
    config: LanguageData, tokenizer: Any, shape: Shape = "sequences", *, questions: bool = False
) -> TextSplits:
    """Read and encode texts and split them; with ``questions`` those for validation and test are also to be answered.

    Labels that come from pairs stay pairs in validation and test.

    Raises:
        ValueError: For anything wrong with the data or the tokenizer: rows are named, and how many there are.
    """
    if config.name not in SHAPES[shape]:
        wanted = " or ".join(f"name: {name}" for name in SHAPES[shape])
        raise ValueError(f"data.name: {config.name!r} has no {shape}, which this task learns from: {wanted}")
    encoder = Encoder(tokenizer, config)
    kept, note = read_pool(config.path, config, encoder)
    parts, notes = cut_rows(kept, config), [note]
    if config.refusals is not None:
        notes += _mix(parts, config.refusals, config, encoder)
    held: Shape = "pairs" if config.name == "preference" else shape
    make = partial(_split, config=config, encoder=encoder)
    splits = [
        make(part, name == "train", shape=shape if name == "train" else held, questions=questions and name != "train")
        for name, part in parts.items()
    ]
    train, val, test = splits
    return TextSplits(train, val, test, [said for said in notes if said])


def _mix(parts: dict[str, list[KeptRows]], how: Refusals, config: LanguageData, encoder: Encoder) -> list[str]:
    """Add refusals to all splits, to the training ones by their share; harmless look-alikes are for the test, unless
    they bring splits along."""
    notes = []
    if how.benign_path is not None:
        benign, note = read_pool(how.benign_path, config, encoder, BENIGN)
        notes.append(note)
        harmless = cut_rows(benign, config) if any(one.split for one in benign) else {"test": benign}
        for name, rows in harmless.items():
            parts[name] += rows
    pool, note = read_pool(how.path, config, encoder, REFUSAL)
    cut = cut_rows(pool, config)
    wanted = max(1, round(len(parts["train"]) * how.share / (1 - how.share)))
    times = -(-wanted // len(cut["train"]))
    by_key = sorted(cut["train"], key=lambda one: one.key)
    parts["train"] += (by_key * times)[:wanted]
    for name in ("validation", "test"):
        parts[name] += cut[name]
    return [*notes, note, f"refusals: {wanted} of {len(parts['train'])} training rows, each up to {times} times"]


def _split(
    kept: Sequence[KeptRows], training: bool, *, config: LanguageData, encoder: Encoder, shape: Shape, questions: bool
) -> TextSplit:
    tokenizer = encoder.tokenizer
    style = Style(fill_of(tokenizer), config.reasoning.weight, tokenizer.decode)
    ids = _numbered([row.id for row in kept])
    light = [replace(row, sequences=()) for row in kept]
    ask = _Questions(light, encoder) if questions else None
    if shape == "pairs":
        corpus = Corpus.of([answer for row in kept for answer in row.sequences])
        return TextSplit(ids, _Pairs(corpus), style, {"margin": [row.margin for row in kept]}, ask)
    if shape == "labels":
        return _labelled(kept, style, encoder, ask)
    corpus = Corpus.of([row.sequences[0] for row in kept])
    if config.packing == "wrapped" or (config.packing == "whole" and training):
        return _packed(ids, corpus, config, style)
    return TextSplit(ids, _Singles(corpus), style, question=ask)


def _numbered(ids: Sequence[str]) -> list[str]:
    """Return ids that differ: those of rows that come several times get a number."""
    seen: dict[str, int] = {}
    numbered = []
    for name in ids:
        seen[name] = seen.get(name, 0) + 1
        numbered.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return numbered


def _packed(ids: Sequence[str], corpus: Corpus, config: LanguageData, style: Style) -> TextSplit:
    lengths, size = corpus.lengths, config.max_length
    if config.packing == "whole":
        parts = [[(row, 0, lengths[row]) for row in pack] for pack in fill_packs(lengths, size)]
    else:
        parts = cut_pieces(lengths, size)
    names = [ids[part[0][0]] + (f"+{len(part) - 1}" if len(part) > 1 else "") for part in parts]
    return TextSplit(_numbered(names), _Packs(corpus, parts), style)


def _labelled(kept: Sequence[KeptRows], style: Style, encoder: Encoder, ask: _Questions | None) -> TextSplit:
    """Return answers with labels: of a preference both, the chosen one as good and the rejected as bad."""
    answers = [(row, answer) for row in kept for answer in range(len(row.sequences))]
    corpus = Corpus.of([row.sequences[answer] for row, answer in answers])
    labels = [row.label and not answer for row, answer in answers]
    ids = _numbered([row.id for row, _ in answers])
    light = [(replace(row, sequences=()), answer) for row, answer in answers]
    others = next_others([row.key for row, _ in answers])
    if -1 in others:
        path = encoder.config.path
        raise ValueError(f"data {path!r}: all rows of a split have the same prompt; KTO needs answers to other prompts")
    return TextSplit(ids, _Mismatched(corpus, light, others, encoder), style, {"label": labels}, ask)


def next_others(keys: Sequence[str]) -> list[int]:
    """Return for each place the next one with another key, from the end on to the start; -1 if all are the same."""
    count, other = len(keys), -1
    others = [-1] * count
    for index in (*reversed(range(count)), *reversed(range(count))):
        following = (index + 1) % count
        other = following if keys[following] != keys[index] else other
        others[index] = other
    return others


@dataclass(frozen=True)
class _Singles:
    """Each row by itself."""

    corpus: Corpus

    def __call__(self, index: int) -> list[Encoded]:
        return [self.corpus[index]]


@dataclass(frozen=True)
class _Pairs:
    """A chosen row and the rejected one behind it."""

    corpus: Corpus

    def __call__(self, index: int) -> list[Encoded]:
        return [self.corpus[2 * index], self.corpus[2 * index + 1]]


@dataclass(frozen=True)
class _Packs:
    """Parts of several rows as one."""

    corpus: Corpus
    parts: Sequence[Sequence[tuple[int, int, int]]]

    def __call__(self, index: int) -> list[Encoded]:
        return [join_pack([cut(self.corpus[row], start, end) for row, start, end in self.parts[index]])]


@dataclass(frozen=True)
class _Mismatched:
    """A row, and its prompt with the answer to the next other prompt (for an estimate of how far the policy moved)."""

    corpus: Corpus
    answers: Sequence[tuple[KeptRows, int]]
    """Rows, each with the place of its answer: 1 for the rejected one."""
    others: Sequence[int]
    """For each, the place of the next one with another prompt."""
    encoder: Encoder

    def __call__(self, index: int) -> list[Encoded]:
        row, number = self.answers[self.others[index]]
        example = row.example()
        answer = example.rejected if number else example.answer
        assert answer is not None
        return [self.corpus[index], self.encoder.encode_other(self.answers[index][0].example(), answer)]


@dataclass(frozen=True)
class _Questions:
    """The prompt of a row, its answer, and what the row is for."""

    kept: Sequence[KeptRows]
    encoder: Encoder

    def __call__(self, index: int) -> Question:
        example = self.kept[index].example()
        return self.encoder.encode_prompt(example), self.encoder.reference(example), self.kept[index].kind
