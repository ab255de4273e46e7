"""Few-shot classification: adapt a zero-shot classifier of CLIP or SigLIP to a few labelled images of each class.

mmpeft train vlm/coop_scenes
mmpeft train vlm/coop_scenes shots='[1, 2, 4, 8, 16]' seeds='[1, 2, 3]'
python tasks/vlm/few_shot.py configs/vlm/tip_adapter_f_scenes.yaml data.name=digits
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Annotated, Any

import torch
from accelerate.utils import set_seed
from pydantic import Field, NonNegativeInt, PositiveInt

import mmpeft
from mmpeft.data import DataSplits, load_data
from mmpeft.data.samples import Sample
from mmpeft.heads.zero_shot import TEMPLATE, ZeroShotClassifier
from mmpeft.methods import PromptSRC
from mmpeft.objectives.classification import Classification
from mmpeft.objectives.self_regulated import SelfRegulated
from mmpeft.training import feature_cache, task
from mmpeft.training.check import check_run
from mmpeft.training.config import RunConfig
from mmpeft.training.evaluation import evaluate_split
from mmpeft.training.repeats import repeat
from mmpeft.training.report import train_and_report
from mmpeft.training.run_directory import RunDirectory
from mmpeft.training.task import add_adapters, load_adapters
from mmpeft.training.trainer import Trainer
from mmpeft.zoo import load_tokenizer


class Config(RunConfig):
    """One run of few-shot classification, or its repetition over shots and seeds."""

    templates: Annotated[tuple[str, ...], Field(min_length=1)] = (TEMPLATE,)
    """Texts with a place ``{}`` for the name of a class; several are averaged."""
    class_names: Annotated[dict[str, str], Field(default_factory=dict)]
    """Words for classes whose names in the data say little; of all others "_" becomes a space."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target that is spread evenly over all classes."""
    cache_views: PositiveInt = 1
    """Augmented views of each training image that a Tip-Adapter's cache takes the mean of."""
    shots: tuple[PositiveInt, ...] = ()
    """Numbers of training images per class to repeat the run for (validation: at most 4); () takes the data's own."""
    seeds: tuple[NonNegativeInt, ...] = ()
    """Seeds to repeat the run for, each with other training images; () is one run."""


def run(config: Config) -> dict[str, Any]:
    """Train, write the run directory, and return its metrics; with ``shots`` or ``seeds``, those of the repetitions."""
    RunDirectory(config.output).claim(config.train.resume)
    if config.shots or config.seeds:
        return repeat(config, run, config.shots, config.seeds)
    trainer, data = build(config)
    classes, model = names(config, data), trainer.adapters.modules[""]
    loading = f'model = mmpeft.zero_shot("{config.model.name}", {classes!r}, templates={config.templates!r})'
    tune = partial(feature_cache.search, model, data.val) if feature_cache.caches(model) else None
    return train_and_report(trainer, config, loading, frozen=True, tune=tune)


def check(config: Config) -> None:
    """Print what would be trained, three samples, and the numbers of one step; write nothing."""
    trainer, data = build(config)
    print(trainer.adapters.report())
    check_run(trainer, data.train.describe)


def evaluate(config: Config) -> dict[str, float]:
    """Return the test scores of the adapter in the run directory of a finished run."""
    model, data = load_adapted(config)
    return evaluate_split(model, make_objective(config), data, config.train, config.output)


def predict(config: Config, index: int) -> tuple[Sample, dict[str, float]]:
    """Return a test sample, and the probability of each class by the adapter of a finished run."""
    model, data = load_adapted(config)
    if not 0 <= index < len(data.test):
        raise ValueError(f"index: {index} is not among the {len(data.test)} test samples")
    with torch.no_grad():
        probabilities = model.eval()(data.test[index]["image"][None]).softmax(-1)[0]
    return data.test.samples[index], dict(zip(data.classes, probabilities.tolist(), strict=True))


def build(config: Config) -> tuple[Trainer, DataSplits]:
    """Put together a trainer: the classifier with its adapters, their caches filled, the data and the objective."""
    model, data = load(config)
    adapters = add_adapters(model, config, head=False)
    feature_cache.fill(model, data.train, views=config.cache_views, seed=config.train.seed)
    return Trainer(model, adapters, make_objective(config), data, config.train, config.output), data


def load_adapted(config: Config) -> tuple[ZeroShotClassifier, DataSplits]:
    """Load the data, and a fresh classifier with the adapters that the run directory holds."""
    model, data = load(config)
    load_adapters(model, config)
    return model, data


def load(config: Config) -> tuple[ZeroShotClassifier, DataSplits]:
    """Load the data as the model wants it, and the zero-shot classifier of its classes."""
    set_seed(config.train.seed)
    backbone = mmpeft.load_model(config.model.name, image_size=config.model.image_size)
    data = load_data(config.data, backbone)
    tokenizer = load_tokenizer(config.model.name)
    return mmpeft.zero_shot(backbone, names(config, data), templates=config.templates, tokenizer=tokenizer), data


def names(config: Config, data: DataSplits) -> list[str]:
    """Return the words for the classes."""
    return [config.class_names.get(name, name.replace("_", " ")) for name in data.classes]


def make_objective(config: Config) -> Classification:
    """Return the cross entropy, or what PromptSRC adds to it."""
    for method in (method for methods in config.adapters.values() for method in methods):
        if isinstance(method, PromptSRC):
            weights = {"text": method.text_weight, "image": method.image_weight, "logits": method.logits_weight}
            return SelfRegulated(config.label_smoothing, **weights)
    return Classification(config.label_smoothing)


def main(arguments: list[str]) -> None:
    """Train as the command line says."""
    task.main(run, Config, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
