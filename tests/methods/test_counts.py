"""Point 3 of the matrix: trainable parameters on full-size architectures, as published. One line per method."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

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
    (VIT, {"method": "norm_tuning"}, 38_400),
    (VIT, {"method": "parallel_adapter", "bottleneck": 8}, 156_768),
    (VIT, {"method": "pfeiffer", "bottleneck": 8}, 156_768),
    (VIT, {"method": "pfeiffer", "bottleneck": 96}, 1_779_840),
    (VIT, {"method": "pfeiffer"}, 12 * (2 * 768 * 48 + 768 + 48)),
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
    assert set(mmpeft.methods()) == {line[1]["method"] for line in [*EXPECTED, *WITH_HEAD]}


def test_bitfit_and_language_methods_on_bert_base() -> None:
    from transformers import BertConfig, BertModel

    def count(**method: Any) -> int:
        with torch.device("meta"):
            return mmpeft.adapt(BertModel(BertConfig()), method).report().trainable

    assert count(method="bitfit") == 102_912
    assert count(method="lora", rank=8) == 294_912


@pytest.mark.parametrize(
    ("method", "seven_billion", "eight_billion"),
    [
        ({"method": "lora", "rank": 8}, 4_194_304, 3_407_872),
        ({"method": "lora", "rank": 8, "targets": EVERY}, 19_988_480, 20_971_520),
        ({"method": "dora", "rank": 8}, 4_456_448, 32 * (4096 + 1024) + 3_407_872),
        ({"method": "ia3"}, 614_400, 524_288),
    ],
)  # fmt: skip
def test_language_counts_through_the_generic_anatomy(
    method: dict[str, Any], seven_billion: int, eight_billion: int
) -> None:
    from transformers import LlamaConfig, LlamaModel

    small = {"num_hidden_layers": 32, "vocab_size": 100, "hidden_size": 4096}
    llama2 = LlamaConfig(**small, intermediate_size=11008, num_attention_heads=32)
    llama3 = LlamaConfig(**small, intermediate_size=14336, num_attention_heads=32, num_key_value_heads=8)
    for config, expected in ((llama2, seven_billion), (llama3, eight_billion)):
        with torch.device("meta"):
            model = LlamaModel(config)
        assert mmpeft.adapt(model, method).report().trainable == expected
