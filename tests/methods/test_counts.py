"""Point 3 of the matrix: trainable parameters on full-size architectures, as published. One line per method."""

from __future__ import annotations

from typing import Any

import language_configurations
import pytest
import timm
import torch
from unified_formulas import ELSEWHERE

import mmpeft

EVERY = ("attn.*", "mlp.*")
VIT = "vit_base_patch16_224"
EXPECTED: list[tuple[str, dict[str, Any], int]] = [
    (VIT, {"method": "adapter_plus"}, 165_984),
    (VIT, {"method": "adaptformer", "bottleneck": 1}, 27_660),
    (VIT, {"method": "adaptformer", "bottleneck": 8}, 156_768),
    (VIT, {"method": "adaptformer"}, 1_189_632),
    (VIT, {"method": "bitfit"}, 102_912),
    (VIT, {"method": "convpass"}, 327_552),
    (VIT, {"method": "convpass", "targets": ["attn"]}, 163_776),
    (VIT, {"method": "dora", "rank": 8}, 294_912 + 12 * 2 * 768),
    (VIT, {"method": "fact", "rank": 8}, 21_504),
    (VIT, {"method": "fact", "rank": 16}, 61_440),
    (VIT, {"method": "fact", "rank": 16, "form": "tk"}, 30_976),
    (VIT, {"method": "fact", "rank": 32, "form": "tk"}, 86_528),
    (VIT, {"method": "full_fine_tuning"}, 85_798_656),
    (VIT, {"method": "houlsby", "bottleneck": 8}, 313_536),
    (VIT, {"method": "houlsby"}, 2_379_264),
    (VIT, {"method": "ia3"}, 12 * (768 + 768 + 3072)),
    (VIT, {"method": "lora", "rank": 4, "targets": "attn.qkv"}, 147_456),
    (VIT, {"method": "lora", "rank": 8, "targets": "attn.qkv"}, 294_912),
    (VIT, {"method": "lora", "rank": 8}, 294_912),
    (VIT, {"method": "lora", "rank": 8, "targets": ["attn.q", "attn.k", "attn.v"]}, 442_368),
    (VIT, {"method": "lora_fa", "rank": 8}, 147_456),
    (VIT, {"method": "norm_tuning"}, 38_400),
    (VIT, {"method": "parallel_adapter", "bottleneck": 8}, 156_768),
    (VIT, {"method": "pfeiffer", "bottleneck": 8}, 156_768),
    (VIT, {"method": "pfeiffer", "bottleneck": 96}, 1_779_840),
    (VIT, {"method": "pfeiffer"}, 12 * (2 * 768 * 48 + 768 + 48)),
    (VIT, {"method": "prefix_tuning", "hidden": None}, 2 * 12 * 768 * 20),
    (VIT, {"method": "prefix_tuning"}, 20 * 768 + 769 * 512 + 513 * 2 * 12 * 768),
    (VIT, {"method": "repadapter"}, 239_808),
    (VIT, {"method": "res_tuning"}, 1_198_848),
    (VIT, {"method": "res_tuning_bypass", "gated": False}, 1_198_848),
    (VIT, {"method": "side_tuning"}, 27 * 32 + 9 * 32 * 64 * (1 + 4 + 16) + 2 * 32 * 15 + 257 * 768 + 1),
    (VIT, {"method": "ssf"}, 205_824),
    (VIT, {"method": "vpt", "tokens": 50, "deep": False}, 38_400),
    (VIT, {"method": "vpt", "tokens": 10}, 92_160),
    (VIT, {"method": "vpt", "tokens": 100}, 921_600),
]
WITH_HEAD: list[tuple[int, dict[str, Any], int]] = [
    (100, {"method": "linear_probe"}, 769 * 100),
    (100, {"method": "linear_probe", "norm": True}, 769 * 100),
    (100, {"method": "adaptformer"}, 1_266_532),
    (100, {"method": "ssf"}, 282_724),
    (6, {"method": "vpt", "tokens": 100}, 926_214),
    (10, {"method": "vpt", "tokens": 100}, 929_290),
    (397, {"method": "vpt", "tokens": 5}, 351_373),
]
"""With the task head, as the authors print them (AdaptFormer, SSF, and VPT's dmlab, eurosat and sun397)."""


CLIP = "ViT-B-16"
TWO_TOWERS: list[tuple[str, int, dict[str, Any], int]] = [
    (CLIP, 100, {"method": "coop"}, 8_192),
    (CLIP, 100, {"method": "coop", "tokens": 4}, 2_048),
    (CLIP, 100, {"method": "coop", "tokens": 16, "class_specific": True}, 819_200),
    ("RN50", 100, {"method": "coop"}, 8_192),
    (CLIP, 100, {"method": "cocoop"}, 35_360),
    (CLIP, 100, {"method": "maple"}, 3_555_072),
    (CLIP, 100, {"method": "maple", "layers": "first:3"}, 1_185_024),
    (CLIP, 100, {"method": "maple", "layers": "first:1"}, 395_008),
    (CLIP, 100, {"method": "ivlp"}, 30_720),
    (CLIP, 100, {"method": "ivlp", "tokens": 4, "vision_tokens": 4, "layers": "first:9"}, 46_080),
    (CLIP, 100, {"method": "ivlp", "tokens": 0, "vision_tokens": 8}, 73_728),
    (CLIP, 100, {"method": "ivlp", "tokens": 4, "vision_tokens": 0}, 24_576),
    (CLIP, 100, {"method": "promptsrc"}, 46_080),
    (CLIP, 100, {"method": "clip_adapter"}, 131_072),
    ("RN50", 100, {"method": "clip_adapter"}, 524_288),
    (CLIP, 1000, {"method": "tip_adapter"}, 0),
    (CLIP, 1000, {"method": "tip_adapter", "trained": True}, 16 * 1000 * 512),
    ("RN50", 1000, {"method": "tip_adapter", "trained": True}, 16_384_000),
    (CLIP, 100, {"method": "clip_lora"}, 184_320),
]
"""On a classifier of a CLIP: its architecture and classes."""
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


