"""A short training on sequences of different lengths, as a program: ``two_processes.py OUTPUT BATCH_SIZE LOSS``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny_language import make_model, make_rows

from mmpeft.assembly.language_config import LanguageTraining
from mmpeft.data.language.splits import Corpus, Style, TextSplit, TextSplits
from mmpeft.objectives.next_token import LanguageModelling
from mmpeft.objectives.preference import SinglePreference
from mmpeft.objectives.preference_settings import PreferenceSettings
from mmpeft.training.parallel import whole
from mmpeft.training.trainer import Trainer

COUNT = 13


def make_split(loss: str) -> TextSplit:
    """Return rows of different lengths; for KTO with labels, and each with another one's row."""
    corpus = Corpus.of(make_rows((3, 9, 5, 14, 4, 8, 6, 11, 7, 3, 12, 5, 4)))
    ids, style = [str(i) for i in range(COUNT)], Style(0, 0.5, str)
    if loss == "language":
        return TextSplit(ids, lambda index: [corpus[index]], style)
    labels: dict[str, Any] = {"label": [index % 3 > 0 for index in range(COUNT)]}
    return TextSplit(ids, lambda index: [corpus[index], corpus[(index + 1) % COUNT]], style, labels)


def main(output: str, size: str, loss: str) -> None:
    """Train, and write weights and scores."""
    torch.set_num_threads(1)
    split, (model, adapters) = make_split(loss), make_model()
    kto = SinglePreference(adapters, PreferenceSettings(name="kto", beta=0.3))
    objective = LanguageModelling() if loss == "language" else kto
    accumulate = 2 if loss == "language" else 1
    how = {"optimizer": "sgd", "lr": 0.05, "epochs": 2, "batch_size": int(size), "accumulate": accumulate}
    config = LanguageTraining.model_validate(how)
    trainer = Trainer(model, adapters, objective, TextSplits(split, split, split), config, Path(output))
    trainer.fit()
    weights = {name: whole(value).detach().clone() for name, value in adapters.named_parameters()}
    outcome = {"weights": weights, "test": trainer.evaluate("test")}
    if trainer.accelerator.is_main_process:
        torch.save(outcome, Path(output) / "outcome.pt")
    trainer.accelerator.wait_for_everyone()


if __name__ == "__main__":
    main(*sys.argv[1:])
