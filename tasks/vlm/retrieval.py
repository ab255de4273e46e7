"""Image-text retrieval: adapt a two-tower model to pictures with captions, by a contrastive loss.

mmpeft train vlm/retrieval_lora_scenes
mmpeft predict runs/retrieval_lora_scenes query="a large red star on a white ground"
accelerate launch tasks/vlm/retrieval.py configs/vlm/retrieval_lora_scenes.yaml
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import mmpeft
from mmpeft.assembly.task import Task
from mmpeft.objectives.contrastive_settings import LossName
from mmpeft.training.config import Monitor, RunConfig, TrainConfig

if TYPE_CHECKING:
    from mmpeft.assembly.parts import Parts


class RetrievalTraining(TrainConfig):
    """How the adapters are trained; ``batch_size`` is also how many captions a picture is told apart from."""

    monitor: Monitor | None = Monitor(metric="mean_recall")
    """The validation score that selects the best weights; null keeps the last ones."""


class Config(RunConfig):
    """One run of image-text retrieval."""

    train: RetrievalTraining
    """How the adapters are trained."""
    loss: LossName = "clip"
    """``clip``: which of the captions in the batch, and which of the pictures; ``siglip``: yes or no for every pair."""
    query: str | None = None
    """What ``mmpeft predict`` looks for among the test pictures; null shows a test picture's nearest captions."""


def assemble(config: Config) -> Parts:
    """Load the model with its tokenizer, and the data as both want it."""
    from mmpeft.assembly.captions import best_picture, likely_captions
    from mmpeft.assembly.parts import Parts
    from mmpeft.data.captions import load_captions
    from mmpeft.heads.pairs import PairEncoder
    from mmpeft.objectives.contrastive import Contrastive
    from mmpeft.zoo import load_tokenizer

    backbone = mmpeft.load_model(config.model.name, image_size=config.model.image_size)
    tokenizer = load_tokenizer(config.model.name)
    data, model, query = load_captions(config.data, backbone, tokenizer), PairEncoder(backbone), config.query
    return Parts(
        config,
        model,
        read=lambda: data,
        objective=lambda adapters: Contrastive(config.loss),
        answer=lambda index: (
            likely_captions(model, data, tokenizer, index)
            if query is None
            else best_picture(model, data, tokenizer, query)
        ),
        loading=f'model = mmpeft.load_model("{config.model.name}")',
        frozen=True,
    )


TASK = Task(Config, assemble)

if __name__ == "__main__":
    TASK.main(sys.argv[1:])