@pytest.mark.parametrize(("architecture", "classes", "method", "count"), TWO_TOWERS)
def test_counts_on_two_towers_are_the_published_ones(
    architecture: str, classes: int, method: dict[str, Any], count: int
) -> None:
    assert mmpeft.adapt(two_towers(architecture, classes), method).report().trainable == count


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


def trainable(architecture: str, classes: int, methods: object) -> int:
    with torch.device("meta"):
        model = timm.create_model(architecture, num_classes=classes)
    return mmpeft.adapt(model, methods).report().trainable


@pytest.mark.parametrize(("architecture", "method", "count"), EXPECTED)
def test_counts_are_the_published_ones(architecture: str, method: dict[str, Any], count: int) -> None:
    assert trainable(architecture, 0, method) == count


@pytest.mark.parametrize(("classes", "method", "count"), WITH_HEAD)
def test_counts_with_the_head_are_the_published_ones(classes: int, method: dict[str, Any], count: int) -> None:
    methods = method if method["method"] == "linear_probe" else [method, "linear_probe"]
    assert trainable(VIT, classes, methods) == count


def test_every_method_has_a_line() -> None:
    lines = [line[-2] for line in [*EXPECTED, *WITH_HEAD, *TWO_TOWERS, *LANGUAGE]]
    diffusion = {name for name, method in mmpeft.methods().items() if method.__module__ == "mmpeft.methods.diffusion"}
    assert mmpeft.methods().keys() - diffusion == {line["method"] for line in lines} | ELSEWHERE


UNUSED = 2 * 3
"""Gates of three blocks without a rung, in encoder and decoder, which the authors' code has and never reads."""
LANGUAGE: list[tuple[str, Any, int]] = [
    ("Llama-2-7B", {"method": "lora", "rank": 8}, 4_194_304),
    ("Llama-3-8B", {"method": "lora", "rank": 8}, 3_407_872),
    ("Llama-2-7B", {"method": "lora", "rank": 8, "targets": EVERY}, 19_988_480),
    ("Llama-3-8B", {"method": "lora", "rank": 16, "targets": "all"}, 41_943_040),
    ("Llama-2-7B", {"method": "llm_adapter_lora"}, 56_098_816),
    ("Llama-2-7B", {"method": "llm_adapter_series"}, 67_108_864),
    ("Llama-2-7B", {"method": "llm_adapter_parallel"}, 247_463_936),
    ("Llama-2-7B", {"method": "dora", "rank": 8}, 4_456_448),
    ("Llama-2-7B", {"method": "lora_fa", "rank": 8}, 2_097_152),
    ("Llama-2-7B", {"method": "ia3"}, 614_400),
    ("Llama-3-8B", {"method": "ia3"}, 524_288),
    ("BERT-base", {"method": "bitfit"}, 102_912),
    ("BERT-base", {"method": "pfeiffer"}, 894_528),
    ("BERT-base", {"method": "houlsby", "bottleneck": 48}, 1_789_056),
    ("BERT-base", {"method": "lora", "rank": 8}, 294_912),
    ("BART-large", {"method": "parallel_adapter"}, 25_202_688),
    ("BART-large", {"method": "mam", "hidden": None}, 27_414_528),
    ("BERT-base", {"method": "pfeiffer", "layers": [0], "gate": "auto"}, 75_313),
    ("BERT-base", {"method": "unipelt"}, 11_083_376),
    ("BERT-base", {"method": "unipelt", "hidden": None}, 1_410_672),
    ("Llama-2-7B", {"method": "prefix_tuning", "hidden": None}, 5_242_880),
    ("Llama-3-8B", {"method": "prefix_tuning", "hidden": None}, 1_310_720),
    ("T5-base", {"method": "ladder_side_tuning", "layers": [1, 2, 3, 5, 6, 7, 9, 10, 11]}, 3_878_712 - UNUSED),
    ("GPT-2", {"method": "lora", "rank": 8, "targets": "attn.qkv"}, 12 * 8 * (768 + 3 * 768)),
]
"""Language models by their published configurations; the numbers of the method's paper or of HF peft."""


@pytest.mark.parametrize(("model", "methods", "count"), LANGUAGE)
def test_counts_on_language_models(model: str, methods: object, count: int) -> None:
    assert mmpeft.adapt(language_configurations.build(model), methods).report().trainable == count
