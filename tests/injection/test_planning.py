"""Adapters of several modules: each method goes where its sites are."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from tiny_pipelines import stable_diffusion, stable_diffusion_xl
from torch import nn

import mmpeft


@pytest.fixture
def parts() -> dict[str, nn.Module]:
    """Two vision transformers, and a convolutional network without attention."""
    torch.manual_seed(0)
    size = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 2, "num_heads": 2, "num_classes": 3}
    vit = timm.models.vision_transformer.VisionTransformer
    convolutions = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    return {"first": vit(**size), "second": vit(**size), "third": convolutions}


def places(adapters: mmpeft.Adapters) -> dict[str, set[str]]:
    return {
        label: {key.rpartition(".")[2] for _, _, key in part.places}
        for label, part in adapters.parts().items()
        if part.places
    }


def test_each_method_goes_where_its_sites_are(parts: Any) -> None:
    adapters = mmpeft.adapt(parts, [mmpeft.LoRA(rank=2), mmpeft.BitFit()])
    assert places(adapters) == {"first": {"lora", "bitfit"}, "second": {"lora", "bitfit"}, "third": {"bitfit"}}


def test_a_label_limits_a_method_to_one_module(parts: Any) -> None:
    methods = [mmpeft.LoRA(rank=2, towers="second"), mmpeft.AdaptFormer(bottleneck=2, towers=("first",))]
    assert places(mmpeft.adapt(parts, methods)) == {"first": {"adaptformer"}, "second": {"lora"}}


def test_a_method_without_sites_anywhere_is_an_error(parts: Any) -> None:
    with pytest.raises(ValueError, match=r"first: .* no linear site or conv\w+ 'cross.k'[\s\S]*second: [\s\S]*third: "):
        mmpeft.adapt(parts, [mmpeft.LoRA(rank=2), mmpeft.LoRA(targets="cross.k")])
    assert not any("mmpeft" in part._modules for part in parts.values())


def test_it_comes_back(parts: Any, tmp_path: Any) -> None:
    adapters = mmpeft.adapt(parts, [mmpeft.LoRA(rank=2, towers="second"), mmpeft.BitFit()])
    state = {key: value.clone() for key, value in adapters.state_dict().items()}
    adapters.save(tmp_path / "both")
    adapters.remove()
    loaded = mmpeft.load(parts, tmp_path / "both").state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


PIPELINES = {"sd": stable_diffusion, "sdxl": stable_diffusion_xl}
ENCODERS = {"sd": ("text_encoder",), "sdxl": ("text_encoder", "text_encoder_2")}


def sites(adapters: mmpeft.Adapters, name: str = "main") -> dict[str, set[str]]:
    parts = adapters.parts(name).items()
    return {label: {site.name for site, _, _ in part.places} for label, part in parts if part.places}


@pytest.mark.parametrize("kind", PIPELINES)
def test_each_target_goes_where_it_is(kind: str) -> None:
    method = mmpeft.LoRA(rank=2, targets=("attn.q", "cross.q", "resnet.conv1"))
    adapters = mmpeft.adapt(PIPELINES[kind](), method)
    expected = {"unet": {"attn.q", "cross.q", "resnet.conv1"}, **{key: {"attn.q"} for key in ENCODERS[kind]}}
    assert sites(adapters) == expected
    assert "has nothing of" not in str(adapters.report())


@pytest.mark.parametrize("kind", PIPELINES)
def test_one_method_takes_towers_of_several_modules(kind: str) -> None:
    pipeline = PIPELINES[kind]()
    adapters = mmpeft.adapt(pipeline, mmpeft.LoRA(rank=2, towers=("unet", "text")))
    assert sites(adapters) == {label: {"attn.q", "attn.v"} for label in ("unet", *ENCODERS[kind])}
    mmpeft.adapt(pipeline, mmpeft.LoRA(rank=2, towers=("unet", ENCODERS[kind][-1])), name="two")
    assert sites(adapters, "two") == {label: {"attn.q", "attn.v"} for label in ("unet", ENCODERS[kind][-1])}


def test_a_module_without_a_target_is_in_the_report() -> None:
    adapters = mmpeft.adapt(stable_diffusion(), [mmpeft.LoRA(rank=2, targets="cross.q"), mmpeft.BitFit()])
    (said,) = adapters.report().lacking
    assert said.startswith(
        "text_encoder has nothing of lora: CLIPTextModel (transformers) has no linear site 'cross.q'"
    )
    assert said in str(adapters.report())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ("attn.q", "cros.q")}, r"unet: .* convolution 'cros.q' \(did you mean 'cross.q'"),
        ({"targets": "cross.q", "towers": ("unet", "text")}, r"^text_encoder: .* no linear site 'cross.q' [^\n]*$"),
        ({"targets": ("attn.q", "cross.q"), "towers": "text"}, r"^text_encoder: .* no linear site 'cross.q' [^\n]*$"),
        ({"towers": "unett"}, r"^towers: the pipeline has no tower 'unett' \(did you mean 'unet'\?\)$"),
        ({"towers": ("unet", "vae")}, r"^towers: 'vae' \(AutoencoderKL \(diffusers\)\) has nothing to adapt$"),
        ({"layers": (3,)}, r"^text_encoder: layers: \[3\] not among the tower's 2 blocks \(0 to 1\)$"),
        ({"towers": "unet", "targets": ("attn.q", "conv_out"), "layers": (0,)}, r"layers: \(0,\) leave out every site"),
    ],
)
def test_what_would_silently_not_train_is_an_error(options: Any, message: str) -> None:
    pipeline = stable_diffusion()
    with pytest.raises(ValueError, match=message):
        mmpeft.adapt(pipeline, mmpeft.LoRA(**options))
    assert "mmpeft" not in pipeline.unet._modules


def test_layers_need_not_fit_a_module_without_the_sites() -> None:
    adapters = mmpeft.adapt(stable_diffusion(), mmpeft.IPAdapter(features=8, layers=(0, 3)))
    assert sites(adapters) == {"unet": {"denoiser", "cross.attention"}}
