"""Elementwise edits: a learned vector on an input or output (IA3), and a scale with a shift (SSF)."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmpeft.anatomies.sites import LinearSite, NormSite, Site
from mmpeft.edits.base import Arguments, Binding, Call, ChangesInput, ChangesOutput, Fold, Merges
from mmpeft.edits.together import StacksInput, StacksOutput, Together
from mmpeft.kernels.routing import routed_affine, routed_scale


class Scale(ChangesInput, ChangesOutput, Merges, StacksInput, StacksOutput):
    """``l * y`` on a linear layer's output, or ``W (l * x)`` on its input; l starts at one (IA3, Liu et al. 2022)."""

    def __init__(self, site: LinearSite, *, on: Literal["input", "output"]) -> None:
        super().__init__()
        self.on = on
        self.scale = nn.Parameter(torch.ones(site.in_features if on == "input" else site.out_features))

    def bind(self, site: Site) -> Iterable[Binding]:
        """Attach before or after the linear layer."""
        return self.bind_output(site) if self.on == "output" else self.bind_input(site)

    def output(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """Scale the output, its bias included."""
        return y * self.scale.to(y.dtype)

    def input(self, args: tuple[Any, ...], kwargs: dict[str, Any], call: Call) -> Arguments:
        """Scale the input."""
        return (args[0] * self.scale.to(args[0].dtype), *args[1:]), kwargs

    def alike(self) -> Hashable:
        """All are."""
        return True

    @staticmethod
    def stacked(edits: Sequence[Scale]) -> tuple[Tensor, ...]:
        """All l."""
        return (torch.stack([edit.scale for edit in edits]),)

    def routed_output(self, x: Tensor, y: Tensor, call: Together, *, in_place: bool) -> Tensor:
        """Scale each sample's output."""
        return routed_scale(y, call.stack(y.dtype)[0], call.layout, in_place=in_place)

    def routed_input(self, args: tuple[Any, ...], kwargs: dict[str, Any], call: Together) -> Arguments:
        """Scale each sample's input."""
        return (routed_scale(args[0], call.stack(args[0].dtype)[0], call.layout), *args[1:]), kwargs

    def fold(self, weight: Tensor, bias: Tensor | None, host: nn.Module) -> Fold:
        """``diag(l) W`` and ``l b``, or ``W diag(l)``."""
        scale = self.scale.to(weight)
        if self.on == "input":
            return weight * scale, bias
        return weight * scale[:, None], None if bias is None else bias * scale


class Affine(ChangesOutput, Merges, StacksOutput):
    """``gamma * y + beta`` after a layer; gamma ~ N(1, 0.02), beta ~ N(0, 0.02) (SSF, Lian et al. 2022)."""

    shifts = True

    def __init__(self, site: LinearSite | NormSite, *, std: float) -> None:
        super().__init__()
        width = site.out_features if isinstance(site, LinearSite) else site.width
        self.axis = -1 if isinstance(site, LinearSite) else site.axis
        self.scale = nn.Parameter(torch.empty(width).normal_(1.0, std))
        self.shift = nn.Parameter(torch.empty(width).normal_(0.0, std))

    def output(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """Scale and shift the channels."""
        shape = [1] * y.ndim
        shape[self.axis] = -1
        return torch.addcmul(self.shift.to(y.dtype).view(shape), y, self.scale.to(y.dtype).view(shape))

    def alike(self) -> Hashable:
        """All are."""
        return True

    @staticmethod
    def stacked(edits: Sequence[Affine]) -> tuple[Tensor, ...]:
        """All gamma and beta."""
        return torch.stack([edit.scale for edit in edits]), torch.stack([edit.shift for edit in edits])

    def routed_output(self, x: Tensor, y: Tensor, call: Together, *, in_place: bool) -> Tensor:
        """Scale and shift each sample's channels."""
        scale, shift = call.stack(y.dtype)
        return routed_affine(y, scale, shift, call.layout, self.axis)

    def fold(self, weight: Tensor, bias: Tensor | None, host: nn.Module) -> Fold:
        """``diag(gamma) W`` and ``gamma b + beta``, for linear, convolution and normalisation weights alike."""
        scale, shift = self.scale.to(weight), self.shift.to(weight)
        column = scale.view(-1, *[1] * (weight.ndim - 1))
        return weight * column, shift if bias is None else torch.addcmul(shift, bias, scale)
