"""Measure how like a picture, or a style, drawings become: with an IP-Adapter or a style LoRA, and without.

    mmpeft train diffusion/ip_adapter_scenes
    OMP_NUM_THREADS=1 python tools/likeness.py image runs/ip_adapter_scenes docs/tiny_sd_image_prompt.png
    mmpeft train diffusion/lora_scenes
    OMP_NUM_THREADS=1 python tools/likeness.py style runs/lora_scenes docs/tiny_sd_style.png

``image``: 88 new drawings, none of the training's, are image prompts, with no text; counted is how often shape, colour
and ground that are recognised in the picture are those of the image prompt. ``style``: each known shape in each colour
is asked for by a text; counted is how often a judge of styles, tiny/clip with a logistic regression on drawings, finds
the style of the training, and how often shape and colour are those asked for. Both judges are first asked about real
drawings, which says what they can see. Every picture is drawn from the same noise with the adapter and without.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_closing, binary_fill_holes
from sd_data import KNOWN
from sklearn.ensemble import RandomForestClassifier
from torch import Tensor
from torchvision.transforms.functional import to_pil_image, to_tensor

import mmpeft
from mmpeft.data.config import DataConfig
from mmpeft.data.drawing import draw
from mmpeft.data.recognition import recognise
from mmpeft.data.scenes import COLOURS, STYLES, Scene, imagine
from mmpeft.data.transforms import make_transforms
from mmpeft.heads.denoising import Denoiser
from mmpeft.heads.image_encoder import ImageEncoder
from mmpeft.training.config import read_run

BATCH, STEPS, SHOWN, TILE = 44, 25, 12, 72
SEED = 2026
"""The first number of the seeds of all scenes here; no training's begin with it."""
OUTLINED = ("sketch", "neon")
"""Styles that draw outlines: a ring is a filled circle to the judge of shapes."""
Array = NDArray[np.float64]
Judge = Callable[[Sequence[Image.Image]], list[str]]


def scenes(style: str, start: int = 0) -> list[Scene]:
    """Return every known shape in every colour, on grounds that the seeds choose."""
    made = []
    for number, (colour, shape) in enumerate(product(COLOURS, KNOWN)):
        scene = imagine((SEED, start + number), shape=shape, style=style)
        others = [other for other in COLOURS if other != colour]
        ground = scene.ground if scene.ground != colour else others[number % len(others)]
        made.append(replace(scene, colour=colour, ground=ground, texture="plain"))
    return made


def agreement(pictures: Sequence[Image.Image], expected: Sequence[Scene], names: Sequence[str]) -> dict[str, float]:
    """Return how often what is recognised is what was expected, in percent, by name; what is not recognised is not."""
    pairs = [(recognise(picture), scene) for picture, scene in zip(pictures, expected, strict=True)]
    hits = {n: [seen is not None and getattr(seen, n) == getattr(scene, n) for seen, scene in pairs] for n in names}
    return {name: 100 * float(np.mean(own)) for name, own in hits.items()}


