"""In a model of 64 bits nothing of an adapter is rounded to fewer: neither its numbers nor what it computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_language import llama
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import mmpeft

NARROW = (torch.float32, torch.bfloat16, torch.float16)


class Rounding(TorchDispatchMode):
    """Counts the operations that make numbers of fewer than 64 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, torch.Tensor) and leaf.dtype in NARROW for leaf in tree_leaves(made)):
            self.names.append(str(func))
        return made


def test_no_operation_rounds_that_the_frozen_model_has_not(home: Any) -> None:
    model, batch = home.build().double(), home.batch()
    batch = batch.double() if batch.is_floating_point() else batch
    with torch.no_grad(), Rounding() as frozen:
        home.run(model, batch)
    adapters = home.adapt(model, seed=1)
    assert {tensor.dtype for tensor in adapters.state_dict().values() if tensor.is_floating_point()} <= {torch.float64}
    with torch.no_grad(), Rounding() as adapted:
        home.run(model, batch)
    if (
        home.method == "ladder_side_tuning"
    ):  # has narrow blocks of the library beside the wide ones, with norms in 32 bits
        assert set(adapted.names) == set(frozen.names)
    else:
        assert sorted(adapted.names) == sorted(frozen.names)


def test_numbers_of_a_configuration_are_not_rounded(make_case: Any) -> None:
    model = make_case("tip_adapter", "zero_shot").build().double()
    state = mmpeft.adapt(model, mmpeft.TipAdapter(shots=2, alpha=1.1, beta=5.7)).state_dict()
    assert [float(state[f"task.logits.tip_adapter.{name}"]) for name in ("alpha", "beta")] == [1.1, 5.7]


def test_words_to_start_from_are_not_rounded() -> None:
    model = llama().double()
    start = model.get_input_embeddings().weight[[3, 4]].detach().clone() / 3
    with torch.no_grad():
        model.get_input_embeddings().weight[[3, 4]] = start
    adapters = mmpeft.adapt(model, mmpeft.PromptTuning(tokens=2, init="text", ids=(3, 4)))
    (vectors,) = adapters.parameters()
    assert torch.equal(vectors, start)


@pytest.mark.parametrize("training", [True, False])
def test_a_probes_norm_is_not_rounded(make_case: Any, training: bool) -> None:
    model = make_case("linear_probe", "vit").build().double()
    mmpeft.adapt(model, mmpeft.LinearProbe(norm=True))
    x = make_case("linear_probe", "vit").batch().double()
    model.train(training)
    with torch.no_grad(), Rounding() as rounding:
        model(x)
    assert not rounding.names
