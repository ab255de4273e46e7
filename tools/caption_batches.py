"""Batches of pictures with captions, and which caption is true of which picture, to pretrain `tiny/clip`."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

import numpy as np
import torch
from scenes import KINDS, Bank, Scenes

from mmpeft.data.drawing import draw
from mmpeft.data.scenes import (
    CAPTIONS,
    COLOURS,
    PLACES,
    SEEN_STYLES,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    imagine,
    is_held_out,
    with_articles,
)

SHORT = (
    "a {shape}",
    "a {shape}",
    "a {shape}",
    "a {colour} {shape}",
    "a {colour} {shape}",
    "a {size} {shape}",
    "a {shape} {place}",
    "a {size} {colour} {shape}",
    "a {colour} {shape} on a {ground} ground",
    "a {shape} on a {texture} ground",
)
PREFIXES = ("", "", "a photo of ", "a photo of ", "a drawing of ", "a picture of ", "an image of ", "there is ")
ATTRIBUTES = {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "place": PLACES, "ground": COLOURS}
ATTRIBUTES["texture"] = TEXTURES
STREAM = 1000
"""The first number of every pretraining scene's seed; those of `data: {name: scenes}` begin with 0 to 5."""


@dataclass(frozen=True)
class Batch:
    """N pictures with one caption each."""

    pictures: torch.Tensor  # (N, 3, 32, 32) in [0, 1]
    captions: list[str]
    facts: torch.Tensor  # (N, attributes): what is drawn; 0 where a picture has no such attribute
    told: torch.Tensor  # (N, attributes) bool: what its caption tells

    def also_true(self) -> torch.Tensor:
        """Which caption (column) is true of another picture (row) as well, and so is no negative for it."""
        agree = (self.facts[:, None] == self.facts[None]) | ~self.told[None]
        return agree.all(2) & ~torch.eye(len(self.captions), dtype=torch.bool)


def name_letter(letter: str) -> str:
    """Say a letter: ``the letter a``, ``the greek letter alpha``, from its Unicode name."""
    words = unicodedata.name(letter).lower().replace("capital ", "").replace("small ", "").split()
    script, name = words[0], " ".join(word for word in words[1:] if word != "letter")
    return f"the letter {name}" if script == "latin" else f"the {script} letter {name}"


def name_character(number: int) -> str:
    """Give an invented character a name of two syllables: ``the character kabe``."""
    syllables = [consonant + vowel for vowel in "aeiou" for consonant in "bdfgklmnprstvz"]
    return f"the character {syllables[number % 70]}{syllables[number // 70]}"


def name_figure(name: str) -> str:
    """Say a letter or an invented character of the bank."""
    return name_letter(name) if len(name) == 1 else name_character(int(name.split()[1]))


class Captioned:
    """Draws batches of scenes in the seen styles and combinations, mixed with letters and invented characters."""

    def __init__(self, bank: Bank, seed: int, scenes: int, letters: int) -> None:
        self.bank, self.figures = bank, Scenes(bank, seed)
        self.random, self.seed, self.drawn = np.random.default_rng(seed), seed, 0
        self.scenes, self.letters = scenes, letters

    def next(self) -> Batch:
        """Draw the next batch."""
        parts = [self._scenes(), self._letters()]
        return Batch(
            torch.cat([part.pictures for part in parts]),
            [caption for part in parts for caption in part.captions],
            torch.cat([part.facts for part in parts]),
            torch.cat([part.told for part in parts]),
        )

    def imagine(self) -> Scene:
        """Imagine the next scene that pretraining may see."""
        while True:
            self.drawn += 1
            style = SEEN_STYLES[self.drawn % len(SEEN_STYLES)]
            scene = imagine((STREAM + self.seed, self.drawn), style=style)
            if not is_held_out(scene.shape, scene.colour):
                return scene

    def _scenes(self) -> Batch:
        scenes = [self.imagine() for _ in range(self.scenes)]
        phrasings = [self._pick(SHORT if self.random.random() < 0.6 else CAPTIONS) for _ in scenes]
        pictures = np.stack([np.asarray(draw(scene), dtype=np.float32) for scene in scenes]).transpose(0, 3, 1, 2) / 255
        captions = [self._speak(scene.say(words)) for scene, words in zip(scenes, phrasings, strict=True)]
        facts = [[1 + values.index(getattr(scene, name)) for name, values in ATTRIBUTES.items()] for scene in scenes]
        told = [["{" + name + "}" in words for name in ATTRIBUTES] for words in phrasings]
        return Batch(torch.from_numpy(pictures), captions, _with_letter(facts, 0), _with_letter(told, False).bool())

    def _letters(self) -> Batch:
        pictures, attributes = self.figures.batch(self.letters, variety=1.0)
        kept = attributes["kind"] != KINDS.index("shape")
        labels = attributes["figure"][kept]
        captions = [self._speak(name_figure(str(self.bank.names[label]))) for label in labels.tolist()]
        facts = torch.zeros(len(labels), len(ATTRIBUTES) + 1, dtype=torch.long)
        told = torch.zeros_like(facts, dtype=torch.bool)
        facts[:, -1], told[:, -1] = 1 + labels, True
        return Batch(pictures[kept], captions, facts, told)

    def _pick(self, choices: tuple[str, ...]) -> str:
        return choices[int(self.random.integers(len(choices)))]

    def _speak(self, text: str) -> str:
        """Vary how a thing is said; half of the texts have "a" before vowels, as filled-in prompts do."""
        if text.startswith(("a ", "an ", "the letter", "the character")):
            text = self._pick(PREFIXES) + text
        text = text if self.random.random() < 0.5 else text.replace("an ", "a ")
        return text + self._pick(("", "."))


def _with_letter(rows: list[list[int]] | list[list[bool]], letter: int) -> torch.Tensor:
    return torch.tensor([[*row, letter] for row in rows])


def every_caption(bank: Bank) -> list[str]:
    """All words that pretraining says, for the tokenizer."""
    scenes = [imagine((STREAM, number), style="plain") for number in range(2000)]
    said = [prefix + scene.say(words) for scene in scenes for words in SHORT + CAPTIONS for prefix in PREFIXES[1:]]
    return [*said, *(with_articles(name_figure(str(name))) for name in bank.names if _is_figure(str(name)))]


def _is_figure(name: str) -> bool:
    return len(name) == 1 or name.startswith("character ")
