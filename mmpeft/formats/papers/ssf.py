"""SSF's ``model_best.pth.tar``: timm's checkpoint of a whole model, with or without averaged weights."""

from __future__ import annotations

from pathlib import Path

from mmpeft.formats.foreign import Foreign, Imported
from mmpeft.formats.ledger import Ledger, state
from mmpeft.formats.torch_file import read_flat
from mmpeft.methods import SSF
from mmpeft.settings import Settings

BLOCK = {
    "norm1": "ssf_{}_1",
    "norm2": "ssf_{}_2",
    "attn.qkv": "attn.ssf_{}_1",
    "attn.proj": "attn.ssf_{}_2",
    "mlp.fc1": "mlp.ssf_{}_1",
    "mlp.fc2": "mlp.ssf_{}_2",
}
"""Theirs after each layer of a block."""
BACKBONE = (
    r"cls_token|pos_embed|patch_embed\.proj\.(weight|bias)|norm\.(weight|bias)",
    r"blocks\.\d+\.(norm[12]|mlp\.fc[12]|attn\.(qkv|proj))\.(weight|bias)",
)


class Options(Settings):
    """Which of the weights in the file."""

    averaged: bool = False
    """whether to read ``state_dict_ema``, the average of the weights over the training, in place of ``state_dict``"""


def read(source: Path, options: Options) -> Imported:
    """Return scales and shifts after every layer, and the head."""
    content = read_flat(source)
    name = "state_dict_ema" if options.averaged else "state_dict"
    if options.averaged and not any(key.startswith(name) for key in content):
        raise ValueError(f"options: averaged=true, and {source} holds no {name}")
    ledger = Ledger(source, {key.removeprefix("module."): value for key, value in state(content, name).items()})
    places = {"patch_embed.proj": "patch_embed.ssf_{}_1", "norm": "ssf_{}_1"}
    shapes = {ours: ledger.shape(theirs.format("scale"), 1) for ours, theirs in places.items()}
    for ours, theirs in BLOCK.items():
        shape = ledger.shape(rf"blocks\.\d+\.{theirs.format('scale')}", 1)
        for i in range(ledger.count(r"blocks\.(\d+)\..*")):
            places[f"blocks.{i}.{ours}"], shapes[f"blocks.{i}.{ours}"] = f"blocks.{i}.{theirs}", shape
    for ours, theirs in places.items():
        for kind in ("scale", "shift"):
            ledger.enter(f"{ours}.ssf.{kind}", theirs.format(kind), shapes[ours])
    head = ledger.head()
    left = ledger.leave(*BACKBONE)
    notes = [f"left out: {left} tensors of the frozen backbone, which the model must have by itself"]
    return Imported([SSF(), *head], ledger.close(), notes)


FORMAT = Foreign("ssf", r"ssf_scale_1$", read, Options)
convert = FORMAT.convert
