"""Sequence to sequence with an encoder-decoder (T5, BART): translation, summarisation, and the like.

mmpeft train llm/seq2seq_summaries model=./my_t5
mmpeft predict runs/seq2seq_summaries source="Anna went to the barn. There Anna found the red hat."
accelerate launch tasks/llm/seq2seq.py configs/llm/seq2seq_summaries.yaml
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

from pydantic import PositiveInt

from mmpeft.assembly.language_config import TextConfig
from mmpeft.assembly.prediction import Prediction, checked_index
from mmpeft.assembly.task import Task
from mmpeft.data.language.task_config import PairedTexts

if TYPE_CHECKING:
    from mmpeft.assembly.parts import Parts
    from mmpeft.data.language.task_splits import TaskSplits
    from mmpeft.heads.token_probabilities import TokenScorer
    from mmpeft.objectives.rewriting import Rewriter


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


def assemble(config: Config) -> Parts:
    """Load the data, and the model with its loss.

    Raises:
        ValueError: If the model has no encoder.
    """
    from mmpeft.assembly.classic_text import pad_with, recompute_blocks
    from mmpeft.assembly.parts import Parts
    from mmpeft.data.language.paired import load_paired
    from mmpeft.heads.token_probabilities import TokenScorer
    from mmpeft.objectives.rewriting import Rewriter, Rewriting
    from mmpeft.zoo.language_models import load_language_model, load_text_tokenizer
    from mmpeft.zoo.precision import DTYPES

    name = config.model.name
    data = load_paired(config.data, load_text_tokenizer(name))
    backbone, tokenizer = load_language_model(name, DTYPES[config.precision])
    if not backbone.config.is_encoder_decoder:
        raise ValueError(
            f"model: {name!r} ({type(backbone).__name__}) has no encoder: take T5, BART or another encoder-decoder, "
            "or the task llm/sft for prompts and completions"
        )
    model, writer = TokenScorer(backbone), Rewriter(tokenizer, config.max_new_tokens, config.beams)
    pad_with(model, data)
    return Parts(
        config,
        model,
        read=lambda: data,
        objective=lambda adapters: Rewriting(backbone.config.decoder_start_token_id, writer),
        answer=lambda index: answer(config, model, writer, data, index),
        loading=f'model = mmpeft.load_model("{name}")',
        frozen=True,
        once_adapted=partial(recompute_blocks, model, config),
    )


def answer(config: Config, model: TokenScorer, writer: Rewriter, data: TaskSplits, index: int) -> Prediction:
    """Return what the model makes of ``source``, or of that of a test sample and what is right."""
    import torch

    from mmpeft.data.language.paired import encode_source

    if config.source is None:
        item = data.test[checked_index(data.test, index)]
    else:
        item = encode_source(writer.tokenizer, config.source, config.data)
    ids, mask = (torch.tensor([item[name]]) for name in ("input_ids", "attention_mask"))
    said = writer(model, ids, mask)[0]
    return Prediction(said if config.source is not None else f"{said} (right: {item['target']})")


TASK = Task(Config, assemble)

if __name__ == "__main__":
    TASK.main(sys.argv[1:])
