"""IP-Adapter: a second attention of the same queries, to tokens made of an image, added to what the text gave."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpeft.anatomies.hosts import tensor_of
from mmpeft.anatomies.sites import CrossAttentionSite, Site
from mmpeft.edits.base import Arguments, Binding, Call, ChangesInput, Point
from mmpeft.edits.image_tokens import ImageTokens, Looked
from mmpeft.edits.references import Borrowed


class DecoupledAttention(ChangesInput):
    """``Attention(q, K f, V f)`` of image tokens f, with a softmax of its own, added with the adapter's weight.

    K and V (width, context) start as copies of those for the text, so the model starts changed, unless the weight is 0
    (Ye et al. 2023). With masks each image has an attention of its own, which counts where its mask is 1.
    """

    weighs_itself = True

    def __init__(self, site: CrossAttentionSite, image: ImageTokens, *, scale: float) -> None:
        super().__init__()
        self.image = Borrowed(image)
        self.heads, self.scale = site.heads, scale
        self.to_k = nn.Linear(site.context, site.width, bias=False)
        self.to_v = nn.Linear(site.context, site.width, bias=False)
        with torch.no_grad():
            for image_layer, text in ((self.to_k, site.key), (self.to_v, site.value)):
                image_layer.weight.copy_(tensor_of(text, "weight"))

    def bind(self, site: Site) -> Iterable[Binding]:
        """Attach to what the queries found, with a tap on the queries."""
        assert isinstance(site, CrossAttentionSite)
        return [Binding(edit=self, host=site.host, point=Point.INPUT, site=site, tap=site.query)]

    def input(self, args: tuple[Any, ...], kwargs: dict[str, Any], call: Call) -> Arguments:
        """Add what the queries find in the images; nothing is computed where that counts 0."""
        scale = self.scale * call.weight
        if scale == 0.0:
            return args, kwargs
        looked = self.image.value.passed.value
        assert looked is not None
        return (args[0] + scale * self._found(call.tapped_output(), looked), *args[1:]), kwargs

    def _found(self, queries: Tensor, looked: Looked) -> Tensor:
        """Return what the queries (batch, places, width) find in the images."""
        tokens = _repeated(looked.tokens.to(queries.dtype), len(queries))
        if looked.masks is None:
            return self._attended(queries, tokens.flatten(1, 2))
        masks = _repeated(_resized(looked.masks.to(queries), queries.shape[1], looked.places), len(queries))
        pairs = zip(tokens.unbind(1), masks.unbind(1), strict=True)
        return torch.stack([mask[..., None] * self._attended(queries, part) for part, mask in pairs]).sum(0)

    def _attended(self, queries: Tensor, tokens: Tensor) -> Tensor:
        parts = (queries, *(F.linear(tokens, layer.weight.to(queries.dtype)) for layer in (self.to_k, self.to_v)))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def extra_repr(self) -> str:
        """The scale."""
        return f"scale={self.scale:g}"


def _resized(masks: Tensor, places: int, whole: tuple[int, int]) -> Tensor:
    """Return masks (batch, images, places) of a grid that comes of halving the sample's, rounded up, some times."""
    height, width = whole
    while height * width > places:
        height, width = -(-height // 2), -(-width // 2)
    return F.interpolate(masks, size=(height, width), mode="bicubic").flatten(2)


def _repeated(tensor: Tensor, batch: int) -> Tensor:
    """Repeat what samples have for a batch of several copies of them."""
    if batch % len(tensor):
        raise ValueError(f"image prompt: features or masks of {len(tensor)} samples for a batch of {batch}")
    return tensor.repeat(batch // len(tensor), *[1] * (tensor.ndim - 1))
