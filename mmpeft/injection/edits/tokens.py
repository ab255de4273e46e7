"""Learned tokens at a sequence site: inserted before one block, replaced before later ones, taken out at the end."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpeft.injection.edits.base import Binding, Edit
from mmpeft.injection.sites import SequenceSite, Site


class Tokens(Edit):
    """``tokens`` learned vectors per layer in ``layers``, shape (layers, tokens, width), behind the class token.

    They enter before the first of the layers, are replaced before each further one (what flowed out is dropped: deep
    prompts do not accumulate), flow on through blocks not in ``layers`` and leave after the last block. Uniform in
    +-sqrt(6 / (3 P^2 + width)) for patches of P^2 pixels (VPT, Jia et al. 2022).
    """

    def __init__(self, site: SequenceSite, *, tokens: int, layers: Iterable[int], dropout: float) -> None:
        super().__init__()
        self.layers = tuple(sorted(layers))
        self.start, self.dropout, self.extend = site.start, dropout, site.extend
        bound = math.sqrt(6 / (3 * site.patch_area + site.width))
        self.tokens = nn.Parameter(torch.empty(len(self.layers), tokens, site.width).uniform_(-bound, bound))

    @property
    def count(self) -> int:
        """How many tokens this edit adds to the sequence."""
        return self.tokens.shape[1]

    def bind(self, site: Site) -> Iterable[Binding]:
        """Attach to the input of every block from the first layer on, and to the output of the last block."""
        assert isinstance(site, SequenceSite)
        for index in range(self.layers[0], len(site.blocks)):
            yield Binding(edit=self, host=site.blocks[index], point="input", site=site, index=index)
        yield Binding(edit=self, host=site.blocks[-1], point="output", site=site)

    def input(self, args: tuple[Any, ...], kwargs: dict[str, Any], call: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Insert, replace or keep the tokens, ``call.offset`` places behind the class token."""
        x, index = args[0], call.binding.index
        if index in self.layers:
            x = self._place(x, self.layers.index(index), call)
        if not call.joins:
            kwargs = self.extend(kwargs, self.count)
        return (x, *args[1:]), kwargs

    def _place(self, x: Tensor, position: int, call: Any) -> Tensor:
        start = self.start + call.offset
        end = start if position == 0 and not call.joins else start + self.count
        prompts = self.tokens[position].to(x.dtype)
        prompts = prompts.expand(x.shape[0], -1, -1)
        prompts = F.dropout(prompts, self.dropout, self.training) if self.dropout else prompts
        return torch.cat([x[:, :start], prompts, x[:, end:]], 1)

    def output(self, x: Tensor, y: Tensor, host: nn.Module) -> Tensor:
        """Take the tokens out again."""
        return torch.cat([y[:, : self.start], y[:, self.start + self.count :]], 1)

    def extra_repr(self) -> str:
        """Tokens and layers."""
        return f"{self.count} tokens at layers {list(self.layers)}"
