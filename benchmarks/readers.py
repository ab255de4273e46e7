"""Readers, splits and packs at growing numbers of rows: CPU time for each row, which is to stay the same.

python benchmarks/readers.py            to 1,000,000 rows, 100,000 files; about 5 minutes; --write adds to RESULTS.md
python benchmarks/readers.py --quick    to 100,000 rows and 10,000 files
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import publish_table, table
from PIL import Image
from torchvision.datasets import ImageFolder

from mmpeft.data.config import DataConfig
from mmpeft.data.language.demonstrations import draw_examples
from mmpeft.data.language.labelled import read_labelled
from mmpeft.data.language.packing import cut_pieces, fill_packs
from mmpeft.data.language.row_splits import cut_rows
from mmpeft.data.language.source_config import TextSource
from mmpeft.data.language.task_config import LabelledTexts
from mmpeft.data.language.task_rows import TaskRow
from mmpeft.data.language.text_sets import next_others
from mmpeft.data.readers.folder import read_folder
from mmpeft.data.readers.table import read_table
from mmpeft.data.readers.vtab import read_vtab
from mmpeft.data.samples import Sample
from mmpeft.data.splits import cut_splits, name_classes

CLASSES = 10
Run = Callable[[], object]


def image_folder(root: Path, count: int) -> dict[str, Run]:
    """The same images by our reader, alone and with its splits, and by torchvision's."""
    _files(root / "images", count)
    config = DataConfig(name="folder", path=str(root / "images"))

    def split() -> object:
        samples = read_folder(config)
        classes, labels = name_classes(samples, config)
        return cut_splits(samples, labels, classes, config)

    return {
        "image folder": lambda: read_folder(config),
        "image folder, split": split,
        "torchvision's ImageFolder": lambda: ImageFolder(str(root / "images")),
    }


def lists_of_images(root: Path, count: int) -> dict[str, Run]:
    """A table and a list of VTAB, of as many images."""
    names = _files(root / "listed" / "cifar", count)
    rows = "\n".join(f"{name},{name.split('/')[0]}" for name in names)
    (root / "listed" / "cifar" / "table.csv").write_text(f"image,label\n{rows}\n")
    for name in ("train800.txt", "val200.txt", "test.txt"):
        (root / "listed" / "cifar" / name).write_text("\n".join(f"{name} 1" for name in names[: count // 3]))
    listed = DataConfig(name="table", path=str(root / "listed" / "cifar" / "table.csv"))
    vtab = DataConfig(name="vtab", path=str(root / "listed"), dataset="cifar")
    return {"table of images": lambda: read_table(listed), "list of VTAB": lambda: read_vtab(vtab)}


def _files(root: Path, count: int) -> list[str]:
    names = [f"{number % CLASSES:03d}/{number}.png" for number in range(count)]
    for label in range(CLASSES):
        (root / f"{label:03d}").mkdir(parents=True, exist_ok=True)
    for name in names:
        (root / name).touch()
    return names


def texts(root: Path, count: int) -> dict[str, Run]:
    """Lines of JSON with labels, read, checked and split."""
    path = root / "rows.jsonl"
    with path.open("w") as file:
        file.writelines(json.dumps({"text": f"text {n}", "label": f"class {n % CLASSES}"}) + "\n" for n in range(count))
    return {"labelled texts": lambda: read_labelled(LabelledTexts(path=str(path)))}


def rows_and_packs(root: Path, count: int) -> dict[str, Run]:
    """What happens to rows that are in memory."""
    draw = random.Random(0)
    samples = [Sample(f"{n:07d}", n % CLASSES, Image.new) for n in range(count)]
    classes, labels = tuple(map(str, range(CLASSES))), [n % CLASSES for n in range(count)]
    config = DataConfig(name="folder", path=".", per_class=max(2, count // CLASSES // 2))
    rows = [TaskRow(str(n), n, None, {"label": n % CLASSES}, f"{draw.random():.17f}") for n in range(count)]
    parts = {"train": rows, "test": rows[:10]}
    lengths = [draw.randint(1, 1024) for _ in range(count)]
    keys = [f"{n // 1000}" for n in range(count)]
    return {
        "splits of images": lambda: cut_splits(samples, labels, classes, config),
        "splits of rows": lambda: cut_rows(rows, TextSource(path="rows", validation=0.4, test=0.4)),
        "examples in a prompt, one for each class": lambda: draw_examples(parts, classes, CLASSES, 0),
        "packs, whole rows": lambda: fill_packs(lengths, 2048),
        "packs, cut rows": lambda: cut_pieces(lengths, 2048),
        "answers to other prompts": lambda: next_others(keys),
    }


@dataclass(frozen=True)
class Size:
    """How many rows and files, and how often each is timed: the fastest counts."""

    rows: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    files: tuple[int, ...] = (1_000, 10_000, 100_000)
    rounds: int = 3


KINDS: dict[Callable[[Path, int], dict[str, Run]], str] = {
    image_folder: "files",
    lists_of_images: "files",
    texts: "rows",
    rows_and_packs: "rows",
}


def measure(
    make: Callable[[Path, int], dict[str, Run]], counts: tuple[int, ...], rounds: int
) -> dict[str, list[float]]:
    """Return the seconds that each row takes, at each count."""
    found: dict[str, list[float]] = {}
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            for what, run in make(Path(folder), count).items():
                found.setdefault(what, []).append(min(_seconds(run) for _ in range(rounds)) / count)
    return found


def _seconds(run: Run) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    """Measure all readers and publish the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows")
    parser.add_argument("--write", action="store_true", help="add the table to benchmarks/RESULTS.md")
    options = parser.parse_args()
    size = Size((1_000, 10_000, 100_000), (1_000, 10_000)) if options.quick else Size()
    records: list[dict[str, Any]] = []
    for make, kind in KINDS.items():
        counts = getattr(size, kind)
        for what, seconds in measure(make, counts, size.rounds).items():
            records.append({"what": what, "counts": counts, "seconds": seconds})
    columns = ("CPU time of one row, in us, at", *(f"{n:,} rows" for n in size.rows))
    lines = [(own["what"], *(f"{1e6 * value:.2f}" for value in own["seconds"])) for own in records]
    files = ", ".join(f"{n:,}" for n in size.files)
    print(f"files: {files}")
    publish_table("readers", table(columns, lines), records, ("pillow", "torchvision"), options.write)


if __name__ == "__main__":
    main()
