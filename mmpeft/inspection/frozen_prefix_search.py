"""Finds the frozen prefix of a model's passes.

Where it ends is not read off a table but found and proved: a pass is traced, and the latest tensor is taken from which
the pass can go on, with NaN in place of everything in front of it, to the same loss and the same gradients.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmpeft.anatomies.hosts import carried_by
from mmpeft.anatomies.reading import anatomy
from mmpeft.inspection.frozen_prefix import FrozenPrefix, NoPrefixError, Point
from mmpeft.inspection.outline import Outline, TensorOutline, tensors
from mmpeft.inspection.trace import TracedCall, trace

Batch = Mapping[str, Any]
Run = Callable[[Batch], Tensor]
PROBES = (3, 2)
"""Samples of the two traced passes: what differs between them grows with the batch."""
TOLERANCE = 1e-3
"""Largest relative difference of loss and gradients in the proof; the suffix computes the same from the same."""


def find_prefix(model: nn.Module, run: Run, batch: Batch, key: str = "image") -> FrozenPrefix:
    """Return the longest frozen prefix of ``run(batch)``, a scalar loss of passes of ``model`` over ``batch[key]``.

    Raises:
        NoPrefixError: If no whole block lies in front of the first edit, or the part in front of it is random.
    """
    return _Search(model, run, batch, key).longest()


@dataclass(frozen=True, eq=False)
class _Landing:
    call: TracedCall
    point: Point
    time: int
    value: Tensor
    outline: TensorOutline


class _Search:
    def __init__(self, model: nn.Module, run: Run, batch: Batch, key: str) -> None:
        self.model, self.run, self.key = model, run, key
        if not torch.is_floating_point(batch.get(key, torch.empty(0, dtype=torch.long))):
            raise NoPrefixError(f"the samples have no {key!r} of floating-point numbers")
        self.batch, small = (_cut(batch, size, key) for size in PROBES)
        with _reproducible():
            self.calls, loss = trace(model, lambda: run(self.batch))
            self.expected = self._with_gradients(loss)
        self.twins = self._pass_of_nothing({**small, key: torch.full_like(small[key], float("nan"))})
        self.stained = {call for call, twin in self.twins.items() if _has_nan(twin.left)}
        self.times = Counter(call.module for call in self.calls if not call.inner)
        self.reasons: list[str] = []

    def _pass_of_nothing(self, batch: Batch) -> dict[TracedCall, TracedCall]:
        """Return the calls of a pass over NaN by those of the first pass: what comes out as NaN is the image's."""
        try:
            with _reproducible():
                twins, _ = trace(self.model, lambda: self.run(batch))
        except Exception as error:  # a pass of our own making must not break a run
            raise NoPrefixError(f"the model does not take an image of NaN: {error}") from error
        if [(call.path, call.inner) for call in self.calls] != [(call.path, call.inner) for call in twins]:
            raise NoPrefixError("the model does not call the same modules in every pass")
        return dict(zip(self.calls, twins, strict=True))

    def longest(self) -> FrozenPrefix:
        """Try the landings from the last to the first."""
        for landing in sorted(self._landings(), key=lambda landing: -landing.time):
            skipped = self._skipped(landing)
            prefix = None if skipped is None else self._proved(landing, skipped)
            if prefix is not None:
                return prefix
        raise NoPrefixError(self._reason())

    def _landings(self) -> Iterator[_Landing]:
        """Yield every place with a tensor, one row per sample, that depends on the image and on no adapter."""
        for call, twin in self.twins.items():
            ends: tuple[tuple[Point, int, Any, Any], ...] = (
                ("input", call.start, call.entered, twin.entered),
                ("inner output" if call.inner else "output", call.end, call.left, twin.left),
            )
            for point, time, value, other in ends[call.inner :]:
                if not (isinstance(value, Tensor) and isinstance(other, Tensor)) or value.requires_grad:
                    continue
                outline = TensorOutline.of(value, other, PROBES)
                if outline and outline.sample is not None and _has_nan(other):
                    yield _Landing(call, point, time, value, outline)

    def _skipped(self, landing: _Landing) -> list[tuple[nn.Module, Outline]] | None:
        """Return the outermost modules that a landing spares, or None where it is none."""
        inside = None if landing.point == "input" else landing.call
        done = {c for c in self.stained if c.end <= landing.time and c is not inside and inside not in _ancestors(c)}
        outer = [call for call in done if done.isdisjoint(_ancestors(call))]
        spared = [*outer, inside] if inside else outer
        if not self._covers_a_block(spared) or any(map(_busy, spared)):
            return None
        if any(call.random for call in spared):
            self.reasons.append("the model in front of the first edit is random (dropout or stochastic depth)")
            return None
        if any(self.times[call.module] > 1 for call in (landing.call, *spared)):
            self.reasons.append("the model in front of the first edit is called several times in a pass")
            return None
        outlines = [Outline.of(call.left, self.twins[call].left, PROBES) for call in outer]
        adapted = any(tensor.requires_grad for call in outer for tensor in tensors(call.left))
        if adapted or any(outline is None for outline in outlines):
            return None
        return [(call.module, outline) for call, outline in zip(outer, outlines, strict=True) if outline]

    def _covers_a_block(self, spared: list[TracedCall]) -> bool:
        """Tell whether a whole block of the towers that see the image is spared; of other models any module will do."""
        sketch = anatomy(self.model)
        blocks = {sketch.model.get_submodule(block.path) for tower in sketch.towers for block in tower.blocks}
        blocks &= {call.module for call in self.stained}
        return bool(spared) and (not blocks or any(not blocks.isdisjoint(call.module.modules()) for call in spared))

    def _proved(self, landing: _Landing, skipped: list[tuple[nn.Module, Outline]]) -> FrozenPrefix | None:
        """Return the prefix if passes resumed there, without the image or else with it, come to the same."""
        later = frozenset(call.path for call in self.calls if call.start >= landing.time)
        call = landing.call
        for reads_image in (False, True):
            end = (call.path, call.module, landing.point, landing.outline)
            prefix = FrozenPrefix(*end, tuple(skipped), reads_image, later)
            if self._same(prefix, landing.value.detach().clone()):
                return prefix
        return None

    def _same(self, prefix: FrozenPrefix, stored: Tensor) -> bool:
        image = self.batch[self.key]
        batch = self.batch if prefix.reads_image else {**self.batch, self.key: torch.full_like(image, float("nan"))}
        try:
            with _reproducible():
                with prefix.resumed(stored):
                    loss = self.run(batch)
                gradients = self._with_gradients(loss)
        except Exception:  # whatever a model says to NaN: it cannot go on from here
            return False
        return all(map(_close, gradients, self.expected))

    def _with_gradients(self, loss: Tensor) -> list[Tensor]:
        """Return the loss and its gradients; without all of them (reentrant checkpointing) nothing can be proved."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        try:
            return [loss.detach(), *torch.autograd.grad(loss, trained)]
        except RuntimeError as error:
            raise NoPrefixError(f"the gradients of all that is trained can't be taken: {error}") from error

    def _reason(self) -> str:
        edited = next((call.path for call in self.calls if call.path and _edited(call.module)), "the model")
        return (self.reasons or [f"the first edit sits in {edited}, with no whole block in front of it"])[0]


def _ancestors(call: TracedCall) -> set[TracedCall]:
    ancestors, parent = set(), call.parent
    while parent is not None:
        ancestors.add(parent)
        parent = parent.parent
    return ancestors


def _busy(call: TracedCall) -> bool:
    """Tell whether an active edit sits in a module or in one inside it, or reads it; of an inner call, inside alone."""
    parts = {*call.module.modules()} - ({call.module} if call.inner else set())
    return any(map(_edited, parts))


def _edited(module: nn.Module) -> bool:
    carried = carried_by(module)
    return carried is not None and bool(carried.calls or carried.tapped)


def _has_nan(value: Any) -> bool:
    return any(bool(tensor.isnan().any()) for tensor in tensors(value))


def _close(left: Tensor, right: Tensor) -> bool:
    return bool((left - right).abs().max() <= TOLERANCE * right.abs().max())


def _cut(batch: Batch, size: int, key: str) -> dict[str, Any]:
    """Return a batch of ``size`` samples, some of them twice where there are fewer."""
    rows = [index % len(batch[key]) for index in range(size)]
    return {
        name: value[rows] if isinstance(value, Tensor) else [value[row] for row in rows] if _is_list(value) else value
        for name, value in batch.items()
    }


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


@contextmanager
def _reproducible() -> Iterator[None]:
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(0)
        yield
