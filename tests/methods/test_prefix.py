"""Prefix tuning in language models: the formula, generation, padding, checkpointing, and what is saved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from attending_models import t5
from torch import Tensor, nn

import mmpeft

TOKENS = 3


def build(kind: str, implementation: str = "sdpa", seed: int = 0) -> Any:
    import transformers

    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None, "initializer_range": 0.3}
    if kind == "gpt2":
        config: Any = transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, **ends)
    else:
        config = getattr(transformers, f"{kind.capitalize()}Config")(
            vocab_size=50, num_key_value_heads=2, **sizes, **ends
        )
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation=implementation).eval()


def adapt(model: Any, **options: Any) -> mmpeft.Adapters:
    adapters = mmpeft.adapt(model, mmpeft.PrefixTuning(tokens=TOKENS, **{"hidden": None, **options}))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return adapters


def rotated(x: Tensor, base: float = 10_000.0) -> Tensor:
    """Rotary positions 0, 1, ... of (heads, tokens, width)."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[1]).double()[:, None] / base ** (torch.arange(half).double() / half)
    low, high = x[..., :half], x[..., half:]
    return torch.cat([low * angle.cos() - high * angle.sin(), high * angle.cos() + low * angle.sin()], -1)


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def by_hand(model: Any, ids: Tensor, prefix: dict[str, Tensor]) -> Tensor:
    """A Llama of 4 heads, 2 of them of keys, in plain matrix products: logits (tokens, words)."""
    w = {name: p.double() for name, p in model.named_parameters() if "mmpeft" not in name}
    x = w["model.embed_tokens.weight"][ids]
    hidden = torch.full((len(ids), len(ids)), float("-inf")).double().triu(1)
    for layer in range(2):
        own = {n.removeprefix(f"model.layers.{layer}."): p for n, p in w.items() if f"layers.{layer}." in n}
        y = norm(x, own["input_layernorm.weight"])
        q, k, v = (
            (y @ own[f"self_attn.{n}_proj.weight"].T).unflatten(-1, (-1, 8)).transpose(0, 1) for n in ("q", "k", "v")
        )
        q, k = rotated(q), rotated(k)
        found = []
        for head in range(4):
            columns = slice(8 * (head // 2), 8 * (head // 2) + 8)
            front = [prefix[f"model.layers.{layer}.self_attn.kernel.prefix_tuning.{n}"] for n in ("keys", "values")]
            scores = q[head] @ torch.cat([front[0][:, columns].double(), k[head // 2]]).T / 8**0.5
            scores = scores + torch.cat([torch.zeros(len(ids), TOKENS).double(), hidden], 1)
            weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
            found.append(weights @ torch.cat([front[1][:, columns].double(), v[head // 2]]))
        x = x + torch.cat(found, -1) @ own["self_attn.o_proj.weight"].T
        y = norm(x, own["post_attention_layernorm.weight"])
        gate = y @ own["mlp.gate_proj.weight"].T
        x = x + (gate * gate.sigmoid() * (y @ own["mlp.up_proj.weight"].T)) @ own["mlp.down_proj.weight"].T
    return norm(x, w["model.norm.weight"]) @ w["lm_head.weight"].T


def _prefixes(adapters: mmpeft.Adapters) -> dict[str, Tensor]:
    return {name.partition(".")[2]: parameter for name, parameter in adapters.named_parameters()}


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_is_the_formula(implementation: str) -> None:
    model = build("llama", implementation).double()
    adapters, ids = adapt(model), torch.tensor([3, 14, 15, 9, 26])
    found, expected = model(ids[None]).logits[0], by_hand(model, ids, _prefixes(adapters))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    mine, theirs = (torch.autograd.grad(y.sin().sum(), adapters.parameters()) for y in (found, expected))
    for own, known in zip(mine, theirs, strict=True):
        torch.testing.assert_close(own, known, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["math", "flash"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_every_kernel_gives_the_same(implementation: str, backend: Any) -> None:
    model, ids = build("llama", implementation), torch.arange(10).view(2, 5)
    adapt(model)
    with torch.no_grad():
        expected = model(ids).logits
        mmpeft.use_attention(model, backend)
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)


KINDS = pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3", "gemma"])
"""Key heads for two heads of queries each; fused projections and learned positions; normalised keys; one more."""


@KINDS
@pytest.mark.parametrize(
    "how",
    [{}, {"num_beams": 3}, {"cache_implementation": "static"}, {"num_beams": 2, "cache_implementation": "static"}],
    ids=str,
)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_generation_is_that_without_a_cache(kind: str, how: dict[str, Any], implementation: str) -> None:
    model = build(kind, implementation)
    adapters = adapt(model)
    ids, options = (
        torch.tensor([[3, 14, 15], [9, 26, 5]]),
        {"max_new_tokens": 6, "do_sample": False, "min_new_tokens": 6},
    )
    beams = {"num_beams": how.get("num_beams", 1)}
    whole = model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=False, **beams, **options)
    found = model.generate(ids, attention_mask=torch.ones_like(ids), **how, **options)
    assert torch.equal(found, whole)
    with adapters.off():
        assert not torch.equal(model.generate(ids, attention_mask=torch.ones_like(ids), **beams, **options), whole)


@KINDS
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_padding_on_either_side_changes_nothing(kind: str, implementation: str) -> None:
    model = build(kind, implementation)
    adapt(model)
    ids = torch.tensor([[3, 14, 15]])
    left, right = torch.tensor([[0, 0, 3, 14, 15], [7, 8, 9, 4, 2]]), torch.tensor([[3, 14, 15, 0, 0], [7, 8, 9, 4, 2]])
    with torch.no_grad():
        expected = model(ids).logits[0]
        for padded, real in ((left, slice(2, 5)), (right, slice(0, 3))):
            mask = torch.ones_like(padded)
            mask[0] = padded[0] != 0
            places = (mask.cumsum(-1) - 1).clamp(min=0)
            found = model(padded, attention_mask=mask, position_ids=places).logits[0, real]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@KINDS
def test_left_padded_generation_is_that_of_each_alone(kind: str) -> None:
    model = build(kind)
    adapt(model)
    options = {"max_new_tokens": 5, "do_sample": False, "min_new_tokens": 5}
    alone = [model.generate(torch.tensor([ids]), **options)[0, len(ids) :] for ids in ([3, 14], [9, 26, 5, 11])]
    padded = torch.tensor([[0, 0, 3, 14], [9, 26, 5, 11]])
    found = model.generate(padded, attention_mask=(padded != 0).long(), **options)[:, 4:]
    assert torch.equal(found, torch.stack(alone))


@pytest.mark.parametrize("hidden", [None, 8])
def test_gradient_checkpointing_changes_no_gradient(hidden: int | None) -> None:
    model, ids = build("llama"), torch.arange(10).view(2, 5)
    adapters = adapt(model, hidden=hidden)
    plain = torch.autograd.grad(model(ids).logits.sin().sum(), adapters.parameters())
    model.train().gradient_checkpointing_enable({"use_reentrant": False})
    found = torch.autograd.grad(model(ids).logits.sin().sum(), adapters.parameters())
    for own, known in zip(found, plain, strict=True):
        torch.testing.assert_close(own, known, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("targets", [("attn.kernel",), ("cross.kernel",), ("attn.kernel", "cross.kernel")], ids=str)
def test_an_encoder_and_decoder_have_prefixes_where_they_are_asked_for(targets: tuple[str, ...]) -> None:
    model, run = t5()
    adapters = adapt(model, targets=targets)
    run(model).sin().sum().backward()
    adapters.check_gradients()
    names = {site.name for part in adapters.parts().values() for site, _, _ in part.places}
    assert names == set(targets)


@pytest.mark.parametrize("kind", ["t5", "bart"])
@pytest.mark.parametrize("beams", [1, 3])
def test_a_decoder_behind_an_encoder_generates_the_same_with_a_cache(kind: str, beams: int) -> None:
    import transformers

    torch.manual_seed(0)
    if kind == "t5":
        model: Any = t5()[0]
    else:
        layers = {f"{side}_{what}": n for side in ("encoder", "decoder")
                  for what, n in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 64))}  # fmt: skip
        ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, "init_std": 0.3}
        model = transformers.BartForConditionalGeneration(
            transformers.BartConfig(vocab_size=50, d_model=32, forced_eos_token_id=None, **layers, **ends)
        ).eval()
    adapt(model, targets=("attn.kernel", "cross.kernel"))
    ids = torch.tensor([[3, 14, 15, 0], [9, 26, 5, 4]])
    how = {"attention_mask": (ids != 0).long(), "num_beams": beams, "max_new_tokens": 6, "min_new_tokens": 6}
    assert torch.equal(model.generate(ids, **how), model.generate(ids, use_cache=False, **how))


@pytest.mark.parametrize("hidden", [None, 8])
def test_saved_is_the_prefix_and_no_network(hidden: int | None, tmp_path: Path) -> None:
    model, ids = build("llama"), torch.arange(10).view(2, 5)
    adapters = adapt(model, hidden=hidden)
    adapters.save(tmp_path)
    fresh = build("llama")
    loaded = mmpeft.load(fresh, tmp_path)
    assert {key.rpartition(".")[2] for key in loaded.state_dict()} == {"keys", "values"}
    assert sum(value.numel() for value in loaded.state_dict().values()) == 2 * 2 * 16 * TOKENS
    with torch.no_grad():
        assert torch.equal(fresh(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ({"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32}, 5_242_880),
        ({"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}, 1_310_720),
    ],
    ids=["Llama-2-7B", "Llama-3-8B"],
)
def test_counts_are_those_of_the_papers(size: dict[str, int], expected: int) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(hidden_size=4096, intermediate_size=64, vocab_size=64, **size))
    flat = mmpeft.adapt(model, mmpeft.PrefixTuning(tokens=20, hidden=None))
    assert sum(p.numel() for p in flat.parameters()) == expected


@KINDS
def test_it_may_start_as_words_are_seen(kind: str) -> None:
    """A prefix of the words in front gives what follows them: their keys have their positions."""
    model, words, ids = build(kind), [3, 14, 15], torch.tensor([[9, 26, 5]])
    together = torch.cat([torch.tensor([words]), ids], 1)
    with torch.no_grad():
        expected = model(together).logits[:, 3:]
        mmpeft.adapt(model, mmpeft.PrefixTuning(tokens=3, hidden=None, ids=tuple(words)))
        found = model(ids, position_ids=torch.arange(3, 6)[None]).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_words_are_repeated_and_no_part_of_what_is_saved(tmp_path: Path) -> None:
    model = build("llama")
    adapters = mmpeft.adapt(model, mmpeft.PrefixTuning(tokens=3, hidden=None, ids=(7,)))
    values = adapters.state_dict()["model.layers.0.self_attn.kernel.prefix_tuning.values"]
    assert torch.equal(values[0], values[2]) and values.any()
    adapters.save(tmp_path)
    (method,) = mmpeft.load(build("llama"), tmp_path).methods()
    assert isinstance(method, mmpeft.PrefixTuning) and method.ids is None
    with pytest.raises(ValueError, match="a network can't start as they are"):
        mmpeft.PrefixTuning(ids=(7,))


def test_the_network_makes_the_prefixes_of_all_layers() -> None:
    """One of two layers, tanh between them: what a single network for all layers has."""
    model = build("llama")
    adapters = mmpeft.adapt(model, mmpeft.PrefixTuning(tokens=5, hidden=7))
    state = adapters.state_dict()
    width = next(value.shape[1] for key, value in state.items() if key.endswith("vectors"))
    assert sum(value.numel() for value in state.values()) == 5 * width + (width + 1) * 7 + (7 + 1) * 2 * 2 * 16
    first = {key.rpartition("prefix_tuning.")[2]: value for key, value in state.items() if ".layers." not in key}
    hidden = (first["vectors"] @ first["down.weight"].T + first["down.bias"]).tanh()
    for layer in range(2):
        at = f"model.layers.{layer}.self_attn.kernel.prefix_tuning"
        keys, values = (hidden @ state[f"{at}.up.weight"].T + state[f"{at}.up.bias"]).split(16, -1)
        torch.testing.assert_close(adapters.kept()[f"{at}.keys"], keys)
        torch.testing.assert_close(adapters.kept()[f"{at}.values"], values)


def walk(model: nn.Module) -> Iterator[type]:
    yield from (type(module) for module in model.modules())


def test_removal_puts_everything_back() -> None:
    model, ids = build("llama", "eager"), torch.arange(10).view(2, 5)
    with torch.no_grad():
        expected, before = model(ids).logits, [*walk(model)]
        configs = [id(layer.self_attn.config) for layer in model.model.layers]
        adapters = adapt(model)
        with adapters.off():
            assert torch.equal(model(ids).logits, expected)
        adapters.remove()
        assert torch.equal(model(ids).logits, expected)
    assert [*walk(model)] == before
    assert [id(layer.self_attn.config) for layer in model.model.layers] == configs


def test_unknown_sites_are_named() -> None:
    with pytest.raises(ValueError, match=r"no attention site 'attn.kernl'.*did you mean 'attn.kernel'"):
        adapt(build("llama"), targets=("attn.kernl",))
