"""The fuzzer's part for adapters on disk: every format that mmpeft reads, its own among them.

Valid files of each format are made once, of tiny random models; a case bends one of them: bytes, headers, JSON values,
the program of a pickle, entries of an archive.
"""

from __future__ import annotations

import argparse
import io
import json
import pickle
import shutil
import struct
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import timm
import torch
from fuzz import Case
from fuzz_mutations import mutated_bytes, mutated_value

import mmpeft
from mmpeft.formats import READ, convert, export

TESTS = Path(__file__).parents[1] / "tests"
NATIVE: dict[str, Any] = {
    "lora": {"method": "lora", "rank": 2},
    "dora": {"method": "dora", "rank": 2},
    "ia3": {"method": "ia3"},
    "adaptformer": {"method": "adaptformer", "bottleneck": 2},
    "vpt": {"method": "vpt", "tokens": 2},
    "several": [{"method": "lora", "rank": 2}, {"method": "linear_probe"}],
}
HOSTED: dict[str, tuple[Any, str]] = {
    "diffusers_lora": ({"method": "lora", "rank": 2}, "lora"),
    "kohya": ({"method": "lora", "rank": 2}, "kohya.safetensors"),
    "comfyui": ({"method": "dora", "rank": 2}, "comfy.safetensors"),
    "ip_adapter": ({"method": "ip_adapter", "features": 8, "tokens": 2}, "ip.bin"),
    "controlnet": ({"method": "controlnet", "widths": (8, 16)}, "controlnet"),
    "controlnet_original": ({"method": "controlnet", "widths": (8, 16)}, "original.pth"),
    "t2i_adapter": ({"method": "t2i_adapter"}, "t2i"),
    "custom_diffusion": ([{"method": "custom_diffusion"}, {"method": "textual_inversion", "words": ["<n>"]}], "custom"),
    "textual_inversion": ({"method": "textual_inversion", "words": ["<new>"]}, "words"),
}
"""What is exported to have a valid file of each format, and where."""


@dataclass(frozen=True)
class Sample:
    """A valid file or directory of a format, and the model that it is for, if that is needed to read it."""

    format: str
    path: Path
    base: Any = None
    options: dict[str, Any] = field(default_factory=dict)


def vit() -> Any:
    """Return a tiny vision transformer, always the same."""
    torch.manual_seed(0)
    size = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 2, "num_heads": 2, "num_classes": 3}
    return timm.create_model("vit_tiny_patch16_224", **size).eval()


