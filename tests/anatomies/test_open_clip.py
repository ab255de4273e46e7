"""open_clip's towers: each is adapted alone; ResNets, attention pools and timm's models offer what is trained there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from open_clip.model import CLIP, CustomTextCLIP

import mmpeft

SIZE = {"layers": 2, "width": 32}
VISION = {"image_size": 32, "patch_size": 8, "head_width": 16, **SIZE}
TEXT = {"context_length": 9, "vocab_size": 50, "heads": 2, **SIZE}


@pytest.mark.parametrize("cls", [CLIP, CustomTextCLIP])
@pytest.mark.parametrize("method", ["bitfit", "full_fine_tuning", "lora", "norm_tuning"])
@torch.no_grad()
def test_a_method_stays_in_its_tower(cls: type[torch.nn.Module], method: str) -> None:
    model = cls(16, VISION, TEXT).eval().requires_grad_(False)
    images, words = torch.randn(2, 3, 32, 32), torch.randint(1, 50, (2, 9))
    towers = {"vision": lambda: model.encode_image(images), "text": lambda: model.encode_text(words)}
    frozen = {name: run() for name, run in towers.items()}
    for name, other in (("vision", "text"), ("text", "vision")):
        adapters = mmpeft.adapt(model, {"method": method, "towers": name})
        for parameter in adapters.parameters():
            parameter.add_(0.1)
        assert not torch.equal(towers[name](), frozen[name])
        assert torch.equal(towers[other](), frozen[other])
        adapters.remove()


RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32}


def shaken(model: torch.nn.Module, method: Any) -> mmpeft.Adapters:
    adapters = mmpeft.adapt(model, method)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return adapters


def resnet() -> Any:
    torch.manual_seed(0)
    model = CLIP(16, RESNET, TEXT).eval().requires_grad_(False)
    with torch.no_grad():
        for module in model.visual.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.normal_(1, 0.2)
                module.bias.normal_(0, 0.2)
    return model


def timm_tower(trunk: Callable[[], Any]) -> Any:
    """A CLIP whose vision tower is a tiny model of timm."""
    torch.manual_seed(0)
    model = CustomTextCLIP(16, {"timm_model_name": "test_vit", "image_size": 160}, TEXT)
    model.visual.trunk = trunk()
    model.visual.head = torch.nn.Linear(32, 16, bias=False)
    return model.eval().requires_grad_(False)


def siglip() -> Any:
    from timm.models.vision_transformer import VisionTransformer

    size = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
    return VisionTransformer(**size, class_token=False, global_pool="map")


def eva() -> Any:
    from timm.models.eva import Eva

    size = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
    return Eva(**size, qkv_fused=False, swiglu_mlp=True, scale_mlp=True, use_rot_pos_emb=True)


def coca() -> Any:
    torch.manual_seed(0)
    return CLIP(32, VISION | {"attentional_pool": True, "attn_pooler_heads": 2}, TEXT).eval().requires_grad_(False)


TOWERS: dict[str, tuple[Callable[[], Any], int]] = {
    "ResNet": (resnet, 64),
    "SigLIP of timm": (lambda: timm_tower(siglip), 32),
    "EVA of timm": (lambda: timm_tower(eva), 32),
    "CoCa's pool": (coca, 32),
}
EVERYWHERE: list[Any] = [
    {"method": "lora", "targets": "all"},
    "ssf",
    "bitfit",
    "norm_tuning",
    "full_fine_tuning",
    "clip_lora",
    "houlsby",
]


@pytest.mark.parametrize(
    "method", EVERYWHERE, ids=lambda method: method if isinstance(method, str) else method["method"]
)
@pytest.mark.parametrize("name", TOWERS)
def test_nothing_is_silently_not_trained(name: str, method: Any) -> None:
    build, size = TOWERS[name]
    model = build()
    images, words = torch.randn(2, 3, size, size), torch.randint(1, 50, (2, 9))
    before = model.encode_image(images)
    adapters = shaken(model, method)
    image, text, scale = model(images, words)
    (image.square().sum() + text.square().sum() + scale).backward()
    adapters.check_gradients()
    moved = [
        key for key, parameter in adapters.named_parameters() if "visual" in key and parameter.grad.abs().max() > 0
    ]
    assert bool(moved) == (not (name == "ResNet" and method in ("clip_lora", "houlsby")))
    assert torch.equal(model.encode_image(images), before) == (not moved)
    adapters.remove()
    assert torch.equal(model.encode_image(images), before)


@torch.no_grad()
def test_a_resnets_sites() -> None:
    model = resnet()
    vision, text = mmpeft.anatomy(model).towers
    assert {site.name for site in vision.sites} == {
        "embed",
        "norm",
        "features",
        "pool.q",
        "pool.k",
        "pool.v",
        "pool.out",
    }
    assert not vision.blocks
    assert {"attn.q", "attn.out", "mlp.up", "mlp.down"} <= {site.name for block in text.blocks for site in block.sites}
    with pytest.raises(ValueError, match="ModifiedResNet has no stack of residual attention blocks"):
        mmpeft.adapt(model, mmpeft.LoRA(targets=("attn.q",), towers="vision"))
    with pytest.raises(ValueError, match="no sequence site 'tokens': only a vision transformer"):
        mmpeft.adapt(model, mmpeft.VPT())


@pytest.mark.parametrize("letters", ["q", "k", "v", "c", "qkvc"])
@torch.no_grad()
def test_an_attention_pool_is_its_merged_self(letters: str) -> None:
    images, model, reference = torch.randn(2, 3, 64, 64), resnet(), resnet()
    frozen = model.encode_image(images)
    names = {"q": "pool.q", "k": "pool.k", "v": "pool.v", "c": "pool.out"}
    own = shaken(model, mmpeft.LoRA(rank=2, alpha=40, targets=tuple(names[letter] for letter in letters))).state_dict()
    for letter in letters:
        at = f"visual.attnpool.{letter}_proj"
        reference.get_submodule(at).weight += 20 * own[f"{at}.lora.lora_B"] @ own[f"{at}.lora.lora_A"]
    expected = reference.encode_image(images)
    torch.testing.assert_close(model.encode_image(images), expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(expected, frozen, atol=1e-4)
    mmpeft.adapters(model).merge()
    torch.testing.assert_close(model.encode_image(images), expected, atol=1e-5, rtol=1e-4)


def test_a_text_tower_of_transformers_has_its_blocks() -> None:
    from open_clip.hf_model import HFTextEncoder
    from transformers import RobertaConfig

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    vision = {"layers": 2, "width": 32, "image_size": 32, "patch_size": 8, "head_width": 16}
    model = CustomTextCLIP(16, vision, {"context_length": 9, "vocab_size": 50, "heads": 2, "layers": 1, "width": 32})
    config = RobertaConfig(vocab_size=50, pad_token_id=0, max_position_embeddings=16, **sizes)
    how = {"config": config, "pooler_type": "mean_pooler", "proj_type": "linear", "pretrained": False}
    model.text = HFTextEncoder("roberta-base", 16, **how)
    text = next(tower for tower in mmpeft.anatomy(model).towers if tower.name == "text")
    assert len(text.blocks) == 2 and "attn.q" not in text.missing
    adapters = mmpeft.adapt(model, mmpeft.LoRA(rank=2, towers="text", layers="last:1"))
    ids = torch.randint(1, 50, (2, 7))
    before = model.eval().encode_text(ids)
    for parameter in adapters.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    assert (model.encode_text(ids) - before).abs().max() > 1e-4
