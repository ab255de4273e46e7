"""The configuration of a run: which model, which adapters, which data, how it is trained. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PlainSerializer,
    PlainValidator,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from mmpeft.configuration import Document, read_document
from mmpeft.data.config import DataConfig
from mmpeft.kernels.backends import Backend, MemoryLevel
from mmpeft.methods import Method, parse
from mmpeft.settings import Settings

Fraction = Annotated[float, Field(gt=0, lt=1)]


class Monitor(Settings):
    """The validation score that decides which weights are kept and when to stop early."""

    metric: str = "accuracy"
    """A score that the task reports on the validation split, such as ``accuracy`` or ``loss``."""
    mode: Literal["max", "min"] = "max"
    """Whether a larger (``max``) or a smaller (``min``) score is better."""


def as_store(cache: Any) -> Any:
    """Read a bare word as the store of a cache."""
    return {"store": cache} if isinstance(cache, str) else cache


class CacheConfig(Settings):
    """Whether what lies in front of the first edit is computed once per image; in YAML a bare ``store`` will do."""

    store: Literal["auto", "off", "memory", "disk"] = "auto"
    """Where it is kept; ``auto`` is memory where that pays and fits, and else off, saying why."""
    views: PositiveInt | None = None
    """Random augmentations of each image that are kept and used in turn; null: with augmentation there is no cache."""
    folder: Path | None = None
    """Where ``disk`` keeps it, for other runs to use too; ``prefix_cache`` in the run directory unless given."""


class EpochAverage(Settings):
    """Weights of a mean over epochs: normal density at the epochs 1, 2 ... (Khattak et al. 2023, arXiv:2307.06948)."""

    mean: float
    """The epoch that counts most."""
    std: PositiveFloat
    """Epochs around it that count, as a standard deviation."""


class TrainConfig(Settings):
    """How the adapters are trained; exactly one of ``epochs`` and ``max_steps`` says for how long."""

    epochs: PositiveInt | None = None
    """Passes over the training split."""
    max_steps: PositiveInt | None = None
    """Optimizer steps, instead of ``epochs``."""
    batch_size: PositiveInt = 64
    """Samples per process and forward pass."""
    eval_batch_size: PositiveInt | None = None
    """Samples per process and forward pass in evaluation; ``batch_size`` unless given."""
    lr: PositiveFloat = 1e-3
    """Peak learning rate."""
    lr_per: PositiveInt | None = None
    """Batch size that ``lr`` is meant for, such as 256: the peak is ``lr`` times the samples of an optimizer step (over
    passes and processes) divided by this; null takes ``lr`` as it is."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor on the learning rate for each layer between a parameter and the head: 0.75 in MAE's fine-tuning."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay: decoupled for adamw, added to the gradient for sgd."""
    decayed: Literal["matrices", "all"] = "matrices"
    """What weight decay shrinks: only tensors of two or more dimensions, or vectors (biases, norms, scales) too."""
    optimizer: Literal["adamw", "adamw8bit", "lora_fa", "sgd"] = "adamw"
    """The optimizer; ``adamw8bit`` keeps its moments in 8 bits, and needs bitsandbytes; ``lora_fa`` is peft's,
    with gradients of B projected by the method lora_fa's frozen A."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Decay rates of AdamW's two moments."""
    eps: PositiveFloat | None = None
    """What AdamW adds to the root of its second moment; null takes 1e-8, and 1e-6 for lora_fa."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate goes from its peak to ``min_lr``, or stays."""
    min_lr: NonNegativeFloat = 0.0
    """Learning rate at the end of the decay."""
    step_by: Literal["step", "epoch"] = "step"
    """Whether the learning rate moves with every optimizer step, or stays the same throughout an epoch."""
    decay_span: Literal["after_warmup", "from_start", "cut_short"] = "after_warmup"
    """When the decay happens: from the end of the warm-up to the end of training; over the whole training, the warm-up
    standing in for its beginning (timm); or after the warm-up but as slowly as over the whole training, which cuts it
    short (Dassl)."""
    warmup: Literal["linear", "constant"] = "linear"
    """Whether the warm-up rises to the peak, or stays at ``warmup_lr``."""
    warmup_epochs: NonNegativeFloat = 0.0
    """Epochs of warm-up."""
    warmup_steps: NonNegativeInt = 0
    """Optimizer steps of warm-up, instead of ``warmup_epochs``."""
    warmup_lr: NonNegativeFloat | None = None
    """Learning rate of the first step (or epoch) of the warm-up; null begins with one step's share of the peak."""
    accumulate: PositiveInt = 1
    """Forward passes per optimizer step."""
    clip: PositiveFloat | None = None
    """Largest gradient norm; null leaves gradients as they are."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Mixed precision of forward and backward."""
    ema: Fraction | None = None
    """Decay of an exponential moving average of the adapter, which is then what is evaluated and saved."""
    average: EpochAverage | None = None
    """A mean of the adapter over the epochs so far, instead of ``ema``: evaluated and saved in the same way."""
    seed: NonNegativeInt = 0
    """Seed of initialisation, shuffling, augmentation and dropout."""
    evaluate_every: PositiveInt = 1
    """Epochs between evaluations on the validation split."""
    monitor: Monitor | None = Monitor()
    """The validation score that selects the best weights; null keeps the last ones, and needs no validation split."""
    early_stopping: PositiveInt | None = None
    """Evaluations without a better score after which training stops; null trains to the end."""
    save_every: PositiveInt = 1
    """Epochs between checkpoints."""
    resume: str | None = None
    """``latest`` continues from the newest checkpoint of the run directory, a path from that checkpoint."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Experiment trackers, beside ``metrics.jsonl``."""
    workers: NonNegativeInt = 0
    """Processes that load data; 0 loads it in the training process."""
    drop_last: bool = False
    """Whether a last, smaller training batch of an epoch is left out."""
    cache: Annotated[CacheConfig, BeforeValidator(as_store)] = CacheConfig()
    """The cache of the frozen prefix: a ``store``, or a ``CacheConfig``."""

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        problems = [*self._length_problems(), *self._warmup_problems(), *self._schedule_problems()]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _length_problems(self) -> list[str]:
        if self.epochs is None and self.max_steps is None:
            return ["neither epochs nor max_steps is given: set one of them"]
        if self.epochs is not None and self.max_steps is not None:
            return [f"epochs: {self.epochs} and max_steps: {self.max_steps} contradict each other: set one to null"]
        return []

    def _warmup_problems(self) -> list[str]:
        if self.warmup_epochs and self.warmup_steps:
            return [f"warmup_epochs: {self.warmup_epochs:g} and warmup_steps: {self.warmup_steps}: keep one"]
        if self.epochs is not None and self.warmup_epochs >= self.epochs:
            return [f"warmup_epochs: {self.warmup_epochs:g} must be less than epochs: {self.epochs}"]
        if self.max_steps is not None and self.warmup_steps >= self.max_steps:
            return [f"warmup_steps: {self.warmup_steps} must be less than max_steps: {self.max_steps}"]
        if self.warmup == "constant" and self.warmup_lr is None:
            return ["warmup: constant needs warmup_lr: the learning rate to stay at"]
        if not (self.warmup_epochs or self.warmup_steps) and (self.warmup_lr is not None or self.warmup == "constant"):
            return [f"warmup_lr: {self.warmup_lr:g} without a warm-up: set warmup_epochs or warmup_steps"]
        return []

    def _schedule_problems(self) -> list[str]:
        problems = []
        if self.min_lr > self.lr:
            problems.append(f"min_lr: {self.min_lr:g} is above lr: {self.lr:g}")
        if self.step_by == "epoch" and (self.warmup_steps or self.warmup_epochs % 1):
            problems.append("step_by: epoch needs a whole number of warmup_epochs, and no warmup_steps")
        for key in ("average", "step_by"):
            if getattr(self, key) not in (None, "step") and self.epochs is None:
                problems.append(f"{key}: counts epochs, and max_steps: {self.max_steps} may end within one: use epochs")
        if self.ema is not None and self.average is not None:
            problems.append(f"ema: {self.ema:g} and average: keep one")
        if self.early_stopping is not None and self.monitor is None:
            problems.append(f"early_stopping: {self.early_stopping} without a monitor: nothing says what is better")
        return problems


