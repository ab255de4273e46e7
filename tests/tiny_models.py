"""Tiny models of every kind, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def plain_vit(**options: Any) -> Any:
    from timm.models.vision_transformer import VisionTransformer

    size = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}
    return VisionTransformer(**size | options)


def _distilled() -> Any:
    from timm.models.deit import VisionTransformerDistilled

    return VisionTransformerDistilled(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=5)


def _dinov2() -> Any:
    from timm.layers import SwiGLUPacked

    return plain_vit(reg_tokens=4, init_values=0.1, mlp_layer=SwiGLUPacked)


def _qk_norm() -> Any:
    return plain_vit(qk_norm=True, global_pool="avg")


def _eva(**options: Any) -> Any:
    from timm.models.eva import Eva

    return Eva(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=5, **options)


def _eva02() -> Any:
    return _eva(qkv_fused=False, swiglu_mlp=True, scale_mlp=True, use_rot_pos_emb=True, mlp_ratio=2.0)


def _dinov3() -> Any:
    rope = {"use_rot_pos_emb": True, "rope_type": "dinov3", "rope_rotate_half": True, "use_abs_pos_emb": False}
    return _eva(qkv_bias=False, init_values=0.1, num_reg_tokens=4, **rope)


def _beit() -> Any:
    from timm.models.beit import Beit

    return Beit(
        img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=5, use_rel_pos_bias=True,
        use_abs_pos_emb=False, init_values=0.1,
    )  # fmt: skip


WINDOWS: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 4,
    "window_size": 4,
    "embed_dim": 16,
    "depths": (2, 1),
    "num_heads": (2, 2),
}


def _swin() -> Any:
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(**WINDOWS, num_classes=5, drop_path_rate=0.0)


def _swin_v2() -> Any:
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    return SwinTransformerV2(**WINDOWS, num_classes=5, drop_path_rate=0.0)


def _convnext() -> Any:
    from timm.models.convnext import ConvNeXt

    return ConvNeXt(depths=(1, 1, 2, 1), dims=(8, 16, 16, 32), num_classes=5, ls_init_value=0.1)


def _mlp() -> Any:
    from timm.layers import Mlp
    from torch import nn

    stack = (nn.Sequential(nn.LayerNorm(32), Mlp(32, 64)) for _ in range(2))
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 32), nn.Sequential(*stack))


def _bert() -> Any:
    from transformers import BertConfig, BertModel

    return BertModel(
        BertConfig(
            vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip


TINY = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def _llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**TINY, num_key_value_heads=2))


def _gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    still = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    size = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_inner": 64, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, bos_token_id=0, eos_token_id=1, **size, **still))


def _gpt_neox() -> Any:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    return GPTNeoXForCausalLM(GPTNeoXConfig(**TINY))


def _mixtral() -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(MixtralConfig(**TINY, num_key_value_heads=2, num_local_experts=3))


def _t5() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    size = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}
    return T5ForConditionalGeneration(T5Config(vocab_size=50, **size))


def _open_clip(**options: Any) -> Any:
    from open_clip.model import CustomTextCLIP

    size = {"layers": 2, "width": 32}
    vision = {"image_size": 32, "patch_size": 8, "head_width": 16, **size, **options}
    return CustomTextCLIP(16, vision, {"context_length": 9, "vocab_size": 50, "heads": 2, **size, **options})


def _open_clip_attention() -> Any:
    return _open_clip(block_type="custom", qk_norm=True)


def _two_towers(name: str, **text: Any) -> Any:
    import transformers

    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    text = {"vocab_size": 50, "max_position_embeddings": 9, **text, **size}
    vision = {"image_size": 32, "patch_size": 8, **size}
    config = getattr(transformers, f"{name}Config")(text_config=text, vision_config=vision)
    return getattr(transformers, f"{name}Model")(config)


def _hf_clip() -> Any:
    return _two_towers("CLIP", bos_token_id=48, eos_token_id=49)


def _siglip() -> Any:
    return _two_towers("Siglip", projection_size=32)


def _unet() -> Any:
    from tiny_pipelines import unet

    return unet(
        block_out_channels=(8, 8),
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )


def _sd3() -> Any:
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=24, caption_projection_dim=16, pooled_projection_dim=12, out_channels=4,
        pos_embed_max_size=8,
    )  # fmt: skip


def words(texts: list[str]) -> Any:
    """Tokenize: each letter's place in the alphabet, between a start and an end, in 9 places."""
    import torch

    rows = [[48, *(1 + ord(word[0].lower()) % 40 for word in text.replace(".", " .").split()), 49] for text in texts]
    return torch.tensor([row + [0] * (9 - len(row)) for row in rows])


def _zero_shot() -> Any:
    from mmpeft.heads.zero_shot import ZeroShotClassifier

    return ZeroShotClassifier(_open_clip(), ["disc", "ring", "star"], ["a {}.", "one more {}."], words)


MODELS: dict[str, Callable[[], Any]] = {
    "vit": plain_vit,
    "deit_distilled": _distilled,
    "dinov2": _dinov2,
    "qk_norm": _qk_norm,
    "eva": _eva,
    "eva02": _eva02,
    "dinov3": _dinov3,
    "beit": _beit,
    "swin": _swin,
    "swin_v2": _swin_v2,
    "convnext": _convnext,
    "open_clip": _open_clip,
    "open_clip_attention": _open_clip_attention,
    "hf_clip": _hf_clip,
    "siglip": _siglip,
    "zero_shot": _zero_shot,
    "unet": _unet,
    "sd3": _sd3,
    "mlp": _mlp,
    "bert": _bert,
    "llama": _llama,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "mixtral": _mixtral,
    "t5": _t5,
}
