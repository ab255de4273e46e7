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

from mmpeft.injection.adapters import Adapters
from mmpeft.injection.attention import use_attention
from mmpeft.injection.sites import AttentionSite

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


@torch.no_grad()
def keys_and_values(model: nn.Module, sites: Sequence[AttentionSite], ids: Tensor) -> dict[str, Pair]:
    """Return keys and values (1, heads, tokens, width) by the site's path for token ids (1, tokens), without adapters.

    Raises:
        ValueError: If the model does not take ids alone.
    """
    listening = Listening()
    with ExitStack() as stack:
        stack.enter_context(Adapters({"": model}).off())
        stack.enter_context(use_attention(model, "sdpa"))
        for site in sites:
            stack.callback(site.host.register_forward_pre_hook(partial(listening.enter, site)).remove)
        try:
            with listening:
                model(ids.to(next(model.parameters()).device))
        except (TypeError, ValueError) as error:
            raise ValueError(f"ids: {type(model).__name__} does not take token ids alone: {error}") from None
    return listening.heard
