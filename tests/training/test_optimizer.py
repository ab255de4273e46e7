import sys

import pytest
import torch
from torch import nn

from mmpeft.training.config import TrainConfig
from mmpeft.training.optimizer import make_optimizer, restore_state, set_lr, state_of


def make_parameters() -> dict[str, nn.Parameter]:
    torch.manual_seed(0)
    return {"down.weight": nn.Parameter(torch.randn(3, 2)), "bias": nn.Parameter(torch.randn(3))}


def make_large_parameters() -> dict[str, nn.Parameter]:
    """Enough elements for moments in 8 bits: small tensors keep theirs in 32."""
    torch.manual_seed(0)
    return {"down.weight": nn.Parameter(torch.randn(100, 80)), "bias": nn.Parameter(torch.randn(3))}


def test_only_matrices_are_decayed() -> None:
    parameters = make_parameters()
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    optimizer = make_optimizer(parameters, TrainConfig(epochs=1, lr=0.1, weight_decay=0.5))
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(parameters["down.weight"], before["down.weight"] * (1 - 0.1 * 0.5))
    assert torch.equal(parameters["bias"], before["bias"])


def test_all_tensors_are_decayed_where_the_recipe_says_so() -> None:
    """Dassl's SGD: ``w - lr (g + wd w)``, on prompts and biases alike."""
    parameters = make_parameters()
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    config = TrainConfig(epochs=1, lr=0.1, optimizer="sgd", weight_decay=5e-4, decayed="all")
    optimizer = make_optimizer(parameters, config)
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.detach(), before[name] - 0.1 * (1 + 5e-4 * before[name]))


def test_eps_reaches_adamw() -> None:
    optimizer = make_optimizer(make_parameters(), TrainConfig(epochs=1, eps=1e-4))
    assert [group["eps"] for group in optimizer.param_groups] == [1e-4, 1e-4]


def make(parameters: dict[str, nn.Parameter], name: str) -> torch.optim.Optimizer:
    fixed = {"down.weight": (torch.arange(240.0).view(80, 3).cos(), 2.0)} if name == "lora_fa" else {}
    return make_optimizer(parameters, TrainConfig(epochs=1, lr=0.1, optimizer=name), fixed=fixed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "lora_fa", "sgd"])
def test_a_restored_optimizer_continues_to_the_bit(name: str, dtype: torch.dtype) -> None:
    def step(parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in parameters.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(dtype)
        optimizer.step()

    first = {key: nn.Parameter(value.detach().to(dtype)) for key, value in make_large_parameters().items()}
    optimizer = make(first, name)
    step(first, optimizer, 1)
    second = {key: nn.Parameter(value.detach().clone()) for key, value in first.items()}
    state = {key: value.clone() for key, value in state_of(optimizer, first).items()}
    assert state
    other = make(second, name)
    restore_state(other, second, state)
    for seed in (2, 3):
        step(first, optimizer, seed)
        step(second, other, seed)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_adamw_is_one_kernel_with_the_numbers_of_the_loop() -> None:
    first, second = make_parameters(), make_parameters()
    fused = make_optimizer(first, TrainConfig(epochs=1, lr=0.1, weight_decay=0.5))
    loop = torch.optim.AdamW(second.values(), lr=0.1, foreach=False, weight_decay=0.5)
    loop.param_groups[0]["params"] = [second["down.weight"]]
    loop.add_param_group({"params": [second["bias"]], "weight_decay": 0.0})
    assert fused.defaults["fused"]
    for seed in range(3):
        for parameters, optimizer in ((first, fused), (second, loop)):
            torch.manual_seed(seed)
            for parameter in parameters.values():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
    for key in first:
        torch.testing.assert_close(first[key], second[key])


def test_lora_fa_without_a_frozen_a_is_refused() -> None:
    with pytest.raises(ValueError, match=r"train\.optimizer: 'lora_fa' projects by a frozen A"):
        make_optimizer(make_parameters(), TrainConfig(epochs=1, optimizer="lora_fa"))


def test_eps_is_the_optimizers_own_unless_given() -> None:
    assert make(make_large_parameters(), "lora_fa").defaults["eps"] == 1e-6
    assert make(make_large_parameters(), "adamw").defaults["eps"] == 1e-8


def test_set_lr_reaches_every_group() -> None:
    optimizer = make_optimizer(make_parameters(), TrainConfig(epochs=1))
    set_lr(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


def test_moments_of_8_bits_are_kept_in_8_bits() -> None:
    parameters = make_large_parameters()
    optimizer = make_optimizer(parameters, TrainConfig(epochs=1, optimizer="adamw8bit"))
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = state_of(optimizer, parameters)
    assert state["down.weight/state1"].dtype == state["down.weight/state2"].dtype == torch.uint8
    assert state["bias/state1"].dtype == torch.float32


def test_8_bit_moments_need_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ImportError, match=r"bitsandbytes is not installed: pip install 'bitsandbytes'"):
        make_optimizer(make_parameters(), TrainConfig(epochs=1, optimizer="adamw8bit"))
