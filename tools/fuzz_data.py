"""The fuzzer's part for data: every reader of images and of texts, and what is done with its rows.

Valid data of each reader are made once; a case bends one of their files - the bytes of a picture, a line, a value -
or puts something in its place: a link out of the folder, a pipe, a bomb.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from fuzz import Case
from fuzz_mutations import mutated_bytes, mutated_value
from PIL import Image
from torchvision.transforms.functional import to_tensor

from mmpeft.data import DataConfig, load_data
from mmpeft.data.captions import load_captions
from mmpeft.data.diffusion import load_pictures
from mmpeft.data.diffusion_config import DiffusionData
from mmpeft.data.language.config import LanguageData
from mmpeft.data.language.labelled import load_labelled
from mmpeft.data.language.paired import load_paired
from mmpeft.data.language.reading import load_reading
from mmpeft.data.language.task_config import LabelledTexts, PairedTexts, ReadingData
from mmpeft.data.language.text_sets import SHAPES, load_texts
from mmpeft.data.masks import load_masks
from mmpeft.data.protocols.few_shot import FEW_SHOT
from mmpeft.data.readers.datum import read_datums
from mmpeft.zoo import load_model, load_tokenizer

CUT: dict[str, Any] = {"validation": 1, "test": 1}
TURNS = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "<think>so</think> because"}]
SPOKEN = {"from": "gpt", "value": "a"}
TEXTS: dict[str, list[dict[str, Any]]] = {
    "messages": [{"messages": [{"role": "user", "content": f"q{n}"}, *TURNS[1:]], "tools": []} for n in range(9)],
    "sharegpt": [
        {"conversations": [{"from": "human", "value": f"q{n}"}, {"from": "gpt", "value": "a"}]} for n in range(6)
    ],
    "prompt_completion": [{"prompt": f"q{n}", "completion": "a", "reasoning": "so"} for n in range(9)],
    "alpaca": [{"instruction": f"q{n}", "input": "i", "output": "a", "history": [["x", "y"]]} for n in range(9)],
    "preference": [{"prompt": f"q{n}", "chosen": "a", "rejected": "b", "margin": 0.5} for n in range(9)],
    "unpaired": [{"prompt": f"q{n}", "completion": "a", "label": bool(n % 2)} for n in range(9)],
    "text": [{"text": f"a story of {n}"} for n in range(9)],
}
ANSWERS = {"text": ["cat"], "answer_start": [6]}
TASKS: dict[str, tuple[Callable[[str], Any], Callable[[Any, Any], Any], list[dict[str, Any]]]] = {
    "labelled": (
        lambda path: LabelledTexts(path=path, on_bad_row="skip", **CUT),
        load_labelled,
        [{"text": f"t{n}", "text_pair": "x", "label": n % 2} for n in range(8)],
    ),
    "reading": (
        lambda path: ReadingData(path=path, max_length=64, stride=8, on_bad_row="skip", **CUT),
        load_reading,
        [{"context": "a big cat", "question": f"q{n}?", "answers": ANSWERS} for n in range(9)],
    ),
    "paired": (
        lambda path: PairedTexts(path=path, on_bad_row="skip", **CUT),
        load_paired,
        [{"source": f"s{n}", "target": "t"} for n in range(9)],
    ),
}
"""Configuration, loader and rows of each classic task."""


class Datum:
    """As Dassl's, when pickled."""

    def __init__(self, path: str) -> None:
        self._impath, self._label, self._domain, self._classname = path, 1, 0, "a"


