"""Point 3 of the matrix: trainable parameters on full-size architectures, as published: each method says them."""

from __future__ import annotations

from typing import Any

import language_configurations
import pytest
import timm
import torch

import mmpeft
from mmpeft.methods.facts import Published

CLIP = "ViT-B-16"
COUNTS = [(name, line) for name, method in mmpeft.methods().items() for line in method.facts.published]
SHAPES: list[tuple[str, dict[str, Any], dict[str, tuple[int, ...]]]] = [
    (CLIP, {"method": "coop"}, {"prompt.coop.context": (16, 512)}),
    (CLIP, {"method": "coop", "class_specific": True}, {"prompt.coop.context": (7, 16, 512)}),
    (
        CLIP,
        {"method": "cocoop"},
        {
            "prompt.cocoop.context": (4, 512),
            "prompt.cocoop.meta.0.weight": (32, 512),
            "prompt.cocoop.meta.0.bias": (32,),
            "prompt.cocoop.meta.2.weight": (512, 32),
            "prompt.cocoop.meta.2.bias": (512,),
        },
    ),
    (
        CLIP,
        {"method": "maple", "layers": "first:2"},
        {
            "prompt.maple.context": (2, 512),
            "prompt.maple.deep": (1, 2, 512),
            "visual.tokens.maple.maps.0.weight": (768, 512),
            "visual.tokens.maple.maps.0.bias": (768,),
            "visual.tokens.maple.maps.1.weight": (768, 512),
            "visual.tokens.maple.maps.1.bias": (768,),
        },
    ),
    (
        CLIP,
        {"method": "promptsrc"},
        {
            "prompt.promptsrc.context": (4, 512),
            "prompt.promptsrc.deep": (8, 4, 512),
            "visual.tokens.promptsrc.tokens": (9, 4, 768),
        },
    ),
    (CLIP, {"method": "ivlp", "tokens": 0, "vision_tokens": 8}, {"visual.tokens.ivlp.tokens": (12, 8, 768)}),
    (
        "RN50",
        {"method": "clip_adapter"},
        {
            "visual.features.clip_adapter.down.weight": (256, 1024),
            "visual.features.clip_adapter.up.weight": (1024, 256),
        },
    ),
    ("RN50", {"method": "tip_adapter", "trained": True}, {"task.logits.tip_adapter.keys": (112, 1024)}),
]
"""Equal counts can hide other places: names and shapes of everything that trains, for seven classes."""


def two_towers(architecture: str, classes: int) -> Any:
    import open_clip

    from mmpeft.heads.zero_shot import ZeroShotClassifier

    with torch.device("meta"):
        backbone = open_clip.create_model(architecture, device="meta")
    return ZeroShotClassifier(
        backbone, [str(index) for index in range(classes)], ["a {}."], open_clip.get_tokenizer(architecture)
    )


def build(line: Published) -> Any:
    if line.model in language_configurations.CONFIGURATIONS:
        return language_configurations.build(line.model)
    if not timm.is_model(line.model):
        return two_towers(line.model, line.classes)
    with torch.device("meta"):
        return timm.create_model(line.model, num_classes=line.classes)


@pytest.mark.parametrize(("name", "line"), COUNTS, ids=[f"{name}-{line.model}" for name, line in COUNTS])
def test_counts_are_the_published_ones(name: str, line: Published) -> None:
    """With the task head, where there is one."""
    methods: list[Any] = [{"method": name, **line.options}]
    if line.classes and timm.is_model(line.model) and name != "linear_probe":
        methods.append("linear_probe")
    assert mmpeft.adapt(build(line), methods).report().trainable == line.trainable


def test_every_method_of_ours_has_facts_and_a_published_count() -> None:
    ours = {name: vars(method).get("facts") for name, method in mmpeft.methods().items() if method.package() is None}
    assert [name for name, facts in ours.items() if facts is None] == []
    assert [name for name, facts in ours.items() if not facts.published and not facts.tested_by] == []


@pytest.mark.parametrize(("architecture", "method", "shapes"), SHAPES)
def test_what_trains_has_these_names_and_shapes(
    architecture: str, method: dict[str, Any], shapes: dict[str, tuple[int, ...]]
) -> None:
    adapters = mmpeft.adapt(two_towers(architecture, 7), method)
    assert {key.removeprefix("main."): tuple(p.shape) for key, p in adapters.named_parameters()} == shapes


def test_clip_lora_is_on_q_k_and_v_of_every_layer_of_both_towers() -> None:
    adapters = mmpeft.adapt(two_towers(CLIP, 7), "clip_lora")
    expected = {
        f"main.{root}transformer.resblocks.{layer}.attn.{name}.clip_lora.{matrix}": shape
        for root, width in (("visual.", 768), ("", 512))
        for layer in range(12)
        for name in "qkv"
        for matrix, shape in (("lora_A", (2, width)), ("lora_B", (width, 2)))
    }
    assert {key: tuple(parameter.shape) for key, parameter in adapters.named_parameters()} == expected
