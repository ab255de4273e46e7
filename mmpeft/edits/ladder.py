"""A narrow tower beside the frozen one, fed by gated rungs from its blocks: Ladder Side-Tuning."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpeft.anatomies.hosts import tensor_of
from mmpeft.anatomies.sites import LadderSite, Site
from mmpeft.edits.base import Arguments, Binding, Call, ChangesInput, ChangesOutput, Point
from mmpeft.edits.references import Borrowed
from mmpeft.kernels.passed import Passed

ARGUMENTS, START, END = -1, -2, -3
"""Indices of the bindings that are no block's output."""
TEMPERATURE = 0.1


class Ladder(ChangesInput, ChangesOutput):
    """``up(s_n)`` in place of the tower's final hidden states: s_n are those of a narrow tower (Sung et al. 2022).

    ``s_i = block_i(mu_i D_i h_i + (1 - mu_i) s_{i-1})``, ``mu_i = sigmoid(alpha_i / 0.1)`` with alpha from 0; h_i is
    the output (batch, sequence, width) of the backbone's block, detached, and ``s_0 = D_0 h_0`` of what enters its
    first block. So the backbone runs without a graph. Of an encoder that a decoder reads the output stays, and the
    narrow decoder (``listens_to``) attends to the narrow encoder's states.
    """

    weighs_itself = True
    routes_itself = True

    def __init__(self, site: LadderSite, *, reduction: int, layers: list[int], listens_to: Ladder | None) -> None:
        super().__init__()
        self.listens_to = Borrowed(listens_to)
        self.side = site.narrow(reduction, layers)
        narrow = site.width // reduction
        self.layers, self.answers = tuple(layers), site.reader is None
        self.start = nn.Linear(site.width, narrow)
        self.down = nn.ModuleList(nn.Linear(site.width, narrow) for _ in layers)
        self.alpha = nn.ParameterList(nn.Parameter(torch.zeros(1)) for _ in layers)
        self.up = nn.Linear(narrow, site.width) if self.answers else None
        self.passed = Passed()
        self.seen = Passed()

    def bind(self, site: Site) -> Iterable[Binding]:
        """Attach to the tower's arguments, to what enters and leaves its blocks, and to its final hidden states."""
        assert isinstance(site, LadderSite)
        yield Binding(edit=self, host=site.host, point=Point.INPUT, site=site, index=ARGUMENTS)
        yield Binding(edit=self, host=site.blocks[0], point=Point.INPUT, site=site, index=START)
        for layer in self.layers:
            yield Binding(edit=self, host=site.blocks[layer], point=Point.OUTPUT, site=site, index=layer)
        yield Binding(edit=self, host=site.end, point=Point.OUTPUT, site=site, index=END)

    def input(self, args: tuple[Any, ...], kwargs: dict[str, Any], call: Call) -> Arguments:
        """Keep what the tower was given, and what enters its first block: no gradient goes back from there.

        Transformers' gradient checkpointing has words that want one. Of other samples, and mixed, they may need it.
        """
        if call.binding.index == START:
            caches = (value for value in (*args, *kwargs.values()) if hasattr(value, "get_seq_length"))
            start = args[0].detach()
            self.seen.value |= {"cache": next(caches, None), START: start}
            return (start, *args[1:]) if call.route is None and call.weight == 1.0 else args, kwargs
        if len(args) > 1:
            raise ValueError(f"{call.binding.site.path}: give a model all but its first argument by name")
        self.seen.value = {"given": kwargs}
        return args, kwargs

    def output(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """Keep a block's output; climb the ladder at the end."""
        seen = self.seen.value
        if call.binding.index != END:
            seen[call.binding.index] = y.detach()
            return y
        states = self._climb(seen, call)
        if self.up is not None:
            return self._linear(self.up, states).to(y.dtype)
        self.passed.value = (y.detach(), states)
        return y

    def _climb(self, seen: dict[Any, Any], call: Call) -> Tensor:
        given, cache, start = seen["given"], seen["cache"], seen[START]
        if call.route is not None:
            rows = call.route.rows(len(start))
            given, start = {name: _rows(value, rows, len(start)) for name, value in given.items()}, start[rows]
            if cache is not None and cache.get_seq_length() > start.shape[1]:
                raise ValueError("route: a ladder of some samples keeps no keys and values: use_cache=False")
            cache = None

        def enter(index: int, state: Tensor) -> Tensor:
            state = self._linear(self.start, start) if index == 0 else state
            rung = self._linear(self.down[index], seen[self.layers[index]])
            gate = torch.sigmoid(self.alpha[index] / TEMPERATURE)
            return gate * rung + (1 - gate) * state

        source = self.listens_to.value
        heard = None if source is None else source.heard(given["encoder_hidden_states"])
        states: Tensor = self.side(self._linear(self.start, start), enter, given, cache, heard)
        return states

    def heard(self, encoded: Tensor) -> Tensor:
        """Return the narrow states of an encoder's output, of which search may have made several copies per text."""
        known, states = self.passed.value or (encoded[:0], None)
        times, rest = divmod(len(encoded), len(known)) if len(known) else (0, 1)
        if rest or known.shape[1:] != encoded.shape[1:]:
            raise ValueError(_STRANGE)
        if not self.training and not torch.equal(known.repeat_interleave(times, 0).to(encoded.device), encoded):
            raise ValueError(_STRANGE)
        assert states is not None
        return states if times == 1 else states.repeat_interleave(times, 0)

    def _linear(self, layer: nn.Module, z: Tensor) -> Tensor:
        weight = tensor_of(layer, "weight")
        return F.linear(z.to(weight.dtype), weight, layer._parameters["bias"])


_STRANGE = (
    "ladder_side_tuning: the decoder was given encoder states that the encoder did not just make: call the whole model"
)


def _rows(value: Any, rows: Tensor, batch: int) -> Any:
    return value[rows] if isinstance(value, Tensor) and value.ndim and len(value) == batch else value
