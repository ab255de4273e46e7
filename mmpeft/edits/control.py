"""ControlNet: a trainable copy of a denoiser's encoder, joined to its decoder through zero convolutions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpeft.anatomies.sites import DenoiserSite, Site
from mmpeft.edits.base import Arguments, Binding, Call, ChangesInput
from mmpeft.edits.references import Condition


@dataclass(frozen=True, eq=False, kw_only=True)
class ControlImage:
    """A control image, and how this one counts: what ControlNets are given instead of an image alone."""

    image: Tensor
    """(batch, channels, height, width) in [0, 1]."""
    guess: bool
    """Whether to weigh deep states more, and to control only the conditional half of a batch."""


class HintEncoder(nn.Module):
    """A control image (batch, channels, height, width) in [0, 1] to the denoiser's first hidden state.

    3x3 convolutions with SiLU between; between two widths one of stride 2; the last starts at zero (Zhang et al. 2023).
    """

    def __init__(self, channels: int, widths: tuple[int, ...], out: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for width, wider in pairwise(widths):
            self.blocks += [nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, wider, 3, padding=1, stride=2)]
        self.conv_out = _zero(nn.Conv2d(widths[-1], out, 3, padding=1))

    def forward(self, image: Tensor) -> Tensor:
        """Return the hint."""
        x = F.silu(self.conv_in(image))
        for block in self.blocks:
            x = F.silu(block(x))
        hint: Tensor = self.conv_out(x)
        return hint


class ControlBranch(ChangesInput):
    """Adds ``s Z_i h_i`` to each hidden state that the denoiser hands to its decoder (Zhang et al. 2023).

    h_i are the states of a copy of its encoder, which sees the same sample, time and text, and the hint of the control
    image; Z_i are 1x1 convolutions that start at zero, so the model starts unchanged. s is the adapter's weight. With
    ``guess`` state i of n + 1 counts ``10^(i/n - 1)``, and of a doubled batch (classifier-free guidance) only the
    second half is controlled; a `ControlImage` says for itself whether to. ``pooled`` takes each state's mean over its
    places.
    """

    weighs_itself = True
    takes: Condition

    def __init__(
        self, site: DenoiserSite, *, channels: int, widths: tuple[int, ...], guess: bool, pooled: bool
    ) -> None:
        super().__init__()
        self.bound, self.with_residuals, self.guess, self.pooled = site.bound, site.with_residuals, guess, pooled
        self.encoder = site.copy(site.host)
        self.encoder.requires_grad_(True)
        self.hint = HintEncoder(channels, widths, site.channels)
        self.zeros = nn.ModuleList(_zero(nn.Conv2d(width, width, 1)) for width in self.encoder.channels)
        self.takes = Condition()

    def bind(self, site: Site) -> Iterable[Binding]:
        """Attach to the input of the denoiser."""
        return self.bind_input(site)

    def input(self, args: tuple[Any, ...], kwargs: dict[str, Any], call: Call) -> Arguments:
        """Add the residuals to the denoiser's arguments."""
        arguments = self.bound(call.binding.host, args, kwargs)
        residuals = self.residuals(arguments, call.weight)
        arguments = self.with_residuals(arguments, residuals)
        sample = arguments.pop("sample")
        return (sample,), arguments

    def residuals(self, arguments: dict[str, Any], weight: float) -> list[Tensor]:
        """Return what is added to each hidden state."""
        given: ControlImage | Tensor = self.takes.needed("control: no control image", "image")
        image, guess = (given.image, given.guess) if isinstance(given, ControlImage) else (given, self.guess)
        sample = arguments["sample"]
        rows = slice(len(sample) // 2, None) if guess and len(sample) == 2 * len(image) else slice(None)
        inputs = {key: _rows(value, rows, len(sample)) for key, value in arguments.items()}
        inputs |= {key: inputs[key].to(self.encoder.dtype) for key in ("sample", "encoder_hidden_states")}
        hint = _repeated(self.hint(image.to(inputs["sample"])), len(inputs["sample"]))
        states = [zero(state) for zero, state in zip(self.zeros, self.encoder(inputs, hint), strict=True)]
        scales = torch.logspace(-1, 0, len(states)).tolist() if guess else [1.0] * len(states)
        states = [state * (scale * weight) for state, scale in zip(states, scales, strict=True)]
        if self.pooled:
            states = [state.mean((2, 3), keepdim=True) for state in states]
        missing = len(sample) - len(inputs["sample"])
        return [torch.cat([state.new_zeros(missing, *state.shape[1:]), state]).to(sample.dtype) for state in states]

    def extra_repr(self) -> str:
        """Guess mode and pooling."""
        return f"guess={self.guess}, pooled={self.pooled}"


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _rows(value: Any, rows: slice, batch: int) -> Any:
    """Return these rows of a tensor that has the batch's length, and of those in a dict."""
    if isinstance(value, dict):
        return {key: _rows(item, rows, batch) for key, item in value.items()}
    return value[rows] if isinstance(value, Tensor) and value.ndim and len(value) == batch else value


def _repeated(hint: Tensor, batch: int) -> Tensor:
    """Repeat a hint for a batch of several (unconditional and conditional) copies of its samples."""
    if batch % len(hint):
        raise ValueError(f"control: {len(hint)} control images for a batch of {batch}")
    return hint.repeat(batch // len(hint), 1, 1, 1)
