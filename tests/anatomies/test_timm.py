"""The map of timm's models: complete, or it names what is missing; slices of fused weights checked by numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import mmpeft
from mmpeft.anatomies.libraries.timm import CONTIGUOUS, EXPECTED
from mmpeft.anatomies.sites import LinearSite

FULL = [
    "vit_base_patch16_224",
    "vit_tiny_r_s16_p8_224",
    "vit_small_patch14_reg4_dinov2",
    "vit_giant_patch14_dinov2",
    "vit_base_patch16_siglip_224",
    "vit_base_patch16_clip_224",
    "vit_so150m_patch16_reg4_map_256",
    "vit_base_patch16_rope_reg1_gap_256",
    "deit3_small_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "flexivit_small",
    "eva02_tiny_patch14_224",
    "eva_giant_patch14_224",
    "vit_small_patch16_dinov3",
    "vit_base_patch16_rope_224",
]
PARTIAL = {
    "beit_base_patch16_224": {"tokens"},
    "beitv2_base_patch16_224": {"tokens"},
    "vit_relpos_small_patch16_224": {"tokens"},
    "vit_relpos_base_patch16_clsgap_224": {"tokens"},
    "swin_tiny_patch4_window7_224": {"tokens"},
    "swinv2_tiny_window8_256": {"tokens"},
    "cait_xxs24_224": {"tokens"},
    "xcit_nano_12_p16_224": {"tokens"},
    "convnext_tiny": {"attn.q", "attn.k", "attn.v", "attn.out", "attn", "tokens"},
    "convnextv2_atto": {"attn.q", "attn.k", "attn.v", "attn.out", "attn", "mlp.up", "mlp.down", "mlp", "tokens"},
    "mixer_s16_224": {"attn.q", "attn.k", "attn.v", "attn.out", "attn", "mlp", "tokens"},
    "resnet18": set(EXPECTED) - {"head"},
    "efficientnet_b0": set(EXPECTED) - {"head"},
}
NAMED = [
    "caformer_s18",
    "coat_tiny",
    "crossvit_tiny_240",
    "davit_tiny",
    "efficientformerv2_s0",
    "fastvit_t8",
    "hiera_tiny_224",
    "maxvit_rmlp_nano_rw_256",
    "mobilevit_s",
    "mvitv2_tiny",
    "naflexvit_base_patch16_gap",
    "nextvit_small",
    "pit_ti_224",
    "poolformer_s12",
    "pvt_v2_b0",
    "regnety_002",
    "samvit_base_patch16",
    "tnt_s_patch16_224",
    "twins_pcpvt_small",
    "volo_d1_224",
]
"""Whatever they lack is named with a reason."""


def built(name: str, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, **{"num_classes": 10} | options)


@pytest.mark.parametrize("name", [*FULL, *PARTIAL, *NAMED])
def test_the_map_is_full_or_names_what_is_missing(name: str) -> None:
    model = built(name)
    sketch = mmpeft.anatomy(model)
    (tower,) = sketch.towers
    present = {site.name for site in sketch.sites()}
    assert present.isdisjoint(tower.missing) and present | set(tower.missing) >= set(EXPECTED)
    assert all(tower.missing.values())
    if name not in NAMED:
        assert set(tower.missing) == PARTIAL.get(name, set())
    paths = [(site.kind, site.path) for site in sketch.sites()]
    assert len(paths) == len(set(paths))
    for site in sketch.sites():
        assert model.get_submodule(site.host_path) is site.host
    assert name in FULL or "no " in str(sketch)


@pytest.mark.parametrize("name", [*FULL, *PARTIAL, *NAMED])
def test_low_rank_goes_in_on_the_meta_device(name: str) -> None:
    model = built(name)
    keys = list(model.state_dict())
    if not mmpeft.anatomy(model).linear_sites("all"):
        with pytest.raises(ValueError, match=r"has no linear site 'attn.q' or 'attn.v'.*: name targets. There are \w+"):
            mmpeft.adapt(model, "lora")
        return
    adapters = mmpeft.adapt(model, mmpeft.LoRA(rank=2, targets="all"))
    assert {parameter.device.type for parameter in adapters.parameters()} == {"meta"}
    assert [key for key in model.state_dict() if not key.startswith("mmpeft.")] == keys
    adapters.remove()
    assert not any(type(module).__name__.startswith("Grafted") for module in model.modules())


def test_a_model_without_a_classifier_has_no_head() -> None:
    model = built("vit_tiny_patch16_224", num_classes=0)
    with pytest.raises(ValueError, match=r"no parameters site 'head': the model was built without a classifier"):
        mmpeft.adapt(model, "linear_probe")


def attentions() -> Iterator[tuple[str, nn.Module, tuple[Any, ...]]]:
    """Yield one small module of each class whose qkv is said to be contiguous, with what its forward takes."""
    from timm.layers.attention import Attention, AttentionRope
    from timm.models import beit, cait, eva, swin_transformer, swin_transformer_v2, vision_transformer_relpos, xcit

    x = torch.randn(2, 16, 8)
    yield "Attention", Attention(8, num_heads=2, qkv_bias=True), (x,)
    yield "AttentionRope", AttentionRope(8, num_heads=2, qkv_bias=True), (x,)
    yield "Beit", beit.Attention(8, num_heads=2), (x,)
    yield "TalkingHead", cait.TalkingHeadAttn(8, num_heads=2, qkv_bias=True), (x,)
    yield "Eva", eva.EvaAttention(8, num_heads=2, qk_norm=False, scale_norm=False), (x,)
    yield "Swin", swin_transformer.WindowAttention(8, num_heads=2, window_size=(4, 4)), (x,)
    yield "SwinV2", swin_transformer_v2.WindowAttention(8, num_heads=2, window_size=(4, 4)), (x,)
    yield "RelPos", vision_transformer_relpos.RelPosAttention(8, num_heads=2, qkv_bias=True), (x,)
    yield "XCA", xcit.XCA(8, num_heads=2, qkv_bias=True), (x,)


ATTENTIONS = list(attentions())


def test_every_contiguous_class_is_checked() -> None:
    checked = {f"{type(module).__module__}.{type(module).__name__}" for _, module, _ in ATTENTIONS}
    assert checked == CONTIGUOUS


class _Shift(nn.Module):
    """Adds a constant to some rows of a linear layer's output."""

    def __init__(self, inner: nn.Module, rows: slice, amount: Tensor) -> None:
        super().__init__()
        self.inner, self.rows, self.amount = inner, rows, amount
        self.weight, self.bias = inner.weight, inner.bias

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x).clone()
        y[..., self.rows] += self.amount
        return y


