"""Convpass's ``{dataset}.pt``: a flat dict of the bypasses and the head."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mmpeft.formats.foreign import Foreign, Imported
from mmpeft.formats.ledger import Ledger
from mmpeft.formats.torch_file import read_flat
from mmpeft.methods import Convpass
from mmpeft.settings import Settings

Target = Literal["attn", "mlp"]


class Options(Settings):
    """What the file does not hold."""

    scale: float = 1.0
    """the factor s on the bypass is not in the file; the paper chose it per data set among 0.01 to 100, see its YAML"""


def read(source: Path, options: Options) -> Imported:
    """Return the bypasses beside attention and, where the file has them, beside the MLPs, and the head."""
    ledger = Ledger(source, read_flat(source))
    width, bottleneck = ledger.shape(r"blocks\.\d+\.adapter_attn\.adapter_up\.weight", 2)
    targets: tuple[Target, ...] = ("attn", "mlp") if r"blocks\.\d+\.adapter_mlp\..*" in ledger else ("attn",)
    shapes = {"down": (bottleneck, width), "conv": (bottleneck, bottleneck, 3, 3), "up": (width, bottleneck)}
    for i in range(ledger.count(r"blocks\.(\d+)\..*")):
        for target in targets:
            for layer, shape in shapes.items():
                ours, theirs = f"blocks.{i}.{target}.convpass.{layer}", f"blocks.{i}.adapter_{target}.adapter_{layer}"
                ledger.enter(f"{ours}.weight", f"{theirs}.weight", shape)
                ledger.enter(f"{ours}.bias", f"{theirs}.bias", shape[:1])
    head = ledger.head()
    method = Convpass(bottleneck=bottleneck, scale=options.scale, targets=targets)
    return Imported([method, *head], ledger.close())


FORMAT = Foreign("convpass", r"adapter_(attn|mlp)\.adapter_conv", read, Options)
convert = FORMAT.convert
