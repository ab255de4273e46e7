"""Merging changes what the adapter changes, and nothing else: everything else is refused before a weight is written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mmpeft
from mmpeft.anatomies.layers import unfit_to_scale


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.a(x).relu())
        return y


def shaken(model: nn.Module, method: mmpeft.Method) -> mmpeft.Adapters:
    adapters = mmpeft.adapt(model, method)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn_like(parameter))
    return adapters


@pytest.mark.parametrize("targets", ["all", ("a",)])
def test_a_weight_that_another_layer_reads_is_not_merged_into(targets: Any) -> None:
    model, x = Tied(), torch.randn(2, 4)
    adapters = shaken(model, mmpeft.LoRA(rank=2, targets=targets))
    before, weight = model(x), model.a.weight.clone()
    with pytest.raises(ValueError, match="too, which would change"):
        adapters.merge()
    assert torch.equal(model.a.weight, weight) and torch.equal(model(x), before)


def test_the_same_trained_copy_in_both_layers_is_merged() -> None:
    model, x = Tied(), torch.randn(2, 4)
    adapters = shaken(model, mmpeft.FullFineTuning())
    before, weight = model(x), model.a.weight.clone()
    adapters.merge()
    assert torch.equal(model(x), before) and model.a.weight is model.b.weight
    adapters.unmerge()
    assert torch.equal(model.a.weight, weight)


@torch.no_grad()
def test_a_head_tied_to_the_embedding_is_none_of_all_and_alone_not_merged() -> None:
    import transformers

    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    names = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    model, ids = (
        transformers.CohereForCausalLM(transformers.CohereConfig(**size, **names)).eval(),
        torch.arange(7)[None],
    )
    frozen = model(ids).logits
    adapters = shaken(model, mmpeft.LoRA(rank=4, targets="all"))
    live = model(ids).logits
    assert not torch.allclose(live, frozen)
    adapters.merge()
    torch.testing.assert_close(model(ids).logits, live)
    adapters.unmerge()
    adapters.remove()
    assert torch.equal(model(ids).logits, frozen)
    adapters = shaken(model, mmpeft.LoRA(rank=4, targets=("lm_head",)))
    with pytest.raises(ValueError, match="too, which would change"):
        adapters.merge()
    with adapters.off():
        assert torch.equal(model(ids).logits, frozen)


@torch.no_grad()
def test_heads_of_a_detector_that_share_their_weights_are_not_merged() -> None:
    """Each decoder layer of Deformable DETR has a head, and all heads are one: a delta of each has no common weight."""
    import transformers

    kept = {"hidden_sizes": [8, 16, 16, 32], "depths": [1] * 4, "out_features": ["stage2", "stage3", "stage4"]}
    backbone = transformers.ResNetConfig(embedding_size=8, **kept)
    size = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 6, "num_labels": 4}
    eyes: dict[str, Any] = {"use_timm_backbone": False, "backbone": None, "num_feature_levels": 3}
    config = transformers.DeformableDetrConfig(backbone_config=backbone, **eyes, **size, **heads)
    torch.manual_seed(0)
    model, picture = transformers.DeformableDetrForObjectDetection(config).eval(), torch.randn(1, 3, 64, 64)
    assert model.class_embed[0].weight is model.class_embed[1].weight
    adapters = shaken(model, mmpeft.LoRA(rank=2, targets=("*class_embed*",)))
    before, weight = model(picture).logits, model.class_embed[0].weight.clone()
    with pytest.raises(ValueError, match="too, which would change"):
        adapters.merge()
    assert torch.equal(model.class_embed[0].weight, weight) and torch.equal(model(picture).logits, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_not_merged(value: float) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    adapters = mmpeft.adapt(model, mmpeft.LoRA(rank=2, targets="all"))
    weight = model[0].weight.clone()
    with torch.no_grad():
        adapters.parameters()[1].fill_(value)
    with pytest.raises(ValueError, match=r"0\.weight: the adapter makes numbers of it that are not finite"):
        adapters.merge()
    assert torch.equal(model[0].weight, weight)


@pytest.mark.parametrize(
    "change", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm]
)
def test_a_weight_made_of_others_since_is_not_merged_into(change: Any) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(x)
            return y

    model = Model()
    adapters = shaken(model, mmpeft.LoRA(rank=2, targets="all"))
    change(model.layer)
    with pytest.raises(ValueError, match=r"layer: .*parametrisation"):
        adapters.merge()


class OneMoreNorm(nn.LayerNorm):
    """Scales by 1 + weight, as Nemotron's."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, self.normalized_shape, self.weight + 1, self.bias, self.eps)


class BesideNorm(nn.LayerNorm):
    """Adds its input to what it scaled, as ConvNeXt v2's global response normalisation."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


@pytest.mark.parametrize("kind", [OneMoreNorm, BesideNorm])
def test_a_norm_that_reads_its_weight_in_another_way_takes_ssf_and_is_not_merged(kind: Any) -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), kind(4), nn.Linear(4, 4)), torch.randn(2, 4)
    adapters = mmpeft.adapt(model, mmpeft.SSF())
    before, weight = model(x), model[1].weight.clone()
    with pytest.raises(ValueError, match=f"{kind.__name__} does more than scale by its weight"):
        adapters.merge()
    assert torch.equal(model[1].weight, weight) and torch.equal(model(x), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("layer", "axis", "fits"),
    [
        (nn.LayerNorm(8), -1, True),
        (nn.BatchNorm1d(8), 1, True),
        (nn.BatchNorm3d(8), 1, True),
        (nn.GroupNorm(2, 8), 1, True),
        (nn.RMSNorm(8), -1, True),
        (nn.Conv3d(3, 8, (2, 4, 4)), 1, True),
        (OneMoreNorm(8), -1, False),
        (BesideNorm(8), -1, False),
    ],
)
def test_a_norm_is_known_by_what_it_computes(layer: nn.Module, axis: int, fits: bool, dtype: torch.dtype) -> None:
    kept = {key: value.clone() for key, value in layer.to(dtype).state_dict().items()}
    assert (unfit_to_scale(layer, axis) == "") == fits
    assert all(torch.equal(kept[key], value) for key, value in layer.state_dict().items())
