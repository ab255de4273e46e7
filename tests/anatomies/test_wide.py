"""A wide list of architectures: the default LoRA is W + s B A there, by plain torch, or it is refused.

Merged equals unmerged or is refused; off and remove give the frozen model to the bit.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from written_weights import written

import mmpeft

IDS = torch.arange(5, 19).view(2, 7)
SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
PICTURE = {"image_size": 32, "patch_size": 8, "num_channels": 3}
KEYS = {"num_key_value_heads": 2, "head_dim": 8}
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 64,
}  # fmt: skip
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 2, "vocab_size": 64}
STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2]}
WINDOWS = {"embed_dim": 16, "num_heads": (2, 2), "window_size": 4}

TEXT: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": SIZE | KEYS,
    "CohereForCausalLM": SIZE | KEYS | ENDS,
    "Gemma3ForCausalLM": SIZE | KEYS,
    "GPT2LMHeadModel": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64},
    "GPTNeoXForCausalLM": SIZE,
    "BertForSequenceClassification": SIZE,
    "ModernBertForSequenceClassification": SIZE | ENDS,
    "DistilBertForMaskedLM": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "vocab_size": 64},
    "T5ForConditionalGeneration": T5,
    "M2M100ForConditionalGeneration": BART | ENDS,
    "MarianMTModel": BART | ENDS,
}
"""Models over words, by class; sizes of their configurations."""
VISION: dict[str, dict[str, Any]] = {
    "ViTForImageClassification": SIZE | PICTURE,
    "Dinov2ForImageClassification": SIZE | PICTURE,
    "CLIPVisionModel": SIZE | PICTURE,
    "SiglipVisionModel": SIZE | PICTURE,
    "SwinForImageClassification": {"image_size": 32, "patch_size": 4, "depths": [2, 2], **WINDOWS},
    "SegformerForImageClassification": STAGES | {"decoder_hidden_size": 16},
}
TIMM: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
    "cait_xxs24_224": {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
    "xcit_nano_12_p16_224": {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2},
    "beit_base_patch16_224": {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
    "swin_tiny_patch4_window7_224": {"img_size": 32, "depths": (1, 1), **WINDOWS},
    "coatnet_pico_rw_224": {"img_size": 64},
    "resnet18": {},
    "convnext_atto": {},
}


def _hugging_face(name: str, sizes: dict[str, Any]) -> nn.Module:
    import transformers

    cls: Any = getattr(transformers, name)
    made: nn.Module = cls(cls.config_class(**sizes))
    return made


def _timm(name: str, sizes: dict[str, Any]) -> nn.Module:
    import timm

    made: nn.Module = timm.create_model(name, num_classes=5, **sizes)
    return made


def _calls(model: nn.Module, inputs: dict[str, Tensor]) -> Callable[[Any], Tensor]:
    """Return a function that runs a model like this one."""
    names = inspect.signature(model.forward).parameters
    given = {name: value for name, value in inputs.items() if name in names} or {"x": inputs["pixel_values"]}

    def run(own: Any) -> Tensor:
        found = own(**given)
        tensor: Tensor = found if isinstance(found, Tensor) else found[0]
        return tensor

    return run


def inputs(decodes: bool) -> dict[str, Tensor]:
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2)).double()
    return {"input_ids": IDS, "pixel_values": image, **({"decoder_input_ids": IDS[:, :4]} if decodes else {})}


def build(name: str) -> tuple[nn.Module, Callable[[Any], Tensor]]:
    """Return a model in float64, with every parameter away from zero and one, and what runs it."""
    torch.manual_seed(0)
    model = _timm(name, TIMM[name]) if name in TIMM else _hugging_face(name, (TEXT | VISION)[name])
    with torch.no_grad():
        for parameter in {id(p): p for p in model.parameters()}.values():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model = model.double().eval().requires_grad_(False)
    given = inputs(decodes=name in TEXT and "decoder_input_ids" in inspect.signature(model.forward).parameters)
    if name in TIMM and "img_size" in TIMM[name] and TIMM[name]["img_size"] != 32:
        given["pixel_values"] = given["pixel_values"].repeat(1, 1, 2, 2)
    return model, _calls(model, given)


@torch.no_grad()
def check(model: nn.Module, run: Callable[[Any], Tensor]) -> str:
    """Adapt a model by the default LoRA and try all that is promised; return what refused it, if anything did."""
    frozen = run(model)
    try:
        adapters = mmpeft.adapt(model, mmpeft.LoRA(rank=2))
    except ValueError as error:
        assert "name targets" in str(error) or "has no linear site" in str(error), error
        assert torch.equal(run(model), frozen)
        return str(error)
    torch.testing.assert_close(run(model), frozen)
    for parameter in adapters.parameters():
        nn.init.normal_(parameter, std=0.3)
    live = run(model)
    assert (live - frozen).abs().max() > 1e-6, "the adapter does nothing"
    torch.testing.assert_close(live, run(written(model, adapters)))
    adapters.merge()
    torch.testing.assert_close(run(model), live)
    adapters.unmerge()
    with adapters.off():
        assert torch.equal(run(model), frozen)
    adapters.remove()
    assert torch.equal(run(model), frozen)
    return ""


REFUSED = {"ModernBertForSequenceClassification", "resnet18", "convnext_atto", "coatnet_pico_rw_224"}
"""Those without attn.q and attn.v: no attention, or a fused projection whose rows' order is not known."""


@pytest.mark.parametrize("name", [*TEXT, *VISION, *TIMM])
def test_the_default_low_rank_is_written_weights_or_refused(name: str) -> None:
    model, run = build(name)
    assert bool(check(model, run)) == (name in REFUSED)
