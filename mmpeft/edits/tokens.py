"""Learned tokens at a sequence site: inserted before one block, replaced before later ones, taken out at the end."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpeft.anatomies.sites import SequenceSite, Site
from mmpeft.edits.base import Arguments, Binding, Call, ChangesOutput, InsertsTokens, Point, RefusesFeatures
from mmpeft.edits.prompt import Prompt
from mmpeft.edits.references import Borrowed
from mmpeft.edits.together import StacksInput, Together
from mmpeft.kernels.dropout import dropped

ENTRY = -1
"""Index of the binding at the norm in front of the first block."""


class Tokens(InsertsTokens, ChangesOutput, RefusesFeatures, StacksInput):
    """``count`` learned vectors per layer in ``layers``, behind the class token: (layers, count, width).

    They enter before each of the layers and leave after the block before the next one (deep prompts do not
    accumulate), or after the last block; through blocks not in ``layers`` they flow on. Uniform in
    +-sqrt(6 / (3 P^2 + width)) for patches of P^2 pixels (VPT, Jia et al. 2022), or normal with ``std``. With
    ``before_norm`` those of block 0 pass the norm in front of it, where there is one (prompts of CLIP). With
    ``project`` the vectors have so many features, and one linear layer, the same for all blocks, makes tokens of them.
    """

    def __init__(
        self,
        site: SequenceSite,
        *,
        tokens: int,
        layers: Iterable[int],
        dropout: float = 0.0,
        std: float | None = None,
        before_norm: bool = False,
        project: int | None = None,
    ) -> None:
        super().__init__()
        self.layers = tuple(sorted(layers))
        self.count = tokens
        self.start, self.dropout, self.extend = site.start, dropout, site.extend
        self.before_norm = before_norm and site.norm is not None and self.layers[0] == 0
        self.projection = None if project is None else nn.Linear(project, site.width)
        if self.projection is not None:
            nn.init.kaiming_normal_(self.projection.weight, mode="fan_out")
        self._make(site, std)

    def _make(self, site: SequenceSite, std: float | None) -> None:
        width = site.width if self.projection is None else self.projection.in_features
        vectors = torch.empty(len(self.layers), self.count, width)
        bound = math.sqrt(6 / (3 * site.patch_area + width))
        self.tokens = nn.Parameter(vectors.uniform_(-bound, bound) if std is None else vectors.normal_(std=std))

    def vectors(self, position: int) -> Tensor:
        """Return the tokens (count, width) of the layer ``layers[position]``."""
        tokens = self.tokens[position]
        return tokens if self.projection is None else F.linear(tokens, self.projection.weight, self.projection.bias)

    def bind(self, site: Site) -> Iterable[Binding]:
        """Attach to every block from the first layer on; to the model as a whole where tokens flow between blocks."""
        assert isinstance(site, SequenceSite)
        if self.before_norm:
            assert site.norm is not None
            yield Binding(edit=self, host=site.norm, point=Point.INPUT, site=site, index=ENTRY)
        last = len(site.blocks) - 1
        for index in range(self.layers[0], last + 1):
            yield Binding(edit=self, host=site.blocks[index], point=Point.INPUT, site=site, index=index)
            if index == last or index + 1 in self.layers:
                yield Binding(edit=self, host=site.blocks[index], point=Point.OUTPUT, site=site)
            else:
                yield Binding(edit=self, host=site.host, point=Point.FEATURES, site=site)

    def input(self, args: tuple[Any, ...], kwargs: dict[str, Any], call: Call) -> Arguments:
        """Insert the tokens or let them flow, ``call.offset`` places behind the class token."""
        x, position = args[0], self._position(call)
        if position is not None:
            x = self._placed(x, self.vectors(position).to(x.dtype).expand(len(x), -1, -1), call)
        return (x, *args[1:]), self._extended(kwargs, call)

    def _position(self, call: Call) -> int | None:
        """Return which layer's tokens are put in here; None where they flow on."""
        index = call.binding.index
        if index == ENTRY:
            return 0
        return self.layers.index(index) if index in self.layers and (index or not self.before_norm) else None

    def _extended(self, kwargs: dict[str, Any], call: Call) -> dict[str, Any]:
        return kwargs if call.joins or call.binding.index == ENTRY else self.extend(kwargs, self.count)

    def _placed(self, x: Tensor, prompts: Tensor, call: Call) -> Tensor:
        start = self.start + call.offset
        end = start + self.count if call.joins else start
        prompts = dropped(prompts, self.dropout, self.training)
        return torch.cat([x[:, :start], prompts, x[:, end:]], 1)

    def alike(self) -> Hashable:
        """Number, layers, dropout and whether they pass the norm."""
        return self.count, self.layers, self.dropout, self.before_norm

    @staticmethod
    def stacked(edits: Sequence[Tokens]) -> tuple[Tensor, ...]:
        """The tokens (edits, count, width) of each layer."""
        return tuple(torch.stack([edit.vectors(at) for edit in edits]) for at in range(len(edits[0].layers)))

    def routed_input(self, args: tuple[Any, ...], kwargs: dict[str, Any], call: Together) -> Arguments:
        """Insert each sample's own tokens or let them flow."""
        x, position = args[0], self._position(call)
        if position is not None:
            x = self._placed(x, call.layout.spread(call.stack(x.dtype)[position], len(x)), call)
        return (x, *args[1:]), self._extended(kwargs, call)

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


class CoupledTokens(Tokens):
    """Tokens that are linear images of a text tower's prompts, layer by layer: ``G_i p_i + b_i`` (MaPLe).

    The maps of the layers behind the first start as copies of one (Khattak et al. 2023).
    """

    def __init__(self, site: SequenceSite, prompt: Prompt, *, layers: Iterable[int]) -> None:
        self.prompt = Borrowed(prompt)
        super().__init__(site, tokens=prompt.tokens, layers=layers, before_norm=True)

    def _make(self, site: SequenceSite, std: float | None) -> None:
        prompt = self.prompt.value
        self.maps = nn.ModuleList(nn.Linear(prompt.width, site.width) for _ in self.layers)
        for later in self.maps[2:]:
            later.load_state_dict(self.maps[1].state_dict())

    def vectors(self, position: int) -> Tensor:
        """Return the image of the text prompt of this layer."""
        prompt = self.prompt.value
        mapped: Tensor = self.maps[position](prompt.vectors(position))
        return mapped

    def sources(self) -> Iterable[nn.Module]:
        """The maps and the prompt."""
        prompt = self.prompt.value
        return (*self.modules(), prompt)
