"""Gates against their formula in double precision, on low-rank deltas and bottlenecks, causal and not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import mmpeft


def moved(make_case: Any, model_name: str, methods: object) -> tuple[Any, Any, dict[str, Tensor]]:
    model = make_case("lora", model_name).build().double()
    adapters = mmpeft.adapt(model, methods)
    torch.manual_seed(1)
    for parameter in adapters.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.3)
    return model, adapters, adapters.state_dict()


def seen(model: Any, path: str, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return what goes into a module and what comes out of it."""
    found: list[tuple[Tensor, Tensor]] = []
    module = model.get_submodule(path)
    hook = module.register_forward_hook(lambda _, args, output: found.append((args[0], output)))
    model(ids)
    hook.remove()
    return found[0]


IDS = torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("gate", "averaged"), [("auto", True), ("token", False), ("sequence", True)])
def test_the_gate_stands_in_the_place_of_alpha_over_rank(make_case: Any, gate: str, averaged: bool) -> None:
    options = {"method": "lora", "rank": 2, "layers": "first:1", "targets": "attn.q", "gate": gate}
    model, _, state = moved(make_case, "bert", options)
    path = "encoder.layer.0.attention.self.query"
    x, y = seen(model, path, IDS)
    host = model.get_submodule(path)
    a, b, w, c = (state[f"{path}.lora.{name}"] for name in ("lora_A", "lora_B", "input_gate.weight", "input_gate.bias"))
    g = torch.sigmoid(x @ w.T + c)
    g = g.mean(1, keepdim=True) if averaged else g
    torch.testing.assert_close(y, F.linear(x, host.weight, host.bias) + g * (x @ a.T @ b.T), rtol=1e-10, atol=1e-10)


def test_an_adapter_is_gated_by_its_own_input(make_case: Any) -> None:
    options = {"method": "pfeiffer", "bottleneck": 4, "layers": "first:1", "gate": "auto"}
    model, adapters, state = moved(make_case, "bert", options)
    with adapters.off():
        _, h = seen(model, "encoder.layer.0.output.dropout", IDS)
        _, z = seen(model, "encoder.layer.0.output.LayerNorm", IDS)
    _, y = seen(model, "encoder.layer.0.output.dropout", IDS)
    names = ("down.weight", "down.bias", "up.weight", "up.bias", "input_gate.weight", "input_gate.bias")
    down, d, up, u, w, c = (state[f"encoder.layer.0.mlp.pfeiffer.{name}"] for name in names)
    g = torch.sigmoid(z @ w.T + c).mean(1, keepdim=True)
    expected = h + g * (torch.relu(z @ down.T + d) @ up.T + u)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("gate", "leaks"), [("auto", False), ("token", False), ("sequence", True)])
def test_behind_a_causal_mask_no_token_sees_the_next(make_case: Any, gate: str, leaks: bool) -> None:
    methods = [{"method": "lora", "rank": 2, "gate": gate}, {"method": "pfeiffer", "bottleneck": 4, "gate": gate}]
    model, _, _ = moved(make_case, "llama", methods)
    short, whole = model(IDS[:, :4]).logits, model(IDS).logits[:, :4]
    assert torch.allclose(short, whole, 1e-8, 1e-8) != leaks


def test_a_gate_trains_and_does_not_merge(make_case: Any) -> None:
    model, adapters, _ = moved(make_case, "llama", {"method": "lora", "rank": 2, "gate": "auto"})
    model(IDS).logits.square().mean().backward()
    adapters.check_gradients()
    with pytest.raises(ValueError, match="LowRank has a gate, which depends on the input"):
        adapters.merge()


@pytest.mark.parametrize("gate", ["sequence", "token"])
def test_a_prefix_is_gated_by_what_enters_the_attention(make_case: Any, gate: str) -> None:
    """The mean of the sequence is a factor on keys and values; a token's own says how much of the change it gets."""
    options = {"method": "prefix_tuning", "tokens": 3, "hidden": None, "layers": "first:1", "gate": gate}
    model, _, state = moved(make_case, "bert", options)
    found: list[tuple[Tensor, Tensor]] = []
    module = model.encoder.layer[0].attention.self
    module.register_forward_hook(lambda _, args, output: found.append((args[0], output[0])))
    model(IDS)
    x, y = found[0]
    own = {key.rpartition("prefix_tuning.")[2]: value for key, value in state.items()}
    g = torch.sigmoid(x @ own["input_gate.weight"].T + own["input_gate.bias"])
    q, k, v = (layer(x).unflatten(-1, (2, 16)).transpose(1, 2) for layer in (module.query, module.key, module.value))
    prefix = [own[name].unflatten(-1, (2, 16)).transpose(0, 1)[None] for name in ("keys", "values")]

    def attended(keys: Tensor, values: Tensor, factor: Tensor) -> Tensor:
        k_all = torch.cat([(factor * keys).expand(2, -1, -1, -1), k], 2)
        v_all = torch.cat([(factor * values).expand(2, -1, -1, -1), v], 2)
        return (torch.softmax(q @ k_all.mT / 4, -1) @ v_all).transpose(1, 2).flatten(2)

    one = torch.ones((), dtype=torch.float64)
    plain = attended(prefix[0][:, :, :0], prefix[1][:, :, :0], one)
    expected = attended(*prefix, g.mean(1, keepdim=True)[:, None])  # type: ignore[call-arg]
    if gate == "token":
        expected = plain + g * (attended(*prefix, one) - plain)  # type: ignore[call-arg]
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)


def test_a_saved_gate_comes_back(make_case: Any, tmp_path: Any) -> None:
    options = {"method": "unipelt", "rank": 2, "tokens": 3, "hidden": 8, "bottleneck": 4}
    model, adapters, _ = moved(make_case, "bert", options)
    adapters.save(tmp_path)
    fresh = make_case("lora", "bert").build().double()
    mmpeft.load(fresh, tmp_path)
    torch.testing.assert_close(fresh(IDS).last_hidden_state, model(IDS).last_hidden_state, rtol=1e-10, atol=1e-10)
