"""Prefix tuning: trained keys and values in front of an attention's own, in the same softmax."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmpeft.anatomies.sites import AttentionSite, Site
from mmpeft.edits.base import AddsKeys, Arguments, Binding, Call, ChangesInput, Edit, Point, StartsFromWords
from mmpeft.edits.references import Borrowed
from mmpeft.edits.together import StacksKeys, Together
from mmpeft.kernels.attention import Extra


class ShiftedPositions(ChangesInput):
    """Learned positions start behind ``count`` tokens that are not there: p + count in place of p."""

    weighs_itself = True

    def __init__(self, count: int) -> None:
        super().__init__()
        self.shift = count

    def bind(self, site: Site) -> Iterable[Binding]:
        """Attach to the input of the table."""
        return self.bind_input(site)

    def input(self, args: tuple[Any, ...], kwargs: dict[str, Any], call: Call) -> Arguments:
        """Shift the numbers."""
        if call.route is not None:
            raise ValueError(f"route: {call.binding.site.path}: shifted positions are those of the whole batch")
        return (args[0] + self.shift, *args[1:]), kwargs


class PrefixNetwork(Edit):
    """What the prefixes of all layers are made of: ``tanh(W e + b)`` of vectors e (tokens, width), (tokens, hidden).

    The vectors start standard normal, W as torch's linear layers do (Li and Liang 2021, arXiv:2101.00190).
    """

    def __init__(self, *, tokens: int, width: int, hidden: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(tokens, width))
        self.down = nn.Linear(width, hidden)

    def bind(self, site: Site) -> Iterable[Binding]:
        """Attach nowhere: the prefixes do."""
        return []

    def hidden(self) -> Tensor:
        """Return the hidden vectors (tokens, hidden)."""
        return torch.tanh(self.down(self.vectors))

    def kept(self) -> dict[str, Tensor]:
        """Return nothing: the prefixes are kept as they have become."""
        return {}


class Prefix(AddsKeys, StacksKeys, StartsFromWords):
    """``softmax(s q [P_k; k]^T) [P_v; v]``: keys P_k and values P_v (tokens, heads x width), which every query sees.

    They are free, from a normal distribution of the standard deviation ``std``, or linear images of a network's hidden
    vectors, all the rest of its second layer that is of this place.
    """

    def __init__(self, site: AttentionSite, *, tokens: int, std: float, network: PrefixNetwork | None = None) -> None:
        super().__init__()
        self.network = Borrowed(network)
        if site.refusal:
            raise ValueError(f"{site.path}: {site.refusal}")
        if not site.heads or not site.key_width:
            raise ValueError(f"{site.path}: it is not known how wide the keys of {type(site.host).__name__} are")
        self.tokens, self.heads = tokens, site.heads
        self.widths = site.heads * site.key_width, site.heads * site.value_width
        if network is None:
            self.keys, self.values = (nn.Parameter(torch.randn(tokens, width) * std) for width in self.widths)
        else:
            self.up = nn.Linear(network.down.out_features, sum(self.widths))

    def bind(self, site: Site) -> Iterable[Binding]:
        """Attach to the attention kernel."""
        return [Binding(edit=self, host=site.host, point=Point.ATTENTION, site=site)]

    def extra(self, x: Tensor, call: Call) -> Extra:
        """Return the prefix, the same for every sample."""
        keys, values = (part.unflatten(-1, (self.heads, -1)).transpose(0, 1)[None] for part in self.prefix())
        return Extra(keys, values)

    def alike(self) -> Hashable:
        """The number of tokens."""
        return self.tokens

    def sources(self) -> Iterable[nn.Module]:
        """Keys and values, or what they are made of."""
        network = self.network.value
        return (*self.modules(), *(() if network is None else network.modules()))

    @staticmethod
    def stacked(edits: Sequence[Prefix]) -> tuple[Tensor, ...]:
        """Keys and values (edits, heads, tokens, width)."""
        pairs = zip(*(edit.prefix() for edit in edits), strict=True)
        return tuple(torch.stack(tensors).unflatten(-1, (edits[0].heads, -1)).transpose(1, 2) for tensors in pairs)

    def routed_extra(self, query: Tensor, call: Together) -> Extra:
        """Return each sample's own prefix; those without one get zeros, and don't see them."""
        layout, (keys, values) = call.layout, call.stack(query.dtype)
        numbers, shown = layout.rows_of(layout.everyone, len(query)), None
        if not layout.whole:
            shown = (numbers < len(keys))[:, None].expand(-1, self.tokens)
            keys, values = (torch.cat([part, part.new_zeros(1, *part.shape[1:])]) for part in (keys, values))
        return Extra(keys.index_select(0, numbers), values.index_select(0, numbers), shown)

    @torch.no_grad()
    def start_as(self, keys: Tensor, values: Tensor) -> None:
        """Start as keys and values (1, heads, tokens, width)."""
        for parameter, value in ((self.keys, keys), (self.values, values)):
            parameter.copy_(value[0].transpose(0, 1).flatten(1))

    def prefix(self) -> tuple[Tensor, Tensor]:
        """Return keys and values (tokens, heads x width)."""
        network = self.network.value
        if network is None:
            return self.keys, self.values
        keys, values = self.up(network.hidden()).split(self.widths, -1)
        return keys, values

    def kept(self) -> dict[str, Tensor]:
        """Return the prefix itself, whatever made it."""
        gate = {key: value for key, value in self.state_dict().items() if key.startswith("input_gate.")}
        with torch.no_grad():
            return dict(zip(("keys", "values"), self.prefix(), strict=True)) | gate

    def extra_repr(self) -> str:
        """Tokens and heads."""
        return f"{self.tokens} tokens, {self.heads} heads"