class Drawing:
    """A pipeline with the adapter of a run, and the encoder of image prompts."""

    def __init__(self, run: Path) -> None:
        self.clip = mmpeft.load_model("tiny/clip")
        _, self.prepare = make_transforms(DataConfig(name="digits"), self.clip)
        pipeline = mmpeft.load_model("tiny/sd")
        self.model = Denoiser(pipeline, ImageEncoder(self.clip)).eval()
        self.adapters = mmpeft.load(pipeline, run / "adapter", name="own")

    def features(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Return what tiny/clip makes of pictures."""
        return self.model.features(torch.stack([self.prepare(picture) for picture in pictures]))

    def coded(self, pictures: Sequence[Image.Image]) -> list[Image.Image]:
        """Return what the autoencoder keeps of pictures: the best that any adapter of the denoiser can draw."""
        images = torch.stack([to_tensor(picture) for picture in pictures]) * 2 - 1
        mean, _ = self.model.moments(images, ["drawing"] * len(pictures)).chunk(2, 1)
        return [to_pil_image(picture) for picture in self.model.decoded(self.model.scaled(mean))]

    def draw(
        self, prompts: Sequence[str], features: Tensor | None, weight: float, guidance: float
    ) -> list[Image.Image]:
        """Draw each prompt from the noise of its place."""
        self.adapters.activate("own", weights=[weight])
        found: list[Image.Image] = []
        for start in range(0, len(prompts), BATCH):
            part = slice(start, start + BATCH)
            given = {} if features is None else {"own": features[part]}
            seeds = [*range(len(prompts))][part]
            drawn = self.model.draw(prompts[part], seeds, given, steps=STEPS, guidance=guidance, size=(32, 32))
            found += [to_pil_image(picture) for picture in drawn]
        return found


def measure_image(drawing: Drawing, style: str, guidance: float, page: Path) -> None:
    """Draw what looks like pictures, with the adapter and without, and write the page."""
    names = ("shape", "colour", "ground")
    wanted = scenes(style)
    prompts = [draw(scene) for scene in wanted]
    features = drawing.features(prompts)
    _say("the image prompts themselves", agreement(prompts, wanted, names))
    rows = [prompts]
    for title, weight in (("with", 1.0), ("without", 0.0)):
        rows.append(drawing.draw([""] * len(wanted), features, weight, guidance))
        _say(title, agreement(rows[-1], wanted, names))
    _write(rows, page)


def measure_style(drawing: Drawing, style: str, guidance: float, page: Path) -> None:
    """Draw what texts say, with the adapter and without, and write the page."""
    wanted = scenes(style, start=1000)
    judge = style_judge()
    originals = [draw(scene) for scene in wanted]
    rows = [originals]
    _say(f"drawings in the style {style}", _judged(originals, wanted, judge, style))
    _say("the same through the autoencoder", _judged(drawing.coded(originals), wanted, judge, style))
    texts = [scene.say("a {colour} {shape}") for scene in wanted]
    for title, weight in (("with", 1.0), ("without", 0.0)):
        rows.append(drawing.draw(texts, None, weight, guidance))
        _say(title, _judged(rows[-1], wanted, judge, style))
    _write(rows, page)


def _judged(pictures: Sequence[Image.Image], wanted: Sequence[Scene], judge: Judge, style: str) -> dict[str, float]:
    share = 100 * float(np.mean([one == style for one in judge(pictures)]))
    plain = [filled(picture, style in OUTLINED) for picture in pictures]
    return {style: share, **agreement(plain, wanted, ("shape", "colour"))}


def style_judge() -> Judge:
    """Learn the styles from 2,112 drawings by their statistics, and say how often those of 528 others are named."""
    learned, others = ([scene for s in STYLES for scene in _several(s, *which)] for which in ((2000, 4), (4000, 1)))
    forest = RandomForestClassifier(300, random_state=0)
    forest.fit([statistics(draw(scene)) for scene in learned], [scene.style for scene in learned])
    right = forest.predict([statistics(draw(scene)) for scene in others]) == [scene.style for scene in others]
    print(f"the judge of styles names {100 * np.mean(right):.1f} % of drawings that it did not learn from")
    return lambda pictures: [str(one) for one in forest.predict([statistics(picture) for picture in pictures])]


def _several(style: str, start: int, times: int) -> list[Scene]:
    return [scene for turn in range(times) for scene in scenes(style, start + 88 * turn)]


def statistics(picture: Image.Image) -> Array:
    """Return what tells styles apart: how far pixels and their neighbours are from the ground, and at which pace.

    Histograms of the distance to the ground and of its steps from pixel to pixel, its power by spatial frequency, the
    tone of the ground, and the contrast.
    """
    ground, distance = _distance(picture)
    contrast = max(1.0, float(np.quantile(distance, 0.98)))
    shares = (distance / contrast).clip(0, 1.3)
    steps = np.concatenate([np.abs(np.diff(shares, axis=axis)).ravel() for axis in (0, 1)])
    frequencies = np.fft.fftfreq(len(shares))
    pace = np.hypot(frequencies[:, None], frequencies)
    power = np.abs(np.fft.fft2(shares - shares.mean())) ** 2
    rings = np.log([power[(pace >= low) & (pace < low + 0.05)].mean() for low in np.arange(0.02, 0.7, 0.05)])
    histograms = [np.histogram(own, bins=10, range=(0, top))[0] / own.size for own, top in ((shares, 1.3), (steps, 1))]
    return np.concatenate([rings, *histograms, [ground.mean(), contrast]])


def filled(picture: Image.Image, outlined: bool) -> Image.Image:
    """Close the gaps between lines or dots with the figure's tone, and fill outlines, for the judge of shapes."""
    ground, distance = _distance(picture)
    figure = binary_closing(np.pad(distance > 0.5 * np.quantile(distance, 0.98), 2))[2:-2, 2:-2]
    if outlined:
        figure = binary_fill_holes(figure)
    ink = np.median(np.asarray(picture, dtype=np.float64)[distance >= np.quantile(distance, 0.97)], axis=0)
    return Image.fromarray(np.where(figure[..., None], ink, ground).round().astype(np.uint8))


def _distance(picture: Image.Image) -> tuple[Array, Array]:
    """Return the ground's tone, the median of the border, and how far from it each pixel is."""
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float64)
    border = np.concatenate(
        [pixels[:2], pixels[-2:], pixels[2:-2, :2].swapaxes(0, 1), pixels[2:-2, -2:].swapaxes(0, 1)], 1
    )
    ground = np.median(border.reshape(-1, 3), axis=0)
    return ground, np.sqrt(((pixels - ground) ** 2).sum(-1))


def _say(title: str, shares: dict[str, float]) -> None:
    print(f"{title}: " + ", ".join(f"{name} {share:.0f} %" for name, share in shares.items()), flush=True)


def _write(rows: Sequence[Sequence[Image.Image]], path: Path) -> None:
    """Write some of the pictures, evenly chosen: a row of each kind."""
    page = Image.new("RGB", (SHOWN * TILE, len(rows) * TILE), "white")
    for place, row in product(range(SHOWN), range(len(rows))):
        number = place * len(rows[0]) // SHOWN
        tile = rows[row][number].resize((TILE - 2, TILE - 2), Image.Resampling.NEAREST)
        page.paste(tile, (place * TILE + 1, row * TILE + 1))
    page.quantize(256).save(path, optimize=True)


def main() -> None:
    """Measure the adapter of a run, and draw the page."""
    kind, run, page = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    config = read_run(run / "config.yaml").data
    measure = {"image": measure_image, "style": measure_style}[kind]
    with torch.no_grad():
        measure(Drawing(run), config["data"]["style"], config["sampling"]["guidance"], page)


if __name__ == "__main__":
    main()
