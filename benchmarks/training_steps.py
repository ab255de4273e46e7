"""What benchmarks/train_*.py do: check that the sides compute the same, measure their steps, publish one table."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from measure import REFERENCE, Arm, interleave, mib, peak, publish_table, table
from training_arms import SIDES, Step, Subject

from mmpeft.handle.report import saved_bytes

PRECISIONS = {"fp32": (torch.float32, 1e-4), "bf16": (torch.bfloat16, 0.2)}
"""Of the frozen weights, and how far losses and gradients may be apart, relative to their norm."""
COLUMNS = ("precision: side", "step", "/ floor", "/ peft", "kept for backward", "/ peft", "/ floor", "peak", "/ peft")


@dataclass(frozen=True)
class Measured:
    """What one side of one subject takes; ``over`` are ratios of time, round by round."""

    subject: str
    precision: str
    side: str
    seconds: float
    spread: tuple[float, float]
    over_floor: float
    over_peft: float
    kept: int
    peak: int


def check(steps: dict[str, Step], tolerance: float) -> None:
    """Give all sides with an adapter the same one, and raise if a loss or a gradient is another."""
    made = torch.Generator().manual_seed(0)
    drawn: dict[str, torch.Tensor] = {}
    losses: dict[bool, torch.Tensor] = {}
    gradients: dict[str, torch.Tensor] = {}
    for name, step in steps.items():
        adapter = step.adapter()
        for key, value in adapter.items():
            if key not in drawn:
                drawn[key] = torch.randn(value.shape, generator=made) * 0.02
            value.data.copy_(drawn[key] * step.share(key, "lora_B"))
        loss = step(**step.batch)
        loss.backward()
        torch.testing.assert_close(loss, losses.setdefault(bool(adapter), loss), rtol=tolerance, atol=0)
        for key, value in adapter.items():
            if not value.requires_grad:
                continue
            assert value.grad is not None, f"{name}: no gradient of {key}"
            expected = gradients.setdefault(key, value.grad.float()) * step.share(key, "lora_A")
            apart = float((value.grad - expected).norm() / expected.norm())
            assert apart < tolerance, f"{name}: the gradient of {key} is {apart:.2g} off"
        step.zero_grad()


def measure(subject: Subject, precision: str, rounds: int) -> list[Measured]:
    """Check and measure all sides in one precision."""
    dtype, tolerance = PRECISIONS[precision]
    steps = {name: side.step(subject, dtype) for name, side in SIDES[precision].items()}
    check(steps, tolerance)
    times = interleave(rounds, **{name: Arm(lambda _, run=step.step: run()) for name, step in steps.items()})
    floor, reference = times["floor"], times[REFERENCE[precision]]
    found = []
    for name, step in steps.items():
        own = times[name]
        held = [weight.detach() for weight in step.parameters()]  # peft puts others in the place of some as it runs
        kept, most = saved_bytes(step, step.batch), peak(step.step)
        del held
        ratios = own.over(floor), own.over(reference)
        found.append(Measured(subject.name, precision, name, own.median, own.quartiles, *ratios, kept, most))
    return found


def lines(found: list[Measured]) -> list[tuple[str, ...]]:
    """Return the rows of the table."""
    by = {(own.precision, own.side): own for own in found}
    rows = []
    for own in found:
        floor, peft = by[own.precision, "floor"], by[own.precision, REFERENCE[own.precision]]
        first, third = (f"{1e3 * quartile:.0f}" for quartile in own.spread)
        row = (f"{own.precision}: {own.side}", f"{1e3 * own.seconds:.0f} ms ({first}-{third})",
               f"{own.over_floor:.2f}", f"{own.over_peft:.2f}", mib(own.kept), f"{own.kept / peft.kept:.2f}",
               f"{own.kept / floor.kept:.2f}", mib(own.peak), f"{own.peak / peft.peak:.2f}")  # fmt: skip
        rows.append(row)
    return rows


def main(name: str, subject: Callable[[bool], Subject], packages: tuple[str, ...], rounds: int, doc: str) -> None:
    """Measure a subject (``subject(quick)`` makes it) in both precisions and publish the table."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model and few rounds")
    parser.add_argument("--write", action="store_true", help="add the table to benchmarks/RESULTS.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = subject(options.quick)
    found = [row for precision in PRECISIONS for row in measure(made, precision, 3 if options.quick else rounds)]
    markdown = f"{made.name}.\n\n{table(COLUMNS, lines(found))}"
    publish_table(name, markdown, [asdict(row) for row in found], ("torch", "peft", *packages), options.write)
