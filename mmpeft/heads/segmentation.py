"""A vision model that gives a class to every pixel: the backbone's feature maps, and a small decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from mmpeft.anatomies.headed import Headed
from mmpeft.anatomies.reading import anatomy
from mmpeft.heads.segmentation_settings import DecoderName


class Segmenter(Headed):
    """Images (batch, 3, height, width) to logits (batch, classes, height, width).

    The feature maps of some ``blocks`` of a timm model (of its stages, where it has several), after the final norm
    where it fits and without class or register tokens, are laid over each other at the size of the first, decoded, and
    enlarged to the image bilinearly. ``linear`` is one 1 x 1 convolution: how much of the classes lies in the features
    (the protocol of DINOv2, Oquab et al. 2023, arXiv:2304.07193, without its batch norm). ``conv`` goes through
    ``width`` channels at twice the resolution.

    Raises:
        ValueError: If the model is not timm's, or has no such block.
    """

    def __init__(
        self,
        backbone: nn.Module,
        classes: int,
        decoder: DecoderName = "linear",
        blocks: Sequence[int] | None = None,
        width: int = 64,
    ) -> None:
        super().__init__()
        library = anatomy(backbone).library
        if library != "timm":
            raise ValueError(f"model: maps of features are read from timm's models, and this one is of {library!r}")
        self.backbone = backbone
        maps: list[dict[str, int]] = list(backbone.feature_info)  # type: ignore[arg-type]
        outside = [index for index in blocks or () if not 0 <= index < len(maps)]
        if outside:
            raise ValueError(f"blocks: {outside} not among the model's {len(maps)} (0 to {len(maps) - 1})")
        self.blocks = None if blocks is None else sorted(blocks)
        channels = sum(maps[index]["num_chs"] for index in self.blocks or [-1])
        self.head = nn.Conv2d(channels, classes, 1) if decoder == "linear" else _convolutions(channels, classes, width)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of every pixel."""
        first, *others = self.maps(images)
        maps = torch.cat([first, *(_enlarged(other, first.shape[-2:]) for other in others)], 1)
        return _enlarged(self.head(maps), images.shape[-2:])

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the feature maps, each (batch, channels, rows, columns).

        The last block's are read from the model's own forward pass: tokens that flow through the blocks are gone there.
        """
        prefix = getattr(self.backbone, "num_prefix_tokens", None)
        if self.blocks is None and prefix is not None:
            tokens = self.backbone.forward_features(images)[:, prefix:]
            rows = images.shape[-2] // self.backbone.patch_embed.patch_size[0]
            return [tokens.transpose(1, 2).unflatten(2, (rows, -1))]
        maps: list[Tensor] = self.backbone.forward_intermediates(
            images, indices=self.blocks or 1, norm=True, output_fmt="NCHW", intermediates_only=True
        )
        return maps


def _convolutions(channels: int, classes: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 1),
        nn.GroupNorm(1, width),
        nn.GELU(),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Conv2d(width, width, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(width, classes, 1),
    )


def _enlarged(maps: Tensor, size: Sequence[int]) -> Tensor:
    return interpolate(maps, list(size), mode="bilinear")
