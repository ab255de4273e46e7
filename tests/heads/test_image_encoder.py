from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn

import mmpeft
from mmpeft.heads.image_encoder import ImageEncoder

SIZE: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION: dict[str, Any] = {**SIZE, "image_size": 16, "patch_size": 8, "projection_dim": 12}


def vision() -> Any:
    return transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**VISION))


def whole() -> Any:
    text = {**SIZE, "vocab_size": 20, "max_position_embeddings": 9}
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=12))


@pytest.mark.parametrize("make", [vision, whole])
def test_clip_of_transformers_gives_projected_features_or_positions(make: Any) -> None:
    model, images = make(), torch.randn(2, 3, 16, 16)
    encoder = ImageEncoder(model)
    assert encoder(images).shape == (2, 12)
    assert encoder.image_size == 16
    found = ImageEncoder(model, positions=True)(images)
    assert found.shape == (2, 5, 16)
    assert not found.requires_grad


def test_the_embedded_clip_gives_projected_features_only() -> None:
    model = mmpeft.load_model("tiny/clip")
    assert ImageEncoder(model)(torch.zeros(1, 3, 32, 32)).shape == (1, 128)
    with pytest.raises(ValueError, match="CustomTextCLIP gives no features of all positions: use a CLIPVision"):
        ImageEncoder(model, positions=True)
    with pytest.raises(ValueError, match="image_encoder: Linear gives no image features"):
        ImageEncoder(nn.Linear(2, 2))
