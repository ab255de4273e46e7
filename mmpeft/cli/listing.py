"""``mmpeft list``: what there is, one line each."""

from __future__ import annotations

from argparse import Namespace

from mmpeft.cli.console import print_table
from mmpeft.cli.shipped import configs, first_comment, tasks
from mmpeft.methods import registry

SOURCES = {
    "timm/NAME.TAG": "any vision model of timm, such as timm/vit_base_patch16_224.augreg_in21k",
    "open_clip/ARCH/PRETRAINED": "any CLIP of open_clip, such as open_clip/ViT-B-32/laion2b_s34b_b79k",
    "hf/OWNER/NAME": "any model of transformers, such as hf/facebook/dinov2-base",
    "diffusers/OWNER/NAME": "any pipeline of diffusers, such as diffusers/stabilityai/sd-turbo",
    "./DIRECTORY": "a local model: a path that starts with ./ ../ ~ or /",
}


def show_list(options: Namespace) -> None:
    """Print the list that the user asked for."""
    rows = {"methods": _methods, "tasks": _tasks, "models": _models, "configs": _configs}[options.what]()
    print_table([options.what.removesuffix("s"), "what it is"], rows)


def _methods() -> list[list[str]]:
    return [[name, method.summary()] for name, method in registry().items()]


def _tasks() -> list[list[str]]:
    return [[name, first_comment(path)] for name, path in tasks().items()]


def _configs() -> list[list[str]]:
    return [[name, first_comment(path)] for name, path in configs().items()]


def _models() -> list[list[str]]:
    from mmpeft.zoo import models

    embedded = [[name, "embedded: tiny, pretrained, needs no download"] for name in models()]
    return [*embedded, *([name, text] for name, text in SOURCES.items())]
