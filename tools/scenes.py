"""Procedurally drawn pictures for pretraining: letters of many scripts and fonts, invented characters, plain shapes.

Everything is drawn here, from the fonts that matplotlib ships and from random strokes: no download and never a digit
(the letters of other scripts that are drawn exactly like one are left out too). Drawing has two stages:

1. `draw_bank` draws each figure once, large, as a *distance field* (a signed distance to its outline, or the distance
   to its skeleton: the pen's path), which takes about ten seconds and is cached;
2. `Scenes.batch` warps the fields (affine and elastic), inks them with a pen of random width and hardness, puts them
   on a ground, lowers the resolution, and returns the pictures with all the attributes that were drawn.

See the pictures: `python tools/scenes.py /tmp/scenes.png`.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt

SIZE = 48  # side of a distance field, in its own pixels
REACH = 12.0  # distances are cut at +-REACH field pixels and stored as int8
PICTURE = 32  # side of a picture
FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique", "DejaVuSansMono",
    "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic",
    "DejaVuSerif-BoldItalic", "DejaVuSansDisplay", "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic",
    "STIXGeneralBolIta", "cmr10", "cmss10", "cmtt10", "cmmi10",
    "cmb10",
)  # fmt: skip
SCRIPTS = {  # inclusive ranges of code points
    "latin": ((0x41, 0x5A), (0x61, 0x7A)),
    "greek": ((0x391, 0x3A9), (0x3B1, 0x3C9)),
    "cyrillic": ((0x410, 0x44F),),
    "armenian": ((0x531, 0x556), (0x561, 0x586)),
    "georgian": ((0x10D0, 0x10F0),),
    "hebrew": ((0x5D0, 0x5EA),),
    "tifinagh": ((0x2D30, 0x2D65),),
    "syllabics": ((0x1401, 0x1403), (0x1405, 0x1405), (0x140A, 0x140B), (0x142F, 0x1435), (0x144C, 0x1455)),
}
SHAPES = ("disc", "ring", "square", "frame", "triangle", "star", "cross", "bar", "arrow", "moon", "zigzag", "grid")
TEXTURES = ("plain", "gradient", "stripes", "checks", "noise")
RESOLUTIONS = (16, 32)
KINDS = ("letter", "character", "shape")


def _has(font: TTFont, code: int) -> bool:
    return code in font.getBestCmap()


def _fit(mask: Image.Image, margin: int = 4) -> np.ndarray:
    """Crop a mask to its figure and scale it, at the same aspect, into the middle of a field."""
    figure = mask.crop(mask.getbbox())
    scale = (SIZE - 2 * margin) / max(figure.size)
    figure = figure.resize([max(2, round(side * scale)) for side in figure.size], Image.Resampling.BILINEAR)
    canvas = Image.new("L", (SIZE, SIZE))
    canvas.paste(figure, ((SIZE - figure.width) // 2, (SIZE - figure.height) // 2))
    return np.asarray(canvas) > 127


def _outline_field(mask: np.ndarray) -> np.ndarray:
    """Return the signed distance to the outline: positive inside, in field pixels."""
    return distance_transform_edt(mask) - distance_transform_edt(~mask)


def _pen_field(path: np.ndarray) -> np.ndarray:
    """Return minus the distance to the pen's path, in field pixels."""
    return -distance_transform_edt(~path)


def _thin(masks: np.ndarray) -> np.ndarray:
    """Skeletons of N masks at once (Zhang and Suen, 1984): peel borders that aren't needed for connectivity."""
    masks = masks.copy()
    shifts = [(-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1)]
    while True:
        before = masks.sum()
        for first, second in (((0, 2, 4), (2, 4, 6)), ((0, 2, 6), (0, 4, 6))):
            ring = [np.roll(masks, (-dy, -dx), (1, 2)) for dy, dx in shifts]
            count = sum(neighbour.astype(np.int8) for neighbour in ring)
            turns = sum((~ring[i] & ring[(i + 1) % 8]).astype(np.int8) for i in range(8))
            keep = np.logical_and.reduce([ring[i] for i in first]) | np.logical_and.reduce([ring[i] for i in second])
            masks &= ~(masks & (count >= 2) & (count <= 6) & (turns == 1) & ~keep)
        if masks.sum() == before:
            return masks


