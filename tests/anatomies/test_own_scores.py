"""Attention that takes more than q, k, v and a mask: soft caps, sinks, position biases, one head of keys."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import mmpeft

IDS = torch.tensor([[5, 9, 13, 17, 21, 25, 29], [8, 11, 14, 17, 20, 23, 26]])
SIZE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def _gemma2() -> Any:
    import transformers as t

    config = t.Gemma2Config(
        num_key_value_heads=2, head_dim=8, attn_logit_softcapping=2.0, sliding_window=4, **SIZE, **SPECIAL
    )
    return t.Gemma2ForCausalLM(config)


def _gpt_oss() -> Any:
    import transformers as t

    experts = {"num_local_experts": 2, "num_experts_per_tok": 1}
    config = t.GptOssConfig(num_key_value_heads=2, head_dim=8, sliding_window=4, **experts, **SIZE, **SPECIAL)
    return t.GptOssForCausalLM(config)


def _big_code() -> Any:
    import transformers as t

    return t.GPTBigCodeForCausalLM(t.GPTBigCodeConfig(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32))


def _t5() -> Any:
    import transformers as t

    size = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 2}
    return t.UMT5EncoderModel(t.UMT5Config(vocab_size=64, **size))


MODELS: dict[str, Callable[[], Any]] = {"gemma2": _gemma2, "gpt_oss": _gpt_oss, "gpt_bigcode": _big_code, "umt5": _t5}


def built(name: str) -> Any:
    torch.manual_seed(0)
    model = MODELS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


def out(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(IDS)[0]
    return found


@pytest.mark.parametrize("name", MODELS)
def test_a_chosen_kernel_computes_the_model_s_own_scores(name: str) -> None:
    model = built(name)
    before = out(model)
    with mmpeft.use_attention(model, "math"):
        torch.testing.assert_close(out(model), before, rtol=1e-4, atol=1e-4)
    assert torch.equal(out(model), before)


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss"])
def test_a_prefix_takes_part_in_the_model_s_own_scores(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference puts the prefix in front of what the library's own eager attention is given."""
    model = built(name)
    adapters = mmpeft.adapt(model, mmpeft.PrefixTuning(tokens=3, hidden=None))
    live = out(model)
    edits = [edit for part in adapters.parts().values() for site, edit, _ in part.places]
    with adapters.off():
        before = out(model)
    adapters.remove()
    assert torch.equal(out(model), before)
    home = sys.modules[type(model).__module__]
    eager = home.eager_attention_forward

    def prefixed(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, *args: Any, **kwargs: Any) -> Any:
        edit = edits[module.layer_idx]
        parts = (
            part.view(3, 2, 8).transpose(0, 1)[None].expand(len(q), -1, -1, -1) for part in (edit.keys, edit.values)
        )
        k, v = (torch.cat([new, old], 2) for new, old in zip(parts, (k, v), strict=True))
        return eager(module, q, k, v, torch.cat([mask.new_zeros(*mask.shape[:-1], 3), mask], -1), *args, **kwargs)

    monkeypatch.setattr(home, "eager_attention_forward", prefixed)
    torch.testing.assert_close(live, out(model), rtol=1e-4, atol=1e-4)
    assert (live - before).abs().max() > 1e-2


def test_a_prefix_on_one_head_of_keys() -> None:
    model = built("gpt_bigcode")
    before = out(model)
    adapters = mmpeft.adapt(model, mmpeft.PrefixTuning(tokens=3, hidden=None))
    assert {site.heads for part in adapters.parts().values() for site, _, _ in part.places} == {1}  # type: ignore[attr-defined]
    assert (out(model) - before).abs().max() > 1e-2
    with adapters.route([None, None]):
        torch.testing.assert_close(out(model), before, rtol=1e-4, atol=1e-4)


def test_backends_that_take_no_soft_cap_say_so() -> None:
    model = built("gemma2")
    with (
        mmpeft.use_attention(model, "sdpa"),
        pytest.raises(ValueError, match=r"takes neither a soft cap .*choose auto or math"),
    ):
        out(model)
