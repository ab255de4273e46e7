"""Rows of a tensor from all processes, with a gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn.functional import pad


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """Return the rows of all processes, in their order, and the place of this process's first one.

    Processes may have different numbers of rows, or none. The gradient of a row is the sum over all processes, so all
    of them must run the backward pass.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return rows, 0
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    lengths = [int(count) for count in counts]
    return _Gather.apply(rows, lengths), sum(lengths[: distributed.get_rank()])


class _Gather(torch.autograd.Function):
    """All rows from each process's own; backwards, the own ones of the summed gradient."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, lengths: list[int]) -> Tensor:
        ctx.lengths = lengths
        padded = pad(rows, (0, 0, 0, max(lengths) - len(rows))).contiguous()
        every = [torch.empty_like(padded) for _ in lengths]
        distributed.all_gather(every, padded)
        return torch.cat([part[:length] for part, length in zip(every, lengths, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        summed = gradients[0].contiguous()
        distributed.all_reduce(summed)
        return summed.split(ctx.lengths)[distributed.get_rank()], None
