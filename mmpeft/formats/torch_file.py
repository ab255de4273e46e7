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

from mmpeft.formats.pickled import Array, Storage, Unpickler
from mmpeft.formats.tensor_file import refusal

MAGIC = 0x1950A86A20F9469CFC6C
"""What the first pickle of the older kind says."""
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
            return _zipped(file, data) if zipfile.is_zipfile(path) else _older(file, data)
    except Exception as error:  # whatever a broken or hostile pickle makes of the reader
        raise refusal(path, [f"no file of torch.save that can be read: {type(error).__name__}: {error}"]) from None


def flat(content: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested dicts as one, with dotted keys; arrays become tensors."""
    if not isinstance(content, dict):
        return {prefix: content.value if isinstance(content, Array) else content}
    found: dict[str, Any] = {}
    for key, value in content.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def _zipped(file: BinaryIO, data: mmap.mmap) -> Any:
    with zipfile.ZipFile(file) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        root = next(name for name in entries if name.endswith("data.pkl")).removesuffix("data.pkl")
        if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("its numbers are in big-endian order")
        described = archive.read(f"{root}data.pkl")

    def read(storage: Storage) -> Tensor:
        info = entries[f"{root}data/{storage.key}"]
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{info.filename} is compressed, which torch.save never does")
        if info.file_size != storage.count * storage.dtype.itemsize:
            raise ValueError(f"{info.filename} has {info.file_size} bytes, not {storage.count} of {storage.dtype}")
        name, extra = LOCAL_HEADER.unpack_from(data, info.header_offset)
        return _numbers(data, storage, info.header_offset + LOCAL_HEADER.size + name + extra)

    return Unpickler(io.BytesIO(described), read).load()


def _older(file: BinaryIO, data: mmap.mmap) -> Any:
    """Read magic number, version, system, object and the keys of the storages; then each one's length and numbers."""
    if _next(file) != MAGIC:
        raise ValueError("neither a zip archive nor the magic number of older files")
    _next(file)
    if _next(file)["little_endian"] is not True:
        raise ValueError("its numbers are in big-endian order")
    begin, sketch = file.tell(), Unpickler(file, _unread)
    sketch.load()
    offsets = _offsets(file, sketch.storages)
    file.seek(begin)
    return Unpickler(file, lambda storage: _numbers(data, storage, offsets[storage.key])).load()


def _next(file: BinaryIO) -> Any:
    return Unpickler(file, _unread).load()


def _offsets(file: BinaryIO, storages: Mapping[str, Storage]) -> dict[str, int]:
    place: dict[str, int] = {}
    for key in _next(file):
        (count,) = struct.unpack("<q", file.read(8))
        storage = storages[str(key)]
        if count != storage.count:
            raise ValueError(f"storage {key!r} holds {count} elements, not {storage.count}")
        place[storage.key] = file.tell()
        file.seek(count * storage.dtype.itemsize, io.SEEK_CUR)
    return place


def _unread(storage: Storage) -> Tensor:
    return torch.empty(storage.count, dtype=storage.dtype, device="meta")


def _numbers(data: mmap.mmap, storage: Storage, offset: int) -> Tensor:
    if not storage.count:
        return torch.empty(0, dtype=storage.dtype)
    return torch.frombuffer(data, dtype=storage.dtype, count=storage.count, offset=offset)
