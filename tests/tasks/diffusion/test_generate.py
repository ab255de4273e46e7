"""Pictures from a configuration: two ControlNets, two IP-Adapters and two LoRAs at once, each with its scale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tiny_pipelines import pictures, stable_diffusion

import mmpeft
from mmpeft.cli.shipped import find_task, load_task

GENERATE = load_task(find_task("diffusion/generate"))

STACK: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "edges": ({"method": "controlnet", "widths": [8, 16]}, {"control": "pictures/00.png", "edges": True, "scale": 0.8}),
    "layout": ({"method": "controlnet", "widths": [8, 16]}, {"control": "pictures/01.png", "guess": True}),
    "look": (
        {"method": "ip_adapter", "features": 12, "tokens": 2},
        {
            "image": ["pictures/00.png", "pictures/01.png"], "mask": ["left.png", "right.png"],
            "scale": {"up_blocks.*": 1},
        },
    ),
    "other_look": (
        {"method": "ip_adapter", "features": 16, "resampler": True, "depth": 1, "heads": 1, "width": 16},
        {"image": "pictures/02.png", "scale": 0.5},
    ),
    "style": ({"method": "lora", "rank": 2, "towers": "unet"}, {"scale": 0.5}),
    "subject": ({"method": "lora", "rank": 2}, {"scale": {"text.*": 0.7, "unet.*": 0.9}}),
}  # fmt: skip


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pipeline, six adapters for it, an image encoder, pictures and masks."""
    root = tmp_path_factory.mktemp("stack")
    pictures(root / "pictures")
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = transformers.CLIPVisionConfig(**size, image_size=16, patch_size=8, projection_dim=12)
    torch.manual_seed(0)
    transformers.CLIPVisionModelWithProjection(vision).save_pretrained(root / "vision")
    transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16).save_pretrained(root / "vision")
    pipeline = stable_diffusion()
    pipeline.save_pretrained(root / "model")
    for name, (method, _) in STACK.items():
        adapters = mmpeft.adapt(pipeline, method, name=name)
        for parameter in adapters.parameters():
            parameter.data.add_(torch.randn(parameter.shape) * 0.2)
        adapters.save(root / name)
    for name, left in (("left", 0), ("right", 8)):
        mask = Image.new("L", (16, 16))
        mask.paste(255, (left, 0, left + 8, 16))
        mask.save(root / f"{name}.png")
    return root


def stacked(stack: Path, **changes: dict[str, Any]) -> Any:
    """A configuration of `generate` with everything; `changes` are of single adapters."""
    loaded = {}
    for name, (_, own) in STACK.items():
        own = {"path": str(stack / name), **own, **changes.get(name, {})}
        for key in {"control", "image", "mask"} & own.keys():
            paths = own[key]
            own[key] = str(stack / paths) if isinstance(paths, str) else [str(stack / path) for path in paths]
        loaded[name] = own
    return GENERATE.Config.model_validate({
        "task": "diffusion/generate", "model": str(stack / "model"), "image_encoder": str(stack / "vision"),
        "load": loaded, "prompts": ["a cat"], "sampling": {"steps": 2}, "output": str(stack / "drawn"),
    })  # fmt: skip


def test_everything_is_drawn_with_at_once_and_each_counts(stack: Path) -> None:
    def drawn(**changes: dict[str, Any]) -> Any:
        config = stacked(stack, **changes)
        GENERATE.run(config)
        return np.asarray(Image.open(config.output / "0000.png"))

    full = drawn()
    assert (drawn() == full).all()
    for name in STACK:
        assert (drawn(**{name: {"scale": 0.0}}) != full).any(), name
    assert (drawn(layout={"guess": False}) != full).any()
    assert (drawn(look={"mask": []}) != full).any()
    assert (drawn(look={"mask": ["right.png", "left.png"]}) != full).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"look": {"mask": ["left.png"]}}, "mask: 1 for 2 image prompts"),
        ({"style": {"guess": True}}, "control: missing; guess is about a control image"),
        (
            {"style": {"control": "pictures/00.png", "guess": True}},
            r"load\.style\.guess: true, but 'style' is no ControlN",
        ),
        ({"look": {"control": "pictures/00.png"}}, "an adapter takes one of them"),
        ({"style": {"scale": {"up_block.*": 1.0}}}, r"weights: 'up_block\.\*' matches no place"),
    ],
)
def test_what_is_loaded_must_go_together(stack: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GENERATE.run(stacked(stack, **changes))