class QuantizeConfig(Settings):
    """The linear layers of the frozen model's blocks in 4 or 8 bits (QLoRA); in YAML the bare ``kind`` will do."""

    kind: Literal["nf4", "fp4", "int8", "int4"]
    """Numbers of 4 bits by bitsandbytes (``nf4`` is QLoRA's), or whole numbers of 8 or 4 bits by torchao."""
    double: bool = True
    """Whether the scales of ``nf4`` and ``fp4`` are quantised too: 4.127 bits per weight in place of 4.5."""
    compute: Literal["bf16", "fp16", "fp32"] = "bf16"
    """Precision that layers of ``nf4`` and ``fp4`` compute in."""
    skip: tuple[str, ...] = ()
    """fnmatch patterns over module paths of layers that keep their numbers."""


class ModelConfig(Settings):
    """The frozen model; in YAML a bare name will do."""

    name: str
    """Its source: ``timm/NAME.TAG``, ``tiny/vit``, ``hf/OWNER/NAME`` ... or a local path."""
    image_size: PositiveInt | None = None
    """Height and width of its input images in pixels; null keeps what it was pretrained with."""
    quantize: Annotated[
        QuantizeConfig | None, BeforeValidator(lambda kind: {"kind": kind} if isinstance(kind, str) else kind)
    ] = None
    """Its linear layers in 4 or 8 bits: a kind, or a ``QuantizeConfig``; null leaves them as they are."""
    merged: tuple[Path, ...] = ()
    """Directories of adapters that are merged into its weights first, in order: the stages before this one, such as
    instruction tuning before preference alignment."""


