"""HF peft's prefix tuning: one tensor of the keys and values of all layers, which peft puts into the cache.

There the model's own tokens stand behind the prefix, so that their positions are shifted by its length. With rotary
positions a prefix turned back by as many gives the same attention without the shift: ``<R(p + i) q, k> = <R(i) q,
R(-p) k>``. Learned positions have to be shifted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from mmpeft.anatomies.anatomy import Anatomy
from mmpeft.anatomies.hosts import plain_class
from mmpeft.anatomies.sites import AttentionSite
from mmpeft.edits import Prefix, ShiftedPositions
from mmpeft.formats.hf_peft.peft_config import AnyConfig
from mmpeft.formats.hf_peft.peft_layout import Piece, TensorLayout
from mmpeft.formats.hf_peft.peft_prompts import VECTORS, PrefixConfig, task_of
from mmpeft.injection.tree import Adapter
from mmpeft.methods import PrefixTuning


@dataclass
class PrefixLayout(TensorLayout):
    """A prefix in peft's one tensor, with what turns the keys of each layer by a number of positions."""

    turns: dict[str, Callable[[Tensor, int], Tensor]] = field(default_factory=dict)
    config: PrefixConfig | None = None

    def pack(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return peft's tensor."""
        return super().pack({key: self._turned(key, value, len(value)) for key, value in state.items()})

    def unpack(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return our tensors."""
        return {key: self._turned(key, value, -len(value)) for key, value in super().unpack(tensors).items()}

    def disagreements(self, config: AnyConfig, module: nn.Module) -> list[str]:
        """Say where the file's configuration is not of this model."""
        assert self.config is not None
        names = ("num_layers", "token_dim", "num_attention_heads")
        pairs = [(name, getattr(config, name), getattr(self.config, name)) for name in names]
        return [f"{name}: {theirs}, and the model has {ours}" for name, theirs, ours in pairs if theirs != ours]

    def _turned(self, key: str, value: Tensor, by: int) -> Tensor:
        return self.turns[key](value, by) if key in self.turns else value


def lay_out_prefix(adapter: Adapter, anatomy: Anatomy) -> PrefixLayout:
    """Return the layout of a prefix in a mapped model; one that peft would understand otherwise is a ValueError."""
    places = [(site, edit, key) for site, edit, key in adapter.places if isinstance(edit, Prefix)]
    _check(adapter, anatomy, [edit for _, edit, _ in places])
    (_, first, _), count = places[0], len(places)
    width = first.widths[0]
    config = PrefixConfig(
        task_type=task_of(plain_class(anatomy.model).__name__),
        num_virtual_tokens=first.tokens,
        token_dim=width,
        num_attention_heads=first.heads,
        num_layers=count,
        encoder_hidden_size=width,
    )
    layout = PrefixLayout(config=config)
    layout.defaults[VECTORS] = torch.zeros(()).expand(first.tokens, 2 * count * width)
    for number, (site, _, key) in enumerate(places):
        for part, name in enumerate(("keys", "values")):
            columns = slice((2 * number + part) * width, (2 * number + part + 1) * width)
            layout.pieces.append(Piece(f"{key}.{name}", VECTORS, (slice(None), columns)))
        if isinstance(site, AttentionSite) and site.turn is not None:
            layout.turns[f"{key}.keys"] = partial(_by_head, site.turn, first.heads)
    return layout


def _check(adapter: Adapter, anatomy: Anatomy, edits: list[Prefix]) -> None:
    """Raise a ValueError for a prefix that peft can't hold, or would compute with at other positions."""
    methods = [method for method in adapter.methods if isinstance(method, PrefixTuning)]
    towers = [tower for tower in anatomy.towers if tower.blocks]
    problems = []
    if len(methods) != 1 or len(adapter.methods) != 1:
        problems.append(f"peft has one prefix and nothing beside it, not {[m.name for m in adapter.methods]}")
    if any(method.gate is not None for method in methods):
        problems.append("peft's prefix has no gate")
    if len(towers) != 1 or len(edits) != len(towers[0].blocks):
        blocks = {tower.name: len(tower.blocks) for tower in towers}
        problems.append(f"peft's prefix is one of each block of one tower: {len(edits)} for blocks {blocks}")
    if len({(edit.tokens, edit.heads, *edit.widths, *edit.widths[:1]) for edit in edits}) > 1:
        problems.append("peft's prefix has the same width in every layer")
    rotary = all(site.turn is not None for site, _, _ in adapter.places if isinstance(site, AttentionSite))
    learned = any(isinstance(edit, ShiftedPositions) for _, edit, _ in adapter.places)
    if not rotary and not learned:
        problems.append("peft shifts the model's own tokens: train with shifted=True where positions are learned")
    if problems:
        raise ValueError("; ".join(problems))


def _by_head(turn: Callable[[Tensor, int], Tensor], heads: int, keys: Tensor, by: int) -> Tensor:
    return turn(keys.unflatten(-1, (heads, -1)).transpose(0, 1), by).transpose(0, 1).flatten(1)
