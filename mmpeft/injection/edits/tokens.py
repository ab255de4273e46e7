"""Learned tokens at a sequence site: inserted before one block, replaced before later ones, taken out at the end."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpeft.injection.edits.base import Arguments, Binding, Call, Edit
from mmpeft.injection.sites import SequenceSite, Site


class Tokens(Edit):
    """``tokens`` learned vectors per layer in ``layers``, shape (layers, tokens, width), behind the class token.

    They enter before each of the layers and leave after the block before the next one (deep prompts do not
    accumulate), or after the last block; through blocks not in ``layers`` they flow on. Uniform in
    +-sqrt(6 / (3 P^2 + width)) for patches of P^2 pixels (VPT, Jia et al. 2022).
    """

    def __init__(self, site: SequenceSite, *, tokens: int, layers: Iterable[int], dropout: float) -> None:
        super().__init__()
        self.layers = tuple(sorted(layers))
        self.count = tokens
        self.start, self.dropout, self.extend = site.start, dropout, site.extend
        bound = math.sqrt(6 / (3 * site.patch_area + site.width))
        self.tokens = nn.Parameter(torch.empty(len(self.layers), tokens, site.width).uniform_(-bound, bound))

    def bind(self, site: Site) -> Iterable[Binding]:
        """Attach to every block from the first layer on; to the model as a whole where tokens flow between blocks."""
        assert isinstance(site, SequenceSite)
        last = len(site.blocks) - 1
        for index in range(self.layers[0], last + 1):
            yield Binding(edit=self, host=site.blocks[index], point="input", site=site, index=index)
            if index == last or index + 1 in self.layers:
                yield Binding(edit=self, host=site.blocks[index], point="output", site=site)
            else:
                yield Binding(edit=self, host=site.host, point="features", site=site)

    def input(self, args: tuple[Any, ...], kwargs: dict[str, Any], call: Call) -> Arguments:
        """Insert the tokens or let them flow, ``call.offset`` places behind the class token."""
        x, index = args[0], call.binding.index
        if index in self.layers:
            x = self._place(x, self.layers.index(index), call)
        if not call.joins:
            kwargs = self.extend(kwargs, self.count)
        return (x, *args[1:]), kwargs

    def _place(self, x: Tensor, position: int, call: Call) -> Tensor:
        start = self.start + call.offset
        end = start + self.count if call.joins else start
        prompts = self.tokens[position].to(x.dtype)
        prompts = prompts.expand(x.shape[0], -1, -1)
        prompts = F.dropout(prompts, self.dropout, self.training) if self.dropout else prompts
        return torch.cat([x[:, :start], prompts, x[:, end:]], 1)

    def output(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """Take the tokens out again."""
        start = self.start + call.offset
        return torch.cat([y[:, :start], y[:, start + self.count :]], 1)

    def features(self) -> None:
        """Refuse: the features between the blocks hold the tokens."""
        raise ValueError(
            f"forward_intermediates: the {self.count} tokens inserted before block {self.layers[0]} flow through "
            "several blocks and would stand among the features: use deep prompts"
        )

    def extra_repr(self) -> str:
        """Tokens and layers."""
        return f"{self.count} tokens at layers {list(self.layers)}"
