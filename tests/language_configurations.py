"""Real language models by their published configurations, written down here since no hub is reachable."""

from __future__ import annotations

from typing import Any


def _llama(width: int, hidden: int, layers: int, heads: int, pairs: int, words: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": pairs,
        "vocab_size": words,
        "tie_word_embeddings": False,
        **more,
    }


def _gpt2(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {"n_embd": width, "n_layer": layers, "n_head": heads}


def _four(width: int, layers: int, heads: int, words: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": words,
        **more,
    }


def _opt(width: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return _four(width, layers, heads, 50272, ffn_dim=4 * width, word_embed_proj_dim=width) | more


def _t5(width: int, hidden: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {"d_model": width, "d_ff": hidden, "num_layers": layers, "num_heads": heads, **more}


def _bart(width: int, layers: int, heads: int, words: int) -> dict[str, Any]:
    both = {"layers": layers, "attention_heads": heads, "ffn_dim": 4 * width}
    sides = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in both.items()}
    return {"d_model": width, "vocab_size": words, **sides}


TIED = {"tie_word_embeddings": True}
ROBERTA = {"type_vocab_size": 1, "max_position_embeddings": 514}
LLAVA = {
    "text_config": {"model_type": "llama", **_llama(4096, 11008, 32, 32, 32, 32064)},
    "vision_config": {
        "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768,
    },
    "vision_feature_layer": -2,
    "tie_word_embeddings": False,
}  # fmt: skip
QWEN2_VL = {
    "text_config": {"model_type": "qwen2_vl_text", **_llama(1536, 8960, 28, 12, 2, 151936)},
    "vision_config": {"embed_dim": 1280, "depth": 32, "num_heads": 16, "hidden_size": 1536, "patch_size": 14},
    "tie_word_embeddings": True,
}
QWEN25_VL = {
    "text_config": {"model_type": "qwen2_5_vl_text", **_llama(2048, 11008, 36, 16, 2, 151936)},
    "vision_config": {
        "hidden_size": 1280, "intermediate_size": 3420, "depth": 32, "num_heads": 16, "out_hidden_size": 2048,
    },
    "tie_word_embeddings": True,
}  # fmt: skip
SMOLVLM = {
    "text_config": {"model_type": "llama", **_llama(576, 1536, 30, 9, 3, 49280)},
    "vision_config": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "image_size": 512, "patch_size": 16,
    },
    "scale_factor": 4,
    "tie_word_embeddings": False,
}  # fmt: skip

CONFIGURATIONS: dict[str, tuple[str, dict[str, Any], int]] = {
    "Llama-2-7B": ("LlamaForCausalLM", _llama(4096, 11008, 32, 32, 32, 32000), 6_738_415_616),
    "Llama-2-13B": ("LlamaForCausalLM", _llama(5120, 13824, 40, 40, 40, 32000), 13_015_864_320),
    "Llama-3-8B": ("LlamaForCausalLM", _llama(4096, 14336, 32, 32, 8, 128256), 8_030_261_248),
    "Llama-3.2-1B": ("LlamaForCausalLM", _llama(2048, 8192, 16, 32, 8, 128256) | TIED, 1_235_814_400),
    "Mistral-7B": ("MistralForCausalLM", _llama(4096, 14336, 32, 32, 8, 32000), 7_241_732_096),
    "Qwen2.5-0.5B": ("Qwen2ForCausalLM", _llama(896, 4864, 24, 14, 2, 151936) | TIED, 494_032_768),
    "Qwen2.5-7B": ("Qwen2ForCausalLM", _llama(3584, 18944, 28, 28, 4, 152064), 7_615_616_512),
    "Qwen3-0.6B": ("Qwen3ForCausalLM", _llama(1024, 3072, 28, 16, 8, 151936, head_dim=128) | TIED, 596_049_920),
    "Qwen3-8B": ("Qwen3ForCausalLM", _llama(4096, 12288, 36, 32, 8, 151936, head_dim=128), 8_190_735_360),
    "Gemma-2B": ("GemmaForCausalLM", _llama(2048, 16384, 18, 8, 1, 256000, head_dim=256) | TIED, 2_506_172_416),
    "Gemma-2-2B": ("Gemma2ForCausalLM", _llama(2304, 9216, 26, 8, 4, 256000, head_dim=256) | TIED, 2_614_341_888),
    "Gemma-3-1B": ("Gemma3ForCausalLM", _llama(1152, 6912, 26, 4, 1, 262144, head_dim=256) | TIED, 999_885_952),
    "Phi-2": ("PhiForCausalLM", _llama(2560, 10240, 32, 32, 32, 51200), 2_779_683_840),
    "Phi-3-mini": ("Phi3ForCausalLM", _llama(3072, 8192, 32, 32, 32, 32064), 3_821_079_552),
    "GPT-2": ("GPT2LMHeadModel", _gpt2(768, 12, 12), 124_439_808),
    "GPT-2-medium": ("GPT2LMHeadModel", _gpt2(1024, 24, 16), 354_823_168),
    "GPT-2-large": ("GPT2LMHeadModel", _gpt2(1280, 36, 20), 774_030_080),
    "GPT-2-XL": ("GPT2LMHeadModel", _gpt2(1600, 48, 25), 1_557_611_200),
    "Pythia-160M": ("GPTNeoXForCausalLM", _four(768, 12, 12, 50304, intermediate_size=3072), 162_322_944),
    "Pythia-1.4B": ("GPTNeoXForCausalLM", _four(2048, 24, 16, 50304, intermediate_size=8192), 1_414_647_808),
    "OPT-125M": ("OPTForCausalLM", _opt(768, 12, 12), 125_239_296),
    "OPT-350M": (
        "OPTForCausalLM",
        _opt(1024, 24, 16, word_embed_proj_dim=512, do_layer_norm_before=False),
        331_196_416,
    ),
    "OPT-1.3B": ("OPTForCausalLM", _opt(2048, 24, 32), 1_315_758_080),
    "Falcon-7B": ("FalconForCausalLM", _four(4544, 32, 71, 65024), 6_921_720_704),
    "Falcon-40B": (
        "FalconForCausalLM",
        _four(8192, 60, 128, 65024, num_kv_heads=8, new_decoder_architecture=True),
        41_303_293_952,
    ),
    "Mixtral-8x7B": ("MixtralForCausalLM", _llama(4096, 14336, 32, 32, 8, 32000), 46_702_792_704),
    "Qwen1.5-MoE": (
        "Qwen2MoeForCausalLM",
        _llama(
            2048, 5632, 24, 16, 16, 151936, moe_intermediate_size=1408, shared_expert_intermediate_size=5632,
            num_experts=60,
        ),
        14_315_784_192,
    ),
    "BERT-base": ("BertModel", {}, 109_482_240),
    "BERT-large": ("BertModel", _four(1024, 24, 16, 30522, intermediate_size=4096), 335_141_888),
    "RoBERTa-base": ("RobertaModel", _four(768, 12, 12, 50265, **ROBERTA), 124_645_632),
    "XLM-RoBERTa-base": ("XLMRobertaModel", _four(768, 12, 12, 250002, **ROBERTA), 278_043_648),
    "DeBERTa-v3-base": (
        "DebertaV2Model",
        _four(
            768, 12, 12, 128100, intermediate_size=3072, type_vocab_size=0, relative_attention=True,
            position_biased_input=False, pos_att_type=["p2c", "c2p"], position_buckets=256, share_att_key=True,
            norm_rel_ebd="layer_norm",
        ),
        183_831_552,
    ),
    "T5-small": ("T5ForConditionalGeneration", _t5(512, 2048, 6, 8), 60_506_624),
    "T5-base": ("T5ForConditionalGeneration", _t5(768, 3072, 12, 12), 222_903_552),
    "Flan-T5-base": ("T5ForConditionalGeneration", _t5(768, 2048, 12, 12, feed_forward_proj="gated-gelu"), 222_903_552),
    "BART-base": ("BartForConditionalGeneration", _bart(768, 6, 12, 50265), 139_420_416),
    "BART-large": ("BartForConditionalGeneration", _bart(1024, 12, 16, 50265), 406_291_456),
    "LLaVA-1.5-7B": ("LlavaForConditionalGeneration", LLAVA, 7_063_427_072),
    "Qwen2-VL-2B": ("Qwen2VLForConditionalGeneration", QWEN2_VL, 2_208_985_600),
    "Qwen2.5-VL-3B": ("Qwen2_5_VLForConditionalGeneration", QWEN25_VL, 3_754_622_976),
    "SmolVLM-256M": ("SmolVLMForConditionalGeneration", SMOLVLM, 256_484_928),
}  # fmt: skip
"""By name: the class of transformers, what its configuration differs in from the class's own, and its parameters.

These are the published numbers, but for Flan-T5: transformers 5 ties its head, which was a matrix of its own.
"""


def build(name: str) -> Any:
    """Return a model of these on the meta device, where it has no memory."""
    import torch
    import transformers

    kind, options, _ = CONFIGURATIONS[name]
    cls = getattr(transformers, kind)
    with torch.device("meta"):
        return cls(cls.config_class(**options))
