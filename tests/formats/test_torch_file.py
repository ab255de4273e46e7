"""Files of torch.save, both kinds: read to the bit, with everything but numbers, text and containers left inert."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmpeft.formats import convert
from mmpeft.formats.pickled import KNOWN, Array, Stub
from mmpeft.formats.torch_file import MAGIC, flat, read_flat, read_torch
from mmpeft.formats.unpickler import Unpickler

KINDS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older"])
TENSORS = {
    "double": torch.randn(2, 3).double(),
    "half": torch.randn(7).half(),
    "bfloat16": torch.randn(3).bfloat16(),
    "turned": torch.randn(4, 5).t()[1:],
    "int": torch.arange(5),
    "bool": torch.tensor([True, False]),
    "scalar": torch.tensor(3.5),
    "empty": torch.empty(0, 4),
    "parameter": torch.nn.Parameter(torch.randn(2)),
}
ARRAYS = {
    "float32": np.random.default_rng(0).normal(size=(2, 3)).astype("f4"),
    "fortran": np.asfortranarray(np.random.default_rng(1).normal(size=(2, 3))),
    "big-endian": np.arange(4, dtype=">i4"),
}


def write(content: Any, path: Path, zipped: bool) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


@KINDS
def test_tensors_come_back_to_the_bit(zipped: bool, tmp_path: Path) -> None:
    shared = torch.randn(6)
    content = {"a": OrderedDict(TENSORS), "b": [shared[:2], (shared[2:],)]}
    found = read_torch(write(content, tmp_path / "x.pth", zipped))
    tensors = flat(found["a"])
    assert list(tensors) == list(TENSORS)
    for name, value in TENSORS.items():
        assert tensors[name].dtype == value.dtype and tensors[name].shape == value.shape
        assert torch.equal(tensors[name], value)
    first, (second,) = found["b"]
    assert torch.equal(torch.cat([first.value, second.value]), shared)


@KINDS
def test_arrays_and_plain_values(zipped: bool, tmp_path: Path) -> None:
    plain = {"epoch": 3, "name": "ä", "lr": 0.1, "betas": (0.9, 0.99), "set": {1, 2}, "none": None, "raw": b"\x00\xff"}
    torch_own = {"shape": torch.Size([1, 2]), "dtype": torch.float16, "score": np.float64(0.5)}
    found = flat(read_torch(write({**ARRAYS, **plain, **torch_own}, tmp_path / "x.pth", zipped)))
    for name, value in ARRAYS.items():
        assert isinstance(found[name], Tensor)
        assert np.array_equal(found[name].numpy(), value)
    assert {name: found[name] for name in plain} == plain
    assert (found["shape"], found["dtype"], found["score"]) == ((1, 2), torch.float16, 0.5)


@KINDS
def test_a_live_scheduler_is_an_inert_stub(zipped: bool, tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
    content = {"state_dict": model.state_dict(), "scheduler": {"after": scheduler}, "args": argparse.Namespace(a=1)}
    path = write(content | {"optimizer": optimizer.state_dict()}, tmp_path / "x.pth", zipped)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path)
    found = read_torch(path)
    assert torch.equal(found["state_dict"]["weight"].value, model.weight)
    for stub, origin in (
        (found["scheduler"]["after"], "torch.optim.lr_scheduler.CosineAnnealingLR"),
        (found["args"], "argparse.Namespace"),
    ):
        assert isinstance(stub, Stub) and repr(stub) == origin
        assert not hasattr(stub, "__dict__")


class Attack:
    def __init__(self, *calls: Any) -> None:
        self.calls = calls

    def __reduce__(self) -> Any:
        return self.calls


def attacks(mark: Path) -> Iterator[Any]:
    command = f"touch {mark}"
    yield Attack(os.system, (command,))
    yield Attack(eval, (f"__import__('os').system({command!r})",))
    yield Attack(exec, (f"open({str(mark)!r}, 'w')",))
    yield Attack(getattr, (Attack(__import__, ("os",)), "system"))
    yield Attack(torch.load, (io.BytesIO(b""),))
    yield Attack(open, (str(mark), "w"))


@KINDS
@pytest.mark.parametrize("number", range(6))
def test_nothing_is_run(number: int, zipped: bool, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    content = {"weights": torch.ones(2), "evil": [*attacks(mark)][number]}
    found = read_torch(write(content, tmp_path / "x.pth", zipped))
    assert isinstance(found["evil"], Stub)
    assert torch.equal(found["weights"].value, torch.ones(2))
    assert not mark.exists()


OPCODES = {
    "a state for a function": b"ctorch._utils\n_rebuild_parameter\n}X\x08\x00\x00\x00functionK\x01sb.",
    "slots for a function": b"ctorch._utils\n_rebuild_parameter\nN}X\x08\x00\x00\x00functionK\x01s\x86b.",
    "slots for a type": b"cnumpy\ndtype\nN}X\x04\x00\x00\x00codeK\x01s\x86b.",
    "a type's attribute": b"ccollections\nOrderedDict\nN}X\x05\x00\x00\x00itemsK\x01s\x86b.",
    "a tensor's own state": b"ctorch._utils\n_rebuild_tensor_v2\n(K\x01tR.",
    "a number called": b"K\x01)R.",
    "an object type": b"cnumpy\ndtype\n(X\x02\x00\x00\x00O8\x89\x88tRcnumpy.core.multiarray\nscalar\n"
    b"(cnumpy\ndtype\n(X\x02\x00\x00\x00O8\x89\x88tRC\x08\x00\x00\x00\x00\x00\x00\x00\x00tR.",
    "bytes in another encoding": b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00hextR.",
    "a storage of no type": b"(X\x07\x00\x00\x00storageK\x01K\x01K\x01K\x01tQ.",
}


@pytest.mark.parametrize("name", OPCODES)
def test_known_names_can_not_be_bent(name: str) -> None:
    before = repr(KNOWN)
    with pytest.raises((ValueError, TypeError, AttributeError)):
        Unpickler(io.BytesIO(b"\x80\x02" + OPCODES[name]), lambda storage: torch.empty(0)).load()
    assert repr(KNOWN) == before


def test_stubs_keep_nothing() -> None:
    text = b"\x80\x02cos\nsystem\n(X\x01\x00\x00\x00atR}X\x01\x00\x00\x00aK\x01sb(K\x01K\x02eX\x01\x00\x00\x00kK\x03s."
    stub = Unpickler(io.BytesIO(text), lambda storage: torch.empty(0)).load()
    assert repr(stub) == "os.system" and not hasattr(stub, "__dict__") and not hasattr(stub, "a")


def changed(path: Path, **entries: bytes) -> Path:
    """Write a torch archive again with some of its entries replaced."""
    with zipfile.ZipFile(path) as old:
        content = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, value in content.items():
            new.writestr(name, entries.get(name.partition("/")[2].replace("/", "_").replace(".", "_"), value))
    return path


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"data_0": b"\x00" * 4}, "has 4 bytes, not 6"),
        ({"byteorder": b"big"}, "big-endian"),
        ({"data_pkl": b"\x80\x02}"}, "no file of torch.save that can be read"),
    ],
)
def test_a_broken_archive(entries: dict[str, bytes], message: str, tmp_path: Path) -> None:
    path = changed(write({"a": torch.randn(6)}, tmp_path / "x.pth", True), **entries)
    with pytest.raises(ValueError, match=message):
        read_torch(path)


def test_a_tensor_stays_inside_its_storage(tmp_path: Path) -> None:
    path = write({"a": torch.randn(6)}, tmp_path / "x.pth", True)
    with zipfile.ZipFile(path) as archive:
        text = archive.read("x/data.pkl")
    size = b"K\x06\x85"
    assert text.count(size) == 1
    for other in (b"K\x07\x85", b"J\xff\xff\xff\x7f\x85"):
        broken = changed(write({"a": torch.randn(6)}, tmp_path / "y.pth", True), data_pkl=text.replace(size, other))
        with pytest.raises(ValueError, match="in a storage of 6 elements"):
            read_torch(broken)


def test_what_is_no_file_of_torch(tmp_path: Path) -> None:
    for content in (b"", b"PK\x03\x04", b"weights", pickle.dumps({"a": 1}), pickle.dumps(MAGIC)):
        (tmp_path / "x.pth").write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.pth can't be loaded:\n  no file of torch\.save that can be read"):
            read_torch(tmp_path / "x.pth")
    with pytest.raises(FileNotFoundError, match=r"no file .*nothing\.pth"):
        read_torch(tmp_path / "nothing.pth")


def test_a_truncated_older_file(tmp_path: Path) -> None:
    path = write({"a": torch.randn(6)}, tmp_path / "x.pth", False)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="can't be loaded"):
        read_torch(path)
    path = write({"a": torch.randn(6)}, tmp_path / "y.pth", False)
    path.write_bytes(path.read_bytes().replace(struct.pack("<q", 6), struct.pack("<q", 5)))
    with pytest.raises(ValueError, match="holds 5 elements, not 6"):
        read_torch(path)


def test_flat_names_nested_values() -> None:
    assert flat({"a": {"b": 1, 2: {"c": 3}}, "d": Array(torch.ones(1))}) == {"a.b": 1, "a.2.c": 3, "d": torch.ones(1)}


def shared(depth: int) -> dict[str, Any]:
    """Dictionaries that hold the next one twice: small as a pickle, 2 ** depth values when they are written out."""
    nest: dict[str, Any] = {"x": 1}
    for _ in range(depth):
        nest = {"a": nest, "b": nest}
    return nest


HOSTILE = {
    "dictionaries that hold one another": (pickle.dumps(shared(40), 2), "more than 300,000 values"),
    "a dictionary in itself": (b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.", "names of more than 1000 characters"),
    "a key of tuples of tuples": (b"\x80\x02}K\x01" + b"q\x00h\x00\x86" * 60 + b"K\x01s.", "a tuple in a key"),
    "keys of one hash": (pickle.dumps({(2**61 - 1) * i: i for i in range(2, 4)}, 2), "a int in a key"),
    "bytes made again and again": (
        b"\x80\x02X\xa0\x86\x01\x00" + b"a" * 100_000 + b"q\x01X\x06\x00\x00\x00latin1q\x02]q\x03("
        + b"c_codecs\nencode\nh\x01h\x02\x86R" * 3000 + b"e.",
        "far more than it holds",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_small_pickle_does_not_make_much(name: str, tmp_path: Path) -> None:
    content, message = HOSTILE[name]
    path = changed(write({"a": torch.randn(6)}, tmp_path / "x.pth", True), data_pkl=content)
    with pytest.raises(ValueError, match=rf"x\.pth can't be loaded:\n  .*{message}"):
        read_flat(path)


def test_a_place_in_the_memo_takes_no_memory() -> None:
    tracemalloc.start()
    assert Unpickler(io.BytesIO(b"\x80\x02K\x01r\xff\xff\xff\x7f."), lambda storage: torch.empty(0)).load() == 1
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_one_storage_is_not_many_tensors(tmp_path: Path) -> None:
    big = torch.randn(2**17)
    path = write({str(i): big[:] for i in range(40)}, tmp_path / "x", True)
    with pytest.raises(ValueError, match="is many tensors at once"):
        read_torch(path)


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    path = write({"a": torch.zeros(100_000)}, tmp_path / "x.pth", True)
    with zipfile.ZipFile(path) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, value in entries.items():
            new.writestr(name, value)
    with pytest.raises(ValueError, match="is compressed, which torch"):
        read_torch(path)


@pytest.mark.parametrize(
    ("number", "message"), [("1000000000", "it names block 1000000000"), ("9" * 5000, "names of more than")]
)
def test_more_blocks_than_values(number: str, message: str, tmp_path: Path) -> None:
    state = {f"blocks.{number}.adapter_attn.adapter_up.weight": torch.ones(8, 2)}
    with pytest.raises(ValueError, match=rf"x\.pt can't be loaded:\n  .*{message}"):
        convert(write(state, tmp_path / "x.pt", True), tmp_path / "out", "convpass")
