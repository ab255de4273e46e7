"""How far a run has come, and everything else that resuming it exactly needs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isnan
from typing import Any, Literal

from accelerate import Accelerator
from accelerate.utils import gather_object

from mmpeft.training import random_state


@dataclass
class Progress:
    """The place in the data, and the best validation score so far."""

    step: int = 0
    """Optimizer steps done."""
    epoch: int = 0
    """Epochs done."""
    batch: int = 0
    """Batches done of the epoch after these."""
    best: float | None = None
    """Best value of the monitored score."""
    best_step: int = 0
    """The step it was reached at."""
    stale: int = 0
    """Evaluations since."""
    seconds: float = 0.0
    """Time spent so far."""

    def judge(self, score: float, mode: Literal["max", "min"]) -> bool:
        """Take in a new score and tell whether it is the best; NaN never beats a number."""
        if self.best is None or isnan(self.best) or (score > self.best if mode == "max" else score < self.best):
            self.best, self.best_step, self.stale = score, self.step, 0
            return True
        self.stale += 1
        return False


def pack(progress: Progress, accelerator: Accelerator, fixed: dict[str, Any]) -> dict[str, Any]:
    """Return the state as JSON values; all processes must call this, for each has its own random state."""
    scaler = accelerator.scaler.state_dict() if accelerator.scaler else None
    return {
        "progress": asdict(progress),
        "fixed": fixed,
        "scaler": scaler,
        "random": gather_object([random_state.capture()]),
    }


def unpack(state: dict[str, Any], accelerator: Accelerator, fixed: dict[str, Any]) -> Progress:
    """Restore scaler and random state from ``pack``'s result; what is ``fixed`` in a run may not have changed."""
    changed = [
        f"{key}: {value} was {state['fixed'].get(key)}"
        for key, value in fixed.items()
        if state["fixed"].get(key) != value
    ]
    if changed:
        raise ValueError(
            f"train.resume: this run is at another place in its data after a change of {'; '.join(changed)}"
        )
    if accelerator.scaler and state["scaler"]:
        accelerator.scaler.load_state_dict(state["scaler"])
    random_state.restore(state["random"][accelerator.process_index])
    return Progress(**state["progress"])
