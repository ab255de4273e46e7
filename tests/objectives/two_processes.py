"""A short training on sequences of different lengths, as a program: ``two_processes.py OUTPUT BATCH_SIZE``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny_language import make_model, make_rows

from mmpeft.data.language.splits import Corpus, Style, TextSplit, TextSplits
from mmpeft.objectives.language import LanguageModelling
from mmpeft.training.language_config import LanguageTraining
from mmpeft.training.trainer import Trainer


def main(output: str, size: str) -> None:
    """Train, and write weights and scores."""
    torch.set_num_threads(1)
    corpus = Corpus.of(make_rows((3, 9, 5, 14, 4, 8, 6, 11, 7, 3, 12)))
    split = TextSplit([str(i) for i in range(11)], lambda index: [corpus[index]], Style(0, 0.5, str))
    model, adapters = make_model()
    how = {"optimizer": "sgd", "lr": 0.05, "epochs": 2, "batch_size": int(size), "accumulate": 2}
    config = LanguageTraining.model_validate(how)
    trainer = Trainer(model, adapters, LanguageModelling(), TextSplits(split, split, split), config, Path(output))
    trainer.fit()
    weights = {name: value.detach().clone() for name, value in adapters.named_parameters()}
    outcome = {"weights": weights, "test": trainer.evaluate("test")}
    if trainer.accelerator.is_main_process:
        torch.save(outcome, Path(output) / "outcome.pt")
    trainer.accelerator.wait_for_everyone()


if __name__ == "__main__":
    main(*sys.argv[1:])
