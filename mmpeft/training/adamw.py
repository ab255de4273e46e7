"""AdamW as adapters need it: moments in fp32 for weights of any precision, and the projected gradients of LoRA-FA."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW

HALF = (torch.float16, torch.bfloat16)


class MasterAdamW(AdamW):
    """AdamW that keeps fp32 moments and an fp32 ``master`` copy of weights of half precision.

    Their steps are often smaller than half of such a weight's last place, and would be lost in it; the moments too.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the masters, and round the weights from them."""
        loss = _evaluated(closure)
        halves = [(p, p.data, p.grad) for p in self._trained() if p.dtype in HALF]
        for parameter, weight, gradient in halves:
            master: Tensor | None = self.state[parameter].pop("master", None)
            parameter.grad = None
            parameter.data = weight.float() if master is None else master
            parameter.grad = gradient.float()  # type: ignore[union-attr]
        self._update()
        for parameter, weight, gradient in halves:
            self.state[parameter]["master"] = parameter.data
            parameter.grad = None
            parameter.data = weight.copy_(parameter.data)
            parameter.grad = gradient
        return loss

    def _update(self) -> None:
        """Make the step where no weight is of half precision."""
        super().step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state as it is: torch would round it to the precision of the weights."""
        super().load_state_dict(state_dict)
        for index, parameter in enumerate(p for group in self.param_groups for p in group["params"]):
            for key, value in state_dict["state"].get(index, {}).items():
                if parameter.dtype in HALF and isinstance(value, Tensor):
                    self.state[parameter][key] = value.to(parameter.device)

    def _trained(self) -> Iterator[nn.Parameter]:
        return (p for group in self.param_groups for p in group["params"] if p.grad is not None)


class ProjectedAdamW(MasterAdamW):
    """HF peft's optimizer of LoRA-FA (Zhang et al. 2023, arXiv:2308.03303): gradients of B are projected, then Adam.

    The gradient of B becomes ``1/s^2 g (A A^T + 1e-8 I)^+``: with a fixed A (rank, in), ``s g A`` is the change of the
    weight that B can make, and this is the one nearest to a step against the full gradient. ``fixed`` are A and s of
    each B (out, rank); the pseudo-inverse is computed once, in fp32, and part of the state.

    The step is that of the AdamW that transformers had, for all parameters: with the moments m and v after step t,
    ``p <- (p - lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps)) (1 - lr decay)``. In torch's AdamW eps stands behind
    the correction of v, which makes the first steps on small gradients up to 30 times longer, and decay comes first.
    """

    def __init__(
        self, params: Iterable[Any], fixed: Mapping[nn.Parameter, tuple[Tensor, float]], eps: float = 1e-6, **how: Any
    ) -> None:
        self.fixed = dict(fixed)
        super().__init__(params, eps=eps, **how)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Project the gradients of all B in place, and make the step."""
        loss = _evaluated(closure)
        projections = {p: self._projection(p) for p in self._trained() if p in self.fixed}
        for parameter, projection in projections.items():
            gradient: Tensor = parameter.grad  # type: ignore[assignment]
            rows = gradient.to_local() if isinstance(gradient, DTensor) else gradient
            rows.copy_((rows.flatten(1).to(projection.dtype) @ projection).view_as(rows))
        super().step()
        for parameter, projection in projections.items():
            self.state[parameter]["projection"] = projection
        return loss

    def _update(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)

    def _move(self, parameter: nn.Parameter, gradient: Tensor, group: Mapping[str, Any]) -> None:
        state, (beta1, beta2), lr = self.state[parameter], group["betas"], group["lr"]
        if "step" not in state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        step = state["step"].item()
        mean = state["exp_avg"].mul_(beta1).add_(gradient, alpha=1 - beta1)
        square = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        length = lr * math.sqrt(1 - beta2**step) / (1 - beta1**step)
        parameter.addcdiv_(mean, square.sqrt().add_(group["eps"]), value=-length)
        parameter.mul_(1 - lr * group["weight_decay"])

    def _projection(self, parameter: nn.Parameter) -> Tensor:
        kept: Tensor | None = self.state[parameter].get("projection")
        if kept is not None:
            return kept
        a, scale = self.fixed[parameter]
        a = a.flatten(1).to(torch.promote_types(a.dtype, torch.float32))
        square = a @ a.T + 1e-8 * torch.eye(len(a), dtype=a.dtype, device=a.device)
        return torch.linalg.pinv(square) / scale**2


def _evaluated(closure: Callable[[], Any] | None) -> Any:
    """Return the loss that a closure computes, with its gradients."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
