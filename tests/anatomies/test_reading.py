"""Readers that fail, and models of which only parts are known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import mmpeft
from mmpeft.anatomies import LinearSite, reading


def test_a_reader_that_fails_is_named_and_the_map_is_a_generic_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(model: nn.Module) -> None:
        raise StopIteration("no q")

    monkeypatch.setattr(reading, "READERS", (read,))
    with pytest.warns(UserWarning, match=r"test_reading can't read this Sequential \(StopIteration: no q\)"):
        sketch = mmpeft.anatomy(nn.Sequential(nn.Linear(2, 2)))
    assert sketch.library == "generic" and [site.path for site in sketch.sites()] == ["0"]


@pytest.mark.filterwarnings("error::UserWarning:mmpeft")
def test_gemma_3_with_vision_has_three_towers_whose_projector_holds_a_bare_matrix() -> None:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {"model_type": "gemma3_text", "vocab_size": 64, "num_key_value_heads": 2, "head_dim": 8, **size}
    eyes = {"model_type": "siglip_vision_model", "image_size": 16, "patch_size": 8, "vision_use_head": False, **size}
    numbers = {"image_token_index": 60, "mm_tokens_per_image": 4, "boi_token_index": 61, "eoi_token_index": 62}
    with torch.device("meta"):
        model = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=eyes, **numbers))
    sketch = mmpeft.anatomy(model)
    assert sketch.library == "transformers" and sketch.tower_names() == ["vision", "projector", "decoder"]


def _flux_2() -> nn.Module:
    from diffusers import Flux2Transformer2DModel

    heads = {"attention_head_dim": 8, "num_attention_heads": 2, "axes_dims_rope": (2, 2, 2, 2)}
    sizes = {"in_channels": 16, "joint_attention_dim": 24, "timestep_guidance_channels": 16}
    return Flux2Transformer2DModel(num_layers=1, num_single_layers=1, **heads, **sizes)


def _unet_without_text() -> nn.Module:
    from diffusers import UNet2DModel

    kinds = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    return UNet2DModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4, attention_head_dim=8, **kinds
    )


def _aura_flow() -> nn.Module:
    from diffusers import AuraFlowTransformer2DModel

    sizes = {"attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 16, "caption_projection_dim": 16}
    layers = {"num_mmdit_layers": 2, "num_single_dit_layers": 1}
    return AuraFlowTransformer2DModel(
        sample_size=8, in_channels=4, out_channels=4, pos_embed_max_size=64, **sizes, **layers
    )


def _wan() -> nn.Module:
    from diffusers import WanTransformer3DModel

    sizes = {"in_channels": 4, "out_channels": 4, "text_dim": 16, "freq_dim": 16, "ffn_dim": 32, "num_layers": 2}
    return WanTransformer3DModel(num_attention_heads=2, attention_head_dim=12, **sizes)


def _video_unet() -> nn.Module:
    """Spatial and temporal blocks take turns, as in Stable Video Diffusion."""
    from diffusers import UNetSpatioTemporalConditionModel

    sizes = {"sample_size": 8, "cross_attention_dim": 16, "num_attention_heads": (2, 4), "addition_time_embed_dim": 8}
    return UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, projection_class_embeddings_input_dim=24, **sizes,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    )  # fmt: skip


DENOISERS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "flux_2": (_flux_2, 2),
    "unet_without_text": (_unet_without_text, 4),
    "aura_flow": (_aura_flow, 3),
    "wan": (_wan, 2),
    "video_unet": (_video_unet, 8),
}


@pytest.mark.filterwarnings("error::UserWarning:mmpeft")
@pytest.mark.parametrize("name", DENOISERS)
def test_every_attention_of_a_denoiser_is_in_a_block(name: str) -> None:
    make, count = DENOISERS[name]
    model = make()
    sketch = mmpeft.anatomy(model)
    assert sketch.library == "diffusers" and len(sketch.towers[0].blocks) == count
    hosts = {
        site.host_path
        for site in sketch.select(("*.q",), LinearSite)
        if site.name != "context.q" and site.layer is not None
    }
    queries = {path for path, _ in model.named_modules() if path.endswith(("to_q", "to_qkv_mlp_proj"))}
    assert hosts == queries


@pytest.mark.parametrize("name", ["cait_xxs24_224", "convit_tiny", "swinv2_cr_tiny_224"])
def test_a_sublayer_is_as_wide_as_its_output_whatever_layer_comes_last(name: str) -> None:
    import timm

    size = {"embed_dim": 32, "depth": 2, "num_heads": 2} if "swin" not in name else {"depths": (2, 2), "embed_dim": 16}
    model = timm.create_model(name, img_size=64, **size, **({"num_heads": (2, 4)} if "swin" in name else {}))
    images = torch.randn(1, 3, 64, 64)
    before = model.eval()(images)
    adapters = mmpeft.adapt(model, mmpeft.Houlsby(bottleneck=4))
    torch.testing.assert_close(model(images), before)  # zero-initialised up-projections: the start is the frozen model
    assert adapters.parts()


def test_the_stages_of_a_unet_are_in_its_one_tower() -> None:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        sketch = mmpeft.anatomy(UNet2DConditionModel(cross_attention_dim=768))
    assert [(tower.name, len(tower.blocks)) for tower in sketch.towers] == [("unet", 16)]
