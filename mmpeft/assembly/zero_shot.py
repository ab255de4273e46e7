"""What the tasks on zero-shot classifiers share: the classifier of the data's classes, its objective and its caches."""

from __future__ import annotations

from functools import partial

import mmpeft
from mmpeft.assembly import tip_cache
from mmpeft.assembly.images import answer_by_class, refuse_one_class
from mmpeft.assembly.parts import Parts
from mmpeft.assembly.zero_shot_config import ZeroShotConfig
from mmpeft.data import DataSplits, load_data
from mmpeft.data.protocols import FEW_SHOT
from mmpeft.heads.zero_shot import TEMPLATE
from mmpeft.methods import Method, PromptSRC, TipAdapter
from mmpeft.objectives.classification import Classification
from mmpeft.objectives.self_regulated import SelfRegulated
from mmpeft.settings import nearest
from mmpeft.zoo import load_tokenizer


def assemble(config: ZeroShotConfig) -> Parts:
    """Load the data as the model wants it, and the zero-shot classifier of its classes.

    Caches of a Tip-Adapter are filled with the training images, and tuned on validation when all else is trained.
    """
    name = config.model.name
    backbone = mmpeft.load_model(name, image_size=config.model.image_size)
    data = load_data(config.data, backbone)
    refuse_one_class(data.classes, config.data.title, data.train.labels)
    tokenizer, named, texts = load_tokenizer(name), words(config, data), templates(config)
    model = mmpeft.zero_shot(backbone, named, templates=texts, tokenizer=tokenizer)
    cached = any(isinstance(method, TipAdapter) for method in _methods(config))
    return Parts(
        config,
        model,
        read=lambda: data,
        objective=lambda adapters: make_objective(config),
        answer=lambda index: answer_by_class(model, data, index),
        loading=f'model = mmpeft.zero_shot("{name}", {named}, templates={texts})',
        frozen=True,
        once_adapted=partial(tip_cache.fill, model, data.train, views=config.cache_views, seed=config.train.seed),
        tune=partial(tip_cache.search, model, data.val) if cached and len(data.val) else None,
    )


def templates(config: ZeroShotConfig) -> tuple[str, ...]:
    """Return the texts of the configuration, of the data's protocol, or the usual one."""
    known = FEW_SHOT.get(config.data.dataset or "") if config.data.name == "few_shot" else None
    return config.templates or (known.templates if known else (TEMPLATE,))


def words(config: ZeroShotConfig, data: DataSplits) -> list[str]:
    """Return the words for the classes."""
    for name in config.class_names if config.data.half is None else ():  # the other half's classes aren't there
        if name not in data.classes:
            raise ValueError(
                f"class_names: {name!r} is no class of data {config.data.title}{nearest(name, data.classes)}"
            )
    return [config.class_names.get(name, name.replace("_", " ")) for name in data.classes]


def make_objective(config: ZeroShotConfig) -> Classification:
    """Return the cross entropy, or what PromptSRC adds to it."""
    for method in _methods(config):
        if isinstance(method, PromptSRC):
            weights = {"text": method.text_weight, "image": method.image_weight, "logits": method.logits_weight}
            return SelfRegulated(config.label_smoothing, **weights)
    return Classification(config.label_smoothing)


def _methods(config: ZeroShotConfig) -> list[Method]:
    return [method for methods in config.adapters.values() for method in methods]
