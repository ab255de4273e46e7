"""Where prefix tensors are kept: in memory, or on disk under what they were computed from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmpeft.data.tensor_store import tensor_bytes
from mmpeft.files import replaced_file
from mmpeft.inspection.frozen_prefix import FrozenPrefix

Sample = Mapping[str, Any]


class PrefixStore(Protocol):
    """Rows of prefix tensors, written in order, read in any."""

    def extend(self, samples: Sequence[Sample]) -> bool:
        """Take in the next samples; tell whether their tensors are there already."""

    def write(self, values: Tensor) -> None:
        """Keep the tensors of the samples of the last ``extend``."""

    def read(self, row: int) -> Tensor:
        """Return one tensor."""


class MemoryStore:
    """Keeps all rows in one tensor."""

    def __init__(self, rows: int, prefix: FrozenPrefix) -> None:
        self.rows = torch.empty(rows, *prefix.shape, dtype=prefix.tensor.dtype)
        self.filled = 0

    def extend(self, samples: Sequence[Sample]) -> bool:
        """Nothing is ever there already."""
        self.filled += len(samples)
        return False

    def write(self, values: Tensor) -> None:
        """Copy the tensors."""
        self.rows[self.filled - len(values) : self.filled] = values

    def read(self, row: int) -> Tensor:
        """Return one row, sharing the memory."""
        return self.rows[row]


class DiskStore:
    """Keeps tensors in ``folder`` by a hash of the sample's id and its image as transformed.

    ``folder`` is one model's own (see ``fingerprint``): what another model, another transform or another image led to
    has another place or another name, and is never found. A file holds the tensors of one batch.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.rows: list[str] = []
        self.last: list[str] = []
        self.index = {name: path for path in sorted(folder.glob("[!.]*.safetensors")) for name in _names(path)}

    def extend(self, samples: Sequence[Sample]) -> bool:
        """Look all of them up."""
        self.last = [_key(sample) for sample in samples]
        self.rows += self.last
        return all(key in self.index for key in self.last)

    def write(self, values: Tensor) -> None:
        """Write the batch's file, complete or not at all."""
        path = self.folder / f"{blake2b(''.join(self.last).encode(), digest_size=16).hexdigest()}.safetensors"
        with replaced_file(path) as temporary:
            named = dict(zip(self.last, values, strict=True))
            save_file({key: value.contiguous().clone() for key, value in named.items()}, temporary)
        self.index.update(dict.fromkeys(self.last, path))

    def read(self, row: int) -> Tensor:
        """Return one tensor from its file."""
        key = self.rows[row]
        with safe_open(self.index[key], "pt") as file:
            return file.get_tensor(key)


def _names(path: Path) -> list[str]:
    try:
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise ValueError(f"train.cache: {path} is no complete safetensors file, delete it: {error}") from None


def _key(sample: Sample) -> str:
    image: Tensor = sample["image"]
    hashed = blake2b(f"{sample['id']}/{image.dtype}{tuple(image.shape)}".encode(), digest_size=16)
    hashed.update(tensor_bytes(image))
    return hashed.hexdigest()