class Data:
    """Valid data of every reader, and how they are bent."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="fuzz-data-"))
        self.model, self.tokenizer = load_model("tiny/vit"), load_tokenizer("tiny/llm")
        self.kinds: dict[str, Callable[[Path], object]] = {
            "folder": lambda path: self._images(name="folder", path=path / "images"),
            "table": lambda path: self._images(name="table", path=path / "images" / "table.csv"),
            "parquet": lambda path: self._images(name="table", path=path / "images" / "table.parquet"),
            "masks": lambda path: _all(
                load_masks(_config("masks", path / "images", mask_path=path / "masks"), self.model)
            ),
            "captions": lambda path: self._captions(path, "captions.json"),
            "captions_csv": lambda path: self._captions(path, "captions.csv"),
            "captions_karpathy": lambda path: self._captions(path, "karpathy.json"),
            "concepts": self._concepts,
            "vtab": lambda path: self._images(name="vtab", path=path, dataset="patch_camelyon"),
            "fgvc": lambda path: self._images(name="fgvc", path=path, dataset="cub"),
            "few_shot": lambda path: self._images(name="few_shot", path=path, dataset="eurosat"),
            "datum": lambda path: read_datums(path / "shots.pkl"),
            **{name: lambda path, name=name: self._texts(path, name) for name in TEXTS},
            **{name: lambda path, name=name: self._task(path, name) for name in TASKS},
        }
        for name in self.kinds:
            self._make(name, self.root / name)
            self.kinds[name](self.root / name)

    def __del__(self) -> None:
        """Remove the valid data."""
        shutil.rmtree(self.root, ignore_errors=True)

    def case(self, random: Random, directory: Path) -> Case:
        """Bend one file of the data of one reader."""
        name = random.choice([*self.kinds])
        path = directory / name
        shutil.copytree(self.root / name, path)
        files = sorted(file for file in path.rglob("*") if file.is_file())
        lists = [file for file in files if file.suffix != ".png"]
        _bend(random, random.choice(lists if lists and random.random() < 0.7 else files))
        return Case(name, lambda: self.kinds[name](path), (name,))

    # ---- reading -------------------------------------------------------------------------------------------------

    def _images(self, name: str, path: Path, **values: Any) -> object:
        return _all(load_data(_config(name, path, **values), self.model))

    def _masks(self, path: Path) -> object:
        return _all(load_masks(_config("masks", path / "images", mask_path=path / "masks"), self.model))

    def _captions(self, path: Path, file: str) -> object:
        config = _config("captions", path / "images", caption_path=path / file)
        return _all(load_captions(config, self.model, lambda texts: to_tensor(np.zeros((len(texts), 4)))[0]))

    def _concepts(self, path: Path) -> object:
        concept = {"path": str(path / "images"), "class_path": str(path / "others")}
        return _all(load_pictures(DiffusionData.model_validate({"name": "concepts", "concepts": [concept]}), 16, 8))

    def _texts(self, path: Path, name: str) -> object:
        config = LanguageData(name=name, path=str(path), on_bad_row="skip", validation=2, test=2)  # type: ignore[arg-type]
        shape = next(shape for shape, names in SHAPES.items() if name in names)
        return _all(load_texts(config, self.tokenizer, shape))

    def _task(self, path: Path, name: str) -> object:
        config, load, _ = TASKS[name]
        return _all(load(config(str(path)), self.tokenizer))

    # ---- valid data ----------------------------------------------------------------------------------------------

    def _make(self, name: str, path: Path) -> None:
        path.mkdir()
        if name in TEXTS or name in TASKS:
            rows = TEXTS[name] if name in TEXTS else TASKS[name][2]
            (path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
            if name in ("text", "unpaired"):
                (path / "rows.csv").write_text(
                    "\n".join(",".join(map(str, row)) for row in ([*rows[0]], ["x"] * len(rows[0])))
                )
        elif name == "datum":
            (path / "shots.pkl").write_bytes(pickle.dumps({"train": [Datum("/a/b.png")] * 3, "val": []}, protocol=4))
        else:
            _make_images(name, path)


def _make_images(name: str, path: Path) -> None:
    images = [f"{label}/{number}.png" for label in "ab" for number in range(4)]
    for place in ("images", "masks", "others"):
        for image in images:
            _picture(path / place / image)
    if name in ("table", "parquet"):
        (path / "images" / "table.csv").write_text("\n".join(["image,label", *(f"{i},{i[0]}" for i in images)]))
    if name == "parquet":
        import pandas

        pandas.read_csv(path / "images" / "table.csv").to_parquet(path / "images" / "table.parquet")
    (path / "masks" / "classes.txt").write_text("ground\nfigure\n")
    (path / "captions.json").write_text(json.dumps({image: ["a", "b"] for image in images}))
    (path / "captions.csv").write_text("\n".join(["file_name,text", *(f"{image},a picture" for image in images)]))
    sentences = [{"raw": "a"}]
    karpathy = [{"filepath": i[0], "filename": i[2:], "sentences": sentences, "split": "train"} for i in images]
    (path / "karpathy.json").write_text(json.dumps({"images": karpathy}))
    for place in ("images", "others") if name == "concepts" else ():
        (path / place / "captions.json").write_text(json.dumps(dict.fromkeys(images, "a <new> b")))
    _make_lists(name, path, images)


def _make_lists(name: str, path: Path, images: list[str]) -> None:
    if name == "vtab":
        (path / "images").rename(path / "patch_camelyon")
        for file in ("train800.txt", "val200.txt", "test.txt"):
            (path / "patch_camelyon" / file).write_text("\n".join(_lines(file, images)))
    elif name == "fgvc":
        (path / "images").rename(path / "cub_images")
        (path / "cub").mkdir()
        (path / "cub_images").rename(path / "cub" / "images")
        for part, file in enumerate(("train.json", "val.json", "test.json")):
            labels = {f"{part}/{label}.png": label for label in (range(200) if part == 0 else [part])}
            for image in labels:
                _picture(path / "cub" / "images" / image)
            (path / "cub" / file).write_text(json.dumps(labels))
    elif name == "few_shot":
        folder = path / FEW_SHOT["eurosat"].folder
        folder.mkdir()
        (path / "images").rename(folder / "2750")
        parts = {}
        for part in ("train", "val", "test"):
            parts[part] = [[f"{part}/{label}.png", label, f"class {label}"] for label in range(10)]
            for image, *_ in parts[part]:
                _picture(folder / "2750" / str(image))
        (folder / "split_zhou_EuroSAT.json").write_text(json.dumps(parts))


def _lines(file: str, images: list[str]) -> list[str]:
    chosen = {"train800.txt": images[:4], "val200.txt": images[4:6], "test.txt": images[6:]}[file]
    return [f"{image} {number % 2}" for number, image in enumerate(chosen)]


def _picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) % 2).save(path)


def _config(name: str, path: Path, **values: Any) -> DataConfig:
    others = {key: str(value) for key, value in values.items()}
    return DataConfig.model_validate({"name": name, "path": str(path), **others, **CUT})


def _all(splits: Any) -> object:
    """Take every sample of every split."""
    return [split[index] for split in (splits.train, splits.val, splits.test) for index in range(len(split))]


# ---- bending -----------------------------------------------------------------------------------------------------


def _bend(random: Random, file: Path) -> None:
    content = file.read_bytes()
    if random.random() < 0.1:
        _replace(random, file)
    elif file.suffix in (".json", ".jsonl") and random.random() < 0.8:
        lines = content.decode().splitlines() if file.suffix == ".jsonl" else [content.decode()]
        place = random.randrange(len(lines))
        lines[place] = json.dumps(mutated_value(random, json.loads(lines[place])))
        file.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
    elif file.suffix in (".csv", ".txt") and random.random() < 0.6:
        cells = content.decode().replace("\n", "\0\n\0").replace(",", "\0,\0").split("\0")
        cells[random.randrange(len(cells))] = str(mutated_value(random, "x"))
        file.write_text("".join(cells), encoding="utf-8")
    else:
        file.write_bytes(mutated_bytes(random, content))


def _replace(random: Random, file: Path) -> None:
    """Put something else in the place of a file."""
    content = file.read_bytes()
    file.unlink()
    kind = random.choice(("nothing", "empty", "folder", "link", "circle", "pipe", "strip", "bomb", "moving", "nested"))
    if kind == "empty":
        file.write_bytes(b"")
    elif kind == "folder":
        file.mkdir()
    elif kind in ("link", "circle"):
        file.symlink_to("/etc/passwd" if kind == "link" else file.name)
    elif kind == "pipe" and file.suffix == ".png":
        os.mkfifo(file)
    elif kind in ("strip", "bomb"):
        Image.new("1", (100_000, 1) if kind == "strip" else (14_000, 14_000)).save(file, "PNG")
    elif kind == "moving":
        frames = [Image.new("L", (8, 8), value) for value in (0, 99)]
        frames[0].save(file, "PNG", save_all=True, append_images=frames[1:])
    elif kind == "nested":
        file.write_bytes(b"[" * random.choice((500, 900, 100_000)) + content)
