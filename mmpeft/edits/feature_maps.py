"""T2I-Adapter: a small network of a control image whose feature maps join the denoiser's encoder."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mmpeft.anatomies.sites import DenoiserSite, Site
from mmpeft.edits.base import Arguments, Binding, Call, ChangesInput
from mmpeft.edits.references import Condition


class ResidualConvolution(nn.Module):
    """``x + W relu(V x)``: V a 3x3 convolution, W 1x1, or 3x3 in a light network."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.block1 = nn.Conv2d(width, width, 3, padding=1)
        self.block2 = nn.Conv2d(width, width, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return x and its change."""
        changed: Tensor = x + self.block2(F.relu(self.block1(x)))
        return changed


class Stage(nn.Module):
    """Halves the map (where ``down``), changes its width by a 1x1 convolution, then ``depth`` residual blocks.

    A ``light`` stage works at a quarter of its width, and widens by a second convolution.
    """

    def __init__(self, width: int, out: int, *, depth: int, down: bool, light: bool) -> None:
        super().__init__()
        inner = out // 4 if light else out
        self.down = down
        self.in_conv = nn.Conv2d(width, inner, 1) if width != inner or light else None
        self.resnets = nn.Sequential(*(ResidualConvolution(inner, 3 if light else 1) for _ in range(depth)))
        self.out_conv = nn.Conv2d(inner, out, 1) if light else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the map of this stage."""
        x = F.avg_pool2d(x, 2, 2, ceil_mode=True) if self.down else x
        x = x if self.in_conv is None else self.in_conv(x)
        x = self.resnets(x)
        return x if self.out_conv is None else self.out_conv(x)


class FeatureMaps(ChangesInput):
    """Adds ``s f_k`` behind block k of the denoiser's encoder (Mou et al. 2023, arXiv:2302.08453).

    f_k are the maps of a convolutional network of the control image (batch, channels, height, width), which sees
    neither the text nor the time, so it runs once per image. s is the adapter's weight. With ``middle`` one more map
    joins behind the middle block.
    """

    weighs_itself = True
    takes: Condition

    def __init__(
        self, site: DenoiserSite, *, channels: int, factor: int, depth: int, light: bool, middle: bool
    ) -> None:
        super().__init__()
        self.bound, self.with_features, self.factor = site.bound, site.with_features, factor
        first = channels * factor**2
        self.conv_in = None if light else nn.Conv2d(first, site.widths[0], 3, padding=1)
        outs = [*site.widths, *(site.widths[-1:] if middle else ())]
        widths = [first if light else site.widths[0], *outs]
        strides = [site.strides[0], *site.strides, site.strides[-1]]
        self.body = nn.ModuleList(
            Stage(widths[k], out, depth=depth, down=strides[k + 1] > strides[k], light=light)
            for k, out in enumerate(outs)
        )
        self.takes = Condition()

    def bind(self, site: Site) -> Iterable[Binding]:
        """Attach to the input of the denoiser."""
        return self.bind_input(site)

    def input(self, args: tuple[Any, ...], kwargs: dict[str, Any], call: Call) -> Arguments:
        """Add the maps to the denoiser's arguments."""
        image: Tensor = self.takes.needed("control: no control image", "image")
        arguments = self.bound(call.binding.host, args, kwargs)
        sample = arguments["sample"]
        if len(sample) % len(image):
            raise ValueError(f"control: {len(image)} control images for a batch of {len(sample)}")
        times = len(sample) // len(image)
        maps = [(call.weight * feature_map).repeat(times, 1, 1, 1).to(sample.dtype) for feature_map in self.maps(image)]
        arguments = self.with_features(arguments, maps)
        return (arguments.pop("sample"),), arguments

    def maps(self, image: Tensor) -> list[Tensor]:
        """Return the feature maps of a control image."""
        weight = next(self.parameters())
        x = F.pixel_unshuffle(image.to(weight), self.factor)
        x = x if self.conv_in is None else self.conv_in(x)
        made = []
        for stage in self.body:
            x = stage(x)
            made.append(x)
        return made
