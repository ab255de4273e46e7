"""Writing side by side with left padding, where it ends, and what is counted of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_language import llama, tokenizer
from torch import nn

from mmpeft.data.language.batches import pad_prompts
from mmpeft.heads.token_probabilities import TokenScorer
from mmpeft.objectives.generation import BENIGN, REFUSAL, TASK, Answers, Writer


def test_padding_in_front_changes_no_answer() -> None:
    scorer, writer = TokenScorer(llama()), Writer(tokenizer(), [2], 6)
    prompts = [np.arange(10, 10 + length) for length in (3, 7, 1, 5)]
    batch = pad_prompts(prompts, 0)
    together = writer(scorer, batch["prompt_ids"], batch["prompt_mask"])
    alone = [writer(scorer, *pad_prompts([prompt], 0).values())[0] for prompt in prompts]
    assert together == alone
    assert len(set(together)) > 1


class Parrot(nn.Module):
    """Writes what it was told to, whatever it is asked."""

    def __init__(self, rows: list[list[int]]) -> None:
        super().__init__()
        self.rows = rows
        self.generation_config = SimpleNamespace(eos_token_id=2)

    def generate(self, input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
        assert sorted(options["eos_token_id"]) == [2, 7]
        return torch.cat([input_ids, torch.tensor(self.rows)], 1)


def say(texts: list[str]) -> Parrot:
    made = tokenizer()
    rows = [made(text, add_special_tokens=False)["input_ids"] for text in texts]
    length = max(map(len, rows))
    return Parrot([row + [0] * (length - len(row)) for row in rows])


def batch_of(references: list[str], kinds: list[int]) -> dict[str, Any]:
    ids = torch.ones(len(kinds), 2, dtype=torch.long)
    return {"prompt_ids": ids, "prompt_mask": ids, "reference": references, "kind": torch.tensor(kinds)}


def test_an_answer_ends_at_the_first_end_and_keeps_its_thoughts() -> None:
    parrot = say(["<think> one two </think> red <|end|> blue", "green </s> red"])
    texts = Writer(tokenizer(), [7])(parrot, torch.ones(2, 3, dtype=torch.long), torch.ones(2, 3))
    assert texts == ["<think> one two </think> red", "green"]


@pytest.mark.parametrize(("pattern", "expected"), [(None, 2 / 3), (r"answer (\w+)", 2 / 3), (r"\b(?:red|blue)\b", 1.0)])
def test_exact_match_is_of_what_follows_the_thoughts(pattern: str | None, expected: float) -> None:
    said = ["<think> one </think> red", "answer red <|end|> blue", "blue"]
    references = ["red", "answer red", "so blue"]
    answers = Answers(Writer(tokenizer(), [7]), pattern)
    answers.update(say(said), batch_of(references, [TASK] * 3))
    assert answers.compute() == {"exact_match": pytest.approx(expected)}


@pytest.mark.parametrize(("harmless", "over"), [(BENIGN, 1 / 2), (TASK, 1 / 3)])
def test_refusals_are_counted_by_kind(harmless: int, over: float) -> None:
    answers = Answers(Writer(tokenizer(), [7]), markers=["cannot help"])
    said = ["sorry i cannot help", "yes", "yes", "i cannot help", "red"]
    answers.update(say(said), batch_of(["no"] * 4 + ["red"], [REFUSAL, REFUSAL, harmless, harmless, TASK]))
    scores = answers.compute()
    assert scores["refusal_rate"] == 1 / 2
    assert scores["over_refusal_rate"] == pytest.approx(over)
    assert answers.compute()["refusal_rate"] == 0
