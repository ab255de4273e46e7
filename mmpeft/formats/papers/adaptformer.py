"""AdaptFormer's ``checkpoint-{epoch}.pth``: the whole model, with q, k and v split and the MLP not nested."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mmpeft.formats.foreign import Foreign, Imported
from mmpeft.formats.ledger import Ledger, state
from mmpeft.formats.tensor_file import refuse
from mmpeft.formats.torch_file import read_flat
from mmpeft.methods import AdaptFormer, LinearProbe, Method
from mmpeft.settings import Settings

NORM = "adapter_layer_norm_before"
"""The name of the adapter's LayerNorm, wherever it stands."""
NORM_EPSILON = 1e-6
BACKBONE = (
    r"cls_token|pos_embed|patch_embed\.proj\.(weight|bias)|(fc_)?norm\.(weight|bias)",
    r"blocks\.\d+\.(norm[12]|fc[12]|attn\.([qkv]_proj|proj))\.(weight|bias)",
)


class Options(Settings):
    """What the file does not hold."""

    scale: float = 0.1
    """the factor s on the adapter is not in the file, unless it was learned; 0.1 is the paper's"""
    layernorm: Literal["in", "out"] | None = None
    """whether the training's ffn_adapter_layernorm_option was 'in' or 'out': a file with such a norm doesn't say"""


def read(source: Path, options: Options) -> Imported:
    """Return the adapters beside the MLPs, and the head with its BatchNorm folded in."""
    ledger = Ledger(source, state(read_flat(source), "model"))
    bottleneck, width = ledger.shape(r"blocks\.\d+\.adaptmlp\.down_proj\.weight", 2)
    normed, learned = (f"blocks.0.adaptmlp.{name}" in ledger.values for name in (f"{NORM}.weight", "scale"))
    if normed and options.layernorm is None:
        refuse(source, ["the adapters have a LayerNorm, and the file doesn't say where: give layernorm=in or =out"])
    for i in range(ledger.count(r"blocks\.(\d+)\..*")):
        ours, theirs = f"blocks.{i}.mlp.adaptformer", f"blocks.{i}.adaptmlp"
        ledger.enter(f"{ours}.down.weight", f"{theirs}.down_proj.weight", (bottleneck, width))
        ledger.enter(f"{ours}.down.bias", f"{theirs}.down_proj.bias", (bottleneck,))
        ledger.enter(f"{ours}.up.weight", f"{theirs}.up_proj.weight", (width, bottleneck))
        ledger.enter(f"{ours}.up.bias", f"{theirs}.up_proj.bias", (width,))
        for name in ("weight", "bias") if normed else ():
            ledger.enter(f"{ours}.norm.{name}", f"{theirs}.{NORM}.{name}", (width,))
        if learned:
            ledger.enter(f"{ours}.scale", f"{theirs}.scale", (1,))
    head, notes = _head(ledger) if r"head\.0\..*" in ledger else (ledger.head(), [])
    left = ledger.leave(*BACKBONE)
    notes.append(f"left out: {left} tensors of the frozen backbone, which the model must have by itself")
    norm: bool | Literal["out"] = "out" if normed and options.layernorm == "out" else normed
    method = AdaptFormer(bottleneck=bottleneck, scale="learned" if learned else options.scale, norm=norm)
    facts = (() if learned else ("scale",)) + (("layernorm",) if normed else ())
    return Imported([method, *head], ledger.close(), notes, facts)


def _head(ledger: Ledger) -> tuple[list[Method], list[str]]:
    """Enter ``W (x - m) / sqrt(v + eps) + b`` as one linear layer."""
    classes, width = ledger.shape(r"head\.1\.weight", 2)
    weight, bias = ledger.take("head.1.weight", (classes, width)), ledger.take("head.1.bias", (classes,))
    mean, variance = ledger.take("head.0.running_mean", (width,)), ledger.take("head.0.running_var", (width,))
    ledger.leave(r"head\.0\.num_batches_tracked")
    if weight is not None and bias is not None and mean is not None and variance is not None:
        folded = weight.double() / (variance.double() + NORM_EPSILON).sqrt()
        ledger.tensors["head.linear_probe.weight"] = folded.to(weight.dtype)
        ledger.tensors["head.linear_probe.bias"] = (bias.double() - folded @ mean.double()).to(bias.dtype)
    return [LinearProbe()], ["the head's BatchNorm is folded into its weights: exact, but it does not adapt any more"]


FORMAT = Foreign("adaptformer", r"adaptmlp\.down_proj", read, Options)
convert = FORMAT.convert
