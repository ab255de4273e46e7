"""Methods of diffusion models: ControlNet and IP-Adapter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, PositiveInt

from mmpeft.methods.base import Method

if TYPE_CHECKING:
    from mmpeft.injection.anatomy import Anatomy
    from mmpeft.injection.edits import Edit
    from mmpeft.injection.sites import DenoiserSite, Site


class ControlNet(Method):
    """A trainable copy of the denoiser's encoder that follows a control image (Zhang et al. 2023, arXiv:2302.05543).

    Joins through convolutions that start at zero, so the model starts unchanged. The image, in [0, 1], comes by
    ``adapters.given({name: image})``; the adapter's weight is the conditioning scale.
    """

    name: ClassVar[str] = "controlnet"

    channels: PositiveInt = 3
    """Channels of the control image."""
    widths: tuple[PositiveInt, ...] = Field(default=(16, 32, 96, 256), min_length=1)
    """Widths of the hint encoder, which halves height and width between each two of them."""
    guess: bool = False
    """Weigh deep states more, and control only the conditional half of a batch: works without a text."""
    pooled: bool = False
    """Take each state's mean over its places (shuffle models)."""

    def plan(self, anatomy: Anatomy) -> Iterator[tuple[Site, Edit]]:
        """One branch per denoiser."""
        from mmpeft.injection.edits import ControlBranch

        site = _denoiser(anatomy, self.towers)
        options = self.model_dump(include={"channels", "widths", "guess", "pooled"})
        yield site, ControlBranch(site, **options)


class IPAdapter(Method):
    """Image prompts: a second cross-attention to tokens made of an image (Ye et al. 2023, arXiv:2308.06721).

    Not the frozen model at the start. The features of the images, (batch, width) or (batch, images, width), come by
    ``adapters.given({name: features})``; the adapter's weight is the scale.
    """

    name: ClassVar[str] = "ip_adapter"

    features: PositiveInt = 1024
    """Width of the image features (CLIP ViT-H: 1024)."""
    tokens: PositiveInt = 4
    """Tokens per image."""
    resampler: bool = False
    """Look at all positions of an image, (batch, positions, width), through learned queries (IP-Adapter Plus)."""
    depth: PositiveInt = 4
    """Layers of the resampler."""
    heads: PositiveInt = 12
    """Heads of the resampler, each of 64 features."""
    width: PositiveInt = 768
    """Width of the resampler."""
    scale: float = 1.0
    """Factor on the second attention."""

    def plan(self, anatomy: Anatomy) -> Iterator[tuple[Site, Edit]]:
        """The tokens at the denoiser, then one attention per cross-attention of the layers."""
        from mmpeft.injection.edits import DecoupledAttention, ImageTokens, Resampler
        from mmpeft.injection.sites import AttentionSite

        sites = anatomy.select(("cross.attention",), AttentionSite, self.layers, self.towers)
        root = _denoiser(anatomy, self.towers)
        size = {"width": self.features, "tokens": self.tokens}
        image = ImageTokens(root, **size)
        if self.resampler:
            image = Resampler(root, **size, depth=self.depth, heads=self.heads, inner=self.width)
        yield root, image
        for site in sites:
            yield site, DecoupledAttention(site, image, scale=self.scale)  # type: ignore[arg-type]


def _denoiser(anatomy: Anatomy, towers: str | tuple[str, ...]) -> DenoiserSite:
    from mmpeft.injection.sites import DenoiserSite

    return anatomy.select(("denoiser",), DenoiserSite, towers=towers)[0]  # type: ignore[return-value]
