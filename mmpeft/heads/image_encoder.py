"""The image encoder whose features an image prompt is made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmpeft.anatomies.reading import anatomy

WITH_POSITIONS = ("CLIPVisionModelWithProjection", "CLIPModel")
"""Classes of transformers that show what they make of each position."""


class ImageEncoder(nn.Module):
    """A frozen vision tower: images (batch, 3, height, width), prepared as it wants them, to features.

    Projected ones (batch, width); with ``positions`` those of all positions before the last layer, (batch, positions,
    width), as IP-Adapter Plus takes them.

    Raises:
        ValueError: If the model can't give them.
    """

    def __init__(self, model: nn.Module, *, positions: bool = False) -> None:
        super().__init__()
        self.model, self.positions, self.joint = model, positions, anatomy(model).joint
        self.requires_grad_(False).eval()
        kind = type(model).__name__
        if kind not in WITH_POSITIONS and (positions or self.joint is None):
            wanted = "features of all positions" if positions else "image features"
            raise ValueError(f"image_encoder: {kind} gives no {wanted}: use a {' or '.join(WITH_POSITIONS)}")

    def nothing(self) -> Tensor | None:
        """Return what stands for no image: None (zeros), or with positions the features of a black one (1, ...)."""
        if not self.positions:
            return None
        features: Tensor = self(next(self.model.parameters()).new_zeros(1, 3, self.image_size, self.image_size))
        return features

    @property
    def image_size(self) -> int:
        """Height and width of the images that a model of transformers takes."""
        config: Any = self.model.config
        return int(getattr(config, "vision_config", config).image_size)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return the features."""
        if self.joint is not None and not self.positions:
            return self.joint.image(images)
        model: Any = self.model
        if not self.positions:
            return model(pixel_values=images).image_embeds
        tower = getattr(model, "vision_model", model)
        return tower(pixel_values=images, output_hidden_states=True).hidden_states[-2]
