"""FacT's ``{dataset}.pt``: a flat dict of the shared factors, the cores and the head, in both forms.

The slices of a block are q, k, v, out, four of fc1's rows, four of fc2's columns. In Tucker form the released code
takes four of them for attention and eight for the MLP from a running index, and then reads the MLP's cores, (r, r, 4),
as (r, 4 r): element ``[a, (m r + b) // 4, (m r + b) % 4]`` belongs to chunk m. No product of C and P has that order,
so the cores are written out, as a tensor train of the same function.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mmpeft.formats.foreign import Foreign, Imported
from mmpeft.formats.ledger import Ledger
from mmpeft.formats.torch_file import read_flat
from mmpeft.methods import FacT
from mmpeft.settings import Settings

ATTENTION = {"q": "attn.q", "k": "attn.k", "v": "attn.v", "proj": "attn.proj"}
CHUNKS = 4
"""Slices of width x width in fc1 and in fc2."""
SLICES = len(ATTENTION) + 2 * CHUNKS


class Options(Settings):
    """What the file does not hold."""

    scale: float = 1.0
    """the factor s on the deltas is not in the file; the paper chose it per data set among 0.01 to 100, see its YAML"""


def read(source: Path, options: Options) -> Imported:
    """Return the factors, one core per slice, and the head."""
    ledger = Ledger(source, read_flat(source))
    rank, width = ledger.shape(r"FacTu\.weight", 2)
    ledger.enter("fact.u", "FacTu.weight", (rank, width))
    ledger.enter("fact.v", "FacTv.weight", (width, rank))
    notes: list[str] = []
    if "FacTp" in ledger.values or "FacTc" in ledger.values:
        _tucker(ledger, rank)
        notes.append("Tucker cores are written out as a tensor train: the same function, and more parameters")
    else:
        _tensor_train(ledger, rank)
    head = ledger.head()
    return Imported([FacT(rank=rank, scale=options.scale), *head], ledger.close(), notes)


def _tensor_train(ledger: Ledger, rank: int) -> None:
    for i in range(ledger.count(r"blocks\.(\d+)\..*")):
        for theirs, ours in ATTENTION.items():
            name = f"blocks.{i}.attn.{theirs}_FacTs.weight"
            ledger.enter(_core(i, ours), name, (rank, rank), lambda core: core[None, None])
        up, down = f"blocks.{i}.mlp.fc1_FacTs.weight", f"blocks.{i}.mlp.fc2_FacTs.weight"
        ledger.enter(_core(i, "mlp.fc1"), up, (CHUNKS * rank, rank), lambda core: core.unflatten(0, (CHUNKS, 1, -1)))
        ledger.enter(_core(i, "mlp.fc2"), down, (rank, CHUNKS * rank), _by_column)


def _tucker(ledger: Ledger, rank: int) -> None:
    slices = ledger.shape("FacTp", 2)[1]
    c, p = ledger.take("FacTc", (rank, rank, rank)), ledger.take("FacTp", (rank, slices))
    if slices % SLICES:
        ledger.problems.append(f"FacTp: {slices} slices, no multiple of the {SLICES} of a block")
    if c is None or p is None:
        return
    for i in range(slices // SLICES):
        # The code multiplies from the right in attention and fc1, so these cores are turned.
        cores = c @ p[:, i * SLICES : (i + 1) * SLICES]
        attention, up, down = cores.split((len(ATTENTION), CHUNKS, CHUNKS), -1)
        for core, ours in zip(attention.unbind(-1), ATTENTION.values(), strict=True):
            ledger.tensors[_core(i, ours)] = core.T[None, None].contiguous()
        ledger.tensors[_core(i, "mlp.fc1")] = up.flatten(1).T.unflatten(0, (CHUNKS, 1, -1)).contiguous()
        ledger.tensors[_core(i, "mlp.fc2")] = _by_column(down.flatten(1)).contiguous()


def _by_column(core: Tensor) -> Tensor:
    """Return (rank, chunks x rank) as (1, chunks, rank, rank)."""
    return torch.stack(core.chunk(CHUNKS, 1))[None]


def _core(block: int, sublayer: str) -> str:
    return f"blocks.{block}.{sublayer}.fact.core"


FORMAT = Foreign("fact", r"^FacTu\.weight$", read, Options)
convert = FORMAT.convert
