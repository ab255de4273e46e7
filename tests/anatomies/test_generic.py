"""The map of a model that no reader knows: its linear and norm layers, in blocks where it has a stack."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import mmpeft


def test_a_family_without_a_layout_is_mapped_by_the_names_of_its_layers() -> None:
    from transformers import ErnieConfig, ErnieModel

    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    sketch = mmpeft.anatomy(ErnieModel(ErnieConfig(vocab_size=50, **size)))
    assert sketch.library == "generic" and len(sketch.towers[0].blocks) == 2
    first = {site.name: site.path for site in sketch.towers[0].blocks[0].sites}
    assert first["attn.q"] == "encoder.layer.0.attention.self.query"
    assert first["attn.out"] == "encoder.layer.0.attention.output.dense"
    assert "intermediate.dense" in first and "output.dense" in first
    outer = {site.path for site in sketch.towers[0].sites}
    assert outer == {"embeddings.LayerNorm", "embeddings.position_embeddings", "pooler.dense"}


def test_low_rank_falls_back_to_every_linear_layer_of_an_unknown_model() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    adapters = mmpeft.adapt(model, mmpeft.LoRA(rank=1))
    assert [site.path for part in adapters.parts().values() for site, _, _ in part.places] == ["0", "2"]
    with pytest.raises(ValueError, match=r"Sequential \(generic\) has no linear site 'attn.q'"):
        mmpeft.adapt(model, mmpeft.LoRA(targets="attn.q"), name="b")


def test_what_has_no_linear_layer_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    with pytest.raises(ValueError, match="methods: no site for lora in Sequential"):
        mmpeft.adapt(model, "lora")
    with pytest.raises(ValueError, match=r"'bitfit' trains biases, and ReLU .* has none"):
        mmpeft.adapt(nn.ReLU(), "bitfit")


def test_the_output_projection_of_torch_attention_is_no_site_for_it_is_never_called() -> None:
    model = nn.MultiheadAttention(8, 2)
    assert [site.path for site in mmpeft.anatomy(model).sites()] == []


def test_adapters_inside_a_part_are_no_sites_of_the_whole(make_case: Any) -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = make_case("adaptformer", "vit").build()
            self.classify = nn.Linear(5, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.classify(self.backbone(x))

    model = Whole()
    before = [site.path for site in mmpeft.anatomy(model).sites()]
    mmpeft.adapt(model.backbone, "adaptformer")
    assert [site.path for site in mmpeft.anatomy(model).sites()] == before
    keys = {key for key in model.state_dict() if "mmpeft" not in key}
    model.load_state_dict({key: value for key, value in model.state_dict().items() if key in keys}, strict=True)


def test_what_is_no_module_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="model: dict is no torch module; a pipeline has an anatomy for each"):
        mmpeft.anatomy({"unet": nn.Linear(2, 2)})
