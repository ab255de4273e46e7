"""Which calls of torch's attention no fused kernel took, and what there was about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


class AttentionCalls(TorchFunctionMode):
    """Within this context, counts calls of ``scaled_dot_product_attention`` that torch computes by plain products.

    That is seen, not foretold: a fused kernel is one operation, and the plain products are several.
    """

    def __init__(self) -> None:
        super().__init__()
        self.plain: Counter[str] = Counter()
        self.calls = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call the function, and look at what it runs."""
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        self.calls += 1
        with _Operations() as seen:
            y = func(*args, **kwargs)
        if not any("scaled_dot_product" in name for name in seen.names):
            self.plain[_kind(*args, **kwargs)] += 1
        return y

    @property
    def lines(self) -> list[str]:
        """One line for each kind of call that no fused kernel took."""
        return [
            f"attention: {count} of {self.calls} calls{kind} run by plain products, which keep a weight for each query "
            "and key: no fused kernel of torch takes them on this device"
            for kind, count in self.plain.items()
        ]


class _Operations(TorchDispatchMode):
    """Collects the names of the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


def _kind(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> str:
    """Say what there is about a call that a kernel may not take."""
    reasons = []
    if attn_mask is not None:
        reasons.append("a mask that wants a gradient" if attn_mask.requires_grad else "a mask")
    if dropout_p:
        reasons.append(f"dropout {dropout_p:g}")
    if key.shape[-2] != query.shape[-2]:
        reasons.append(f"{key.shape[-2]} keys for {query.shape[-2]} queries")
    if value.shape[-1] != query.shape[-1]:
        reasons.append(f"values of another width, {value.shape[-1]}")
    if query.requires_grad or key.requires_grad or value.requires_grad:
        reasons.append("gradients")
    return f" ({', '.join(reasons)}; heads of {query.shape[-1]}, {str(query.dtype).removeprefix('torch.')})"
