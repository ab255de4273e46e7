"""CLIP-LoRA's file on open_clip and transformers: W + alpha / sqrt(r) B A on each tower's own layers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mmpeft
from mmpeft.formats import convert

WIDTHS, DEPTHS = {"text": 32, "vision": 48}, {"text": 2, "vision": 3}
PLACES = {
    "open_clip": {"text": "transformer.resblocks", "vision": "visual.transformer.resblocks"},
    "open_clip_custom_text": {"text": "text.transformer.resblocks", "vision": "visual.transformer.resblocks"},
    "transformers": {"text": "text_model.encoder.layers", "vision": "vision_model.encoder.layers"},
}


def build(library: str) -> nn.Module:
    torch.manual_seed(0)
    text = {"layers": DEPTHS["text"], "width": WIDTHS["text"]}
    vision = {"layers": DEPTHS["vision"], "width": WIDTHS["vision"]}
    if library != "transformers":
        from open_clip import model

        cls = model.CLIP if library == "open_clip" else model.CustomTextCLIP
        vision |= {"image_size": 32, "patch_size": 8, "head_width": 16}
        return cls(16, vision, {"context_length": 9, "vocab_size": 50, "heads": 2, **text}).eval()
    from transformers import CLIPConfig, CLIPModel

    sizes = {"num_attention_heads": 2, "intermediate_size": 64}
    both = {
        "text_config": {"vocab_size": 50, "max_position_embeddings": 9, "bos_token_id": 48, "eos_token_id": 49},
        "vision_config": {"image_size": 32, "patch_size": 8},
    }
    for config, name in zip(both.values(), ("text", "vision"), strict=True):
        config |= {"hidden_size": WIDTHS[name], "num_hidden_layers": DEPTHS[name], **sizes}
    return CLIPModel(CLIPConfig(**both, projection_dim=16)).eval()


def write(path: Path, layers: list[str], params: tuple[str, ...] = ("q", "k", "v"), **metadata: Any) -> dict[str, Any]:
    """Write a file whose layers are of these towers, in this order."""
    torch.manual_seed(3)
    names = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "proj"}
    shapes = {"w_lora_A": lambda width: (2, width), "w_lora_B": lambda width: (width, 2)}
    weights = {
        f"layer_{i}": {
            names[own]: {
                key: nn.Parameter(torch.randn(shape(WIDTHS[tower])) * 0.3).data for key, shape in shapes.items()
            }
            for own in params
        }
        for i, tower in enumerate(layers)
    }
    facts = {"r": 2, "alpha": 1, "encoder": "both", "params": list(params), "position": "all"} | metadata
    torch.save({"weights": weights, "metadata": facts}, path)
    return weights


def merged(model: nn.Module, library: str, weights: dict[str, Any], places: list[tuple[str, int]]) -> None:
    """Add every delta to its weight."""
    parameters = dict(model.named_parameters())
    for layer, (tower, index) in zip(weights.values(), places, strict=True):
        at = f"{PLACES[library][tower]}.{index}"
        for name, own in layer.items():
            delta = own["w_lora_B"] @ own["w_lora_A"] / math.sqrt(2)
            letter = "out" if name == "proj" else name[0]
            if library == "transformers":
                target = parameters[f"{at}.self_attn.{letter}_proj.weight"]
            elif letter == "out":
                target = parameters[f"{at}.attn.out_proj.weight"]
            else:
                target = parameters[f"{at}.attn.in_proj_weight"].unflatten(0, (3, -1))["qkv".index(letter)]
            target.data += delta


def run(model: Any, library: str) -> Tensor:
    torch.manual_seed(4)
    images, words = torch.randn(2, 3, 32, 32), torch.randint(1, 40, (2, 9))
    words[:, -1] = 49
    if library == "transformers":
        output = model(input_ids=words, pixel_values=images)
        return torch.cat([output.image_embeds, output.text_embeds])
    image, text, _ = model(images, words)
    return torch.cat([image, text])


OPTIONS = {"text_layers": 2, "vision_layers": 3}
BOTH = [*(("text", i) for i in range(2)), *(("vision", i) for i in range(3))]


@pytest.mark.parametrize("library", PLACES)
@pytest.mark.parametrize(
    ("metadata", "places"),
    [
        ({}, BOTH),
        ({"encoder": "vision"}, BOTH[2:]),
        ({"encoder": "text", "params": ("q", "v", "o")}, BOTH[:2]),
        ({"position": "half-up"}, [("text", 1), ("vision", 2)]),
        ({"position": "top1"}, [("text", 1), ("vision", 2)]),
        ({"position": "top2", "params": ("o",)}, [("text", 0), ("text", 1), ("vision", 1), ("vision", 2)]),
    ],
    ids=str,
)
@torch.no_grad()
def test_the_text_towers_layers_come_first(library: str, metadata: Any, places: Any, tmp_path: Path) -> None:
    weights = write(tmp_path / "lora_weights.pt", [tower for tower, _ in places], **metadata)
    options = {"model": library, **OPTIONS}
    assert convert(tmp_path / "lora_weights.pt", tmp_path / "ours", "clip_lora", **options) == []
    model, reference = build(library), build(library)
    merged(reference, library, weights, places)
    before = run(model, library)
    mmpeft.load(model, tmp_path / "ours")
    torch.testing.assert_close(run(model, library), run(reference, library), atol=1e-5, rtol=1e-5)
    assert (before - run(model, library)).abs().max() > 1e-2


def test_a_file_that_does_not_fit_its_facts(tmp_path: Path) -> None:
    path = tmp_path / "lora_weights.pt"
    write(path, ["text"] * 2 + ["vision"] * 3)
    with pytest.raises(ValueError, match=r"it holds 5 layers, and text_layers=12 and vision_layers=12 make 24"):
        convert(path, tmp_path / "ours", "clip_lora")
    with pytest.raises(ValueError, match=r"layer_2\.q_proj\.w_lora_A: shape \(2, 48\), the others need \(2, 32\)"):
        convert(path, tmp_path / "ours", "clip_lora", text_layers=3, vision_layers=2)
    write(path, ["text"] * 2, encoder="bothh", position="al", r=None)
    with pytest.raises(ValueError) as error:
        convert(path, tmp_path / "ours", "clip_lora")
    for line in ("metadata: r is missing", "did you mean 'both'", "did you mean 'all'"):
        assert line in str(error.value)
    assert not (tmp_path / "ours").exists()
