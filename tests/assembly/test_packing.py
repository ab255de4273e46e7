"""The probe of packed documents: what a document is scored must not depend on what stands in front of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from mmpeft.assembly.language import check_packing
from mmpeft.heads.token_probabilities import TokenScorer

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 64}


def llama(**options: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=48, max_position_embeddings=64, **options)).eval()


def opt() -> OPTForCausalLM:
    torch.manual_seed(0)
    return OPTForCausalLM(OPTConfig(**SIZES, word_embed_proj_dim=32, ffn_dim=48, max_position_embeddings=64)).eval()


@pytest.mark.parametrize("scale", [1.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_masks_by_positions_passes(scale: float, dtype: torch.dtype) -> None:
    """Of random weights too, and of weights so small that nothing moves the scores by a hundredth of a nat."""
    model = llama()
    for parameter in model.parameters():
        parameter.data *= scale if parameter.ndim > 1 else 1
    check_packing(TokenScorer(model.to(dtype)))
    torch.manual_seed(0)
    check_packing(TokenScorer(GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=32, n_head=4, vocab_size=64)).eval()))


def test_a_model_of_random_weights_that_lets_documents_see_one_another_is_refused() -> None:
    with pytest.raises(ValueError, match="OPTForCausalLM does not score a document behind another one"):
        check_packing(TokenScorer(opt()))


@pytest.mark.parametrize(("scale", "dtype"), [(1.0, torch.float32), (0.1, torch.float32), (1.0, torch.bfloat16)])
def test_a_leak_is_found_however_flat_the_scores_are(scale: float, dtype: torch.dtype) -> None:
    """One layer of three adds a tenth of the mean of all tokens so far; flat scores in bfloat16 would hide it."""
    model = llama()
    for parameter in model.parameters():
        parameter.data *= scale if parameter.ndim > 1 else 1

    def leak(module: Any, inputs: tuple[Tensor, ...], output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        seen = torch.arange(1, hidden.shape[1] + 1).to(hidden)[:, None]
        leaked = hidden + 0.1 * hidden.cumsum(1) / seen
        return (leaked, *output[1:]) if isinstance(output, tuple) else leaked

    model.to(dtype).model.layers[1].register_forward_hook(leak)
    with pytest.raises(ValueError, match=r"data\.packing"):
        check_packing(TokenScorer(model))
