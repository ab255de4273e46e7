"""Image classification with the focal loss: (1 - p)^gamma weighs the cross entropy of a sample (Lin et al. 2017)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from pydantic import Field

from mmpeft.assembly.task import Task
from mmpeft.training.config import RunConfig

if TYPE_CHECKING:
    from mmpeft.assembly.parts import Parts


class Config(RunConfig):
    """One run: the options of every run, and those of this task."""

    gamma: float = Field(default=2.0, ge=0)
    """How much less samples count that are right already."""


def assemble(config: Config) -> Parts:
    """Put together model, data and objective; imports stand here, so that ``mmpeft show`` needs no torch."""
    from torch import nn
    from torch.nn.functional import cross_entropy

    from mmpeft.assembly.images import answer_by_class
    from mmpeft.assembly.parts import Parts
    from mmpeft.data import load_data
    from mmpeft.objectives.base import Batch
    from mmpeft.objectives.classification import Classification
    from mmpeft.zoo import load_model

    class Focal(Classification):
        """Scores are those of classification."""

        def loss(self, model: nn.Module, batch: Batch):
            """Return the loss summed over the samples, and what is printed beside it."""
            logits, label = model(batch["image"]).float(), batch["label"]
            loss = cross_entropy(logits, label, reduction="none")
            correct = (logits.detach().argmax(-1) == label).sum()
            return ((1 - (-loss).exp()) ** config.gamma * loss).sum(), {"accuracy": correct}

    name = config.model.name
    data = load_data(config.data, load_model(name, device="meta"))
    model = load_model(name, num_classes=len(data.classes))
    return Parts(
        config,
        model,
        read=lambda: data,
        objective=lambda adapters: Focal(),
        answer=lambda index: answer_by_class(model, data, index),
        loading=f'model = mmpeft.load_model("{name}", num_classes={len(data.classes)})',
        head=True,
    )


TASK = Task(Config, assemble)

if __name__ == "__main__":
    TASK.main(sys.argv[1:])
