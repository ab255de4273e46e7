"""What every diffusion task does: put the parts together, train, evaluate, draw."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import default_collate

import mmpeft
from mmpeft.assembly.diffusion_config import CacheSettings, DiffusionConfig, Sampling
from mmpeft.assembly.task import add_adapters, checkpoint_blocks, load_adapters, test_sample
from mmpeft.data import DataSplits
from mmpeft.data.diffusion import Reference, load_pictures
from mmpeft.data.tensor_store import TensorStore, weights_key
from mmpeft.heads.denoising import Denoiser
from mmpeft.heads.image_encoder import ImageEncoder
from mmpeft.objectives.denoising import Denoising
from mmpeft.objectives.noise_schedule import noise_schedule
from mmpeft.training.accelerator import make_accelerator
from mmpeft.training.check import check_run
from mmpeft.training.evaluation import evaluate_split
from mmpeft.training.preview import Preview, faults, grid_of, save_picture
from mmpeft.training.run.report import train_and_report
from mmpeft.training.run.run_directory import RunDirectory
from mmpeft.training.trainer import Trainer

Encoder = tuple[ImageEncoder, Reference]
"""The encoder of image prompts, and how it wants pictures."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SHOWN = 4
"""Validation pictures whose texts are drawn on the way, if the configuration has no prompts."""


def run(config: DiffusionConfig, encoder: Encoder | None = None, *, frozen: bool = False) -> dict[str, Any]:
    """Train, write the run directory, and return its metrics; ``frozen`` also tests the model without adapters."""
    RunDirectory(config.output).claim(config.train.resume)
    loading = f'model = mmpeft.load_model("{config.model.name}")'
    return train_and_report(build(config, encoder), config, loading, frozen=frozen)


def check(config: DiffusionConfig, encoder: Encoder | None = None) -> None:
    """Print what would be trained, three samples, and the numbers of one step; write nothing but a cache on disk."""
    trainer = build(config, encoder)
    print(trainer.adapters.report())
    check_run(trainer, trainer.data.train.describe)  # type: ignore[attr-defined]


def evaluate(config: DiffusionConfig, encoder: Encoder | None = None) -> dict[str, float]:
    """Return the test loss of the adapter in the run directory of a finished run."""
    model, data = load(config, encoder)
    load_adapters(model.pipeline, config)
    return evaluate_split(model, _objective(config, model), data, config.train, config.output)


def predict(config: DiffusionConfig, index: int, encoder: Encoder | None = None) -> Path:
    """Draw the ``prompt``, laid out by (or looking like) a test picture where the adapter wants one; return the PNG.

    Raises:
        ValueError: If there is no such test picture.
    """
    model, data = load(config, encoder)
    test_sample(data.test, index)
    load_adapters(model.pipeline, config)
    model.to(make_accelerator(config.train, config.output).device).eval()
    prompts = None if config.prompt is None else [config.prompt]
    picture = draw(model, data.test, config.sampling, [index], prompts)
    black, broken = faults(picture)
    if black or broken:
        print(f"WARNING: the picture {'is black' if black else 'is not all numbers (NaN)'}")
    return save_picture(grid_of(picture), config.output / f"prediction_{index}.png")


def build(config: DiffusionConfig, encoder: Encoder | None = None) -> Trainer:
    """Put together a trainer: the pipeline with its adapters, the data, the objective, and pictures on the way."""
    model, data = load(config, encoder)
    adapters = add_adapters(model.pipeline, config, head=False)
    if config.train.gradient_checkpointing:
        _checkpoint(model)
    _check_conditions(model, data, config)
    preview = None
    if config.preview is not None:
        asked = [*config.preview.prompts]
        indices = [i % len(data.val) for i in range(len(asked))] or [*range(min(SHOWN, len(data.val)))]
        names = tuple(asked or (data.val[index]["prompt"] for index in indices))
        make = partial(draw, model, data.val, config.preview, indices, asked or None)
        preview = Preview(make, config.preview.every, names)
    return Trainer(model, adapters, _objective(config, model), data, config.train, config.output, preview)


