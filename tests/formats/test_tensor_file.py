"""Safetensors files: broken, hostile or of strange types, they are refused from their header alone."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from mmpeft.formats.tensor_file import TensorFile, is_finite, refusal


def write_header(path, header, data=b""):
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_header_and_content(tmp_path):
    tensors = {"a.b": torch.ones(2, 3), "c": torch.zeros(4, dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "x.safetensors")
    file = TensorFile(tmp_path / "x.safetensors")
    assert file.shapes == {"a.b": (2, 3), "c": (4,)}
    assert file.dtype == torch.float32
    assert all(torch.equal(value, tensors[name]) for name, value in file.read(allow_nan=False).items())


def test_problems_are_all_told(tmp_path):
    save_file({"a": torch.ones(2), "bb.weight": torch.ones(3)}, tmp_path / "x.safetensors")
    problems = TensorFile(tmp_path / "x.safetensors").problems({"a": (3,), "bb.weights": (3,)})
    assert problems == [
        "missing bb.weights",
        "unexpected bb.weight (did you mean 'bb.weights'?)",
        "a: shape (2,), the model needs (3,)",
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_what_is_finite(dtype):
    value = torch.full((3, 1000), torch.finfo(dtype).max, dtype=dtype)
    assert is_finite(value) and is_finite(value[:, :0])
    for bad in (float("nan"), float("inf"), -float("inf")):
        value[1, 500] = bad
        assert not is_finite(value)
    value[2, 3] = -bad
    assert not is_finite(value)


def test_of_very_many_problems_the_first_are_told(tmp_path):
    save_file({f"blocks.{i}.a": torch.ones(1) for i in range(5000)}, tmp_path / "x.safetensors")
    problems = TensorFile(tmp_path / "x.safetensors").problems({f"layers.{i}.a": (1,) for i in range(3000)})
    assert len(problems) == 8000
    message = str(refusal(tmp_path / "x.safetensors", problems))
    assert "and 4,980 more: unexpected" in message and "and 2,980 more: missing" in message
    assert "unexpected blocks.0.a" in message and "missing layers.0.a" in message and len(message) < 3000


@pytest.mark.parametrize("kept", [0, 5, 40, -1])
def test_a_truncated_file(kept, tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(20)}, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="no complete safetensors file"):
        TensorFile(path)


@pytest.mark.parametrize(
    ("shape", "end"), [([2**40], 2**42), ([2**62, 4], 2**64 - 1), ([4], 2**40), ([5], 16)], ids=str
)
def test_a_header_that_promises_more_than_there_is(shape, end, tmp_path):
    path = tmp_path / "x.safetensors"
    write_header(path, {"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}, b"\0" * 16)
    with pytest.raises(ValueError, match="no complete safetensors file"):
        TensorFile(path)


def test_a_header_of_absurd_length(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes((2**60).to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match="no complete safetensors file"):
        TensorFile(path)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a..b", "a/b", "", ".a", "a\n", "C:\\x"])
def test_names_that_could_be_paths(name, tmp_path):
    path = tmp_path / "x.safetensors"
    write_header(path, {name: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, b"\0" * 16)
    with pytest.raises(ValueError, match="is no name of a tensor"):
        TensorFile(path)


def test_types_that_are_no_floats(tmp_path):
    save_file({"a": torch.ones(2, dtype=torch.int64), "b": torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="a: type I64, not of"):
        TensorFile(tmp_path / "x.safetensors")


def test_nan_and_infinity_are_named(tmp_path):
    tensors = {"a": torch.tensor([1.0, float("nan")]), "b": torch.ones(2), "c": torch.tensor(float("inf"))}
    save_file(tensors, tmp_path / "x.safetensors")
    file = TensorFile(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="a: NaN or infinite") as told:
        file.read(allow_nan=False)
    assert "c: NaN" in str(told.value)
    assert "b: NaN" not in str(told.value)
    assert file.read(allow_nan=True)["a"].isnan().any()
