"""What the tasks on zero-shot classifiers share: their configuration, the classifier of the data's classes, one run."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from accelerate.utils import set_seed
from pydantic import Field, NonNegativeInt, PositiveInt

import mmpeft
from mmpeft.assembly import tip_cache as feature_cache
from mmpeft.assembly.task import add_adapters, load_adapters
from mmpeft.data import DataSplits, load_data
from mmpeft.data.protocols import FEW_SHOT
from mmpeft.heads.zero_shot import TEMPLATE, ZeroShotClassifier
from mmpeft.methods import PromptSRC
from mmpeft.objectives.classification import Classification
from mmpeft.objectives.self_regulated import SelfRegulated
from mmpeft.settings import nearest
from mmpeft.training.config import RunConfig
from mmpeft.training.run.report import train_and_report
from mmpeft.training.trainer import Trainer
from mmpeft.zoo import load_tokenizer


class ZeroShotConfig(RunConfig):
    """One run on a zero-shot classifier, or its repetition over seeds."""

    templates: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Texts with a place ``{}`` for the name of a class; several are averaged. Null takes those of the data's protocol,
    or "a photo of a {}."."""
    class_names: Annotated[dict[str, str], Field(default_factory=dict)]
    """Words for classes whose names in the data say little; of all others "_" becomes a space."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target that is spread evenly over all classes."""
    cache_views: PositiveInt = 1
    """Augmented views of each training image that a Tip-Adapter's cache takes the mean of."""
    seeds: tuple[NonNegativeInt, ...] = ()
    """Seeds to repeat the run for, each with other training images; () is one run."""


def load_classifier(config: ZeroShotConfig) -> tuple[ZeroShotClassifier, DataSplits]:
    """Load the data as the model wants it, and the zero-shot classifier of its classes."""
    set_seed(config.train.seed)
    backbone = mmpeft.load_model(config.model.name, image_size=config.model.image_size)
    data = load_data(config.data, backbone)
    tokenizer = load_tokenizer(config.model.name)
    return mmpeft.zero_shot(backbone, words(config, data), templates=templates(config), tokenizer=tokenizer), data


def load_adapted(config: ZeroShotConfig) -> tuple[ZeroShotClassifier, DataSplits]:
    """Load the data, and a fresh classifier with the adapters that the run directory holds."""
    model, data = load_classifier(config)
    load_adapters(model, config)
    return model, data


def make_trainer(config: ZeroShotConfig) -> tuple[Trainer, ZeroShotClassifier, DataSplits]:
    """Put together a trainer: the classifier with its adapters, their caches filled, the data and the objective."""
    model, data = load_classifier(config)
    adapters = add_adapters(model, config, head=False)
    feature_cache.fill(model, data.train, views=config.cache_views, seed=config.train.seed)
    trainer = Trainer(model, adapters, make_objective(config), data, config.train, config.output)
    return trainer, model, data


def train_classifier(config: ZeroShotConfig) -> dict[str, Any]:
    """Train, tune the caches on validation, write the run directory, and return its metrics with the frozen model's."""
    trainer, model, data = make_trainer(config)
    loading = f'model = mmpeft.zero_shot("{config.model.name}", {words(config, data)}, templates={templates(config)})'
    tune = partial(feature_cache.search, model, data.val) if feature_cache.caches(model) and len(data.val) else None
    return train_and_report(trainer, config, loading, frozen=True, tune=tune)


def templates(config: ZeroShotConfig) -> tuple[str, ...]:
    """Return the texts of the configuration, of the data's protocol, or the usual one."""
    known = FEW_SHOT.get(config.data.dataset or "") if config.data.name == "few_shot" else None
    return config.templates or (known.templates if known else (TEMPLATE,))


def words(config: ZeroShotConfig, data: DataSplits) -> list[str]:
    """Return the words for the classes."""
    for name in config.class_names:
        if name not in data.classes:
            raise ValueError(
                f"class_names: {name!r} is no class of data {config.data.title}{nearest(name, data.classes)}"
            )
    return [config.class_names.get(name, name.replace("_", " ")) for name in data.classes]


def make_objective(config: ZeroShotConfig) -> Classification:
    """Return the cross entropy, or what PromptSRC adds to it."""
    for method in (method for methods in config.adapters.values() for method in methods):
        if isinstance(method, PromptSRC):
            weights = {"text": method.text_weight, "image": method.image_weight, "logits": method.logits_weight}
            return SelfRegulated(config.label_smoothing, **weights)
    return Classification(config.label_smoothing)