class Formats:
    """Valid files of every format, and how they are bent."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = vit()
        self.weights = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.root = Path(tempfile.mkdtemp(prefix="fuzz-formats-"))
        self.samples = [*self._native(), *self._papers(), *self._hosted()]
        missing = READ.keys() - {sample.format for sample in self.samples}
        assert not missing, f"no sample of {missing}"

    def __del__(self) -> None:
        """Remove the valid files."""
        shutil.rmtree(self.root, ignore_errors=True)

    def case(self, random: Random, directory: Path) -> Case:
        """Bend one file of one sample."""
        formats = sorted({sample.format for sample in self.samples})
        format = random.choice(("native", "peft", *formats))
        sample = random.choice([sample for sample in self.samples if sample.format == format])
        path = directory / sample.path.name
        (shutil.copytree if sample.path.is_dir() else shutil.copyfile)(sample.path, path)
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        if random.random() < 0.03:
            return self._straight(sample, path, directory)
        bend(random, random.choice([file for file in files if file.is_file()]))
        label = "native" if format == "native" else format
        if format in ("native", "peft") and random.random() < 0.8:
            return Case(label, lambda: mmpeft.load(self.model, path), (path.name,), check=self._untouched)
        if format == "native":
            return Case(label, lambda: self._exported(path, directory, random), (path.name,), check=self._untouched)
        read = partial(convert, path, directory / "out", format, base=sample.base, **sample.options)
        return Case(label, read, (path.name,), (ValueError, FileNotFoundError), partial(self._whole, directory / "out"))

    def _straight(self, sample: Sample, path: Path, directory: Path) -> Case:
        """Return a case that must be read: the file as it is."""
        if sample.format == "native":
            return Case("straight", lambda: mmpeft.load(self.model, path), (), (), self._untouched)
        read = partial(convert, path, directory / "out", sample.format, base=sample.base, **sample.options)
        return Case("straight", read, (), ())

    def _exported(self, path: Path, directory: Path, random: Random) -> None:
        format = random.choice(("peft", "vllm"))
        try:
            export(path, directory / "exported", format)
        except ValueError:
            assert not (directory / "exported").exists()
            raise

    def _untouched(self, refused: bool) -> None:
        names = mmpeft.adapters(self.model).names if hasattr(self.model, "mmpeft") else []
        assert not (refused and names), f"the model has {names}"
        for name in names:
            mmpeft.adapters(self.model).remove(name)
        state = self.model.state_dict()
        assert state.keys() == self.weights.keys(), f"other keys: {state.keys() ^ self.weights.keys()}"
        assert all(torch.equal(value, state[key]) for key, value in self.weights.items()), "the base changed"

    def _whole(self, written: Path, refused: bool) -> None:
        assert refused != written.exists(), "a refused file left a directory" if refused else "nothing was written"

    def _native(self) -> list[Sample]:
        found = []
        for name, methods in NATIVE.items():
            handle = mmpeft.adapt(vit(), methods)
            for parameter in handle.parameters():
                parameter.data += 0.1 * torch.randn_like(parameter)
            path = handle.save(self.root / f"native_{name}")
            found.append(Sample("native", path))
            if (path / "adapter_config.json").exists():
                shutil.copytree(path, self.root / f"peft_{name}")
                (self.root / f"peft_{name}" / "mmpeft.json").unlink()
                found.append(Sample("peft", self.root / f"peft_{name}"))
        return found

    def _papers(self) -> list[Sample]:
        sys.path[:0] = [str(TESTS), str(TESTS / "formats"), str(TESTS / "formats/papers")]
        import test_clip_lora
        import test_dassl
        import test_foreign

        images, found = torch.randn(2, 3, 32, 32), []
        size = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 5}
        with torch.no_grad():
            for name, (format, make, options) in test_foreign.CASES.items():
                model = timm.create_model("vit_tiny_patch16_224", **size).eval()
                content = make(model, images)[0]
                for zipped in (True, False):
                    path = self.root / f"{name.replace(' ', '_')}_{zipped}.pth"
                    torch.save(content, path, _use_new_zipfile_serialization=zipped)
                    found.append(Sample(format, path, options=options))
            clip = test_dassl.build().backbone
            for maker in (test_dassl.coop, test_dassl.cocoop, test_dassl.maple):
                path = self.root / f"dassl_{maker.__name__}"
                path.mkdir()
                torch.save({"state_dict": maker(clip)[0], "epoch": 2}, path / "model.pth.tar-2")
                (path / "checkpoint").write_text("model.pth.tar-2\n")
                found.append(Sample("dassl", path))
        test_clip_lora.write(self.root / "lora_weights.pt", ["text", "text", "vision", "vision", "vision"])
        depths = {"text_layers": 2, "vision_layers": 3}
        found.append(Sample("clip_lora", self.root / "lora_weights.pt", options=depths))
        path = self.root / "tip"
        path.mkdir()
        torch.save(torch.randn(16, 6), path / "keys_2shots.pt")
        torch.save(torch.eye(3).repeat(2, 1), path / "values_2shots.pt")
        import test_adapterhub

        for kind, config in test_adapterhub.CONFIGS.items():
            test_adapterhub.write(self.root / f"hub_{kind}", config, pickled=kind == "parallel")
            found.append(Sample("adapterhub", self.root / f"hub_{kind}", test_adapterhub.bert()))
        return [*found, Sample("tip_adapter", path)]

    def _hosted(self) -> list[Sample]:
        sys.path.insert(0, str(TESTS / "formats"))
        import tiny_diffusion

        found = []
        for format, (methods, name) in HOSTED.items():
            words = format in ("custom_diffusion", "textual_inversion")
            make: Callable[[], Any] = tiny_diffusion.make_unet
            if words:
                make = partial(tiny_diffusion.make_pipeline, self.root / "tokenizer")
            mmpeft.adapt(model := make(), methods).save(self.root / f"ours_{format}")
            export(self.root / f"ours_{format}", self.root / name, format, base=model)
            found.append(Sample(format, self.root / name, make()))
        return found


def bend(random: Random, path: Path) -> None:
    """Change a file in place, most often inside what its kind has: a header, JSON, the program of a pickle."""
    data = path.read_bytes()
    if random.random() < 0.15:
        path.write_bytes(mutated_bytes(random, data))
    elif path.suffix == ".json":
        path.write_text(json.dumps(mutated_value(random, json.loads(data))))
    elif path.suffix == ".safetensors":
        path.write_bytes(_with_header(random, data))
    elif (zipfile.is_zipfile(path) or data[:1] == b"\x80") and random.random() < 0.4:
        torch.save(mutated_value(random, torch.load(path, weights_only=False)), path)  # valid, and made here
    elif zipfile.is_zipfile(path):
        _bend_archive(random, path)
    elif random.random() < 0.5 and data[:1] == b"\x80":
        path.write_bytes(program(random))
    else:
        path.write_bytes(mutated_bytes(random, data))


def _with_header(random: Random, data: bytes) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    if random.random() < 0.3:
        for number in range(random.choice((1, 3, 3000))):
            header[f"{random.choice(list(header))}.{number}"] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    elif random.random() < 0.3:
        header = {key.replace("0", random.choice(("1000000000", "9" * 30, "-1"))): v for key, v in header.items()}
    elif "__metadata__" in header and random.random() < 0.5:
        said = header["__metadata__"]
        key = random.choice(list(said))
        inside = json.loads(said[key]) if said[key].startswith("{") else said[key]
        said[key] = json.dumps(mutated_value(random, inside))
    else:
        header = mutated_value(random, header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


def _bend_archive(random: Random, path: Path) -> None:
    with zipfile.ZipFile(path) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    name = next(name for name in entries if name.endswith("data.pkl"))
    change = random.random()
    if change < 0.5:
        entries[name] = mutated_bytes(random, entries[name])
    elif change < 0.75:
        entries[name] = program(random)
    elif change < 0.85:
        entries.pop(random.choice(list(entries)))
    else:
        other = random.choice(list(entries))
        entries[other] = mutated_bytes(random, entries[other])
    compression = zipfile.ZIP_DEFLATED if random.random() < 0.1 else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", compression) as new:
        for other, content in entries.items():
            new.writestr(other, content)


def program(random: Random) -> bytes:
    """Return a pickle that is small and makes much, nests deeply, or refers to itself."""
    name, depth = random.choice(("state_dict", "model", "weights", "blocks.0.x", "metadata")), random.choice((30, 900))
    kind = random.randrange(7)
    if kind == 0:  # dictionaries that hold each other twice: 2 ** depth values
        nest: Any = {"x": 1}
        for _ in range(depth):
            nest = {"a": nest, "b": nest}
        return _pickled({name: nest})
    if kind == 1:  # the same of tuples, as a key: the hash visits every path
        return b"\x80\x02}K\x01" + b"q\x00h\x00\x86" * depth + b"K\x01s."
    if kind == 2:
        return b"\x80\x02K\x01r" + struct.pack("<I", random.choice((2**20, 2**28, 2**31 - 1))) + b"."
    if kind == 3:  # a dictionary inside itself
        return b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s."
    if kind == 4:
        return _pickled({name: {f"blocks.{10**9}.x": 1, "y": argparse.Namespace()}})
    if kind == 5:  # a text of a million letters, turned into bytes again and again
        text = b"X" + struct.pack("<I", 10**5) + b"a" * 10**5 + b"q\x01X\x06\x00\x00\x00latin1q\x02"
        return b"\x80\x02" + text + b"]q\x03(" + b"c_codecs\nencode\nh\x01h\x02\x86R" * 3000 + b"e."
    return b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b"."


def _pickled(value: Any) -> bytes:
    file = io.BytesIO()
    try:
        pickle.Pickler(file, protocol=2).dump(value)
    except RecursionError:
        return b"\x80\x02}."
    return file.getvalue()
