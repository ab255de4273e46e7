"""Semantic segmentation: adapt a pretrained vision model to give a class to every pixel.

mmpeft train vision/segment_lora_scenes
python tasks/vision/segment.py configs/vision/segment_lora_scenes.yaml train.lr=1e-3
accelerate launch tasks/vision/segment.py configs/vision/segment_lora_scenes.yaml
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from pydantic import NonNegativeInt, PositiveInt

import mmpeft
from mmpeft.assembly.task import Task
from mmpeft.heads.segmentation_settings import DecoderName
from mmpeft.training.config import Monitor, RunConfig, TrainConfig

if TYPE_CHECKING:
    from mmpeft.assembly.parts import Parts


class SegmentationTraining(TrainConfig):
    """How the adapters and the decoder are trained."""

    monitor: Monitor | None = Monitor(metric="miou")
    """The validation score that selects the best weights; null keeps the last ones."""


class Config(RunConfig):
    """One run of semantic segmentation."""

    train: SegmentationTraining
    """How the adapters and the decoder are trained."""
    decoder: DecoderName = "linear"
    """``linear``: one 1 x 1 convolution; ``conv``: a few layers, at twice the resolution of the features."""
    decoder_width: PositiveInt = 64
    """Channels of the ``conv`` decoder."""
    blocks: tuple[NonNegativeInt, ...] | None = None
    """The blocks whose features the decoder sees, from 0; null takes the last."""


def assemble(config: Config) -> Parts:
    """Load the backbone with a new decoder, and the data as the backbone wants it."""
    from mmpeft.assembly.images import refuse_one_class
    from mmpeft.assembly.parts import Parts
    from mmpeft.assembly.segmentation_picture import answer_by_mask
    from mmpeft.data.masks import load_masks
    from mmpeft.heads.segmentation import Segmenter
    from mmpeft.objectives.segmentation import Segmentation

    backbone = mmpeft.load_model(config.model.name, num_classes=0, image_size=config.model.image_size)
    data = load_masks(config.data, backbone)
    refuse_one_class(data.classes, config.data.title)
    classes = len(data.classes)
    model = Segmenter(backbone, classes, config.decoder, config.blocks, config.decoder_width)
    blocks = None if config.blocks is None else list(config.blocks)
    return Parts(
        config,
        model,
        read=lambda: data,
        objective=lambda adapters: Segmentation(classes),
        answer=lambda index: answer_by_mask(model, data, index, config.output),
        loading=(
            "from mmpeft.heads.segmentation import Segmenter\n\n"
            f'backbone = mmpeft.load_model("{config.model.name}", num_classes=0)\n'
            f'model = Segmenter(backbone, {classes}, "{config.decoder}", {blocks}, {config.decoder_width})'
        ),
        head=True,
    )


TASK = Task(Config, assemble)

if __name__ == "__main__":
    TASK.main(sys.argv[1:])
