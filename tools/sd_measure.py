"""Measure and show what `tiny/sd` draws: shapes and colours as recognised in its pictures, and a page of them.

    python tools/sd_measure.py docs/tiny_sd.png [FOLDER]

prints the accuracies of the shipped model, or of the pipeline in the folder, and writes the page.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw
from sd_data import HELD_OUT, KNOWN, STREAM

from mmpeft.data.recognition import recognise
from mmpeft.data.scenes import COLOURS, Scene, imagine, with_articles
from mmpeft.zoo import load_model

GUIDANCE, STEPS = 4.0, 25
ZOOM = 3


def generate(
    pipeline: StableDiffusionPipeline, prompts: list[str], seed: int, guidance: float = GUIDANCE, steps: int = STEPS
) -> list[Image.Image]:
    """Draw one picture for each prompt."""
    pipeline.set_progress_bar_config(disable=True)
    random = torch.Generator().manual_seed(seed)
    options: dict[str, Any] = {"guidance_scale": guidance, "num_inference_steps": steps, "generator": random}
    parts = [prompts[first : first + 44] for first in range(0, len(prompts), 44)]
    return [picture for part in parts for picture in pipeline(part, **options).images]


PHRASINGS = {
    "short": "a {colour} {shape}",
    "with its ground": "a {colour} {shape} on a {ground} ground",
    "in full": "a {size} {colour} {shape} {place} on a {ground} ground",
}


def measure(
    pipeline: StableDiffusionPipeline, seeds: int = 2, guidance: float = GUIDANCE, steps: int = STEPS
) -> dict[str, float]:
    """Ask for every known shape in every colour; return how often each thing asked for is what is there, in percent.

    Chance is 8.3 % for a shape, 12.5 % for a colour, 11.1 % for a place. Where no figure is recognised, all is wrong.
    """
    scenes = ask(seeds)
    found: dict[str, float] = {}
    for title, phrasing in PHRASINGS.items():
        pictures = generate(pipeline, [scene.say(phrasing) for scene in scenes], 1, guidance, steps)
        seen = [recognise(picture) for picture in pictures]
        for name in ("shape", "colour", "place", "ground"):
            if "{" + name + "}" in phrasing:
                pairs = zip(seen, scenes, strict=True)
                hits = [one is not None and getattr(one, name) == getattr(scene, name) for one, scene in pairs]
                found[f"{name}, {title}"] = _percent(hits)
    return found


def ask(seeds: int) -> list[Scene]:
    """Choose what to ask for: every known shape in every colour, so many times, on other grounds each time."""
    scenes = []
    for number, (_, shape, colour) in enumerate(product(range(seeds), KNOWN, COLOURS)):
        scene = imagine((STREAM + 2, number), shape=shape, style="plain")
        ground = COLOURS[(COLOURS.index(colour) + 1 + number % (len(COLOURS) - 1)) % len(COLOURS)]
        scenes.append(replace(scene, colour=colour, ground=ground))
    return scenes


def measure_held_out(pipeline: StableDiffusionPipeline) -> float:
    """Ask for the shape it never saw, three times in each colour; return how often it is there, in percent."""
    prompts = [with_articles(f"a {colour} {HELD_OUT}") for colour in COLOURS] * 3
    seen = [recognise(picture) for picture in generate(pipeline, prompts, seed=2)]
    return _percent([one is not None and one.shape == HELD_OUT for one in seen])


def _percent(hits: list[bool]) -> float:
    return round(100 * statistics.mean(hits), 1)


def page(pipeline: StableDiffusionPipeline, path: Path, seed: int = 0) -> None:
    """Write a page: a row for every shape, the unknown one last, a column for every colour."""
    rows = [*KNOWN, HELD_OUT]
    prompts = [with_articles(f"a {colour} {shape}") for shape in rows for colour in COLOURS]
    pictures = generate(pipeline, prompts, seed)
    side, left, top = 32 * ZOOM + 4, 84, 22
    sheet = Image.new("RGB", (left + side * len(COLOURS), top + side * len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, colour in enumerate(COLOURS):
        pen.text((left + side * column + 4, 6), colour, fill="black")
    for row, shape in enumerate(rows):
        label = f"{shape}\n(never seen)" if shape == HELD_OUT else shape
        pen.text((4, top + side * row + side // 2 - 8), label, fill="black")
        for column in range(len(COLOURS)):
            picture = pictures[row * len(COLOURS) + column].resize((32 * ZOOM, 32 * ZOOM), Image.Resampling.NEAREST)
            sheet.paste(picture, (left + side * column, top + side * row))
    sheet.quantize(256).save(path, optimize=True)


def main() -> None:
    """Print the accuracies and write the page."""
    pipeline: Any = load_model(sys.argv[2] if len(sys.argv) > 2 else "tiny/sd")
    page(pipeline, Path(sys.argv[1]))
    start = time.perf_counter()
    generate(pipeline, ["a red circle"], 0)
    print(f"{time.perf_counter() - start:.2f} s for one picture on {torch.get_num_threads()} threads", flush=True)
    print(json.dumps(measure(pipeline), indent=2))
    print(f"{HELD_OUT}, never seen: {measure_held_out(pipeline)} %")


if __name__ == "__main__":
    main()
