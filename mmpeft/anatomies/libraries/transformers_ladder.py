"""transformers: narrow copies of language towers, which Ladder Side-Tuning runs beside the frozen ones."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn

from mmpeft.anatomies.hosts import plain_class
from mmpeft.anatomies.sites import LadderSite
from mmpeft.kernels.passed import Passed

ENDS = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "smollm3"), "norm"),
    "gpt2": "ln_f",
    **dict.fromkeys(("t5", "mt5"), "final_layer_norm"),
    **dict.fromkeys(("bert", "roberta", "xlm_roberta"), ""),
}
"""By family the module that makes a tower's final hidden states, "" where that is the last block."""
WIDTHS = ("hidden_size", "intermediate_size", "head_dim", "n_inner", "d_ff")
"""Settings of a configuration, in transformers' common names, that are divided."""
OWN = {"input_ids", "inputs_embeds", "past_key_values", "use_cache", "encoder_hidden_states", "return_dict"}
OWN |= {"output_attentions", "output_hidden_states"}
"""Arguments of a tower that its narrow copy does not share."""


def ladder_sites(
    family: str, tower: Any, stack: str, blocks: list[nn.Module], reader: nn.Module | None, location: dict[str, Any]
) -> Iterator[LadderSite]:
    """Yield where a narrow copy can run beside a tower of this family, if it can."""
    if family not in ENDS or getattr(tower.config, "add_cross_attention", False):
        return
    end = ENDS[family]
    yield LadderSite(
        name="ladder",
        host=tower,
        width=int(tower.config.hidden_size),
        blocks=tuple(blocks),
        end=tower.get_submodule(end) if end else blocks[-1],
        reader=reader,
        listens=bool(tower.config.is_encoder_decoder and getattr(tower, "is_decoder", False)),
        narrow=partial(NarrowTower, tower, stack),
        **location,
    )


class NarrowTower(nn.Module):
    """A tower of the class and configuration of ``tower``, with widths by ``reduction`` and these ``layers`` alone.

    It has as many heads, its own norm at the end and position biases, but no embeddings. ``enter(i, h)`` says what
    goes into block i instead of h. Its keys and values lie in the backbone's own cache behind those of the backbone,
    so that whatever reorders or cuts that cache does so to them.
    """

    def __init__(self, tower: Any, stack: str, reduction: int, layers: list[int]) -> None:
        super().__init__()
        self.depth = len(tower.get_submodule(stack))
        cls = plain_class(tower)
        options = {"add_pooling_layer": False} if hasattr(tower, "pooler") else {}
        self.tower = cls(_narrowed(tower.config, reduction, layers), **options)
        for name in ("embed_tokens", "wte", "wpe", "embeddings"):
            if name in self.tower._modules:
                setattr(self.tower, name, Blank(self.tower.config.hidden_size))
        self.entering = Passed()
        for index, block in enumerate(self.tower.get_submodule(stack)):
            block.register_forward_pre_hook(partial(self._entered, index))

    def _entered(self, index: int, block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return self.entering.value(index, args[0]), *args[1:]

    def forward(
        self, start: Tensor, enter: Callable[[int, Tensor], Tensor], given: dict[str, Any], cache: Any, heard: Any
    ) -> Tensor:
        """Return the final hidden states (batch, sequence, width) from what enters the first block, ``start``.

        ``given`` are the arguments of the backbone's tower, ``cache`` its keys and values so far and of these words,
        ``heard`` the narrow encoder's states.
        """
        self.entering.value = enter
        shared = {name: value for name, value in given.items() if name not in OWN}
        kept = None if cache is None else self._own(cache, start.shape[1])
        if heard is not None:
            shared["encoder_hidden_states"] = heard
        if kept is not None:
            shared |= {"past_key_values": kept, "use_cache": True}
        states: Tensor = self.tower(inputs_embeds=start, **shared)[0]
        return states

    def _own(self, cache: Any, words: int) -> Any:
        """Return the part of a cache that is this tower's; None where another ladder's lies in that place."""
        from transformers.cache_utils import DynamicCache, EncoderDecoderCache

        if cache.is_compileable:
            raise ValueError("ladder_side_tuning: a static cache has no room for the ladder's keys: use a dynamic one")
        parts = [cache.self_attention_cache, cache.cross_attention_cache] if hasattr(cache, "is_updated") else [cache]
        past = cache.get_seq_length() - words
        if not past and len(parts[0].layers) == self.depth:
            for part in parts:
                part.layers += DynamicCache(config=self.tower.config).layers
        views = []
        for part in parts:
            view = DynamicCache()
            view.layers = part.layers[self.depth : self.depth + self.tower.config.num_hidden_layers]
            views.append(view)
        if views[0].get_seq_length() != past:
            if not past:
                return None
            raise ValueError(
                f"ladder_side_tuning: the cache holds {past} words, but not this ladder's keys of them: one ladder "
                "alone can go on from a cache, and only from one that it filled; else use_cache=False"
            )
        return EncoderDecoderCache(*views) if len(views) > 1 else views[0]


class Blank(nn.Module):
    """Stands where a tower's embedding was: hands on what it is given instead of words, or zeros."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.word_embeddings = nn.Identity()  # asked for by transformers' gradient checkpointing

    def forward(self, positions: Tensor | None = None, inputs_embeds: Tensor | None = None, **_: Any) -> Tensor:
        """Return (batch, sequence, width)."""
        if inputs_embeds is not None:
            return inputs_embeds
        assert positions is not None
        return positions.new_zeros(*positions.shape, self.width)


def _narrowed(config: Any, reduction: int, layers: list[int]) -> Any:
    """Return a configuration of these layers with all widths divided; the heads are as many."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    pairs = 2 if getattr(config, "rope_parameters", None) else 1
    if head % (reduction * pairs):
        even = " and leave it even" if pairs > 1 else ""
        raise ValueError(f"reduction: {reduction} must divide the width of an attention head, {head}{even}")
    narrow = copy.deepcopy(config)
    for name in {config.attribute_map.get(name, name) for name in WIDTHS}:
        width = getattr(narrow, name, None)
        if width and width % reduction:
            raise ValueError(f"reduction: {reduction} does not divide {name}, {width}")
        if width:
            setattr(narrow, name, width // reduction)
    if getattr(narrow, "layer_types", None):
        narrow.layer_types = [narrow.layer_types[layer] for layer in layers]
    narrow.num_hidden_layers, narrow.vocab_size, narrow.pad_token_id, narrow.use_cache = len(layers), 1, 0, False
    return narrow
