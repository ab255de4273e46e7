"""Tip-Adapter's directory ``caches/{dataset}``: keys (d, N), values (N, C) and, trained, keys (N, d) bare."""

from __future__ import annotations

import re
from functools import reduce
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from mmpeft.formats.foreign import Foreign, Imported
from mmpeft.formats.ledger import Ledger
from mmpeft.formats.tensor_file import refusal
from mmpeft.formats.torch_file import read_flat
from mmpeft.methods import TipAdapter
from mmpeft.settings import Settings

KEYS, VALUES, TRAINED = "keys_{}shots.pt", "values_{}shots.pt", "best_F_{}shots.pt"


class Options(Settings):
    """What the files do not hold, and which of them to read."""

    shots: int | None = Field(default=None, ge=1)
    """samples per class, where the directory holds several; None is the only one"""
    trained: bool = False
    """whether to read best_F, the keys that Tip-Adapter-F trained"""
    alpha: float = Field(default=1.0, ge=0)
    """the cache's weight is not in the files; the paper searched it per data set on validation samples"""
    beta: float = Field(default=1.0, gt=0)
    """the sharpness is not in the files; the paper searched it per data set on validation samples"""


def read(source: Path, options: Options) -> Imported:
    """Return the cache."""
    if source.is_file():
        looks = Ledger(source, read_flat(source)).looks()
        raise refusal(
            source, [f"Tip-Adapter's caches are a directory of {KEYS} and {VALUES}, and this is a file", looks]
        )
    number = options.shots or _only(source)
    theirs = (TRAINED if options.trained else KEYS).format(number)
    names = {"keys": theirs, "values": VALUES.format(number)}
    missing = [name for name in names.values() if not (source / name).is_file()]
    if missing:
        raise ValueError(f"{source} holds no {' and no '.join(missing)}")
    ledger = Ledger(source, {name: _tensor(source / name) for name in names.values()})
    samples, classes = ledger.shape(VALUES.format(number), 2)
    width = ledger.shape(theirs, 2)[1 if options.trained else 0]
    shape = (samples, width) if options.trained else (width, samples)
    ours = "task.logits.tip_adapter"
    ledger.enter(f"{ours}.keys", theirs, shape, None if options.trained else lambda keys: keys.T)
    ledger.enter(f"{ours}.values", names["values"], (samples, classes))
    if samples != number * classes:
        ledger.problems.append(f"{names['values']}: {samples} samples of {classes} classes are not {number} of each")
    dtypes = [torch.float32, *(value.dtype for value in ledger.tensors.values())]
    for name, value in (("alpha", options.alpha), ("beta", options.beta)):
        ledger.tensors[f"{ours}.{name}"] = torch.tensor(value, dtype=reduce(torch.promote_types, dtypes))
    method = TipAdapter(shots=number, alpha=options.alpha, beta=options.beta, trained=options.trained)
    return Imported([method], ledger.close(), facts=("alpha", "beta"))


def _tensor(path: Path) -> Tensor:
    value = read_flat(path).get("")
    if not isinstance(value, Tensor):
        raise refusal(path, ["expected a tensor, and nothing around it"])
    return value


def _only(source: Path) -> int:
    pattern = re.compile(r"values_(\d+)shots\.pt")
    names = sorted(source.iterdir()) if source.is_dir() else []
    shots = [int(match[1]) for match in (pattern.fullmatch(path.name) for path in names) if match]
    if len(shots) != 1:
        raise ValueError(f"shots: {source} holds values of {shots or 'no'} shots: give the one to read")
    return shots[0]


FORMAT = Foreign("tip_adapter", r"^(keys|values|best_F)_\d+shots", read, Options)
convert = FORMAT.convert
