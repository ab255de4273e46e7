"""The memory of a training step, predicted: the step is made with tensors that have a size and no numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from mmpeft.inspection.integer_tensors import WholeNumbers
from mmpeft.inspection.live_bytes import LiveBytes
from mmpeft.inspection.outline import tensors
from mmpeft.inspection.unfused_attention import AttentionCalls
from mmpeft.kernels.quantized import is_quantized, stored, stored_bytes
from mmpeft.kernels.recompute import set_aside

MakeOptimizer = Callable[[list[nn.Parameter]], Optimizer]
NEEDS_NUMBERS = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)


@dataclass(frozen=True)
class StepMemory:
    """Bytes of tensors in a training step, from the second one on, when the optimizer has its state.

    ``weights`` are those of the model and its adapters, with buffers and the batch; ``state`` the optimizer's;
    ``gradients`` the adapters'; ``kept`` what the forward pass leaves for the backward pass; ``passes`` the most that
    forward and backward have at one time, what is kept and the gradients included; ``update`` the most that the
    optimizer needs besides. ``numbers`` says why the passes had to be made with real numbers; ``notes`` what took
    more than it might: attention by plain products, memory levels set aside.
    """

    weights: int
    state: int
    gradients: int
    kept: int
    passes: int
    update: int
    numbers: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def peak(self) -> int:
        """The most bytes at one time."""
        return self.weights + self.state + max(self.passes, self.gradients + self.update)

    def __str__(self) -> str:
        passes = (
            f"forward and backward pass: {size(self.kept)} kept from the one for the other, {size(self.gradients)} of "
        )
        passes += "gradients, and what they work with"
        update = f"gradients ({size(self.gradients)}), and what the optimizer works with ({size(self.update)})"
        most = max((self.passes, passes), (self.gradients + self.update, update))
        parts = [(self.weights, "weights, buffers and the batch"), (self.state, "the optimizer's state"), most]
        how = f"real numbers, for without: {self.numbers}" if self.numbers else "tensors without numbers"
        return "\n".join(
            [
                f"a training step takes {size(self.peak)} of tensors at its peak:",
                *(f"{size(number):>11} {what}" for number, what in parts),
                f"(found by a pass with {how}; what libraries take inside an operation, and what an "
                "allocator leaves unused, comes on top)",
                *self.notes,
            ]
        )


def predict(
    modules: Iterable[nn.Module],
    run: Callable[[Any], Tensor],
    batches: Sequence[Any],
    parameters: list[nn.Parameter],
    make_optimizer: MakeOptimizer,
) -> StepMemory:
    """Return the memory of a step that minimises ``run(batch)`` over ``parameters`` of ``modules``; nothing changes.

    Gradients add up over ``batches``.

    The passes run on fake tensors: but for ids, masks and positions nothing is computed, and no memory is taken. For a
    model that asks for other numbers on its way they run on real ones.
    """
    modules = list(modules)
    held = {id(t): t for module in modules for t in chain(module.parameters(), module.buffers())}.values()
    weights = sum(map(stored_bytes, [*held, *tensors(batches)]))
    numbers = None
    try:
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        with _unchanged(modules):
            fakes = tree_map_only(
                Tensor, lambda tensor: tensor if _is_small(tensor) else _stand_in(mode, tensor), batches
            )
            known, aside = _fake(modules, mode)
            with mode, WholeNumbers(aside):
                (kept, passes, gradients), notes = _passes([*known, *tensors(fakes)], run, fakes)
    except Exception as error:  # whatever a model says to tensors without numbers: with them it runs, or says more
        numbers = str(error).partition("\n")[0]
        with _unchanged(modules):
            (kept, passes, gradients), notes = _passes([*held, *tensors(batches)], run, batches)
    state, update = _optimizer_bytes(parameters, make_optimizer)
    return StepMemory(weights, state, gradients, kept, passes, update, numbers, notes)


def output_of(model: nn.Module, batch: Any) -> Any:
    """Return a model's output for a batch: a mapping is passed by name, a tuple by position."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple) else model(batch)


def own_loss(model: nn.Module, batch: Any) -> Tensor:
    """Return the loss that a model returns (transformers' do, for a batch with labels), or the means of its outputs."""
    output = output_of(model, batch)
    loss: Tensor | None = getattr(output, "loss", None)
    if loss is not None:
        return loss
    return torch.stack([value.mean() for value in tensors(output) if value.is_floating_point()]).sum()