def _draw(text: str, font: ImageFont.FreeTypeFont) -> np.ndarray | None:
    page = Image.new("L", (192, 192))
    ImageDraw.Draw(page).text((40, 30), text, font=font, fill=255)
    return _fit(page) if page.getbbox() else None


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def _like_digits(limit: float = 0.7) -> set[str]:
    """Letters outside the Latin alphabet that some font draws like one of its digits; only used to leave them out."""
    found: set[str] = set()
    for name in FONTS:
        if name.startswith("cm"):
            continue
        path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
        tables, font = TTFont(path), ImageFont.truetype(str(path), 96)
        digits = [_draw(digit, font) for digit in "0123456789"]
        for low, high in (span for script, spans in SCRIPTS.items() if script != "latin" for span in spans):
            for code in range(low, high + 1):
                mask = _draw(chr(code), font) if _has(tables, code) else None
                if mask is not None and max(_overlap(mask, digit) for digit in digits if digit is not None) > limit:
                    found.add(chr(code))
    return found


def _letters() -> tuple[list[np.ndarray], list[str]]:
    """Draw every letter in every font that has it; the name of a class is its lower-case or upper-case letter."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    masks, names, left_out = [], [], _like_digits()
    for name in FONTS:
        tables, font = TTFont(folder / f"{name}.ttf"), ImageFont.truetype(str(folder / f"{name}.ttf"), 96)
        scripts = ("latin",) if name.startswith("cm") else tuple(SCRIPTS)
        for low, high in (span for script in scripts for span in SCRIPTS[script]):
            for code in range(low, high + 1):
                if not _has(tables, code) or chr(code) in left_out:
                    continue
                mask = _draw(chr(code), font)
                if mask is not None:
                    masks.append(mask)
                    names.append(chr(code))
    return masks, names


def _merge_lookalikes(masks: list[np.ndarray], names: list[str], limit: float = 0.82) -> list[int]:
    """Give one class to letters that look the same once size is gone (o O, Latin and Greek A), by their first font."""
    first: dict[str, np.ndarray] = {}
    for mask, name in zip(masks, names, strict=True):
        first.setdefault(name, mask)
    classes: dict[str, int] = {}
    leaders: list[np.ndarray] = []
    for name, mask in first.items():
        overlaps = [_overlap(mask, other) for other in leaders]
        if overlaps and max(overlaps) > limit:
            classes[name] = int(np.argmax(overlaps))
        else:
            classes[name] = len(leaders)
            leaders.append(mask)
    return [classes[name] for name in names]


def _stroke(random: np.random.Generator, start: np.ndarray) -> np.ndarray:
    """Four control points of a cubic stroke from `start`: straight, curved or a loop."""
    end = random.uniform(-1, 1, 2)
    kind = random.random()
    if kind < 0.3:
        return np.linspace(start, end, 4)
    if kind < 0.5:
        end = start + random.normal(0, 0.15, 2)
        away = random.uniform(-1.8, 1.8, (2, 2))
        return np.stack([start, start + away[0], end + away[1], end])
    return np.stack([start, *random.uniform(-1.4, 1.4, (2, 2)), end])


def _character(random: np.random.Generator) -> list[np.ndarray]:
    """Invent a character: one to four strokes, each beginning where an earlier one passes (or, rarely, anywhere)."""
    strokes: list[np.ndarray] = []
    for _ in range(random.choice([1, 2, 2, 3, 3, 4])):
        start = random.uniform(-1, 1, 2)
        if strokes and random.random() < 0.8:
            earlier = strokes[random.integers(len(strokes))]
            start = earlier[random.choice([0, 3])] if random.random() < 0.6 else earlier.mean(0)
        strokes.append(_stroke(random, start))
    return strokes


def _write(strokes: list[np.ndarray], random: np.random.Generator, shake: float) -> np.ndarray:
    """Write a character once, with a shaking hand, as a path in a field."""
    t = np.linspace(0, 1, 40)[:, None]
    weights = np.concatenate([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], 1)
    lines = [weights @ (stroke + random.normal(0, shake, stroke.shape)) for stroke in strokes]
    points = np.concatenate(lines)
    low, high = points.min(0), points.max(0)
    scale = (SIZE - 12) / max((high - low).max(), 0.5)
    page = Image.new("L", (SIZE, SIZE))
    for line in lines:
        line = (line - (low + high) / 2) * scale + SIZE / 2
        ImageDraw.Draw(page).line([tuple(point) for point in line], fill=255)
    return np.asarray(page) > 0


def _shape(name: str, random: np.random.Generator) -> np.ndarray:
    """Draw a plain shape, filling most of a field, with random proportions."""
    page = Image.new("L", (SIZE, SIZE))
    draw = ImageDraw.Draw(page)
    a, b = random.uniform(0.6, 1.0, 2) * (SIZE / 2 - 4)
    c, width = SIZE / 2, int(random.integers(3, 8))
    box = (c - a, c - b, c + a, c + b)

    def polygon(angles: np.ndarray, radii: np.ndarray) -> None:
        draw.polygon(
            [(c + a * r * math.cos(t), c + b * r * math.sin(t)) for t, r in zip(angles, radii, strict=True)], 255
        )

    if name in ("disc", "ring"):
        draw.ellipse(box, fill=255 if name == "disc" else 0, outline=255, width=width)
    elif name in ("square", "frame"):
        draw.rectangle(box, fill=255 if name == "square" else 0, outline=255, width=width)
    elif name == "triangle":
        polygon(np.arange(3) * 2 * math.pi / 3 - math.pi / 2, np.ones(3))
    elif name == "star":
        polygon(np.arange(10) * math.pi / 5 - math.pi / 2, np.tile([1.0, random.uniform(0.35, 0.5)], 5))
    elif name == "cross":
        draw.line((c - a, c, c + a, c), 255, width + 2)
        draw.line((c, c - b, c, c + b), 255, width + 2)
    elif name == "bar":
        draw.rectangle((c - a, c - width, c + a, c + width), 255)
    elif name == "arrow":
        draw.line((c - a, c, c + a / 2, c), 255, width)
        draw.polygon([(c, c - b * 0.7), (c + a, c), (c, c + b * 0.7)], 255)
    elif name == "moon":
        draw.ellipse(box, fill=255)
        draw.ellipse((c - a * 0.4, c - b, c + a * 1.6, c + b), fill=0)
    elif name == "zigzag":
        draw.line([(c - a + a * i / 2, c + (b * 0.6 if i % 2 else -b * 0.6)) for i in range(5)], 255, width)
    else:
        for step in (-0.66, 0.0, 0.66):
            draw.line((c - a, c + b * step, c + a, c + b * step), 255, 2)
            draw.line((c + a * step, c - b, c + a * step, c + b), 255, 2)
    return np.asarray(page) > 127


@dataclass(frozen=True)
class Bank:
    """Distance fields, their class, their kind (index into `KINDS`) and whether they are a pen's path."""

    fields: np.ndarray  # (N, SIZE, SIZE) int8, distance * 127 / REACH
    classes: np.ndarray  # (N,)
    kinds: np.ndarray  # (N,)
    pens: np.ndarray  # (N,) bool
    names: np.ndarray  # (classes,) str: a letter, "character 17", or a shape


