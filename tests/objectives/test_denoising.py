"""The denoising loss, derived again from its parts; and that its randomness belongs to the samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pipelines import stable_diffusion
from torch import Tensor

import mmpeft
from mmpeft.data.tensor_store import TensorStore
from mmpeft.heads.denoising import Denoiser
from mmpeft.objectives.denoising import Denoising
from mmpeft.objectives.denoising_settings import DenoisingSettings
from mmpeft.objectives.noise_schedule import noise_schedule


@pytest.fixture(scope="module")
def model() -> Denoiser:
    pipeline = stable_diffusion()
    mmpeft.adapt(pipeline, mmpeft.LoRA(rank=2, towers="unet"))
    return Denoiser(pipeline)


def make(model: Denoiser, stores: dict[str, Any] | None = None, **settings: Any) -> Denoising:
    own = DenoisingSettings(**settings)
    return Denoising(noise_schedule(model.pipeline.scheduler, own), own, **stores or {})


def make_batch(count: int = 3, prefix: str = "", first: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(first)
    return {
        f"{prefix}id": [f"{prefix}{first + i}" for i in range(count)],
        f"{prefix}draw": torch.arange(first, first + count) + 100,
        f"{prefix}prompt": [f"a cat {first + i}" for i in range(count)],
        f"{prefix}image": torch.rand(count, 3, 16, 16, generator=generator) * 2 - 1,
        f"{prefix}sizes": torch.tensor([[16, 16, 0, 0, 16, 16]] * count),
    }


def parts(model: Denoiser, batch: dict[str, Any], offset: float = 0.0) -> tuple[Tensor, Tensor, Tensor, list[float]]:
    """Draw by hand: latents, noise, the step of each sample, and the number that decides on dropping."""
    clean, noise, steps, chances = [], [], [], []
    for image, draw in zip(batch["image"], batch["draw"].tolist(), strict=True):
        generator = torch.Generator().manual_seed(draw)
        u = torch.rand((), generator=generator)
        found = model.pipeline.vae.encode(image[None]).latent_dist
        latent = found.mean + found.std * torch.randn(found.mean.shape[1:], generator=generator)
        clean.append(latent * model.pipeline.vae.config.scaling_factor)
        own = torch.randn(latent.shape[1:], generator=generator)
        if offset:
            own = own + offset * torch.randn(len(own), 1, 1, generator=generator)
        noise.append(own)
        steps.append((u * 1000).long())
        chances.append(float(torch.rand((), generator=generator)))
    return torch.cat(clean), torch.stack(noise), torch.stack(steps), chances


@torch.no_grad()
def by_hand(
    model: Denoiser, batch: dict[str, Any], offset: float = 0.0, prompts: list[str] | None = None
) -> tuple[Tensor, Tensor]:
    """The squared errors, and the steps."""
    pipeline = model.pipeline
    clean, noise, steps, _ = parts(model, batch, offset)
    tokens = pipeline.tokenizer(prompts or batch["prompt"], padding="max_length", return_tensors="pt").input_ids
    noisy = pipeline.scheduler.add_noise(clean, noise, steps)
    predicted = pipeline.unet(noisy, steps, pipeline.text_encoder(tokens).last_hidden_state).sample
    return (predicted - noise) ** 2, steps


def test_the_loss_is_the_mean_squared_error_of_the_noise(model: Denoiser) -> None:
    batch = make_batch()
    errors, _ = by_hand(model, batch)
    loss, logs = make(model).loss(model, batch)
    torch.testing.assert_close(loss, errors.mean((1, 2, 3)).sum())
    assert logs == {}


def test_min_snr_and_offset_noise(model: Denoiser) -> None:
    batch = make_batch()
    errors, steps = by_hand(model, batch, offset=0.1)
    abar = model.pipeline.scheduler.alphas_cumprod[steps]
    weights = (abar / (1 - abar)).clamp(max=5) / (abar / (1 - abar))
    loss, _ = make(model, min_snr=5, noise_offset=0.1).loss(model, batch)
    torch.testing.assert_close(loss, (weights * errors.mean((1, 2, 3))).sum())


def test_class_pictures_count_with_their_weight(model: Denoiser) -> None:
    own, other = make_batch(), make_batch(prefix="class_", first=50)
    plain = {name.removeprefix("class_"): value for name, value in other.items()}
    loss, logs = make(model, prior=0.5).loss(model, own | other)
    alone = [by_hand(model, batch)[0].mean((1, 2, 3)).sum() for batch in (own, plain)]
    torch.testing.assert_close(loss, alone[0] + 0.5 * alone[1])
    torch.testing.assert_close(logs["prior"], 0.5 * alone[1])


def test_a_mask_counts_per_place_and_leaves_class_pictures_alone(model: Denoiser) -> None:
    own, other = make_batch(2), make_batch(2, prefix="class_", first=50)
    own["mask"] = torch.zeros(2, 16, 16)
    own["mask"][:, 4:12, 2:9] = 1  # latents: rows 2 to 5, columns 1 to 3, the fourth is half covered
    errors, _ = by_hand(model, own)
    expected = errors[:, :, 2:6, 1:4].sum((1, 2, 3)).sum() / 12
    torch.testing.assert_close(make(model).loss(model, own)[0], expected)
    _, logs = make(model).loss(model, own | other)
    plain = {name.removeprefix("class_"): value for name, value in other.items()}
    torch.testing.assert_close(logs["prior"], by_hand(model, plain)[0].mean((1, 2, 3)).sum())


def test_texts_are_dropped_by_one_draw(model: Denoiser) -> None:
    batch = make_batch(24)
    objective = make(model, drop={"text": 0.3, "image": 0.3, "both": 0.2})
    _, _, _, chances = parts(model, batch)
    generators = [torch.Generator().manual_seed(draw) for draw in batch["draw"].tolist()]
    for generator in generators:
        torch.rand((), generator=generator)
    clean = torch.zeros(24, 4, 8, 8)
    for _ in range(2):
        objective._noise(clean, generators)
    text, image = objective._dropped(generators)
    assert text == [chance < 0.5 for chance in chances]
    assert image == [chance < 0.2 or 0.5 <= chance < 0.8 for chance in chances]
    assert {*zip(text, image, strict=True)} == {(a, b) for a in (True, False) for b in (True, False)}
    prompts = ["" if drop else prompt for drop, prompt in zip(text, batch["prompt"], strict=True)]
    errors, _ = by_hand(model, batch, prompts=prompts)
    torch.testing.assert_close(objective.loss(model, batch)[0], errors.mean((1, 2, 3)).sum())


def test_a_sample_has_its_noise_whatever_is_beside_it(model: Denoiser) -> None:
    batch = make_batch(3)
    each = [{name: value[i : i + 1] for name, value in batch.items()} for i in (2, 0, 1)]
    objective = make(model)
    alone = sum(objective.loss(model, one)[0] for one in each)
    torch.testing.assert_close(objective.loss(model, batch)[0], alone)


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_caches_by_id_and_text_give_the_losses_without_them(model: Denoiser, tmp_path: Path, where: str) -> None:
    """Twice over, in two orders: what is kept by step would be another sample's."""
    folders = {name: tmp_path / name if where == "disk" else None for name in ("latents", "text")}
    stores: dict[str, Any] = {name: TensorStore(folder) for name, folder in folders.items()}
    kept, plain = make(model, stores), make(model)
    batch = make_batch(4)
    with torch.no_grad():
        for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
            shuffled = {n: v[order] if isinstance(v, Tensor) else [v[i] for i in order] for n, v in batch.items()}
            torch.testing.assert_close(kept.loss(model, shuffled)[0], plain.loss(model, shuffled)[0])
        model.moments, before = None, model.moments
        try:
            torch.testing.assert_close(kept.loss(model, batch)[0], kept.loss(model, batch)[0])
            with pytest.raises(TypeError):
                kept.loss(model, batch | {"image": batch["image"] + 0.1})  # another picture of the same id
        finally:
            model.moments = before


def test_the_validation_loss_is_the_same_each_time(model: Denoiser) -> None:
    objective, batches = make(model, drop={"text": 1.0}), [make_batch(3), make_batch(2, first=9)]
    found = []
    with torch.no_grad():
        for seed in (0, 1):
            torch.manual_seed(seed)
            for batch in batches:
                objective.update(model, batch)
            found.append(objective.compute())
    assert found[0] == found[1]
    assert 0.5 < found[0]["loss"] < 2


def test_latents_that_are_no_numbers_name_their_sample(model: Denoiser) -> None:
    batch = make_batch(3)
    batch["image"][1, 0, 0, 0] = float("inf")
    with pytest.raises(ValueError, match="autoencoder makes NaN or infinity of 1: broken"):
        make(model).loss(model, batch)
