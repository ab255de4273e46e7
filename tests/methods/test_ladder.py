"""Ladder Side-Tuning: its formula, no graph in the backbone, and generation with keys and values kept."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_language
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

import mmpeft
from mmpeft.anatomies.sites import BranchSite
from mmpeft.handle.report import saved_bytes
from mmpeft.methods import LadderSideTuning

IDS = torch.randint(3, 40, (3, 7), generator=torch.Generator().manual_seed(0))
TINY = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}


def adapted(model: Any, **options: Any) -> mmpeft.Adapters:
    adapters = mmpeft.adapt(model, LadderSideTuning(**{"reduction": 2} | options))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * 0.2)
    return adapters


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def turned(x: Tensor) -> Tensor:
    """Rotate (batch, heads, tokens, width) by position: pairs half a head apart, base 10,000."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[2])[:, None] / 1e4 ** (torch.arange(half, dtype=x.dtype) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def attention(x: Tensor, w: dict[str, Tensor], heads: int, pairs: int) -> Tensor:
    q, k, v = (
        (x @ w[f"self_attn.{name}_proj.weight"].T).unflatten(-1, (count, -1)).transpose(1, 2)
        for name, count in (("q", heads), ("k", pairs), ("v", pairs))
    )
    k, v = (part.repeat_interleave(heads // pairs, 1) for part in (turned(k), v))
    scores = turned(q) @ k.mT / q.shape[-1] ** 0.5
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    found = scores.masked_fill(later, float("-inf")).softmax(-1) @ v
    return found.transpose(1, 2).flatten(2) @ w["self_attn.o_proj.weight"].T


def block(x: Tensor, w: dict[str, Tensor]) -> Tensor:
    x = x + attention(norm(x, w["input_layernorm.weight"]), w, 4, 2)
    y = norm(x, w["post_attention_layernorm.weight"])
    gate, up, down = (w[f"mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
    return x + (F.silu(y @ gate.T) * (y @ up.T)) @ down.T


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


@pytest.mark.parametrize("layers", ["all", (1,)])
@torch.no_grad()
def test_it_is_the_formula(layers: Any) -> None:
    model = tiny_language.llama().double()
    hidden = model(IDS, output_hidden_states=True).hidden_states
    hidden = [*hidden[:-1], block(hidden[-2], under(dict(model.named_parameters()), "model.layers.1."))]
    (edit,) = adapted(model, layers=layers)._edits("main")
    w = dict(edit.named_parameters())

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    state = linear("start", hidden[0])
    for place, layer in enumerate([0, 1] if layers == "all" else layers):
        gate = 1 / (1 + (-10 * w[f"alpha.{place}"]).exp())
        entering = gate * linear(f"down.{place}", hidden[layer + 1]) + (1 - gate) * state
        state = block(entering, under(w, f"side.tower.layers.{place}."))
    expected = linear("up", norm(state, w["side.tower.norm.weight"])) @ model.lm_head.weight.T
    torch.testing.assert_close(
        model(IDS).logits, expected, rtol=1e-5, atol=2e-6
    )  # rotary angles are of single precision


@torch.no_grad()
def test_of_two_the_last_one_answers() -> None:
    model = tiny_language.llama()
    adapters = adapted(model)
    first = model(IDS).logits
    mmpeft.adapt(model, LadderSideTuning(reduction=2), "second")
    second = model(IDS).logits
    adapters.activate("main", "second")
    assert torch.equal(model(IDS).logits, second)
    adapters.activate("second", "main")
    assert torch.equal(model(IDS).logits, first)


def test_it_learns_a_text_by_heart() -> None:
    model = tiny_language.llama().train()
    adapters = mmpeft.adapt(model, LadderSideTuning(reduction=2))
    optimizer = torch.optim.AdamW(adapters.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        losses.append(model(IDS, labels=IDS).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] / 4


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "bert"])
def test_the_backbone_runs_without_a_graph(name: str, checkpointing: bool, make_case: Any) -> None:
    case, seen = make_case("ladder_side_tuning", name), []
    model = case.build().train()
    adapters = case.adapt(model, seed=1)
    case.run(model).square().mean().backward()
    plain = [parameter.grad for parameter in adapters.parameters()]
    model.zero_grad()
    if checkpointing:
        model.gradient_checkpointing_enable()
    blocks = [site for site in mmpeft.anatomy(model).sites(BranchSite) if site.name == "block"]
    for site in blocks:
        site.host.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    case.run(model).square().mean().backward()
    assert len(seen) == len(blocks)
    if not (name == "t5" and checkpointing):  # its decoder then makes a position bias that wants a gradient
        assert not any(states.requires_grad for site, states in zip(blocks, seen, strict=True) if site.layer)
    for parameter, gradient in zip(adapters.parameters(), plain, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize("name", ["llama", "t5", "bert"])
def test_it_saves_less_than_lora(name: str, make_case: Any) -> None:
    saved = []
    for method in (mmpeft.LadderSideTuning(reduction=4), mmpeft.LoRA(rank=2)):
        case = make_case(method.name, name)
        model = case.build().train()
        mmpeft.adapt(model, method)
        ids = case.batch(8)
        batch = {"input_ids": ids} | ({} if name == "bert" else {"use_cache": False})
        saved.append(saved_bytes(model, batch | ({"decoder_input_ids": ids} if name == "t5" else {})))
    assert saved[0] < saved[1]


HOW: list[dict[str, Any]] = [{"do_sample": False}, {"num_beams": 3, "do_sample": False}]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_a_cache_changes_nothing_that_is_written(name: str, how: dict[str, Any], make_case: Any) -> None:
    case = make_case("ladder_side_tuning", name)
    model = case.build()
    adapters = case.adapt(model, seed=1)
    mask = torch.ones_like(IDS)
    mask[0, :2] = 0
    how = how | {"attention_mask": mask, "max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": 0}
    how |= {"decoder_start_token_id": 0} if name == "t5" else {}
    cached, whole = (model.generate(IDS, use_cache=use, **how) for use in (True, False))
    assert torch.equal(cached, whole)
    with adapters.off():
        assert not torch.equal(model.generate(IDS, **how), whole)


FAMILIES: dict[str, dict[str, int]] = {
    "Mistral": {"sliding_window": 4},
    "Qwen2": {},
    "Qwen3": {"head_dim": 8},
    "Gemma": {"head_dim": 8},
    "SmolLM3": {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
"""Other families of decoders, with options of their configurations."""


@pytest.mark.parametrize("family", FAMILIES)
def test_some_layers_of_other_families_write_the_same_with_a_cache(family: str) -> None:
    size = TINY | {"num_hidden_layers": 3, "num_key_value_heads": 2} | FAMILIES[family]
    model = getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, f"{family}Config")(**size)).eval()
    adapted(model, layers=(0, 2))
    how = {"attention_mask": torch.ones_like(IDS), "do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6}
    cached, whole = (model.generate(IDS, use_cache=use, **how) for use in (True, False))
    assert torch.equal(cached, whole)


@torch.no_grad()
def test_a_cache_of_others_is_refused() -> None:
    model = tiny_language.llama()
    adapters = adapted(model)
    with adapters.off():
        cache = model(IDS).past_key_values
    with pytest.raises(ValueError, match=r"holds 7 words, but not this ladder's keys of them.*use_cache=False"):
        model(IDS[:, :1], past_key_values=cache)


@torch.no_grad()
def test_states_of_another_encoder_are_refused(make_case: Any) -> None:
    case = make_case("ladder_side_tuning", "t5")
    model = case.build()
    case.adapt(model)
    encoded = model.encoder(IDS)
    model(encoder_outputs=encoded, decoder_input_ids=IDS)
    encoded.last_hidden_state = encoded.last_hidden_state + 1
    with pytest.raises(ValueError, match="encoder states that the encoder did not just make"):
        model(encoder_outputs=encoded, decoder_input_ids=IDS)


@pytest.mark.parametrize("tower", ["encoder", "decoder"])
def test_one_half_of_an_encoder_decoder_is_refused(tower: str) -> None:
    with pytest.raises(ValueError, match=rf"towers: '{tower}': a ladder at the {tower} needs one at its"):
        mmpeft.adapt(tiny_language.writer(), LadderSideTuning(reduction=2, towers=tower))


@pytest.mark.parametrize("reduction", [3, 8])
def test_a_reduction_that_does_not_divide_a_head_is_refused(reduction: int) -> None:
    with pytest.raises(ValueError, match=rf"reduction: {reduction} must divide the width of an attention head, 8 and"):
        mmpeft.adapt(tiny_language.llama(), LadderSideTuning(reduction=reduction))
