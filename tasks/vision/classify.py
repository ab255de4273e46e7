"""Image classification: adapt a pretrained vision model to labelled images.

mmpeft train vision/adaptformer_digits
python tasks/vision/classify.py configs/vision/adaptformer_digits.yaml train.lr=1e-3
accelerate launch tasks/vision/classify.py configs/vision/adaptformer_digits.yaml
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

import mmpeft
from mmpeft.assembly.task import Task
from mmpeft.training.config import RunConfig

if TYPE_CHECKING:
    from mmpeft.assembly.parts import Parts


class Config(RunConfig):
    """One run of image classification."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target that is spread evenly over all classes."""


def assemble(config: Config) -> Parts:
    """Load the data as the model wants it, and the model with a new head for the data's classes."""
    from mmpeft.assembly.images import answer_by_class, refuse_one_class
    from mmpeft.assembly.parts import Parts
    from mmpeft.data import load_data
    from mmpeft.objectives.classification import Classification

    name, size = config.model.name, config.model.image_size
    data = load_data(config.data, mmpeft.load_model(name, image_size=size, device="meta"))
    refuse_one_class(data.classes, config.data.title, data.train.labels)
    model = mmpeft.load_model(name, num_classes=len(data.classes), image_size=size)
    return Parts(
        config,
        model,
        read=lambda: data,
        objective=lambda adapters: Classification(config.label_smoothing),
        answer=lambda index: answer_by_class(model, data, index),
        loading=f'model = mmpeft.load_model("{name}", num_classes={len(data.classes)})',
        head=True,
    )


TASK = Task(Config, assemble)

if __name__ == "__main__":
    TASK.main(sys.argv[1:])
