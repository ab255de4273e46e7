"""IP-Adapter: a second attention of the same queries, to tokens made of an image, added to what the text gave."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpeft.injection.edits.base import Arguments, Binding, Call, Condition, Edit
from mmpeft.injection.edits.bypass import Passed
from mmpeft.injection.sites import CrossAttentionSite, DenoiserSite, Site


class ImageTokens(Edit):
    """Image features (batch, images, width), or (batch, width), to ``tokens`` tokens each: ``norm(W f + b)``.

    The projection starts as torch's linear layers do (Ye et al. 2023, arXiv:2308.06721).
    """

    takes: Condition

    def __init__(self, site: DenoiserSite, *, width: int, tokens: int) -> None:
        super().__init__()
        self.tokens, self.context = tokens, site.context
        self.proj = nn.Linear(width, tokens * site.context)
        self.norm = nn.LayerNorm(site.context)
        self.takes = Condition()
        self.passed = Passed()

    def bind(self, site: Site) -> Iterable[Binding]:
        """Attach to the input of the denoiser, before any attention wants the tokens."""
        return [Binding(edit=self, host=site.host, point="input", site=site)]

    def input(self, args: tuple[Any, ...], kwargs: dict[str, Any], call: Call) -> Arguments:
        """Make the tokens, and leave the arguments as they are."""
        self.passed.value = self.make(self.takes.needed("image prompt: no features", "features"))
        return args, kwargs

    def make(self, features: Tensor) -> Tensor:
        """Return the tokens (batch, images x tokens, context)."""
        features = features if features.ndim == 3 else features[:, None]
        found = self.norm(self.proj(features.to(self.proj.weight)).unflatten(-1, (self.tokens, self.context)))
        return found.flatten(1, 2)


class Resampler(ImageTokens):
    """A perceiver: ``tokens`` learned queries look at all features of an image (batch, positions, width) in turn.

    ``depth`` layers of attention to the features and the queries themselves, and an MLP four times as wide (IP-Adapter
    Plus).
    """

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
        """Return the tokens (batch, tokens, context)."""
        x = self.proj_in(features.to(self.proj_in.weight))
        latents = self.latents.expand(len(x), -1, -1)
        for layer in self.layers:
            latents = layer(x, latents)
        found: Tensor = self.norm_out(self.proj_out(latents))
        return found


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
        own = self.norm_latents(latents)
        keys, values = self.to_kv(torch.cat([self.norm_features(features), own], 1)).chunk(2, -1)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (self.to_q(own), keys, values))
        found = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        latents = latents + self.to_out(found)
        changed: Tensor = self.down(F.gelu(self.up(self.norm(latents))))
        return latents + changed


class DecoupledAttention(Edit):
    """``Attention(q, K f, V f)`` of image tokens f, with a softmax of its own, added with the adapter's weight.

    K and V (width, context) start as copies of those for the text, so the model starts changed, unless the weight is 0
    (Ye et al. 2023). ``mask`` of ``image`` conditions is not part of it.
    """

    def __init__(self, site: CrossAttentionSite, image: ImageTokens, *, scale: float) -> None:
        super().__init__()
        object.__setattr__(self, "image", image)
        self.heads, self.scale = site.heads, scale
        self.to_k = nn.Linear(site.context, site.width, bias=False)
        self.to_v = nn.Linear(site.context, site.width, bias=False)
        with torch.no_grad():
            for own, text in ((self.to_k, site.key), (self.to_v, site.value)):
                own.weight.copy_(text.weight)  # type: ignore[arg-type]

    def bind(self, site: Site) -> Iterable[Binding]:
        """Attach to what the queries found, with a tap on the queries."""
        assert isinstance(site, CrossAttentionSite)
        return [Binding(edit=self, host=site.host, point="input", site=site, tap=site.query)]

    def input(self, args: tuple[Any, ...], kwargs: dict[str, Any], call: Call) -> Arguments:
        """Add what the queries find in the image."""
        image: ImageTokens = self.image  # type: ignore[assignment]
        x, tokens = args[0], image.passed.value
        assert tokens is not None
        tokens = tokens.to(x.dtype)
        if len(x) % len(tokens):
            raise ValueError(f"image prompt: features of {len(tokens)} samples for a batch of {len(x)}")
        tokens = tokens.repeat(len(x) // len(tokens), 1, 1)
        parts = (call.tapped_output(), F.linear(tokens, self.to_k.weight.to(x.dtype)),
                 F.linear(tokens, self.to_v.weight.to(x.dtype)))  # fmt: skip
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        found = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return (x + self.scale * found, *args[1:]), kwargs
