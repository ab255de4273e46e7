"""Learned words in a text tower: they take the place of a text's own, in the embedding and before later blocks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpeft.anatomies.hosts import tensor_of
from mmpeft.anatomies.sites import FeaturesSite, PromptSite, Site
from mmpeft.edits.base import Arguments, Binding, Call, ChangesInput, ChangesOutput, Point
from mmpeft.kernels.passed import Passed

Position = Literal["end", "middle", "front"]
EMBEDDING, IMAGE = -1, -2
"""Indices of the bindings that are not at a block."""


class Prompt(ChangesInput, ChangesOutput):
    """``tokens`` learned vectors (tokens, width) in the place of as many words; deep ones anew before later blocks.

    ``position`` says where the class name stands in the text: at the ``end``, behind all learned words, in the
    ``middle``, or in ``front`` of them; a full stop ends the text. With ``classes`` every text of the batch, one per
    class in order, has vectors of its own. They start as N(0, 0.02^2), or as the embeddings of ``ids`` (CoOp, Zhou et
    al. 2022). In ``layers`` behind the first, the vectors replace what the blocks made of them (MaPLe, Khattak et al.
    2023). ``template`` is the text to call the tower with; its first word is at ``start``, by default the site's.
    """

    def __init__(
        self,
        site: PromptSite,
        *,
        tokens: int,
        template: str,
        layers: Iterable[int] = (0,),
        position: Position = "end",
        classes: int | None = None,
        ids: tuple[int, ...] | None = None,
        start: int | None = None,
    ) -> None:
        super().__init__()
        if position != "end" and not site.end_of_text:
            raise ValueError(f"position: {position!r} needs texts with a marked end; those of {site.path} have none")
        rows = tensor_of(site.host, "weight")
        beyond = [number for number in ids or () if number >= len(rows)]
        if beyond:
            raise ValueError(f"ids: {beyond} beyond the {len(rows)} tokens of {site.host_path}")
        self.tokens, self.template, self.position, self.width = tokens, template, position, site.width
        self.layers, self.start = tuple(sorted(layers)), site.start if start is None else start
        words = None if ids is None else rows[list(ids)].detach()
        shape = (tokens, site.width) if classes is None else (classes, tokens, site.width)
        self.context = nn.Parameter(torch.randn(shape) * 0.02 if words is None else words.expand(shape).clone())
        if len(self.layers) > 1:
            self.deep = nn.Parameter(torch.randn(len(self.layers) - 1, tokens, site.width) * 0.02)

    def vectors(self, position: int) -> Tensor:
        """Return the vectors (tokens, width) of the layer ``layers[position]``."""
        return self.context if position == 0 else self.deep[position - 1]

    def bind(self, site: Site) -> Iterable[Binding]:
        """Attach to the embedding, and to the input of each later layer's block."""
        assert isinstance(site, PromptSite)
        yield Binding(edit=self, host=site.host, point=Point.OUTPUT, site=site, index=EMBEDDING)
        for index in self.layers[1:]:
            yield Binding(edit=self, host=site.blocks[index], point=Point.INPUT, site=site, index=index)

    def output(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """Exchange the embeddings of the replaced words for the vectors; of several prompts the differences add up."""
        places = self._places(x)
        index = places[..., None].expand(-1, -1, y.shape[-1])
        plain = F.embedding(x.gather(1, places), tensor_of(call.binding.host, "weight")).to(y.dtype)
        return y.scatter(1, index, y.gather(1, index) - plain + self._context(len(x)).to(y.dtype))

    def _context(self, texts: int) -> Tensor:
        """Return the vectors: (tokens, width), or (texts, tokens, width) where each class has its own."""
        if self.context.ndim == 2:
            return self.context
        if texts % len(self.context):
            raise ValueError(f"prompts of {len(self.context)} classes, and {texts} texts: one text per class, in order")
        return self.context.repeat(texts // len(self.context), 1, 1)

    def _places(self, ids: Tensor) -> Tensor:
        """Return the places (texts, tokens) of the learned words."""
        if self.start + self.tokens >= ids.shape[1]:
            raise ValueError(f"tokens: {self.tokens} learned words have no place in texts of {ids.shape[1]} tokens")
        numbers = torch.arange(self.tokens, device=ids.device).expand(len(ids), -1)
        first = numbers + self.start
        if self.position == "end":
            return first
        last = numbers + ids.argmax(1, keepdim=True) - 1 - self.tokens
        front = self.tokens // 2 if self.position == "middle" else 0
        return torch.where(numbers < front, first, last)

    def input(self, args: tuple[Any, ...], kwargs: dict[str, Any], call: Call) -> Arguments:
        """Put a later layer's vectors in the place of what flows there."""
        x = args[0]
        vectors = self.vectors(self.layers.index(call.binding.index)).to(x.dtype).expand(len(x), -1, -1)
        x = torch.cat([x[:, : self.start], vectors, x[:, self.start + self.tokens :]], 1)
        return (x, *args[1:]), kwargs

    def extra_repr(self) -> str:
        """Template and layers."""
        return f"{self.template!r} at layers {list(self.layers)}"


class ConditionalPrompt(Prompt):
    """A prompt moved by the image: ``v_m + W_2 relu(W_1 f + b_1) + b_2``, f the image's normalised features (CoCoOp).

    The batch of texts holds, for each image that the vision tower saw last, as many texts (Zhou et al. 2022,
    arXiv:2203.05557).
    """

    def __init__(self, site: PromptSite, image: FeaturesSite, *, hidden: int, **options: Any) -> None:
        super().__init__(site, **options)
        self.image = image
        self.meta = nn.Sequential(nn.Linear(image.width, hidden), nn.ReLU(), nn.Linear(hidden, site.width))
        self.passed = Passed()

    def bind(self, site: Site) -> Iterable[Binding]:
        """Attach to the embedding, and to the features of the image."""
        yield from super().bind(site)
        yield Binding(edit=self, host=self.image.host, point=Point.OUTPUT, site=self.image, index=IMAGE)

    def output(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """Note the features of the image; move the words by them."""
        if call.binding.index == IMAGE:
            self.passed.value = y
            return y
        return super().output(x, y, call)

    def _context(self, texts: int) -> Tensor:
        image = self.passed.value
        if image is None or texts % len(image):
            seen = "no image" if image is None else f"{len(image)} images"
            raise ValueError(f"cocoop: {texts} texts after {seen}: first encode images, then as many texts for each")
        moved = self.meta(F.normalize(image.to(self.context.dtype), dim=-1))
        return (self.context + moved[:, None]).repeat_interleave(texts // len(image), 0)
