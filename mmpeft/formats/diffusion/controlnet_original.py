"""ControlNet as its authors write it: one file, alone or inside a whole Stable Diffusion, with the original names."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from mmpeft.formats.any_file import check_suffix, read_values, write_tensors
from mmpeft.formats.diffusion.controlnet import namer, opened_branch
from mmpeft.formats.diffusion.native_names import native_names
from mmpeft.formats.foreign import Imported
from mmpeft.formats.hosted import Hosted, Model, Opened, enter_all
from mmpeft.formats.ledger import Ledger, state
from mmpeft.methods import ControlNet
from mmpeft.settings import Settings


class Options(Settings):
    """What the file does not hold."""

    pooled: bool = False
    """whether the mean of each state over its places is taken (shuffle models)"""


def read(source: Path, model: Model, options: Options) -> Imported:
    """Return the method; the Stable Diffusion around it, which the model must have by itself, is left out."""
    values = read_values(source)
    inside = state(state(values, "state_dict"), "control_model")
    ledger = Ledger(source, inside)
    first, channels, *_ = ledger.shape(r"input_hint_block\.0\.weight", 4)
    blocks = ledger.count(r"input_hint_block\.(\d+)\..*") // 2 - 1
    wider = (ledger.shape(rf"input_hint_block\.{4 * i + 4}\.weight", 4)[0] for i in range(blocks // 2))
    method = ControlNet(channels=channels, widths=(first, *wider), pooled=options.pooled)
    theirs = _original(model, 2 * blocks + 2)
    enter_all(ledger, model, [method], theirs)
    left = len(values) - len(inside)
    return Imported([method], ledger.close(), [f"left out: {left} tensors that are not ControlNet's"] if left else [])


def write(opened: Opened, dest: Path) -> None:
    """Write one file with the prefix that the original code's whole models have."""
    check_suffix(dest, ".safetensors", ".pth")
    branch, _ = opened_branch(opened, FORMAT.name)
    theirs = _original(opened.model, 2 * len(branch.hint.blocks) + 2)
    role, _ = opened.model.module("unet")
    write_tensors(dest, {f"control_model.{theirs(key)}": value for key, value in opened.tensors[role].items()})


def _original(model: Model, last: int) -> Callable[[str], str]:
    """Return the function from our names to the original ones; ``last`` is the number of the hint's last layer."""
    names, diffusers = native_names(model.module("unet")[1]), namer(model)

    def theirs(key: str) -> str:
        path, _, name = diffusers(key).rpartition(".")
        hint = path.removeprefix("controlnet_cond_embedding.")
        if zero := re.fullmatch(r"controlnet_down_blocks\.(\d+)", path):
            return f"zero_convs.{zero[1]}.0.{name}"
        if path == "controlnet_mid_block":
            return f"middle_block_out.0.{name}"
        if hint == path:
            return f"{names[path]}.{name}"
        number = {"conv_in": 0, "conv_out": last}.get(hint) if not hint.startswith("blocks") else None
        return f"input_hint_block.{2 * int(hint.split('.')[1]) + 2 if number is None else number}.{name}"

    return theirs


FORMAT = Hosted("controlnet_original", r"^(state_dict\.)?(control_model\.)?(zero_convs|input_hint_block)\.", read,
                Options, write)  # fmt: skip
convert, export = FORMAT.convert, FORMAT.export
