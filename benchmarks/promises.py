"""Methods and levels that promise memory or time, measured against plain LoRA in one table.

python benchmarks/promises.py            about 2 minutes, idle; --write adds the table to benchmarks/RESULTS.md
python benchmarks/promises.py --quick    small models and few rounds, 20 seconds

LoRA-FA keeps A x in the place of x, QLoRA holds the frozen weights in 4 bits, side networks need no backward pass
through the backbone, and levels of memory compute again what others keep.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import train_llm
import train_vit
from measure import Arm, Timing, interleave, mib, peak, publish_table, table
from torch import nn
from training_arms import Side, Step, Subject, ours, theirs
from training_steps import check

import mmpeft
from mmpeft.handle.report import saved_bytes
from mmpeft.kernels.quantized import stored_bytes

DTYPE = torch.bfloat16
COLUMNS = ("model: side", "trained", "frozen weights", "kept for backward", "/ LoRA", "peak", "all together", "/ LoRA",
           "step", "/ LoRA")  # fmt: skip


def fixed(subject: Subject, dtype: torch.dtype) -> nn.Module:
    """LoRA-FA by mmpeft."""
    return ours(subject, dtype, method=mmpeft.LoRAFA(rank=8, targets=subject.targets))


def their_fixed(subject: Subject, dtype: torch.dtype) -> nn.Module:
    """LoRA-FA by peft: what its optimizer for it does to the model."""
    model = theirs(subject, dtype)
    for name, weight in model.named_parameters():
        weight.requires_grad_(weight.requires_grad and "lora_A" not in name)
    return model


def other(method: mmpeft.Method) -> Side:
    """Return a side with a method of mmpeft's."""
    return Side(partial(ours, method=method))


LORA: dict[str, Side] = {
    "LoRA": Side(ours),
    "LoRA, lean": Side(partial(ours, level="lean")),
    "LoRA, leanest": Side(partial(ours, level="leanest")),
    "LoRA-FA": Side(fixed),
    "peft, LoRA, autocast": Side(theirs, autocast=True),
    "peft, LoRA-FA, autocast": Side(their_fixed, autocast=True),
}
QLORA: dict[str, Side] = {
    "QLoRA": Side(partial(ours, quantized=True)),
    "QLoRA, leanest": Side(partial(ours, quantized=True, level="leanest")),
    "peft, QLoRA, autocast": Side(partial(theirs, quantized=True), autocast=True),
}
"""Those of one group compute the same, which is checked; their own networks do not."""
BESIDE: dict[Callable[[bool], Subject], dict[str, Side]] = {
    train_vit.subject: {
        "Side-Tuning": other(mmpeft.SideTuning()),
        "Res-Tuning-Bypass": other(mmpeft.ResTuningBypass()),
    },
    train_llm.subject: {"Ladder Side-Tuning": other(mmpeft.LadderSideTuning())},
}


@dataclass(frozen=True)
class Cost:
    """What one side takes, in bytes and seconds; ``over_lora`` is the ratio of time, round by round."""

    subject: str
    side: str
    trained: int
    frozen: int
    kept: int
    peak: int
    seconds: float
    over_lora: float

    @property
    def together(self) -> int:
        """Frozen weights, trained ones in fp32 with AdamW's moments, and the step's peak, gradients in it."""
        return self.frozen + 12 * self.trained + self.peak


def cost(subject: str, side: str, step: Step, time: Timing, lora: Timing) -> Cost:
    """Measure the bytes of a side."""
    trained = sum(weight.numel() for weight in step.parameters() if weight.requires_grad)
    frozen = sum(stored_bytes(weight) for weight in step.parameters() if not weight.requires_grad)
    kept, most = saved_bytes(step, step.batch), peak(step.step)
    return Cost(subject, side, trained, frozen, kept, most, time.median, time.over(lora))


def measure(make: Callable[[bool], Subject], quick: bool, rounds: int) -> list[Cost]:
    """Check and measure all sides on one model."""
    subject = make(quick)
    groups = [
        {name: side.step(subject, DTYPE) for name, side in group.items()} for group in (LORA, QLORA, BESIDE[make])
    ]
    for group in groups[:2]:
        check(group, tolerance=0.2)
    steps = {name: step for group in groups for name, step in group.items()}
    times = interleave(rounds, **{name: Arm(lambda _, run=step.step: run()) for name, step in steps.items()})
    return [cost(subject.name, name, step, times[name], times["LoRA"]) for name, step in steps.items()]


def line(own: Cost, lora: Cost) -> tuple[str, ...]:
    """Return a row of the table."""
    sizes = (mib(own.frozen), mib(own.kept), f"{own.kept / lora.kept:.2f}", mib(own.peak), mib(own.together))
    return (f"{own.subject.partition(' ')[0]}: {own.side}", f"{own.trained:,}", *sizes,
            f"{own.together / lora.together:.2f}", f"{1e3 * own.seconds:.0f} ms", f"{own.over_lora:.2f}")  # fmt: skip


def main() -> None:
    """Measure both models and publish the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small models and few rounds")
    parser.add_argument("--write", action="store_true", help="add the table to benchmarks/RESULTS.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: list[Cost] = []
    lines: list[tuple[str, ...]] = []
    for make in BESIDE:
        rows = measure(make, options.quick, 2 if options.quick else 5)
        found += rows
        lines += [line(own, rows[0]) for own in rows]
    names = ". ".join(dict.fromkeys(own.subject for own in found))
    records: list[dict[str, Any]] = [{**asdict(own), "together": own.together} for own in found]
    packages = ("torch", "peft", "timm", "transformers", "bitsandbytes")
    publish_table(
        "promises", f"{names}. Frozen weights in bf16.\n\n{table(COLUMNS, lines)}", records, packages, options.write
    )


if __name__ == "__main__":
    main()
