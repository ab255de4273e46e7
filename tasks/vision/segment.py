"""Semantic segmentation: adapt a pretrained vision model to give a class to every pixel.

mmpeft train vision/segment_lora_scenes
python tasks/vision/segment.py configs/vision/segment_lora_scenes.yaml train.lr=1e-3
accelerate launch tasks/vision/segment.py configs/vision/segment_lora_scenes.yaml
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from accelerate.utils import set_seed
from pydantic import NonNegativeInt, PositiveInt

import mmpeft
from mmpeft.assembly import task
from mmpeft.assembly.segmentation_picture import draw_segmentation
from mmpeft.assembly.task import add_adapters, load_adapters
from mmpeft.data import DataSplits
from mmpeft.data.masks import class_shares, load_masks
from mmpeft.data.samples import Sample
from mmpeft.heads.segmentation import DecoderName, Segmenter
from mmpeft.objectives.segmentation import Segmentation
from mmpeft.training.check import check_run
from mmpeft.training.config import Monitor, RunConfig, TrainConfig
from mmpeft.training.evaluation import evaluate_split
from mmpeft.training.run.report import train_and_report
from mmpeft.training.run.run_directory import RunDirectory
from mmpeft.training.trainer import Trainer


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


def run(config: Config) -> dict[str, Any]:
    """Train, write the run directory, and return its metrics: scores are of the best adapter."""
    RunDirectory(config.output).claim(config.train.resume)
    trainer, data = build(config)
    blocks = None if config.blocks is None else list(config.blocks)
    loading = (
        "from mmpeft.heads.segmentation import Segmenter\n\n"
        f'backbone = mmpeft.load_model("{config.model.name}", num_classes=0)\n'
        f'model = Segmenter(backbone, {len(data.classes)}, "{config.decoder}", {blocks}, {config.decoder_width})'
    )
    return train_and_report(trainer, config, loading)


def check(config: Config) -> None:
    """Print what would be trained, three samples, and the numbers of one step; write nothing."""
    trainer, data = build(config)
    print(trainer.adapters.report())
    check_run(trainer, data.train.describe)


def evaluate(config: Config) -> dict[str, float]:
    """Return the test scores of the adapter in the run directory of a finished run."""
    model, data = load_adapted(config)
    return evaluate_split(model, Segmentation(len(data.classes)), data, config.train, config.output)


def predict(config: Config, index: int) -> tuple[Sample, dict[str, float]]:
    """Return a test sample and the share of its pixels that each class gets; draw it in the run directory."""
    model, data = load_adapted(config)
    sample, item = task.test_sample(data.test, index), data.test[index]
    with torch.no_grad():
        predicted = model.eval()(item["image"][None]).argmax(1)[0]
    path = config.output / f"prediction_{index}.png"
    draw_segmentation(item["image"], item["mask"], predicted, data.classes, path)
    print(f"picture: {path}")
    return sample, class_shares(predicted, data.classes)


def build(config: Config) -> tuple[Trainer, DataSplits]:
    """Put together a trainer: the model with its adapters, the data and the objective."""
    model, data = load(config)
    adapters = add_adapters(model, config, head=True)
    objective = Segmentation(len(data.classes))
    return Trainer(model, adapters, objective, data, config.train, config.output), data


def load_adapted(config: Config) -> tuple[Segmenter, DataSplits]:
    """Load the data, and a fresh model with the adapters that the run directory holds."""
    model, data = load(config)
    load_adapters(model, config)
    return model, data


def load(config: Config) -> tuple[Segmenter, DataSplits]:
    """Load the backbone with a new decoder, and the data as the backbone wants it."""
    set_seed(config.train.seed)
    backbone = mmpeft.load_model(config.model.name, num_classes=0, image_size=config.model.image_size)
    data = load_masks(config.data, backbone)
    return Segmenter(backbone, len(data.classes), config.decoder, config.blocks, config.decoder_width), data


def main(arguments: list[str]) -> None:
    """Train as the command line says."""
    task.main(run, Config, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
