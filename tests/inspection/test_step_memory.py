from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from tiny_models import MODELS, plain_vit
from tiny_pipelines import unet
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.optim import SGD, AdamW
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_map_only

import mmpeft
from mmpeft.handle.report import saved_bytes
from mmpeft.inspection.step_memory import own_loss, predict

SIZE = {"vocab_size": 500, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**SIZE, num_key_value_heads=2, intermediate_size=256))


def bert() -> Any:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(**SIZE, intermediate_size=256))


IDS = torch.arange(256).view(4, 64) + 1
CASES: dict[str, tuple[Callable[[], Any], Any]] = {
    "vit": (partial(plain_vit, embed_dim=128, num_heads=4, img_size=64), torch.ones(4, 3, 64, 64)),
    "open_clip": (MODELS["open_clip"], (torch.ones(32, 3, 32, 32), IDS[:, :9].repeat(8, 1) % 50)),
    "unet": (unet, {"sample": torch.ones(4, 4, 16, 16), "timestep": 3, "encoder_hidden_states": torch.ones(4, 7, 24)}),
    "llama": (llama, {"input_ids": IDS, "labels": IDS}),
    "bert": (bert, {"input_ids": IDS, "attention_mask": (IDS < 250).long()}),
}
LORA = mmpeft.LoRA(rank=4, targets="all")
METHODS: dict[str, Any] = {"lora": LORA, "ia3": "ia3", "houlsby": "houlsby", "pfeiffer": "pfeiffer"}
ALSO = [("vit", "vpt"), ("llama", "prefix_tuning"), ("bert", "prefix_tuning"), ("llama", "prompt_tuning")]
CELLS = [(name, method) for name in CASES for method in METHODS] + ALSO


def checkpointed(model: Any) -> None:
    names = ("enable_gradient_checkpointing", "set_grad_checkpointing", "gradient_checkpointing_enable")
    next(getattr(model, name) for name in names if hasattr(model, name))()


def adapted(name: str, method: Any, dtype: torch.dtype = torch.float32) -> tuple[Any, Any, mmpeft.Adapters]:
    make, batch = CASES[name]
    torch.manual_seed(0)
    model = make().to(dtype)
    batch = tree_map_only(Tensor, lambda x: x.to(dtype) if x.is_floating_point() else x, batch)
    return model, batch, mmpeft.adapt(model, METHODS.get(method, method))


def allocated(step: Callable[[], None]) -> int:
    """Return the most bytes that torch's allocator gave out to a step at one time, on top of what there was."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = profiler.profiler.kineto_results.events()
    held = most = 0
    for _, change in sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"):
        held += change
        most = max(most, held)
    return most


def second_step(model: nn.Module, batch: Any, adapters: mmpeft.Adapters) -> int:
    """Return what a step takes when the optimizer has its state, weights and state included."""
    optimizer = AdamW(adapters.parameters())

    def step() -> None:
        own_loss(model.train(), batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    held = [*model.parameters(), *model.buffers(), *torch.utils._pytree.tree_leaves(batch)]
    held += [value for state in optimizer.state.values() for value in state.values()]
    return allocated(step) + sum(tensor.nbytes for tensor in held if isinstance(tensor, Tensor))


@pytest.mark.parametrize(("name", "method"), CELLS)
def test_the_peak_is_what_the_allocator_gives_out(name: str, method: str) -> None:
    model, batch, adapters = adapted(name, method)
    report = adapters.report(batch)
    assert report.step.numbers is None
    assert report.peak_bytes == pytest.approx(second_step(model, batch, adapters), rel=0.02)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_peak_with_gradient_checkpointing(name: str, dtype: torch.dtype) -> None:
    model, batch, adapters = adapted(name, "lora", dtype)
    plain = adapters.report(batch).peak_bytes
    checkpointed(model)
    peak = adapters.report(batch).peak_bytes
    assert peak < plain
    assert peak == pytest.approx(second_step(model, batch, adapters), rel=0.1)


@pytest.mark.parametrize("method", ["lora", "houlsby"])
@pytest.mark.parametrize("name", CASES)
def test_the_peak_of_a_bf16_base(name: str, method: str) -> None:
    model, batch, adapters = adapted(name, method, torch.bfloat16)
    assert adapters.report(batch).peak_bytes == pytest.approx(second_step(model, batch, adapters), rel=0.05)


@pytest.mark.parametrize("level", ["lean", "leanest"])
@pytest.mark.parametrize("name", CASES)
def test_the_peak_at_a_memory_level(name: str, level: Any) -> None:
    model, batch, adapters = adapted(name, "lora")
    standard = adapters.report(batch)
    mmpeft.use_memory(model, level)
    report = adapters.report(batch)
    assert report.saved_bytes < standard.saved_bytes
    assert report.peak_bytes == pytest.approx(second_step(model, batch, adapters), rel=0.05)


def test_autocast_counts_as_it_is_called() -> None:
    model, batch, adapters = adapted("vit", "lora")
    with torch.autocast("cpu", torch.bfloat16):
        report, kept = adapters.report(batch), saved_bytes(model.train(), batch)
    assert report.saved_bytes == pytest.approx(kept, abs=64)
    assert report.peak_bytes < adapters.report(batch).peak_bytes


def test_nothing_is_changed() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 4)).eval()
    adapters = mmpeft.adapt(model, LORA)
    model(torch.ones(3, 4)).sum().backward()
    gradients = [parameter.grad.clone() for parameter in adapters.parameters()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    before, random = [{**module.__dict__} for module in model.modules()], torch.get_rng_state()
    adapters.report(torch.ones(3, 4))
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(map(torch.equal, gradients, (parameter.grad for parameter in adapters.parameters())))
    assert before == [module.__dict__ for module in model.modules()]
    assert not any(isinstance(tensor, FakeTensor) for tensor in [*model.parameters(), *model.buffers()])


class Asking(nn.Module):
    """Computes differently by what it sees."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x.sum().item()
        return x


