"""AdapterFusion against its formula in double precision, and the adapters it needs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from language_configurations import build
from torch import Tensor

import mmpeft

IDS = torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(0))
TASKS = ("one", "two", "three")


def with_tasks(make_case: Any) -> Any:
    model = make_case("lora", "bert").build().double()
    for seed, name in enumerate(TASKS):
        adapters = mmpeft.adapt(model, mmpeft.Pfeiffer(bottleneck=4), name=name)
        torch.manual_seed(seed)
        for parameter in adapters.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.3)
        adapters.activate(name, trainable=False)
    return model


def output_of(model: Any, name: str = "dropout") -> Tensor:
    found: list[Tensor] = []
    layer = model.encoder.layer[0].output.get_submodule(name)
    hook = layer.register_forward_hook(lambda _, args, y: found.append(y))
    model(IDS)
    hook.remove()
    return found[0]


def test_tokens_look_at_what_the_adapters_make_of_them(make_case: Any) -> None:
    model = with_tasks(make_case)
    adapters = mmpeft.adapters(model)
    with adapters.off():
        h, z = output_of(model), output_of(model, "LayerNorm")
    mmpeft.adapt(model, mmpeft.AdapterFusion(adapters=TASKS), name="fusion")
    torch.manual_seed(9)
    for parameter in adapters.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.3)
    own = {k.rpartition("adapter_fusion.")[2]: v for k, v in adapters.state_dict("fusion").items() if "layer.0" in k}
    changes = []
    for name in TASKS:
        a = {k.rpartition("pfeiffer.")[2]: v for k, v in adapters.state_dict(name).items() if "layer.0" in k}
        changes.append(torch.relu(z @ a["down.weight"].T + a["down.bias"]) @ a["up.weight"].T + a["up.bias"])
    query = z @ own["query.weight"].T + own["query.bias"]
    scores = [(query * (f @ own["key.weight"].T + own["key.bias"])).sum(-1) for f in changes]
    weights = torch.stack(scores).softmax(0)
    expected = h + sum(w[..., None] * (f @ own["value"].T) for w, f in zip(weights, changes, strict=True))
    torch.testing.assert_close(output_of(model), expected, rtol=1e-9, atol=1e-9)


def test_only_the_fusion_learns_and_it_is_saved_alone(make_case: Any, tmp_path: Path) -> None:
    model = with_tasks(make_case)
    adapters = mmpeft.adapt(model, mmpeft.AdapterFusion(adapters=TASKS), name="fusion")
    before = {name: copy.deepcopy(adapters.state_dict(name)) for name in TASKS}
    optimizer = torch.optim.AdamW(adapters.parameters(), lr=0.1)
    for _ in range(3):
        model(IDS).last_hidden_state.square().mean().backward()
        adapters.check_gradients()
        optimizer.step()
    for name in TASKS:
        assert all(torch.equal(adapters.state_dict(name)[key], value) for key, value in before[name].items())
    assert all(p.grad is None for name in TASKS for part in adapters.parts(name).values() for p in part.parameters())
    adapters.save(tmp_path / "fusion")
    fresh = with_tasks(make_case)
    mmpeft.load(fresh, tmp_path / "fusion")
    assert torch.equal(output_of(fresh), output_of(model))
    twin = copy.deepcopy(model)
    adapters.remove("one")
    assert torch.equal(output_of(twin), output_of(fresh))


def test_the_adapters_have_to_be_there_frozen_and_behind_the_sublayer(make_case: Any) -> None:
    model = with_tasks(make_case)
    with pytest.raises(ValueError, match=r"adapters: the model has no 'tree' to fuse \(did you mean 'three'"):
        mmpeft.adapt(model, mmpeft.AdapterFusion(adapters=("one", "tree")), name="fusion")
    with pytest.raises(ValueError, match=r"'one' has 0 bottlenecks behind encoder\.layer\.0\.attn, and"):
        mmpeft.adapt(model, mmpeft.AdapterFusion(adapters=("one",), targets=("attn",)), name="fusion")
    mmpeft.adapters(model).activate("one", trainable=True)
    with pytest.raises(ValueError, match="'one' would be trained along: freeze it first"):
        mmpeft.adapt(model, mmpeft.AdapterFusion(adapters=("one",)), name="fusion")


def test_the_count_on_bert_base_is_the_published_one() -> None:
    model = build("BERT-base")
    for name in TASKS:
        mmpeft.adapt(model, "pfeiffer", name=name).activate(name, trainable=False)
    assert mmpeft.adapt(model, mmpeft.AdapterFusion(adapters=TASKS), name="fusion").report().trainable == 21_252_096