def load(config: DiffusionConfig, encoder: Encoder | None = None) -> tuple[Denoiser, DataSplits]:
    """Load the pipeline, and the data in its size.

    A safety checker is left out: it would paint some pictures black, which here means that training went wrong.
    """
    set_seed(config.train.seed)
    pipeline: Any = mmpeft.load_model(config.model.name, dtype=DTYPES[config.precision])
    if getattr(pipeline, "safety_checker", None) is not None:
        pipeline.safety_checker = None
    if config.loss.zero_terminal_snr:
        rescaled = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **rescaled)
    model = Denoiser(pipeline, None if encoder is None else encoder[0]).requires_grad_(False)
    data = load_pictures(config.data, _resolution(config, model), model.factor, None if encoder is None else encoder[1])
    return model, data


def draw(
    model: Denoiser, split: Any, sampling: Sampling, indices: Sequence[int], prompts: Sequence[str] | None = None
) -> Tensor:
    """Return pictures of the prompts, or of the samples' own texts, with what the adapters take of the samples."""
    samples = [split[index] for index in indices]
    batch = default_collate([{key: s[key] for key in ("control", "reference") if key in s} for s in samples])
    device = next(model.denoiser.parameters()).device
    height, width = samples[0]["image"].shape[1:]
    return model.draw(
        prompts or [sample["prompt"] for sample in samples],
        [sampling.seed + place for place in range(len(samples))],
        model.conditions({name: tensor.to(device) for name, tensor in batch.items()}),
        steps=sampling.steps,
        guidance=sampling.guidance,
        negative=sampling.negative,
        size=(height, width),
    )


def _resolution(config: DiffusionConfig, model: Denoiser) -> int:
    if config.model.image_size is not None:
        raise ValueError(f"model.image_size: {config.model.image_size}: a denoiser takes any: set data.resolution")
    return config.data.resolution or model.resolution


def _objective(config: DiffusionConfig, model: Denoiser) -> Denoising:
    schedule = noise_schedule(model.pipeline.scheduler, config.loss)
    return Denoising(schedule, config.loss, **_stores(config.cache, config, model))


def _stores(cache: CacheSettings, config: DiffusionConfig, model: Denoiser) -> dict[str, TensorStore]:
    """Open the caches and say in one line what they hold.

    Raises:
        ValueError: If texts are to be kept while their encoder is changed.
    """
    pipeline, stores = model.pipeline, {}
    texts = {label: own for label, own in model.adapters.modules.items() if label.startswith("text_encoder")}
    if cache.latents is not None:
        views = f"{config.data.views or 1} version(s) of each picture"
        stores["latents"] = _store(cache.latents, cache.path / "latents", pipeline.vae)
        print(f"cache: latents by sample id in {cache.latents}, {views}, in fp32")
    if cache.text is not None:
        changed = [name for name in model.adapters.active for label, part in model.adapters.parts(name).items()
                   if label in texts and part.places]  # fmt: skip
        if changed:
            raise ValueError(f"cache.text: {cache.text!r}, but adapter {changed[0]!r} changes the text encoder: null")
        stores["text"] = _store(cache.text, cache.path / "text", *texts.values())
        print(f"cache: encoded texts in {cache.text}, in {config.precision}")
    return stores


def _store(kind: str, path: Path, *encoders: nn.Module) -> TensorStore:
    return TensorStore(path.expanduser() / weights_key(*encoders) if kind == "disk" else None)


def _checkpoint(model: Denoiser) -> None:
    """Let denoiser and trained text encoders compute their blocks again in the backward pass (non-reentrant)."""
    for label, module in model.adapters.modules.items():
        own: Any = module
        if module is model.denoiser:
            own.enable_gradient_checkpointing()
        elif label.startswith("text_encoder"):
            checkpoint_blocks(own)


def _check_conditions(model: Denoiser, data: DataSplits, config: DiffusionConfig) -> None:
    """Raise a ValueError if an adapter takes what the samples don't have, or has another width than the encoder."""
    sample = data.train[0]
    for kind, advice in (
        ("control", "data.control or data.control_path"),
        ("reference", "task: diffusion/image_prompt"),
    ):
        if model.takers(kind) and kind not in sample:
            raise ValueError(f"adapters.{model.takers(kind)[0]}: no {kind} image for it: set {advice}")
    wanted = {
        name: method.features  # type: ignore[attr-defined]
        for name, methods in config.adapters.items()
        for method in methods
        if method.name == "ip_adapter"
    }
    if wanted and "reference" in sample:
        width = model.features(sample["reference"][None]).shape[-1]
        wrong = [name for name, features in wanted.items() if features != width]
        if wrong:
            raise ValueError(f"adapters.{wrong[0]}.features: {wanted[wrong[0]]}, but the encoder gives {width}")
