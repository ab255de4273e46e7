"""Tensors that are computed once and found again by what they were computed from, in memory or on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from hashlib import blake2b
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmpeft.files import replaced_file

Tensors = dict[str, Tensor]


class TensorStore:
    """Keeps named tensors by key: in memory, or one file per key in ``folder``, which is one encoder's own."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.known: dict[str, Tensors] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def get(self, key: str, make: Callable[[], Tensors]) -> Tensors:
        """Return what is kept under a key, on the CPU; without any, make and keep it."""
        if self.folder is None:
            if key not in self.known:
                self.known[key] = _plain(make())
            return self.known[key]
        path = self.folder / f"{blake2b(key.encode(), digest_size=16).hexdigest()}.safetensors"
        if not path.is_file():
            with replaced_file(path) as temporary:
                save_file(_plain(make()), temporary)
        return load_file(path)


def content_key(tensor: Tensor) -> str:
    """Return a short text that another tensor has only if all its values are the same."""
    return blake2b(tensor_bytes(tensor), digest_size=8).hexdigest()


def weights_key(*modules: torch.nn.Module) -> str:
    """Return a short text that other modules have only if all their tensors and their names are the same."""
    hashed = blake2b(torch.__version__.encode(), digest_size=16)
    for module in modules:
        take_in(hashed, module.state_dict().items())
    return hashed.hexdigest()


def take_in(hashed: blake2b, named: Iterable[tuple[str, Tensor]]) -> None:
    """Let a hash depend on tensors, their types, shapes and names."""
    for name, tensor in named:
        hashed.update(f"{name}:{tensor.dtype}{tuple(tensor.shape)}".encode())
        hashed.update(tensor_bytes(tensor))


def tensor_bytes(tensor: Tensor) -> bytes:
    """Return a tensor's values as bytes."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _plain(tensors: Tensors) -> Tensors:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
