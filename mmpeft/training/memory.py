"""Peak memory: what the allocator of the GPU gave out, or what the process held resident."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import psutil
import torch

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def kind() -> str:
    """Say what ``peak_bytes`` counts on this machine."""
    if torch.cuda.is_available():
        return "allocated on the GPU by this process"
    return "resident set of the process" + ("" if _CLEAR.exists() else " since its start")


def reset_peak() -> None:
    """Start counting anew, where the system can (CUDA, Linux)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif _CLEAR.exists():
        _CLEAR.write_text("5", encoding="ascii")


def peak_bytes() -> int:
    """Return the largest amount since ``reset_peak``, in bytes."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if _STATUS.exists():
        lines = _STATUS.read_text(encoding="ascii").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def available_bytes() -> int:
    """Return the main memory that new data may take without swapping, in bytes."""
    return int(psutil.virtual_memory().available)
