"""Sequence to sequence with an encoder-decoder (T5, BART): translation, summarisation, and the like.

mmpeft train llm/seq2seq_summaries model=./my_t5
mmpeft predict runs/seq2seq_summaries source="Anna went to the barn. There Anna found the red hat."
accelerate launch tasks/llm/seq2seq.py configs/llm/seq2seq_summaries.yaml
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from pydantic import PositiveInt

from mmpeft.assembly import classic_text as text_task
from mmpeft.assembly import task
from mmpeft.assembly.classic_text import TextRecipe
from mmpeft.assembly.language import DTYPES
from mmpeft.assembly.language_config import TextConfig
from mmpeft.data.language.paired import encode_source, load_paired
from mmpeft.data.language.task_config import PairedTexts
from mmpeft.data.language.task_splits import TaskSplits
from mmpeft.heads.token_probabilities import TokenScorer
from mmpeft.objectives.rewriting import Rewriter, Rewriting
from mmpeft.zoo.language_models import load_language_model


class Config(TextConfig):
    """One run of sequence to sequence."""

    data: PairedTexts
    """Where sources and targets come from."""
    max_new_tokens: PositiveInt = 128
    """Tokens that are written at most."""
    beams: PositiveInt = 1
    """Hypotheses of the beam search; 1 takes the likeliest token each time."""
    source: str | None = None
    """What ``mmpeft predict`` rewrites, without the prefix; null takes a test sample."""


def make_model(config: Config, data: TaskSplits) -> TokenScorer:
    """Load the model, with its loss."""
    model, _ = load_language_model(config.model.name, DTYPES[config.precision])
    if not model.config.is_encoder_decoder:
        raise ValueError(
            f"model: {config.model.name!r} ({type(model).__name__}) has no encoder: take T5, BART or another "
            "encoder-decoder, or the task llm/sft for prompts and completions"
        )
    return TokenScorer(model)


def make_writer(config: Config, tokenizer: Any) -> Rewriter:
    """Return what lets the model write."""
    return Rewriter(tokenizer, config.max_new_tokens, config.beams)


def make_objective(config: Config, data: TaskSplits, model: TokenScorer, tokenizer: Any) -> Rewriting:
    """Return the loss of targets, and the scores of what is written."""
    return Rewriting(model.backbone.config.decoder_start_token_id, make_writer(config, tokenizer))


RECIPE = TextRecipe[Config](
    data=lambda config, tokenizer: load_paired(config.data, tokenizer),
    model=make_model,
    objective=make_objective,
    loading=lambda config, data: f'model = mmpeft.load_model("{config.model.name}")',
    trains_head=False,
)


def run(config: Config) -> dict[str, Any]:
    """Train, write the run directory, and return its metrics: scores with the adapter, and without (frozen)."""
    return text_task.run(config, RECIPE, frozen=True)


def check(config: Config) -> None:
    """Print what would be trained, three samples, and the numbers of one step; write nothing."""
    text_task.check(config, RECIPE)


def evaluate(config: Config) -> dict[str, float]:
    """Return the test scores of the adapter in the run directory of a finished run."""
    return text_task.evaluate(config, RECIPE)


def predict(config: Config, index: int) -> str:
    """Return what the adapter of a finished run makes of ``source``, or of that of a test sample."""
    parts = text_task.load_adapted(config, RECIPE)
    if config.source is None:
        item = text_task.test_item(parts.data, index)
    else:
        item = encode_source(parts.tokenizer, config.source, config.data)
    ids, mask = (torch.tensor([item[name]]) for name in ("input_ids", "attention_mask"))
    said = make_writer(config, parts.tokenizer)(parts.model, ids, mask)[0]
    return said if config.source is not None else f"{said} (right: {item['target']})"


def main(arguments: list[str]) -> None:
    """Train as the command line says."""
    task.main(run, Config, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
