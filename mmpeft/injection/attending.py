"""The scope in which a module's call of torch's attention goes through the one attention function of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mmpeft.anatomies.sites import AttentionSite
from mmpeft.edits.base import AddsKeys, Call
from mmpeft.edits.routes import Share
from mmpeft.edits.together import StacksKeys, Together
from mmpeft.kernels.attention import Extra, attention, scored_attention
from mmpeft.kernels.backends import Backend


class Attending(TorchFunctionMode):
    """Within this context, of this thread, ``scaled_dot_product_attention`` is computed by a chosen backend.

    Active edits add their keys and values. A scope in which attention was never called is an error: the module computes
    it in another way, and neither backend nor edits had any effect.
    """

    def __init__(self, calls: Sequence[Call], backend: Backend, site: AttentionSite | None, entered: Any) -> None:
        super().__init__()
        self.calls, self.backend, self.entered = calls, backend, entered
        self.site = site if site is not None else calls[0].binding.site
        self.called = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Compute attention here, and all else as ever."""
        if func is not F.scaled_dot_product_attention and func is not scored_attention:
            return func(*args, **(kwargs or {}))
        self.called = True
        return self.attend(*args, **(kwargs or {}))

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)
        if kind is None and not self.called:
            raise ValueError(
                f"{self.site.path}: {type(self.site.host).__name__} did not call torch's attention, so that no "
                "backend and no extra keys reach it: does it return attention weights, or run a processor of its own?"
            )

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
        soft_cap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Return what ``scaled_dot_product_attention`` of these arguments is, with the extra keys and values."""
        how: dict[str, Any] = {"mask": attn_mask, "causal": is_causal, "scale": scale, "dropout": dropout_p}
        how |= {"soft_cap": soft_cap, "sinks": sinks}

        def attended(calls: Sequence[Call]) -> Tensor:
            extra = _together([self._extra(call, query) for call in calls], len(query)) if calls else None
            return attention(query, key, value, backend=self.backend, extra=extra, **how)

        shares = [(call, self._share(call)) for call in self.calls]
        whole = [call for call, share in shares if share is None]
        plain = y = attended(whole)
        for call, share in shares:
            if share is not None:
                y = y + share * (attended([*whole, call]) - plain)
        return y

    def _share(self, call: Call) -> float | Tensor | None:
        """Return how much of the change each query gets, of samples that it does not serve none; None for all of it."""
        gate = call.binding.edit.input_gate
        if gate is None or gate.sequence:
            return None if call.weight == 1.0 else call.weight
        share: Tensor = call.weight * gate(self.entered)[:, None]
        return share if call.route is None else share.masked_fill(~_served(call.route, share), 0.0)

    def _extra(self, call: Call, query: Tensor) -> Extra:
        """Return an edit's keys and values, shown to the samples that it serves; the others have zeros in their place.

        A mask alone would not keep a NaN from them. A gate of the whole sequence is a factor on both.
        """
        edit, gate = call.binding.edit, call.binding.edit.input_gate
        if isinstance(call, Together):
            assert isinstance(edit, StacksKeys)
            return edit.routed_extra(query, call)
        assert isinstance(edit, AddsKeys)
        extra = edit.extra(query, call)
        keys, values, shown = extra.keys, extra.values, extra.shown
        if gate is not None and gate.sequence:
            open_ = gate(self.entered)[:, None]
            keys, values = open_ * keys, open_ * values
        if call.route is None:
            return Extra(keys, values, shown)
        served = _served(call.route, query)
        keys, values = (torch.where(served, part, part.new_zeros(())) for part in (keys, values))
        return Extra(keys, values, served[:, 0, 0].expand(-1, keys.shape[-2]))


def _served(route: Share, like: Tensor) -> Tensor:
    """Return which samples (batch, 1, 1, 1) are served."""
    served = torch.zeros(len(like), dtype=torch.bool, device=like.device)
    return served.index_fill(0, route.rows(len(like)), True)[:, None, None, None]


def _together(extras: Sequence[Extra], batch: int) -> Extra:
    """Return the keys and values of several edits as one."""
    if len(extras) == 1:
        return extras[0]
    wide = max(len(extra.keys) for extra in extras)
    keys, values = (
        torch.cat([part.expand(wide, -1, -1, -1) for part in parts], 2)
        for parts in zip(*((extra.keys, extra.values) for extra in extras), strict=True)
    )
    if all(extra.shown is None for extra in extras):
        return Extra(keys, values)
    everyone = torch.ones(batch, 1, dtype=torch.bool, device=keys.device)
    shown = [everyone.expand(-1, e.keys.shape[-2]) if e.shown is None else e.shown for e in extras]
    return Extra(keys, values, torch.cat(shown, 1))
