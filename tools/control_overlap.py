"""Measure how well pictures follow the layout they were asked to follow: with a ControlNet or a T2I-Adapter, without.

    mmpeft train diffusion/controlnet_scenes
    OMP_NUM_THREADS=1 python tools/control_overlap.py runs/controlnet_scenes docs/tiny_sd_control.png

Each of 48 drawn pictures, in the style of the training but none of its pictures, gives a caption and a control image:
an edge map, or a mask in colours, as in the training. The pipeline draws the caption from the same noise with and
without the adapter. The overlap is the intersection over the union of the edges of the drawing and of the drawn
picture, both widened by one pixel. The page shows the first twelve: control image, with, without.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import binary_dilation

import mmpeft
from mmpeft.data.drawing import draw, draw_mask
from mmpeft.data.edges import coloured, edges
from mmpeft.data.scenes import SHAPES, imagine
from mmpeft.training.config import read_run

COUNT, STEPS, GUIDANCE, SHOWN, TILE = 48, 25, 3.0, 12, 72
HELD_OUT = "heart"
"""The shape that tiny/sd does not know."""


def overlap(left: Image.Image, right: Image.Image) -> float:
    """Return the intersection over the union of two edge maps, each widened by one pixel."""
    a, b = (binary_dilation(np.asarray(image.convert("L")) > 127, iterations=1) for image in (left, right))
    return float((a & b).sum() / max(1, (a | b).sum()))


def _tile(picture: Image.Image) -> Image.Image:
    return picture.resize((TILE, TILE), Image.Resampling.NEAREST)


def main() -> None:
    """Print the mean overlap with and without the adapter of a run, and draw the page."""
    page = Image.new("RGB", (SHOWN * TILE, 3 * TILE))
    pipeline = mmpeft.load_model("tiny/sd")
    pipeline.set_progress_bar_config(disable=True)
    run = Path(sys.argv[1])
    adapters = mmpeft.load(pipeline, run / "adapter", name="control")
    masked = read_run(run / "config.yaml").data["data"]["control"] == "mask"
    known = [shape for shape in SHAPES if shape != HELD_OUT]
    scores: dict[str, list[float]] = {"with": [], "without": []}
    for number in range(COUNT):
        scene = imagine((2026, number), shape=known[number % len(known)], style="plain")
        outlines = edges(draw(scene))
        condition = coloured(draw_mask(scene)) if masked else outlines
        image = torch.from_numpy(np.asarray(condition.convert("RGB")).copy()).permute(2, 0, 1)[None].float() / 255
        for name, weight in (("with", 1.0), ("without", 0.0)):
            adapters.activate("control", weights=[weight])
            with adapters.given({"control": image}), torch.no_grad():
                drawn = pipeline(
                    f"a {scene.colour} {scene.shape}", num_inference_steps=STEPS, guidance_scale=GUIDANCE,
                    generator=torch.Generator().manual_seed(number),
                ).images[0]  # fmt: skip
            scores[name].append(overlap(edges(drawn), outlines))
            page.paste(_tile(drawn), (number * TILE, TILE if name == "with" else 2 * TILE))
        page.paste(_tile(condition), (number * TILE, 0))
    page.save(sys.argv[2])
    for name, values in scores.items():
        print(f"{name}: {np.mean(values):.3f} (standard error {np.std(values) / COUNT**0.5:.3f})")


if __name__ == "__main__":
    main()