def test_a_model_that_asks_for_numbers_gets_them_and_the_report_says_so() -> None:
    model = nn.Sequential(nn.BatchNorm1d(64), Asking(), nn.Linear(64, 64))
    adapters = mmpeft.adapt(model, mmpeft.LoRA(rank=2, targets="*"))
    x = torch.randn(32, 64)
    step = adapters.report(x).step
    assert "aten._local_scalar_dense.default" in step.numbers and f"real numbers, for without: {step.numbers}" in str(
        step
    )
    assert model[0].num_batches_tracked == 0 and not hasattr(model[1], "seen")
    assert step.peak == pytest.approx(second_step(model, x, adapters), rel=0.02)


def test_a_model_on_no_memory_at_all() -> None:
    def report(device: str) -> Any:
        with torch.device(device):
            ids = torch.ones(2, 16, dtype=torch.long)
            adapters = mmpeft.adapt(MODELS["llama"](), LORA)
            return adapters.report({"input_ids": ids, "labels": ids})

    assert report("meta").step == report("cpu").step


def test_the_optimizer_counts() -> None:
    _, batch, adapters = adapted("vit", "lora")
    numbers = sum(parameter.numel() for parameter in adapters.parameters())
    states = [adapters.report(batch, how).step.state for how in (AdamW, SGD, partial(SGD, momentum=0.9))]
    assert states == [8 * numbers + 4 * len(adapters.parameters()), 0, 4 * numbers]


def test_a_full_fine_tuning_is_largest_where_the_optimizer_steps() -> None:
    """Full fine-tuning of a wide layer on one row: weights, moments, gradients, and two of the optimizer's tensors."""
    model = nn.Sequential(nn.Linear(512, 512, bias=False))
    adapters = mmpeft.adapt(model, "full_fine_tuning")
    step = adapters.report(torch.ones(1, 512)).step
    assert step.gradients + step.update > step.passes and "the optimizer works with" in str(step)
    assert step.peak == pytest.approx(second_step(model, torch.ones(1, 512), adapters), rel=0.02)


def test_gradients_add_up_over_batches() -> None:
    model = nn.Sequential(nn.Linear(64, 64))
    adapters = mmpeft.adapt(model, "full_fine_tuning")
    batch = torch.ones(100, 64)

    def found(batches: list[Tensor]) -> Any:
        return predict([model], partial(own_loss, model), batches, adapters.parameters(), AdamW)

    one, two = found([batch]), found([batch, batch])
    assert two.kept == one.kept and two.gradients == one.gradients
    assert one.passes < two.passes <= one.passes + one.gradients


def test_without_a_batch_there_is_no_prediction() -> None:
    report = adapted("vit", "lora")[2].report()
    assert report.peak_bytes is None and report.saved_bytes is None
    assert "a batch shows" in str(report)


def test_the_report_says_what_takes_how_much() -> None:
    _, batch, adapters = adapted("vit", "lora")
    said = str(adapters.report(batch))
    for what in (
        "of tensors at its peak",
        "weights, buffers and the batch",
        "the optimizer's state",
        "kept from the one",
    ):
        assert what in said
