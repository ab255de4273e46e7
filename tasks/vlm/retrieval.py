"""Image-text retrieval: adapt a two-tower model to pictures with captions, by a contrastive loss.

mmpeft train vlm/retrieval_lora_scenes
mmpeft predict runs/retrieval_lora_scenes query="a large red star on a white ground"
accelerate launch tasks/vlm/retrieval.py configs/vlm/retrieval_lora_scenes.yaml
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor

import mmpeft.zoo
from mmpeft.assembly import task
from mmpeft.assembly.task import add_adapters, load_adapters
from mmpeft.data import DataSplits
from mmpeft.data.captions import Tokenizer, captions_of, load_captions
from mmpeft.data.samples import Sample
from mmpeft.heads.pairs import PairEncoder
from mmpeft.objectives.contrastive import Contrastive, LossName, unit
from mmpeft.training.check import check_run
from mmpeft.training.config import Monitor, RunConfig, TrainConfig
from mmpeft.training.evaluation import evaluate_split
from mmpeft.training.run.report import train_and_report
from mmpeft.training.run.run_directory import RunDirectory
from mmpeft.training.trainer import Trainer


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


def run(config: Config) -> dict[str, Any]:
    """Train, write the run directory, and return its metrics: scores are of the best adapter, and of none (frozen)."""
    RunDirectory(config.output).claim(config.train.resume)
    trainer, _, _ = build(config)
    return train_and_report(trainer, config, f'model = mmpeft.load_model("{config.model.name}")', frozen=True)


def check(config: Config) -> None:
    """Print what would be trained, three samples, and the numbers of one step; write nothing."""
    trainer, data, _ = build(config)
    print(trainer.adapters.report())
    check_run(trainer, data.train.describe)


def evaluate(config: Config) -> dict[str, float]:
    """Return the test scores of the adapter in the run directory of a finished run."""
    model, data, _ = load_adapted(config)
    return evaluate_split(model, Contrastive(config.loss), data, config.train, config.output)


def predict(config: Config, index: int) -> tuple[Sample, dict[str, float]]:
    """Return a test picture and how likely each caption of the test split is; or the best picture for the ``query``."""
    model, data, tokenizer = load_adapted(config)
    samples, sample = data.test.samples, task.test_sample(data.test, index)
    if config.query is not None:
        names, likely = (
            [sample.id for sample in samples],
            match(model, data, range(len(samples)), [config.query], tokenizer),
        )
        return samples[int(likely.argmax())], dict(zip(names, likely.softmax(0)[:, 0].tolist(), strict=True))
    captions = sorted({caption for sample in samples for caption in captions_of(sample)})
    likely = match(model, data, [index], captions, tokenizer).softmax(1)[0]
    return sample, dict(zip(captions, likely.tolist(), strict=True))


@torch.no_grad()
def match(model: PairEncoder, data: DataSplits, indices: Any, captions: list[str], tokenizer: Tokenizer) -> Tensor:
    """Return the logits of test pictures and captions, (pictures, captions)."""
    model.eval()
    image = torch.cat([model.joint.image(data.test[index]["image"][None]) for index in indices])
    text = torch.cat([model.joint.text(tokenizer([caption])) for caption in captions])
    return model.joint.scale() * unit(image) @ unit(text).T


def build(config: Config) -> tuple[Trainer, DataSplits, Tokenizer]:
    """Put together a trainer: the model with its adapters, the data and the objective."""
    model, data, tokenizer = load(config)
    adapters = add_adapters(model, config, head=False)
    return Trainer(model, adapters, Contrastive(config.loss), data, config.train, config.output), data, tokenizer


def load_adapted(config: Config) -> tuple[PairEncoder, DataSplits, Tokenizer]:
    """Load the data, and a fresh model with the adapters that the run directory holds."""
    model, data, tokenizer = load(config)
    load_adapters(model, config)
    return model, data, tokenizer


def load(config: Config) -> tuple[PairEncoder, DataSplits, Tokenizer]:
    """Load the model with its tokenizer, and the data as both want it."""
    set_seed(config.train.seed)
    backbone = mmpeft.load_model(config.model.name, image_size=config.model.image_size)
    tokenizer = mmpeft.zoo.load_tokenizer(config.model.name)
    return PairEncoder(backbone), load_captions(config.data, backbone, tokenizer), tokenizer


def main(arguments: list[str]) -> None:
    """Train as the command line says."""
    task.main(run, Config, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