def size(number: int) -> str:
    """Return bytes as text in binary units, such as ``1.5 MiB``."""
    value, unit = float(number), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def _passes(
    known: Iterable[Tensor], run: Callable[[Any], Tensor], batches: Sequence[Any]
) -> tuple[tuple[int, int, int], tuple[str, ...]]:
    """Return the bytes kept after a forward pass, the most at one time and those of the gradients; and notes."""
    kept = gradients = 0
    attention = AttentionCalls()
    with set_aside() as reasons, torch.enable_grad(), attention, LiveBytes(known) as live:
        for batch in batches:
            loss = run(batch)
            kept = max(kept, live.bytes - gradients)
            if loss.requires_grad:
                loss.backward()
            del loss
            gradients = live.bytes
    notes = [*attention.lines, *(f"memory: standard where {reason}" for reason in sorted(reasons))]
    return (kept, live.most, gradients), tuple(notes)


def _optimizer_bytes(parameters: list[nn.Parameter], make_optimizer: MakeOptimizer) -> tuple[int, int]:
    """Return the bytes of an optimizer's state, and the most that a step of it needs besides."""
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            return _two_updates([_stand_in(mode, parameter) for parameter in parameters], make_optimizer)
    except NEEDS_NUMBERS:
        return _two_updates([nn.Parameter(parameter.detach().clone()) for parameter in parameters], make_optimizer)


def _two_updates(parameters: list[Any], make_optimizer: MakeOptimizer) -> tuple[int, int]:
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    with LiveBytes([*parameters, *(parameter.grad for parameter in parameters)]) as live:
        optimizer = make_optimizer(parameters)
        optimizer.step()
        state = live.most = live.bytes
        optimizer.step()
        return state, live.most - state


def _fake(modules: list[nn.Module], mode: FakeTensorMode) -> tuple[list[Tensor], list[Tensor]]:
    """Put fake tensors in the place of floating-point parameters and buffers; quantised weights and integers stay.

    Returns what is known of all of them, and what quantised weights are stored in.
    """
    known: list[Tensor] = []
    aside: list[Tensor] = []
    for module in _all(modules):
        for members in (module._parameters, module._buffers):
            for name, value in members.items():
                if value is None:
                    continue
                if is_quantized(value):
                    aside += (parts := stored(value))
                    known += [*parts, *(mode.from_tensor(part) for part in parts)]
                else:
                    members[name] = _stand_in(mode, value)  # type: ignore[assignment]
                    known.append(members[name])  # type: ignore[arg-type]
    return known, aside


def _stand_in(mode: FakeTensorMode, tensor: Tensor) -> Tensor:
    """Return a fake tensor for one of floating point, the same each time, and integers as they are.

    For one without numbers itself (meta): a fake tensor on the CPU, and ones.
    """
    if not tensor.is_floating_point():
        return torch.ones_like(tensor, device="cpu") if tensor.is_meta else tensor
    if not tensor.is_meta:
        return mode.from_tensor(tensor)
    made = mode.fake_tensor_converter.from_meta_and_device(mode, tensor, torch.device("cpu"))
    return made.requires_grad_(tensor.requires_grad)


def _is_small(tensor: Tensor) -> bool:
    """Whether a tensor of a batch has a number per sample or token at most, such as a weight: models look at these."""
    return tensor.ndim <= 2 and not tensor.is_meta


def _all(modules: list[nn.Module]) -> list[nn.Module]:
    return list(dict.fromkeys(chain.from_iterable(module.modules() for module in modules)))


@contextmanager
def _unchanged(modules: list[nn.Module]) -> Iterator[None]:
    """Put back in the end: random state, gradients, buffers, and whatever modules remember."""
    before = [(m, dict(m.__dict__), dict(m._parameters), dict(m._buffers)) for m in _all(modules)]
    values = [(buffer, buffer.clone()) for module in modules for buffer in module.buffers()]
    gradients = [(p, p.grad) for module in modules for p in module.parameters()]
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    try:
        for parameter, _ in gradients:
            parameter.grad = None
        with torch.random.fork_rng(devices):
            yield
    finally:
        for module, attributes, parameters, buffers in before:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for members, values_before in ((module._parameters, parameters), (module._buffers, buffers)):
                members.clear()
                members.update(values_before)  # type: ignore[arg-type]
        for buffer, value in values:
            buffer.copy_(value)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        torch.clear_autocast_cache()