def draw_bank(cache: Path, characters: int = 500, instances: int = 12, seed: int = 0) -> Bank:
    """Draw all figures, or read them from `cache` (.npz) if they were drawn before."""
    if not cache.exists():
        random = np.random.default_rng(seed)
        masks, names = _letters()
        letter_classes = _merge_lookalikes(masks, names)
        paths = _thin(np.stack(masks))
        fields = [_outline_field(mask) for mask in masks] + [_pen_field(path) for path in paths]
        classes, kinds, pens = letter_classes * 2, [0] * 2 * len(masks), [False] * len(masks) + [True] * len(masks)
        offset = max(classes) + 1
        first = dict(reversed([*zip(letter_classes, names, strict=True)]))
        called = [first[number] for number in range(offset)] + [f"character {i}" for i in range(characters)]
        for number in range(characters):
            strokes = _character(random)
            for _ in range(instances):
                fields.append(_pen_field(_write(strokes, random, 0.09)))
                classes, kinds, pens = [*classes, offset + number], [*kinds, 1], [*pens, True]
        for number, name in enumerate(SHAPES):
            for _ in range(30):
                fields.append(_outline_field(_shape(name, random)))
                classes, kinds, pens = [*classes, offset + characters + number], [*kinds, 2], [*pens, False]
        stored = np.clip(np.stack(fields) * 127 / REACH, -127, 127).round().astype(np.int8)
        labels = {"classes": np.array(classes), "kinds": np.array(kinds), "names": np.array([*called, *SHAPES])}
        np.savez(cache, fields=stored, pens=np.array(pens), **labels)
    with np.load(cache) as loaded:
        return Bank(**{name: loaded[name] for name in ("fields", "classes", "kinds", "pens", "names")})


