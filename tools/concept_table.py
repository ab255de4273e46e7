"""Measure what finished concept runs draw: the shape they learned, and what the model could draw before.

    mmpeft train diffusion/custom_diffusion_scenes
    mmpeft train diffusion/dreambooth_lora_scenes
    OMP_NUM_THREADS=1 python tools/concept_table.py docs/tiny_sd_concepts.png \
        runs/custom_diffusion_scenes runs/dreambooth_lora_scenes

Asks eight times in each colour for what the run taught, "a red <new1>" or whatever its word is, and once in each
colour for every known shape: each picture from noise of its own, the same for all. `mmpeft.data.recognition` judges;
how well it does is measured first, on drawn pictures. The shape is the one that is most alike; the one taught counts
only where it overlaps its outline by `CLEAR`. Prints the table as markdown. The page has a row for the model as it is,
and for each run: what was taught in every colour, then old prompts.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from sd_data import HELD_OUT, KNOWN, STREAM

import mmpeft
from mmpeft.assembly.diffusion_config import DiffusionConfig
from mmpeft.data.drawing import draw
from mmpeft.data.recognition import recognise
from mmpeft.data.scenes import COLOURS, imagine, with_articles
from mmpeft.training.config import read_run
from mmpeft.training.run.run_directory import RunDirectory

REPEATS, STEPS, GUIDANCE, BATCH = 8, 25, 4.0, 44
CLEAR = 0.8
"""Overlap of figure and outline from which on the new shape is drawn, not hinted at by a blob."""
DRAWN = 96
TILE, LEFT, GAP = 64, 190, 12
Asked = tuple[str, str]
"""A shape and a colour."""
OLD: tuple[Asked, ...] = tuple((shape, colour) for shape in KNOWN for colour in COLOURS)
SHOWN: tuple[Asked, ...] = (("star", "red"), ("circle", "blue"), ("cross", "yellow"), ("arrow", "green"))


@dataclass(frozen=True)
class Row:
    """What one model drew of the shape it was taught and of `OLD`, and what the teaching took."""

    name: str
    shape: str
    new: list[Image.Image]
    old: list[Image.Image]
    cost: str

    def line(self) -> str:
        """The row of the table, in percent."""
        new = [(self.shape, colour) for colour in COLOURS] * REPEATS
        return f"| {self.name} | {self.shape} | {score(self.new, new, CLEAR)} | {score(self.old, OLD)} | {self.cost} |"

    def shown(self) -> list[Image.Image]:
        """The pictures of the page."""
        return [*self.new[: len(COLOURS)], *(self.old[OLD.index(asked)] for asked in SHOWN)]


def score(pictures: Sequence[Image.Image], asked: Sequence[Asked], clear: float = 0.0) -> str:
    """Return how often the shape that was asked for is there, and how often in its colour."""
    shapes, both = 0, 0
    for picture, (shape, colour) in zip(pictures, asked, strict=True):
        seen = recognise(picture)
        right = seen is not None and seen.shape == shape and seen.overlap >= clear
        shapes += right
        both += right and seen.colour == colour  # type: ignore[union-attr]
    return f"{100 * shapes / len(asked):.0f} % | {100 * both / len(asked):.0f} %"


def judge_the_judge() -> str:
    """Say how many drawn pictures of the new shape are named rightly, and how many others get its name."""
    found = {}
    for title, shapes in (("new", (HELD_OUT,)), ("known", KNOWN)):
        scenes = [
            replace(imagine((STREAM + 3, n), shape=shapes[n % len(shapes)], style="plain"), texture="plain")
            for n in range(DRAWN)
        ]
        seen = [recognise(draw(scene)) for scene in scenes]
        found[title] = sum(one is not None and one.shape == HELD_OUT and one.overlap >= CLEAR for one in seen)
    return f"of {DRAWN} drawn {HELD_OUT}s {found['new']} are recognised; of {DRAWN} other figures {found['known']}"


def generate(pipeline: Any, asked: Sequence[Asked]) -> list[Image.Image]:
    """Draw what is asked for; picture number i from the noise of seed i."""
    pipeline.set_progress_bar_config(disable=True)
    found: list[Image.Image] = []
    for first in range(0, len(asked), BATCH):
        prompts = [with_articles(f"a {colour} {shape}") for shape, colour in asked[first : first + BATCH]]
        noise = [torch.Generator().manual_seed(first + place) for place in range(len(prompts))]
        found += pipeline(prompts, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=noise).images
    return found


def measure(run: Path | None) -> Row:
    """Draw with the adapter of a finished run, or with none."""
    pipeline: Any = mmpeft.load_model("tiny/sd")
    name, shape, word, cost = "no adapter", HELD_OUT, HELD_OUT, "|"
    if run is not None:
        directory, config = RunDirectory(run), read_run(run / "config.yaml").validate(DiffusionConfig)
        for adapter, path in directory.adapters(list(config.adapters)).items():
            mmpeft.load(pipeline, path, name=adapter)
        mmpeft.adapters(pipeline).activate(*config.adapters)
        shape = Path(config.data.concepts[0].path).name
        words = [word for methods in config.adapters.values() for method in methods for word in method.new_words()]
        metrics: Any = directory.finished()
        cost = f"{metrics['trainable_parameters']:,} | {metrics['steps']:,}"
        name, word = run.name, (words or [shape])[0]
    new = generate(pipeline, [(word, colour) for colour in COLOURS] * REPEATS)
    return Row(name, shape, new, generate(pipeline, OLD), cost)


def page(rows: Sequence[Row]) -> Image.Image:
    """Lay out the pictures, a row for each model; a gap before the old prompts."""
    columns = [*COLOURS, *(f"{colour}\n{shape}" for shape, colour in SHOWN)]
    places = [LEFT + TILE * number + GAP * (number >= len(COLOURS)) for number in range(len(columns))]
    sheet = Image.new("RGB", (places[-1] + TILE, 28 + TILE * len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    for left, title in zip(places, columns, strict=True):
        pen.text((left + 4, 2), title, fill="black")
    for number, row in enumerate(rows):
        top = 28 + TILE * number
        pen.text((4, top + TILE // 2 - 6), row.name, fill="black")
        for left, picture in zip(places, row.shown(), strict=True):
            sheet.paste(picture.resize((TILE - 2, TILE - 2), Image.Resampling.NEAREST), (left, top))
    return sheet


def main() -> None:
    """Print the table and write the page."""
    print(judge_the_judge())
    print("| run | taught | drawn | in its colour | old shapes | in their colour | trained parameters | steps |")
    print("|---|---|---:|---:|---:|---:|---:|---:|", flush=True)
    rows = []
    for run in (None, *map(Path, sys.argv[2:])):
        rows.append(measure(run))
        print(rows[-1].line(), flush=True)
    page(rows).quantize(256).save(sys.argv[1], optimize=True)


if __name__ == "__main__":
    main()
