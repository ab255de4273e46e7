"""What diffusion tasks share: the pipeline with its data, its objective and caches, and pictures that it draws."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import default_collate

import mmpeft
from mmpeft.assembly.diffusion_config import CacheSettings, DiffusionConfig, PreviewSettings, Sampling
from mmpeft.assembly.grafting import checkpoint_blocks
from mmpeft.assembly.parts import Parts
from mmpeft.assembly.prediction import Prediction, checked_index
from mmpeft.data import DataSplits
from mmpeft.data.diffusion import Reference, load_pictures
from mmpeft.data.tensor_store import TensorStore, weights_key
from mmpeft.heads.denoising import Denoiser
from mmpeft.heads.image_encoder import ImageEncoder
from mmpeft.objectives.denoising import Denoising
from mmpeft.objectives.noise_schedule import noise_schedule
from mmpeft.training.accelerator import make_accelerator
from mmpeft.training.preview import Preview, faults, grid_of, save_picture
from mmpeft.zoo.precision import DTYPES

Encoder = tuple[ImageEncoder, Reference]
"""The encoder of image prompts, and how it wants pictures."""
SHOWN = 4
"""Validation pictures whose texts are drawn on the way, if the configuration has no prompts."""


def assemble(config: DiffusionConfig, encoder: Encoder | None = None) -> Parts:
    """Load the pipeline, and the data in its size; the adapters are those of the whole pipeline."""
    model = load_denoiser(config, None if encoder is None else encoder[0])
    data = load_pictures(config.data, _resolution(config, model), model.factor, None if encoder is None else encoder[1])
    return Parts(
        config,
        model,
        read=lambda: data,
        objective=lambda adapters: _objective(config, model),
        answer=lambda index: Prediction(picture=draw_prediction(config, model, data, index)),
        loading=f'model = mmpeft.load_model("{config.model.name}")',
        pipeline=model.pipeline,
        frozen=True,
        once_adapted=partial(_fit_model, model, data, config),
        preview=None if config.preview is None else partial(_preview, config.preview, model, data),
    )


def load_denoiser(config: DiffusionConfig, encoder: ImageEncoder | None) -> Denoiser:
    """Load the pipeline as a frozen model of noise.

    A safety checker is left out: it would paint some pictures black, which here means that training went wrong.
    """
    set_seed(config.train.seed)  # an encoder that was loaded before must not change how adapters begin
    pipeline: Any = mmpeft.load_model(config.model.name, dtype=DTYPES[config.precision])
    if getattr(pipeline, "safety_checker", None) is not None:
        pipeline.safety_checker = None
    if config.loss.zero_terminal_snr:
        rescaled = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **rescaled)
    return Denoiser(pipeline, encoder).requires_grad_(False)


def draw_prediction(config: DiffusionConfig, model: Denoiser, data: DataSplits, index: int) -> Path:
    """Draw the ``prompt``, laid out by (or looking like) a test picture where the adapter wants one; return the PNG.

    Raises:
        ValueError: If there is no such test picture.
    """
    checked_index(data.test, index)
    model.to(make_accelerator(config.train, config.output).device).eval()
    prompts = None if config.prompt is None else [config.prompt]
    picture = draw(model, data.test, config.sampling, [index], prompts)
    black, broken = faults(picture)
    if black or broken:
        print(f"WARNING: the picture {'is black' if black else 'is not all numbers (NaN)'}")
    return save_picture(grid_of(picture), config.output / f"prediction_{index}.png")


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
        [sampling.seed + number for number in range(len(samples))],
        model.conditions({name: tensor.to(device) for name, tensor in batch.items()}),
        steps=sampling.steps,
        guidance=sampling.guidance,
        negative=sampling.negative,
        size=(height, width),
    )


def _preview(settings: PreviewSettings, model: Denoiser, data: DataSplits) -> Preview:
    """Return what draws pictures on the way: of the prompts, or of the first validation pictures' own texts."""
    asked = [*settings.prompts]
    indices = [i % len(data.val) for i in range(len(asked))] or [*range(min(SHOWN, len(data.val)))]
    names = tuple(asked or (data.val[index]["prompt"] for index in indices))
    return Preview(partial(draw, model, data.val, settings, indices, asked or None), settings.every, names)


def _fit_model(model: Denoiser, data: DataSplits, config: DiffusionConfig) -> None:
    """Make an adapted pipeline ready for training as the configuration says, and check that the data fits it."""
    if config.train.gradient_checkpointing:
        _checkpoint(model)
    _check_conditions(model, data, config)


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
    texts = {label: module for label, module in model.adapters.modules.items() if label.startswith("text_encoder")}
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
        part: Any = module
        if module is model.denoiser:
            part.enable_gradient_checkpointing()
        elif label.startswith("text_encoder"):
            checkpoint_blocks(part)


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