def _upsample(values: torch.Tensor, mode: str) -> torch.Tensor:
    corners = None if mode == "nearest" else False
    return F.interpolate(values, size=(PICTURE, PICTURE), mode=mode, align_corners=corners)


class Scenes:
    """Pictures drawn on demand from a bank; `variety` in [0, 1] widens what is drawn (the curriculum)."""

    def __init__(self, bank: Bank, seed: int) -> None:
        self.fields = torch.from_numpy(bank.fields)
        self.kinds, self.pens = torch.from_numpy(bank.kinds), torch.from_numpy(bank.pens)
        self.labels = torch.from_numpy(bank.classes)
        self.classes = int(self.labels.max()) + 1
        order = np.argsort(bank.classes, kind="stable")
        self.members = [torch.from_numpy(part) for part in np.split(order, np.cumsum(np.bincount(bank.classes))[:-1])]
        self.of_kind = [torch.unique(self.labels[self.kinds == kind]) for kind in range(len(KINDS))]
        self.random = torch.Generator().manual_seed(seed)

    def _uniform(self, count: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        return torch.rand(count, generator=self.random) * (high - low) + low

    def _integers(self, high: int, count: int) -> torch.Tensor:
        return torch.randint(high, (count,), generator=self.random)

    def _choose(self, count: int) -> torch.Tensor:
        """Choose figures: first a kind, then a class of it, then one drawing of the class."""
        kinds = torch.multinomial(torch.tensor([0.55, 0.25, 0.2]), count, replacement=True, generator=self.random)
        chosen = []
        for kind in kinds.tolist():
            classes = self.of_kind[kind]
            members = self.members[int(classes[self._integers(len(classes), 1)])]
            chosen.append(int(members[self._integers(len(members), 1)]))
        return torch.tensor(chosen)

    def _warp(self, count: int, variety: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Grids (count, PICTURE, PICTURE, 2) of random affine and elastic maps, and their geometry (count, 7)."""
        turn = torch.randn(count, generator=self.random) * (0.08 + 0.42 * variety)
        slant = torch.randn(count, generator=self.random) * (0.05 + 0.2 * variety)
        wide = self._uniform(count, 0.85 - 0.4 * variety, 1.05)
        tall = self._uniform(count, 0.9 - 0.4 * variety, 1.1)
        place = torch.randn(count, 2, generator=self.random) * (0.02 + 0.18 * variety)
        cos, sin = turn.cos(), turn.sin()
        shear = torch.stack([torch.ones(count), slant, torch.zeros(count), torch.ones(count)], 1).view(count, 2, 2)
        rotation = torch.stack([cos, sin, -sin, cos], 1).view(count, 2, 2)
        inverse = rotation @ shear / torch.stack([wide, tall], 1)[:, :, None]
        affine = torch.cat([inverse, -(inverse @ place[:, :, None])], 2)
        grid = F.affine_grid(affine, [count, 1, PICTURE, PICTURE], align_corners=False)
        strength = self._uniform(count, 0.0, 0.06 + 0.14 * variety).view(-1, 1, 1, 1)
        bend = torch.randn(count, 2, 4, 4, generator=self.random) * strength
        bend = F.interpolate(bend, size=(PICTURE, PICTURE), mode="bicubic", align_corners=False)
        geometry = torch.stack([turn * 2, slant * 3, wide * 4 - 3, tall * 4 - 3], 1)
        return grid + bend.permute(0, 2, 3, 1), torch.cat([geometry, place * 4, strength.view(-1, 1) * 8], 1)

    def _ink(self, chosen: torch.Tensor, grid: torch.Tensor, variety: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Ink the figures: masks (count, 1, PICTURE, PICTURE) in [0, 1] and the pen's half width in field pixels."""
        count = len(chosen)
        fields = self.fields[chosen, None].float() * (REACH / 127)
        warped = F.grid_sample(fields, grid, mode="bilinear", padding_mode="border", align_corners=False)
        pens = self.pens[chosen]
        width = torch.where(pens, self._uniform(count, 1.6, 4.6), self._uniform(count, -1.0, 1.8))
        hardness = self._uniform(count, 0.6, 1.6).view(-1, 1, 1, 1)
        return ((warped + width.view(-1, 1, 1, 1)) * hardness + 0.5).clamp(0, 1), width / 2

    def _coarsen(self, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Halve the resolution of some masks: mean over blocks of 2 x 2, and up again in one of three ways."""
        level = (self._uniform(len(masks)) < 0.7).long()
        way = self._integers(3, len(masks))
        small = F.avg_pool2d(masks, PICTURE // RESOLUTIONS[0])
        out = masks.clone()
        for number, name in enumerate(("nearest", "bilinear", "bicubic")):
            which = (level == 0) & (way == number)
            out[which] = _upsample(small[which], name).clamp(0, 1)
        return out, level

    def _ground(self, count: int, variety: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Grounds and inks (count, 3, PICTURE, PICTURE), whether the ink is the darker one, and the texture."""
        plain = self._uniform(count) > 0.8 * variety
        dark_ink = (self._uniform(count) < 0.5 * variety) & ~plain
        ink, ground = torch.ones(count, 3), torch.zeros(count, 3)
        low = torch.rand(count, 3, generator=self.random) * 0.45
        high = 0.55 + torch.rand(count, 3, generator=self.random) * 0.45
        grey = (self._uniform(count) < 0.4).view(-1, 1)
        low, high = torch.where(grey, low[:, :1], low), torch.where(grey, high[:, :1], high)
        plain_, dark_ = plain.view(-1, 1), dark_ink.view(-1, 1)
        faint = self._uniform(count, 1 - 0.25 * variety, 1.0).view(-1, 1)
        ink = torch.where(plain_, ink * faint, torch.where(dark_, low, high))
        ground = torch.where(plain_, ground, torch.where(dark_, high, low))
        texture = torch.where(plain, 0, self._integers(len(TEXTURES), count))
        pattern = self._pattern(count, texture) * self._uniform(count, 0.1, 0.3).view(-1, 1, 1, 1)
        grounds = (ground.view(-1, 3, 1, 1) + pattern).clamp(0, 1)
        return grounds, ink.view(-1, 3, 1, 1).expand_as(grounds), dark_ink.long(), texture

    def _pattern(self, count: int, texture: torch.Tensor) -> torch.Tensor:
        """Patterns (count, 1, PICTURE, PICTURE) in [-1, 1] of the textures asked for."""
        axis = torch.linspace(-1, 1, PICTURE)
        angle, pace = self._uniform(count, 0, 2 * math.pi).view(-1, 1, 1), self._uniform(count, 4, 14).view(-1, 1, 1)
        along = axis.view(1, 1, -1) * angle.cos() + axis.view(1, -1, 1) * angle.sin()
        across = axis.view(1, -1, 1) * angle.cos() - axis.view(1, 1, -1) * angle.sin()
        noise = torch.randn(count, PICTURE, PICTURE, generator=self.random) * 0.5
        stripes = (along * pace).sin()
        every = torch.stack([torch.zeros_like(along), along, stripes, (stripes * (across * pace).sin()).sign(), noise])
        return every[texture, torch.arange(count)].unsqueeze(1)

    def batch(self, count: int, variety: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Draw pictures (count, 3, PICTURE, PICTURE) in [0, 1] and attributes: labels (count,) or values (count, n)."""
        chosen = self._choose(count)
        grid, geometry = self._warp(count, variety)
        masks, width = self._ink(chosen, grid, variety)
        masks, level = self._coarsen(masks)
        grounds, ink, dark, texture = self._ground(count, variety)
        pictures = grounds + (ink - grounds) * masks
        noise = self._uniform(count, 0.0, 0.08 * variety) * (self._uniform(count) < 0.5)
        pictures = pictures + torch.randn(pictures.shape, generator=self.random) * noise.view(-1, 1, 1, 1)
        colours = torch.cat([ink[:, :, 0, 0], grounds.mean((2, 3)), width.view(-1, 1)], 1)
        attributes = {"figure": self.labels[chosen], "kind": self.kinds[chosen], "dark": dark, "texture": texture}
        return pictures.clamp(0, 1), {**attributes, "resolution": level, "geometry": geometry, "colours": colours}


if __name__ == "__main__":
    scenes = Scenes(draw_bank(Path(sys.argv[1]).with_suffix(".npz")), seed=0)
    rows = torch.cat([scenes.batch(60, variety)[0] for variety in (0.0, 0.5, 1.0)])
    page = rows.view(9, 20, 3, PICTURE, PICTURE).permute(0, 3, 1, 4, 2).reshape(9 * PICTURE, 20 * PICTURE, 3)
    sheet = Image.fromarray((page.numpy() * 255).astype(np.uint8))
    sheet.resize((1280, 576), Image.Resampling.NEAREST).save(sys.argv[1])
