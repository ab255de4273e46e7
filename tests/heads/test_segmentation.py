from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.convnext import ConvNeXt
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import mmpeft
from mmpeft.heads.segmentation import Segmenter

SIZE: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 0}
MODELS = {
    "vit": lambda: VisionTransformer(**SIZE, reg_tokens=2),
    "eva": lambda: Eva(**SIZE, use_rot_pos_emb=True),
    "swin": lambda: SwinTransformer(
        img_size=32, patch_size=2, window_size=4, embed_dim=8, depths=(1, 1), num_heads=(2, 2), num_classes=0
    ),
    "convnext": lambda: ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), num_classes=0),
}


def make(name: str = "vit", **options: Any) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(MODELS[name](), 5, **options).eval()


def images(size: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("options", [{}, {"decoder": "conv", "width": 8}, {"blocks": [0, 1]}], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_every_pixel_gets_logits(name: str, options: dict[str, Any]) -> None:
    assert make(name, **options)(images()).shape == (2, 5, 32, 32)


def test_a_patch_is_decoded_where_it_lies() -> None:
    model = make()
    tokens = model.backbone.forward_features(images())[:, 3:]
    (maps,) = model.maps(images())
    assert maps.shape == (2, 16, 4, 4)
    assert torch.equal(maps[:, :, 1, 3], tokens[:, 7])
    torch.testing.assert_close(model.backbone.forward_intermediates(images(), indices=1, norm=True)[1][0], maps)


@pytest.mark.parametrize("deep", [True, False])
def test_prompts_do_not_stand_among_the_features(deep: bool) -> None:
    model = make()
    before = [maps.shape for maps in model.maps(images())]
    mmpeft.adapt(model, mmpeft.VPT(tokens=2, deep=deep))
    assert [maps.shape for maps in model.maps(images())] == before


def test_shallow_prompts_refuse_the_maps_of_blocks_that_they_flow_through() -> None:
    model = make(blocks=[0, 2])
    mmpeft.adapt(model, mmpeft.VPT(tokens=2, deep=False))
    with pytest.raises(ValueError, match="use deep prompts"):
        model(images())


@pytest.mark.parametrize("method", [mmpeft.LoRA(rank=2), mmpeft.AdaptFormer(bottleneck=4), mmpeft.BitFit()], ids=repr)
def test_adapter_and_decoder_train_together_and_come_back(method: Any, tmp_path: Any) -> None:
    model = make(decoder="conv", width=8)
    frozen = {name: value.clone() for name, value in model.state_dict().items()}
    adapters = mmpeft.adapt(model, [method, mmpeft.LinearProbe()])
    parts = {name: parameter.shape for name, parameter in adapters.named_parameters() if "task" in name}
    assert sum(shape.numel() for shape in parts.values()) == sum(
        p.numel() for p in make(decoder="conv", width=8).head.parameters()
    )
    optimizer = torch.optim.SGD(adapters.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(images()).square().mean().backward()
        adapters.check_gradients()
        optimizer.step()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in frozen.items())
    adapters.save(tmp_path / "saved")
    fresh = make(decoder="conv", width=8)
    mmpeft.load(fresh, tmp_path / "saved")
    assert torch.equal(fresh(images()), model(images()))


def test_layers_are_those_of_the_backbone() -> None:
    model = make()
    adapters = mmpeft.adapt(model, [mmpeft.LoRA(rank=2, layers="last:1"), mmpeft.LinearProbe()])
    places = {name.partition("attn")[0] for name, _ in adapters.named_parameters() if "lora" in name}
    assert places == {"main.blocks.2."}


def test_an_adapter_loads_into_the_bare_backbone(tmp_path: Any) -> None:
    model = make()
    adapters = mmpeft.adapt(model, mmpeft.LoRA(rank=2))
    for parameter in adapters.parameters():
        nn.init.normal_(parameter, std=0.1)
    adapters.save(tmp_path / "saved")
    bare = make().backbone
    mmpeft.load(bare, tmp_path / "saved")
    assert torch.equal(bare.forward_features(images()), model.backbone.forward_features(images()))


def test_wrong_requests_are_refused() -> None:
    with pytest.raises(ValueError, match=r"blocks: \[3\] not among the model's 3 \(0 to 2\)"):
        make(blocks=[1, 3])
    with pytest.raises(ValueError, match=r"timm's models, and this one is of 'generic'"):
        Segmenter(nn.Sequential(nn.Linear(4, 4)), 5)
