"""What an IP-Adapter makes of image prompts: tokens of their features, through one layer or a resampler."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpeft.anatomies.sites import DenoiserSite, Site
from mmpeft.edits.base import Arguments, Binding, Call, ChangesInput, Edit
from mmpeft.edits.references import Condition
from mmpeft.kernels.passed import Passed


@dataclass(frozen=True, eq=False, kw_only=True)
class ImagePrompt:
    """Images for an IP-Adapter, with the part of the picture where each counts."""

    features: Tensor
    """(batch, images, width); for a resampler (batch, images, positions, width)."""
    masks: Tensor | None = None
    """(images, height, width), or (batch, images, height, width), of the picture's shape: 1 where an image counts, 0
    where it does not. Without, the queries look at the tokens of all images at once."""
    nothing: Tensor | None = None
    """The features of no image, of the shape of ``features`` or expanding to it; None for zeros."""

    def guided(self) -> ImagePrompt:
        """Return the prompt for a guided batch, whose first half has no text: it sees no image either."""
        nothing = torch.zeros_like(self.features) if self.nothing is None else self.nothing.expand_as(self.features)
        return replace(self, features=torch.cat([nothing, self.features]))


class Looked(NamedTuple):
    """What the attentions of one forward pass look at."""

    tokens: Tensor
    """(batch, images, tokens, context)."""
    masks: Tensor | None
    """(batch, images, height, width)."""
    places: tuple[int, int]
    """Height and width of the denoiser's sample."""


class ImageTokens(ChangesInput):
    """Image features to ``tokens`` tokens each: ``norm(W f + b)``; an `ImagePrompt`, or only its features.

    Features alone may also be (batch, width), of one image. The projection starts as torch's linear layers do (Ye et
    al. 2023, arXiv:2308.06721).
    """

    takes: Condition
    inner = 1
    """Dimensions of the features of one image."""

    def __init__(self, site: DenoiserSite, *, width: int, tokens: int) -> None:
        super().__init__()
        self.tokens, self.context = tokens, site.context
        self.proj = nn.Linear(width, tokens * site.context)
        self.norm = nn.LayerNorm(site.context)
        self.takes = Condition()
        self.passed = Passed()

    def bind(self, site: Site) -> Iterable[Binding]:
        """Attach to the input of the denoiser, before any attention wants the tokens."""
        return self.bind_input(site)

    def input(self, args: tuple[Any, ...], kwargs: dict[str, Any], call: Call) -> Arguments:
        """Make the tokens, and leave the arguments as they are."""
        given: ImagePrompt | Tensor = self.takes.needed("image prompt: no features", "features")
        prompt = given if isinstance(given, ImagePrompt) else ImagePrompt(features=given)
        features = prompt.features if prompt.features.ndim > self.inner + 1 else prompt.features[:, None]
        height, width = args[0].shape[-2:]
        masks = _checked(prompt.masks, features, height, width)
        self.passed.value = Looked(self.make(features), masks, (height, width))
        return args, kwargs

    def make(self, features: Tensor) -> Tensor:
        """Return the tokens (batch, images, tokens, context) of features (batch, images, width)."""
        tokens: Tensor = self.norm(self.proj(features.to(self.proj.weight)).unflatten(-1, (self.tokens, self.context)))
        return tokens


class Resampler(ImageTokens):
    """A perceiver: ``tokens`` learned queries look at all features of an image (positions, width) in turn.

    ``depth`` layers of attention to the features and the queries themselves, and an MLP four times as wide (IP-Adapter
    Plus).
    """

    inner = 2

    def __init__(self, site: DenoiserSite, *, width: int, tokens: int, depth: int, heads: int, inner: int) -> None:
        Edit.__init__(self)
        self.tokens, self.context, self.heads = tokens, site.context, heads
        self.latents = nn.Parameter(torch.randn(1, tokens, inner) / inner**0.5)
        self.proj_in, self.proj_out = nn.Linear(width, inner), nn.Linear(inner, site.context)
        self.norm_out = nn.LayerNorm(site.context)
        self.layers = nn.ModuleList(PerceiverLayer(inner, heads) for _ in range(depth))
        self.takes = Condition()
        self.passed = Passed()

    def make(self, features: Tensor) -> Tensor:
        """Return the tokens (batch, images, tokens, context) of features (batch, images, positions, width)."""
        x = self.proj_in(features.to(self.proj_in.weight)).flatten(0, 1)
        latents = self.latents.expand(len(x), -1, -1)
        for layer in self.layers:
            latents = layer(x, latents)
        tokens: Tensor = self.norm_out(self.proj_out(latents))
        return tokens.unflatten(0, features.shape[:2])


class PerceiverLayer(nn.Module):
    """Queries look at features and at each other, then go through an MLP; both residual, normalised in front."""

    def __init__(self, width: int, heads: int, head_width: int = 64) -> None:
        super().__init__()
        self.heads, inner = heads, heads * head_width
        self.norm_features, self.norm_latents = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, features: Tensor, latents: Tensor) -> Tensor:
        """Return the new latents."""
        normed = self.norm_latents(latents)
        keys, values = self.to_kv(torch.cat([self.norm_features(features), normed], 1)).chunk(2, -1)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (self.to_q(normed), keys, values))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        latents = latents + self.to_out(attended)
        changed: Tensor = self.down(F.gelu(self.up(self.norm(latents))))
        return latents + changed


def _checked(masks: Tensor | None, features: Tensor, height: int, width: int) -> Tensor | None:
    """Return masks with their batch in front; raise a ValueError if there are too few, or of another shape."""
    if masks is None:
        return None
    masks = masks if masks.ndim == 4 else masks[None]
    if masks.shape[1] != features.shape[1]:
        raise ValueError(f"image prompt: {masks.shape[1]} masks for {features.shape[1]} images")
    if abs(masks.shape[2] * width - masks.shape[3] * height) >= max(masks.shape[2:]):
        raise ValueError(
            f"image prompt: masks of height {masks.shape[2]} and width {masks.shape[3]} for latents of height {height} "
            f"and width {width}: a mask has the shape of the picture"
        )
    return masks
