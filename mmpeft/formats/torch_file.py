"""Files of ``torch.save``, zip archives and the older kind, read without running anything that is in them."""

from __future__ import annotations

import io
import mmap
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from mmpeft.formats.pickled import Array, Storage
from mmpeft.formats.tensor_file import refusal
from mmpeft.formats.unpickler import Unpickler

MAGIC = 0x1950A86A20F9469CFC6C
"""What the first pickle of the older kind says."""
MOST_VALUES, LONGEST_KEY = 300_000, 1_000
"""Values in nested dicts, and letters in the names that they get; a training's checkpoint has a tenth of it."""
LOCAL_HEADER = struct.Struct("<26x2H")
"""The lengths of name and extra field in the header before a file in a zip archive."""


def read_torch(path: Path) -> Any:
    """Return what ``torch.save`` wrote: an ``Array`` for each tensor, mapped from the file, numbers, text, containers.

    Anything else is a ``Stub``. A file that is broken, or none of ``torch.save``, is a ValueError.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r}")
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            return _zipped(file, data) if zipfile.is_zipfile(path) else _older(data)
    except Exception as error:  # whatever a broken or hostile pickle makes of the reader
        raise refusal(path, [f"no file of torch.save that can be read: {type(error).__name__}: {error}"]) from None


def flat(content: Any) -> dict[str, Any]:
    """Return nested dicts as one, with dotted keys; arrays become tensors."""
    values: dict[str, Any] = {}
    open_dicts = [("", content)]
    while open_dicts:
        prefix, value = open_dicts.pop()
        if not isinstance(value, dict):
            values[prefix] = value.value if isinstance(value, Array) else value
            continue
        inside = [(f"{prefix}.{key}" if prefix else str(key), inner) for key, inner in value.items()]
        open_dicts += reversed(inside)
        if len(values) + len(open_dicts) > MOST_VALUES or any(len(key) > LONGEST_KEY for key, _ in inside):
            raise ValueError(f"more than {MOST_VALUES:,} values, or names of more than {LONGEST_KEY} characters")
    return values


def read_flat(path: Path) -> dict[str, Any]:
    """Return what ``torch.save`` wrote as one flat dict; a file with endlessly many values is a ValueError."""
    content = read_torch(path)
    try:
        return flat(content)
    except ValueError as error:
        raise refusal(path, [str(error)]) from None


def _zipped(file: BinaryIO, data: mmap.mmap) -> Any:
    with zipfile.ZipFile(file) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("data.pkl")]
        if not roots:
            raise ValueError("an archive without data.pkl")
        root = roots[0]
        packed = [name for name, info in entries.items() if info.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise ValueError(f"{packed[0][:100]} is compressed, which torch.save never does")
        if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("its numbers are in big-endian order")
        described = archive.read(f"{root}data.pkl")

    def read(storage: Storage) -> Tensor:
        info = entries[f"{root}data/{storage.key}"]
        if info.file_size != storage.count * storage.dtype.itemsize:
            raise ValueError(f"{info.filename} has {info.file_size} bytes, not {storage.count} of {storage.dtype}")
        name, extra = LOCAL_HEADER.unpack_from(data, info.header_offset)
        return _numbers(data, storage, info.header_offset + LOCAL_HEADER.size + name + extra)

    return Unpickler(io.BytesIO(described), read).load()


def _older(data: mmap.mmap) -> Any:
    """Read magic number, version, system, object and the keys of the storages; then each one's length and numbers."""
    if _next(data) != MAGIC:
        raise ValueError("neither a zip archive nor the magic number of older files")
    _next(data)
    if _next(data)["little_endian"] is not True:
        raise ValueError("its numbers are in big-endian order")
    begin, sketch = data.tell(), Unpickler(data, _unread)
    sketch.load()
    offsets = _offsets(data, sketch.storages)
    data.seek(begin)
    return Unpickler(data, lambda storage: _numbers(data, storage, offsets[storage.key])).load()


def _next(data: mmap.mmap) -> Any:
    return Unpickler(data, _unread).load()


def _offsets(data: mmap.mmap, storages: Mapping[str, Storage]) -> dict[str, int]:
    offsets: dict[str, int] = {}
    for key in _next(data):
        (count,) = struct.unpack("<q", data.read(8))
        storage = storages[str(key)]
        if count != storage.count:
            raise ValueError(f"storage {key!r} holds {count} elements, not {storage.count}")
        offsets[storage.key] = data.tell()
        data.seek(count * storage.dtype.itemsize, io.SEEK_CUR)
    return offsets


def _unread(storage: Storage) -> Tensor:
    return torch.empty(storage.count, dtype=storage.dtype, device="meta")


def _numbers(data: mmap.mmap, storage: Storage, offset: int) -> Tensor:
    if not storage.count:
        return torch.empty(0, dtype=storage.dtype)
    return torch.frombuffer(data, dtype=storage.dtype, count=storage.count, offset=offset)
