"""Prompts with solved examples in front of the question, and the draw of the examples."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mmpeft.data.language.formats import first_difference
from mmpeft.data.language.prompt_format import PromptFormat
from mmpeft.data.language.task_rows import Fields, TaskRow
from mmpeft.settings import nearest


@dataclass(frozen=True)
class Prompts:
    """Writes prompts and encodes them, each with every label."""

    tokenizer: Any
    format: PromptFormat
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in self.format.words:
            if name not in self.classes:
                raise ValueError(f"prompt.words.{name}: no class has this name{nearest(name, self.classes)}")
        word, count = Counter(self.words).most_common(1)[0]
        if count > 1:
            raise ValueError(f"prompt.words: {word!r} stands for several classes: nothing tells them apart")
        if self.format.chat and not self.tokenizer.chat_template:
            raise ValueError("prompt.chat: true, but the model's tokenizer has no chat template: false")

    @cached_property
    def words(self) -> list[str]:
        """What is written for each class."""
        return [self.format.words.get(name, name) for name in self.classes]

    def encode(self, examples: Sequence[TaskRow], asked: Fields) -> list[tuple[list[int], int]]:
        """Return for each class the tokens of the prompt with its label, and how many of them are not the label's.

        The label begins at the first token by which the prompt with it differs from the bare prompt: a space in front
        of it, which most tokenizers join with the word, counts as the label's.
        """
        pairs = [self.render(examples, asked, word) for word in self.words]
        prompts = [(self._tokens(bare), self._tokens(full)) for bare, full in pairs]
        start = min(first_difference(bare, full) for bare, full in prompts)
        return [(full, start) for _, full in prompts]

    def render(self, examples: Sequence[TaskRow], asked: Fields, word: str) -> tuple[str, str]:
        """Return the prompt of a row, and the prompt with ``word`` as its label."""
        solved = [(row.fields, self.words[row.fields["label"]]) for row in examples]
        form = self.format
        if form.chat:
            return self._conversation([*solved, (asked, word)])
        start = [form.instruction] if form.instruction else []
        full = form.separator.join([*start, *(self._example(*one) for one in [*solved, (asked, word)])])
        return full[: len(full) - len(word)], full

    def _conversation(self, solved: Sequence[tuple[Fields, str]]) -> tuple[str, str]:
        turns = [{"role": "system", "content": self.format.instruction}] if self.format.instruction else []
        for fields, word in solved:
            turns += [{"role": "user", "content": self._example(fields, "").rstrip()}]
            turns += [{"role": "assistant", "content": word}]
        text = self.tokenizer.apply_chat_template(turns, tokenize=False)
        word = solved[-1][1]
        start = text.rindex(word)
        return text[:start], text[: start + len(word)]

    def _example(self, fields: Mapping[str, Any], word: str) -> str:
        if "{text_pair}" in self.format.template and fields["text_pair"] is None:
            raise ValueError("prompt.template: has {text_pair}, but the data has none: remove it")
        return self.format.template.format(text=fields["text"], text_pair=fields["text_pair"], label=word)

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=not self.format.chat)["input_ids"])


def draw_examples(
    parts: Mapping[str, Sequence[TaskRow]], classes: Sequence[str], count: int, seed: int
) -> list[TaskRow]:
    """Return ``count`` training rows in random order, of no class more than one above any other.

    The same seed gives the same rows, and with a larger count more of each class. Rows that are asked in the test
    split are never among them.

    Raises:
        ValueError: If a class has too few rows.
    """
    draw, tested = random.Random(seed), {row.key for row in parts["test"]}
    order = draw.sample(range(len(classes)), len(classes))
    pools: list[list[TaskRow]] = [[] for _ in classes]
    for row in parts["train"]:
        if row.key not in tested:
            pools[row.fields["label"]].append(row)
    for pool in pools:
        draw.shuffle(pool)
    chosen = []
    for drawn in range(count):
        label, taken = order[drawn % len(order)], drawn // len(order)
        if taken == len(pools[label]):
            raise ValueError(f"shots: {count}: class {classes[label]!r} has only {taken} training rows")
        chosen.append(pools[label][taken])
    draw.shuffle(chosen)
    return chosen
