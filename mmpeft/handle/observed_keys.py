"""What a model's attentions look at: the keys and values of an input, at each site."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mmpeft.anatomies.sites import AttentionSite
from mmpeft.edits.base import StartsFromWords
from mmpeft.handle.attention_backend import use_attention
from mmpeft.injection.tree import Adapter

Pair = tuple[Tensor, Tensor]


class Listening(TorchFunctionMode):
    """Within this context the keys and values of every call of torch's attention are noted, by the site in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: dict[str, Pair] = {}
        self.turn: AttentionSite | None = None

    def enter(self, site: AttentionSite, *_: object) -> None:
        """Note what is heard from now on for this site."""
        self.turn = site

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Note keys and values, once for all heads of queries that share them."""
        if func is F.scaled_dot_product_attention and self.turn is not None:
            share = args[1].shape[1] // self.turn.heads
            self.heard[self.turn.path] = args[1][:, ::share], args[2][:, ::share]
        return func(*args, **(kwargs or {}))


def start_from_words(model: nn.Module, adapter: Adapter) -> None:
    """Start those edits of a new adapter that start as words from the keys and values of these, in one pass for each.

    Call it while no adapter is active, before this one is attached.
    """
    waiting: dict[tuple[int, ...], list[tuple[AttentionSite, StartsFromWords]]] = {}
    for site, edit, _ in adapter.places:
        if isinstance(edit, StartsFromWords) and edit.words is not None:
            assert isinstance(site, AttentionSite)
            waiting.setdefault(edit.words, []).append((site, edit))
    for words, places in waiting.items():
        pairs = keys_and_values(model, [site for site, _ in places], torch.tensor([words]))
        for site, edit in places:
            if site.path in pairs:
                edit.start_as(*pairs[site.path])


@torch.no_grad()
def keys_and_values(model: nn.Module, sites: Sequence[AttentionSite], ids: Tensor) -> dict[str, Pair]:
    """Return keys and values (1, heads, tokens, width) by the site's path for token ids (1, tokens).

    Raises:
        ValueError: If the model does not take ids alone.
    """
    listening = Listening()
    with ExitStack() as stack:
        stack.enter_context(use_attention(model, "sdpa"))
        for site in sites:
            stack.callback(site.host.register_forward_pre_hook(partial(listening.enter, site)).remove)
        try:
            with listening:
                model(ids.to(next(model.parameters()).device))
        except (TypeError, ValueError) as error:
            raise ValueError(f"ids: {type(model).__name__} does not take token ids alone: {error}") from None
    return listening.heard
