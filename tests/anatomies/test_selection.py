"""Choosing sites: targets, layers and towers, and the messages when nothing is there."""

from __future__ import annotations

from typing import Any

import pytest

import mmpeft


@pytest.fixture
def vit(make_case: Any) -> Any:
    return make_case("lora", "vit").build()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (mmpeft.LoRA(targets="attn.qq"), r"has no linear site or convolution 'attn.qq' \(did you mean .*'attn.q'"),
        (
            mmpeft.LoRA(targets=("attn.q", "mlp.upp")),
            r"no linear site or convolution 'mlp.upp' \(did you mean 'mlp.up'",
        ),
        (mmpeft.LoRA(targets="tower.*"), r"has no linear site or convolution 'tower.\*' \(one of: .*attn.out"),
        (mmpeft.LoRA(targets="mlp.gate"), r"has no linear site or convolution 'mlp.gate'"),
        (mmpeft.LoRA(layers="last:4"), r"layers: 'last:4' is none of .* the tower has 3"),
        (mmpeft.LoRA(layers="last:0"), r"layers: 'last:0'"),
        (mmpeft.LoRA(layers="middle"), r"layers: 'middle'"),
        (mmpeft.VPT(layers=(0, 3)), r"layers: \[3\] not among the tower's 3 blocks \(0 to 2\)"),
        (mmpeft.LoRA(towers="text"), r"VisionTransformer \(timm\) has no tower 'text' \(one of: vision\)"),
        (mmpeft.LoRA(towers=("vison",)), r"has no tower 'vison' \(did you mean 'vision'"),
    ],
)
def test_a_wrong_selection_says_what_was_near(method: Any, message: str, vit: Any) -> None:
    keys = list(vit.state_dict())
    with pytest.raises(ValueError, match=message):
        mmpeft.adapt(vit, method)
    assert list(vit.state_dict()) == keys and all(parameter.requires_grad for parameter in vit.parameters())


@pytest.mark.parametrize(
    ("method", "need"),
    [
        ("coop", "a model of images and text, such as CLIP"),
        ("controlnet", "a diffusion pipeline"),
        ("custom_diffusion", "a model that attends to a text, such as a diffusion pipeline"),
        ("textual_inversion", "a model of images and text, such as CLIP, or a diffusion pipeline"),
        ("ladder_side_tuning", "a language model of the families"),
    ],
)
def test_a_method_of_other_models_says_which(method: str, need: str, vit: Any) -> None:
    with pytest.raises(ValueError, match=f"this needs {need}"):
        mmpeft.adapt(vit, method)


@pytest.mark.parametrize(
    ("options", "paths"),
    [
        ({"layers": [-1]}, ["blocks.2.attn.q", "blocks.2.attn.v"]),
        ({"layers": "first:1"}, ["blocks.0.attn.q", "blocks.0.attn.v"]),
        ({"targets": "attn.*", "layers": [1]}, [f"blocks.1.attn.{name}" for name in ("q", "k", "v", "proj")]),
        ({"targets": "all", "layers": [1]}, [f"blocks.1.{n}" for n in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]),
        ({"targets": "blocks.*.attn.qkv"}, [f"blocks.{i}.attn.qkv" for i in range(3)]),
        ({"targets": "*.fc1", "layers": "last:2"}, ["blocks.1.mlp.fc1", "blocks.2.mlp.fc1"]),
        ({"targets": ["mlp.up", "mlp.up"], "layers": [0]}, ["blocks.0.mlp.fc1"]),
    ],
)
def test_a_selection_means_these_sites(options: dict[str, Any], paths: list[str], vit: Any) -> None:
    adapters = mmpeft.adapt(vit, {"method": "lora", **options})
    assert [site.path for part in adapters.parts().values() for site, _, _ in part.places] == paths


@pytest.mark.parametrize("specification", [None, [], 3, {"rank": 4}, "lorra", {"method": "vptt"}])
def test_what_is_no_method_is_refused(specification: Any, vit: Any) -> None:
    with pytest.raises(ValueError, match="method"):
        mmpeft.adapt(vit, specification)


def test_the_map_can_be_printed_and_lists_every_kind(vit: Any) -> None:
    text = str(mmpeft.anatomy(vit))
    for word in ("VisionTransformer (timm)", "attn.q", "rows 0:32", "mlp.down", "tokens", "head", "0-2"):
        assert word in text
    mmpeft.adapt(vit, "full_fine_tuning")
    assert str(mmpeft.anatomy(vit)) == text
