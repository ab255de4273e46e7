"""Tiny models of every library, each with a function that runs it, for tests of attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tiny_pipelines
import torch
from torch import Tensor, nn

Run = Callable[[Any], Tensor]


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4))


def llama(implementation: str = "sdpa") -> tuple[nn.Module, Run]:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=50, num_key_value_heads=2, initializer_range=0.2, **sizes)
    model = LlamaForCausalLM._from_config(config, attn_implementation=implementation).eval()
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
    return model, lambda m: m(torch.arange(14).view(2, 7), attention_mask=mask).logits[:, 2:]


def t5() -> tuple[nn.Module, Run]:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4, "num_layers": 2}
    model = T5ForConditionalGeneration(T5Config(vocab_size=50, decoder_start_token_id=0, **sizes)).eval()  # type: ignore[call-arg]
    ids = torch.arange(14).view(2, 7)
    return model, lambda m: m(input_ids=ids, decoder_input_ids=ids[:, :4]).logits


def unet() -> tuple[nn.Module, Run]:
    torch.manual_seed(0)
    return tiny_pipelines.unet().eval(), lambda m: m(noise(2, 4, 8, 8), torch.tensor(3), noise(2, 5, 24)).sample


def sd3() -> tuple[nn.Module, Run]:
    model = tiny_pipelines.stable_diffusion_3().transformer.eval()
    time = torch.tensor([3, 3])
    return model, lambda m: m(noise(2, 4, 8, 8), noise(2, 5, 64), noise(2, 32), time).sample


def flux() -> tuple[nn.Module, Run]:
    model = tiny_pipelines.flux().transformer.eval()
    ids = {"txt_ids": torch.zeros(5, 3), "img_ids": torch.zeros(9, 3), "pooled_projections": noise(2, 24)}
    time = torch.tensor([0.3, 0.3])
    return model, lambda m: m(noise(2, 9, 16), noise(2, 5, 24), timestep=time, guidance=None, **ids).sample


def pixart() -> tuple[nn.Module, Run]:
    model = tiny_pipelines.pixart().transformer.eval()
    time = torch.tensor([3, 3])
    return model, lambda m: m(noise(2, 4, 8, 8), encoder_hidden_states=noise(2, 5, 24), timestep=time).sample


def autoencoder() -> tuple[nn.Module, Run]:
    torch.manual_seed(0)
    return tiny_pipelines.autoencoder().eval(), lambda m: m(noise(1, 3, 8, 8)).sample


MODELS: dict[str, Callable[[], tuple[nn.Module, Run]]] = {
    "llama": llama,
    "llama_eager": lambda: llama("eager"),
    "t5": t5,
    "unet": unet,
    "sd3": sd3,
    "flux": flux,
    "pixart": pixart,
    "autoencoder": autoencoder,
}
