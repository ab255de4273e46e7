"""The image encoder whose features an image prompt is made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmpeft.injection.anatomy import anatomy


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
        projected = type(model).__name__ == "CLIPVisionModelWithProjection"
        if not projected and (positions or self.joint is None):
            wanted = "features of all positions" if positions else "image features"
            raise ValueError(f"image_encoder: {type(model).__name__} gives no {wanted}: use a CLIP vision model")

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return the features."""
        if self.joint is not None and not self.positions:
            return self.joint.image(images)
        model: Any = self.model
        output = model(pixel_values=images, output_hidden_states=self.positions)
        found: Tensor = output.hidden_states[-2] if self.positions else output.image_embeds
        return found