def _as_tuple(methods: Any) -> Any:
    if methods in ([], ()):
        raise ValueError("an adapter needs at least one method")
    return methods if isinstance(methods, list | tuple) else (methods,)


def _parse_one(specification: Any) -> Method:
    return parse(specification)[0]


def _dump(methods: tuple[Method, ...]) -> Any:
    specifications = [method.specification() for method in methods]
    return specifications if len(specifications) > 1 else specifications[0]


def _checked_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError("an adapter's name has letters, digits, '-' and '_' only")
    return name


MethodSpecs = Annotated[
    tuple[Annotated[Method, PlainValidator(_parse_one)], ...], BeforeValidator(_as_tuple), PlainSerializer(_dump)
]
"""A method, its bare name, a dict with the key ``method`` and the method's options, or a list of these."""
AdapterName = Annotated[str, AfterValidator(_checked_name)]
"""Names a module and a directory."""


class RunConfig(Settings):
    """One run of a task: everything that its result depends on."""

    task: str
    """The task script under ``tasks/``, such as ``vision/classify``."""
    model: Annotated[ModelConfig, BeforeValidator(lambda model: {"name": model} if isinstance(model, str) else model)]
    """The frozen model: a name, or a ``ModelConfig``."""
    adapters: Annotated[dict[AdapterName, MethodSpecs], Field(min_length=1)]
    """Adapters by name; each a method or a list of methods."""
    data: DataConfig
    """Where samples come from and how they are split."""
    train: TrainConfig
    """How the adapters are trained."""
    attention: Backend = "auto"
    """The kernel of the model's attention; ``auto`` is its library's own way, ``xformers`` needs that extra."""
    memory: MemoryLevel = "standard"
    """What is kept for the backward pass: ``lean`` and ``leanest`` compute more again, with the same gradients."""
    output: Path
    """The run directory; ``runs/<name of the configuration>`` unless the configuration says otherwise."""


BARE = {"model": "name", "model.quantize": "kind", "train.cache": "store", "adapters.*": "method", "loss": "name"}
"""Sections for which a bare word will do, and the key that it stands for."""
EITHER = (("train.epochs", "train.max_steps"), ("train.warmup_epochs", "train.warmup_steps"))
"""Two ways to say one thing: an override, or a configuration on its base, replaces the other one."""


def read_run(path: Path, overrides: Iterable[str] = ()) -> Document:
    """Read a run's configuration, not yet validated; without ``output`` it goes to ``runs/<name of the file>``."""
    document = read_document(path, overrides, BARE)
    document.settle(EITHER)
    document.data.setdefault("output", f"runs/{path.stem}")
    return document
