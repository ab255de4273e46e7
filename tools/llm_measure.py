"""What `tiny/llm` can do before it is tuned: perplexity on held-out text, and statements that it has to complete.

    python tools/llm_measure.py

measures the shipped model, and shows how it goes on with some texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Any

import torch
from llm_data import held_out_rows
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from mmpeft.data.language.tiny.words import KIND_OF, NAMES, NUMBERS, ROOMS, THINGS, spelled
from mmpeft.data.scenes import COLOURS, SHAPES
from mmpeft.zoo import load_model, load_tokenizer

Probe = Callable[[Random], tuple[str, str]]
"""A beginning, and how it has to go on."""


def _sum(random: Random) -> tuple[str, str]:
    a, b = random.randint(0, 10), random.randint(0, 10)
    return f"{NUMBERS[a]} plus {NUMBERS[b]} is".capitalize(), f" {NUMBERS[a + b]}."


def _difference(random: Random) -> tuple[str, str]:
    a, b = random.randint(0, 10), random.randint(0, 10)
    return f"{NUMBERS[a + b]} minus {NUMBERS[a]} is".capitalize(), f" {NUMBERS[b]}."


def _sorted(random: Random) -> tuple[str, str]:
    digits = random.sample(range(10), 4)
    return f"Sorted, {' '.join(map(str, digits))} becomes", f" {' '.join(map(str, sorted(digits)))}."


def _backwards(random: Random) -> tuple[str, str]:
    word = random.choice(THINGS)
    return f"Backwards, {word} is", f" {spelled(word[::-1])}."


def _copied(random: Random) -> tuple[str, str]:
    words = " ".join(random.sample(THINGS, 5))
    return f"Anna wrote: {words}. Ben wrote the same:", f" {words}."


def _reversed_list(random: Random) -> tuple[str, str]:
    words = random.sample(THINGS, 4)
    return f"The list {', '.join(words)} in reverse order is", f" {', '.join(reversed(words))}."


def _colour(random: Random) -> tuple[str, str]:
    one, two = random.sample(SHAPES, 2)
    first, second = random.sample(COLOURS, 2)
    scene = f"There is a small {first} {one} at the top and a large {second} {two} on the left."
    return f"{scene} The colour of the {one} is", f" {first}."


def _place(random: Random) -> tuple[str, str]:
    (one, two), (here, there) = random.sample(NAMES, 2), random.sample(ROOMS, 2)
    story = f"{one} went to the {here}. There {one} found the red ball. {two} went to the {there}."
    return f"{story} So {one} was in the", f" {here}."


def _kind(random: Random) -> tuple[str, str]:
    thing = random.choice(THINGS)
    return f"The {thing} is", f" a{'n' if KIND_OF[thing][0] == 'a' else ''} {KIND_OF[thing]}"


PROBES: dict[str, Probe] = {
    "sums within 20": _sum, "differences within 20": _difference, "4 digits sorted": _sorted,
    "a word spelled backwards": _backwards, "5 words repeated": _copied, "4 words in reverse": _reversed_list,
    "the colour of one of two shapes": _colour, "where one of two people is": _place, "the kind of a thing": _kind,
}  # fmt: skip


def measure(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int = 200) -> dict[str, Any]:
    """Return perplexities per token, and the percentage of each probe's statements that are completed exactly."""
    model.eval()
    rows = held_out_rows(tokenizer, 256)
    scores: dict[str, Any] = {f"perplexity, {name}": round(_perplexity(model, part), 2) for name, part in rows.items()}
    for name, probe in PROBES.items():
        random = Random(name)
        right = sum(_completes(model, tokenizer, *probe(random)) for _ in range(count))
        scores[name] = round(100 * right / count, 1)
    return scores


@torch.no_grad()
def _perplexity(model: LlamaForCausalLM, rows: torch.Tensor) -> float:
    losses = [model(input_ids=part, labels=part, use_cache=False).loss.item() for part in rows[:64].split(1)]
    return math.exp(sum(losses) / len(losses))


@torch.no_grad()
def _completes(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, begin: str, end: str) -> bool:
    """Whether the most probable token is the right one at every place of the end: greedy decoding would write it."""
    start, full = (tokenizer(text, return_tensors="pt").input_ids for text in (begin, begin + end))
    best = model(input_ids=full, use_cache=False).logits[0].argmax(-1)
    return bool((best[start.shape[1] - 1 : -1] == full[0, start.shape[1] :]).all())


BEGINNINGS = ("Anna went to the garden with Ben.", "To bake a cake,", "Return the", "What is the colour of the sky?")


def show(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, text: str) -> str:
    """Return the text and how the model goes on, sampled."""
    torch.manual_seed(0)
    ids = tokenizer(text, return_tensors="pt").input_ids
    written = model.generate(ids, max_new_tokens=40, do_sample=True, temperature=0.7, top_p=0.9)
    return str(tokenizer.decode(written[0], skip_special_tokens=True))


if __name__ == "__main__":
    base, reader = load_model("tiny/llm"), load_tokenizer("tiny/llm")
    for beginning in BEGINNINGS:
        print(repr(show(base, reader, beginning)))
    for what, score in measure(base, reader).items():
        print(f"{what:32s} {score:6.1f}")
