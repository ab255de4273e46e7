from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

import mmpeft
from mmpeft.heads.pairs import PairEncoder


def make(make_case: Any, model: str) -> Any:
    return make_case("lora", model).build().requires_grad_(False)


@pytest.mark.parametrize("name", ["open_clip", "hf_clip", "siglip"])
def test_one_pass_gives_what_the_library_gives(make_case: Any, name: str) -> None:
    images, ids = make_case("lora", name).batch(), (torch.arange(1, 10) * 5).expand(2, -1)
    backbone = make(make_case, name)
    image, text, scale, bias = PairEncoder(backbone)(images, ids)
    if name == "open_clip":
        expected = (backbone.encode_image(images), backbone.encode_text(ids), backbone.logit_scale.exp())
    else:
        output = backbone(input_ids=ids, pixel_values=images)
        expected = (output.image_embeds, output.text_embeds, backbone.logit_scale.exp())
        image, text = (torch.nn.functional.normalize(features, dim=-1) for features in (image, text))
    for found, wanted in zip((image, text, scale), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    assert (bias is not None) == (name == "siglip")


def test_an_adapter_spans_both_towers_and_loads_into_the_model_alone(make_case: Any, tmp_path: Any) -> None:
    images, ids = make_case("lora", "open_clip").batch(), (torch.arange(1, 10) * 5).expand(3, -1)
    pairs = PairEncoder(make(make_case, "open_clip"))
    frozen = pairs(images, ids)
    adapters = mmpeft.adapt(pairs, mmpeft.LoRA(rank=2))
    for parameter in adapters.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    image, text, _, _ = pairs(images, ids)
    assert not torch.allclose(image, frozen[0])
    assert not torch.allclose(text, frozen[1])
    assert torch.equal(deepcopy(pairs)(images, ids)[1], text)
    with adapters.off():
        assert torch.equal(pairs(images, ids)[0], frozen[0])
    adapters.save(tmp_path / "saved")
    alone = make(make_case, "open_clip")
    mmpeft.load(alone, tmp_path / "saved")
    assert torch.equal(alone.encode_image(images), image)
    assert torch.equal(alone.encode_text(ids), text)


def test_the_logit_scale_is_frozen_unless_it_is_asked_for(make_case: Any) -> None:
    images, ids = make_case("lora", "open_clip").batch(), (torch.arange(1, 10) * 5).expand(3, -1)
    pairs = PairEncoder(make(make_case, "open_clip"))
    mmpeft.adapt(pairs, mmpeft.LoRA(rank=2), name="lora")
    assert not pairs(images, ids)[2].requires_grad
    adapters = mmpeft.adapt(pairs, mmpeft.FullFineTuning(), name="full")
    image, text, scale, _ = pairs(images, ids)
    (scale * (image @ text.T)).sum().backward()
    assert any("logit_scale" in name for name, parameter in adapters.named_parameters() if parameter.grad is not None)


def test_one_tower_is_refused() -> None:
    with pytest.raises(ValueError, match="VisionTransformer has no towers of images and text"):
        PairEncoder(VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2))