@torch.no_grad()
@pytest.mark.parametrize(("name", "attention", "arguments"), ATTENTIONS, ids=[name for name, *_ in ATTENTIONS])
def test_slices_are_the_queries_keys_and_values(name: str, attention: Any, arguments: tuple[Any, ...]) -> None:
    from mmpeft.anatomies.libraries.linear import linear_site
    from mmpeft.anatomies.libraries.timm import _slices

    attention.eval()
    for parameter in attention.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.3)
    if hasattr(attention, "qkv_bias_separate"):
        attention.qkv_bias_separate = True
    whole = linear_site("attn.qkv", attention.qkv, "qkv", tower="vision", layer=0)
    rows = {site.name: site.rows for site in _slices(attention, "qkv", whole)}
    assert [rows[f"attn.{part}"] for part in "qkv"] == [slice(0, 8), slice(8, 16), slice(16, 24)]
    plain, inner, amount = attention(*arguments), attention.qkv, torch.randn(8)

    def shifted(part: str) -> Tensor:
        attention.qkv = _Shift(inner, rows[f"attn.{part}"], amount)
        try:
            return attention(*arguments)
        finally:
            attention.qkv = inner

    def moved(part: str) -> bool:
        return not torch.allclose(shifted(part), plain, atol=1e-5)

    if name in ("SwinV2", "XCA"):
        probed = [part for part in "qkv" if moved(part)]
        assert probed == ["q", "k", "v"]
    else:
        assert not moved("k") and moved("q")
    if name not in ("TalkingHead", "XCA"):
        expected = plain + amount @ attention.proj.weight.T
        torch.testing.assert_close(shifted("v"), expected, rtol=1e-4, atol=1e-4)


def test_a_giant_takes_low_rank_everywhere_on_the_meta_device() -> None:
    model = built("vit_giant_patch14_dinov2")
    adapters = mmpeft.adapt(model, mmpeft.LoRA(rank=8, targets="all"))
    sites = [site for part in adapters.parts().values() for site, _, _ in part.places]
    assert len(sites) == 40 * 4 and all(isinstance(site, LinearSite) for site in sites)
