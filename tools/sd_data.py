"""Pictures, captions and tokenizer to pretrain `tiny/sd`: drawn scenes without the one shape that it must not know."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from mmpeft.data.drawing import draw
from mmpeft.data.scenes import CAPTIONS, SEEN_STYLES, SHAPES, UNSEEN_STYLES, Scene, imagine

HELD_OUT = "heart"
"""Neither drawn nor said in pretraining: a new concept to teach the model afterwards."""
KNOWN = tuple(shape for shape in SHAPES if shape != HELD_OUT)
SHORT = (
    "a {colour} {shape}",
    "a {colour} {shape}",
    "a {colour} {shape} on a {ground} ground",
    "a {colour} {shape} on a {ground} ground",
    "a {colour} {shape} on a {ground} ground",
    "a {size} {colour} {shape}",
    "a {size} {colour} {shape} on a {ground} ground",
    "a {colour} {shape} {place}",
    "a {size} {colour} {shape} {place} on a {ground} ground",
)
"""Phrasings of pretraining, beside those of the data (`CAPTIONS`)."""
STREAM = 2000
"""The first number of every pretraining scene's seed; those of `data: {name: scenes}` begin with 0 to 5."""
LENGTH = 24
"""Tokens of a text, with its start and end."""


@dataclass(frozen=True)
class Pictures:
    """N drawn scenes, and three captions of each."""

    pixels: torch.Tensor  # (N, 3, 32, 32) uint8
    captions: list[tuple[str, ...]]


def imagine_known(number: int, styles: tuple[str, ...], stream: int = STREAM) -> Scene:
    """Imagine a scene of pretraining: never the held-out shape, seven of eight grounds without a texture."""
    scene = imagine((stream, number), shape=KNOWN[number % len(KNOWN)], style=styles[number % len(styles)])
    textured = np.random.default_rng((stream, number, 3)).random() < 0.125
    return scene if textured else replace(scene, texture="plain")


def say(scene: Scene) -> tuple[str, ...]:
    """Say a scene in two short phrasings and in one of the data's."""
    random = np.random.default_rng((*scene.seed, 4))
    short = random.choice(len(SHORT), 2)
    return (
        *(scene.say(SHORT[int(index)]) for index in short),
        scene.say(CAPTIONS[int(random.integers(len(CAPTIONS)))]),
    )


def draw_pictures(count: int, path: Path) -> Pictures:
    """Draw so many scenes in the seen styles, or read them from the file if it is there."""
    scenes = [imagine_known(number, SEEN_STYLES) for number in range(count)]
    if not path.exists():
        np.save(path, np.stack([np.asarray(draw(scene)) for scene in scenes]).transpose(0, 3, 1, 2))
    return Pictures(torch.from_numpy(np.load(path)[:count]), [say(scene) for scene in scenes])


def draw_unseen(count: int, path: Path) -> torch.Tensor:
    """Draw scenes (N, 3, 32, 32) in the styles that only the autoencoder sees, so that it can show what is learned."""
    if not path.exists():
        scenes = [imagine_known(number, UNSEEN_STYLES, STREAM + 1) for number in range(count)]
        np.save(path, np.stack([np.asarray(draw(scene)) for scene in scenes]).transpose(0, 3, 1, 2))
    return torch.from_numpy(np.load(path))


def write_tokenizer(merges_path: Path, folder: Path) -> CLIPTokenizer:
    """Write the merges of `tiny/clip` as the files of a CLIPTokenizer, and read it.

    The vocabulary is laid out as in CLIP: 256 bytes, 256 bytes that end a word, the merges, start and end of text.
    """
    lines = gzip.decompress(merges_path.read_bytes()).decode().splitlines()
    pairs = [line for line in lines[1:] if line]
    letters = _byte_letters()
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair.split()) for pair in pairs)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}) + "\n")
    (folder / "merges.txt").write_text("\n".join([lines[0], *pairs]) + "\n")
    vocabulary = json.loads((folder / "vocab.json").read_text())
    tokenizer = CLIPTokenizer(vocabulary, [tuple(pair.split()) for pair in pairs], model_max_length=LENGTH)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _byte_letters() -> list[str]:
    """The letters that stand for bytes, printable ones first, as in CLIP's vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = sorted(ByteLevel.alphabet(), key=ord)
    return [chr(code) for code in printable] + [letter for letter in alphabet if ord(letter) >= 256]
