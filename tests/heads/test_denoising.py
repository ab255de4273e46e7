"""A pipeline as one module: its encodings are diffusers' own, its pictures those of the pipeline."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from tiny_pipelines import PIPELINES, stable_diffusion, unet

import mmpeft
from mmpeft.heads.denoising import Denoiser
from mmpeft.heads.image_encoder import ImageEncoder

SIZES = torch.tensor([[16, 16, 0, 0, 16, 16]])
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
          "image_size": 16, "patch_size": 8, "projection_dim": 12}  # fmt: skip


@pytest.mark.parametrize("kind", PIPELINES)
def test_a_picture_is_the_pipelines_own(kind: str) -> None:
    pipeline = PIPELINES[kind]()
    model = Denoiser(pipeline).eval()
    how = {
        **model.family.options,
        "num_inference_steps": 2,
        "guidance_scale": 3.0,
        "height": 16,
        "width": 16,
        "output_type": "pt",
    }
    theirs = pipeline(["a cat"], generator=[torch.Generator().manual_seed(5)], **how).images
    ours = model.draw(["a cat"], [5], {}, steps=2, guidance=3.0, size=(16, 16))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", PIPELINES)
def test_every_adapter_of_a_family_gets_its_gradient(kind: str) -> None:
    pipeline = PIPELINES[kind]()
    model = Denoiser(pipeline)
    tower = model.family.denoiser
    adapters = mmpeft.adapt(pipeline, mmpeft.LoRA(rank=2, targets=["attn.q", "attn.v"], towers=tower))
    model.train()
    predicted = model(torch.randn(1, 4, 8, 8), torch.tensor([500.0]), ["a cat"], SIZES, {})
    assert predicted.shape == (1, 4, 8, 8)
    predicted.square().sum().backward()
    adapters.check_gradients()
    assert model.denoiser.training and not model.get_submodule("vae").training


def test_latents_come_back_as_the_picture_that_they_are_of() -> None:
    model = Denoiser(PIPELINES["sd3"]()).eval()  # with a shift
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    mean, _ = model.moments(images, ["a", "b"]).chunk(2, 1)
    expected = (model.pipeline.vae.decode(mean).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(model.decoded(model.scaled(mean)), expected)


def test_the_autoencoder_stays_in_fp32() -> None:
    pipeline = stable_diffusion().to(torch.bfloat16)
    model = Denoiser(pipeline).eval()
    assert model.moments(torch.zeros(1, 3, 16, 16), ["a"]).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.moments(torch.zeros(1, 3, 16, 16), ["a"]).dtype == torch.float32
    assert model.draw(["a"], [0], {}, steps=1, guidance=2.0, size=(16, 16)).dtype == torch.float32


def test_control_images_go_to_those_who_take_them() -> None:
    pipeline = stable_diffusion()
    mmpeft.adapt(pipeline, mmpeft.LoRA(rank=2, towers="unet"), name="style")
    mmpeft.adapt(pipeline, mmpeft.ControlNet(widths=(8, 16)), name="edges")
    model = Denoiser(pipeline)
    model.adapters.activate("style", "edges")
    batch = {"control": torch.rand(1, 3, 16, 16)}
    assert model.takers("control") == ["edges"] and model.takers("reference") == []
    assert list(model.conditions(batch)) == ["edges"]
    model(torch.randn(1, 4, 8, 8), torch.tensor([1.0]), ["a"], SIZES, model.conditions(batch))
    with pytest.raises(ValueError, match="no control image"):
        model(torch.randn(1, 4, 8, 8), torch.tensor([1.0]), ["a"], SIZES, {})


@pytest.mark.parametrize("positions", [False, True])
def test_a_dropped_image_prompt_is_zeros_or_the_features_of_zeros(positions: bool) -> None:
    vision = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**VISION))
    model: Any = Denoiser(stable_diffusion(), ImageEncoder(vision, positions=positions))
    images = torch.randn(2, 3, 16, 16)
    plain = model.features(images)
    found = model.features(images, torch.tensor([False, True]))
    torch.testing.assert_close(found[0], plain[0])
    expected = model.reference(torch.zeros(1, 3, 16, 16)) if positions else torch.zeros(1, 12)
    torch.testing.assert_close(found[1:], expected)
    torch.testing.assert_close(model.nothing(), expected if positions else None)


def test_under_guidance_the_half_without_text_has_no_image_prompt() -> None:
    pipeline = stable_diffusion()
    mmpeft.adapt(pipeline, mmpeft.IPAdapter(features=12, tokens=2), name="look")
    vision = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**VISION))
    model = Denoiser(pipeline, ImageEncoder(vision)).eval()
    seen = []
    (tokens, *_) = model.adapters._edits("look")
    tokens.make, make = lambda features: seen.append(features) or make(features), tokens.make  # type: ignore[has-type]
    conditions = model.conditions({"reference": torch.randn(1, 3, 16, 16)})
    model.draw(["a cat"], [0], conditions, steps=1, guidance=3.0, size=(16, 16))
    assert seen[0].shape == (2, 1, 12)
    assert (seen[0][0] == 0).all() and (seen[0][1] != 0).any()


def test_another_pipeline_is_refused() -> None:
    from diffusers import DDPMPipeline, DDPMScheduler

    with pytest.raises(ValueError, match="a DDPMPipeline can't be trained here"):
        Denoiser(DDPMPipeline(unet(), DDPMScheduler()))
