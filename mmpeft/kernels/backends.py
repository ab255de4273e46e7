"""The names of the ways to compute. Needs no torch: configurations import it."""

from __future__ import annotations

from typing import Literal

Backend = Literal["auto", "sdpa", "math", "flash", "mem_efficient", "cudnn", "xformers"]
"""``auto``: as the model's library does it; ``sdpa``: torch chooses a kernel for every call; ``math``: plain matrix
products; ``flash``, ``mem_efficient`` and ``cudnn``: torch's fused kernels of these names; ``xformers``: that
library's."""

MemoryLevel = Literal["standard", "lean", "leanest"]
"""What is kept for the backward pass. ``standard``: what torch and the fused edits keep; ``lean``: nothing that
activations, products, norms and casts make from what is kept, and no queries, keys and values that a linear layer
makes; ``leanest``: no output of a linear layer in front of an activation either."""
