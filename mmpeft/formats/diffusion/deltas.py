"""Low-rank deltas of a model's layers, which every LoRA file of diffusion models has, under one name or another."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mmpeft.anatomies.anatomy import own_modules
from mmpeft.anatomies.sites import WeightSite
from mmpeft.edits import LowRank
from mmpeft.formats.foreign import Imported
from mmpeft.formats.hf_peft.peft_config import PREFIX, LoRAConfig
from mmpeft.formats.hf_peft.peft_plan import lay_out_low_rank
from mmpeft.formats.hosted import Model, Opened
from mmpeft.formats.ledger import Ledger
from mmpeft.formats.tensor_file import refuse
from mmpeft.kernels.quantized import shape_of
from mmpeft.methods import DoRA, LoRA, Method

Address = tuple[str, str]
"""The name of a model's part, and the path of a layer in it."""
PARTS = {
    "a": r"[._]lora(_linear_layer)?\.down\.weight|\.lora_down\.weight|\.lora_A\.weight",
    "b": r"[._]lora(_linear_layer)?\.up\.weight|\.lora_up\.weight|\.lora_B\.weight",
    "alpha": r"\.alpha",
    "magnitude": r"\.lora_magnitude_vector(\.weight)?",
    "dora_scale": r"\.dora_scale",
}
"""The ends of names in all files: down and up projection, the scale's numerator, DoRA's magnitudes in two shapes."""

OTHERS = {
    "LoHa": r"\.hada_(w|t)\d",
    "LoKr": r"\.lokr_(w|t)\d",
    "OFT": r"\.oft_(blocks|diag|R)|\.oft_?blocks",
    "LoRA in Tucker's form": r"\.lora_mid\.weight",
    "differences of whole weights": r"\.(diff|diff_b|w_norm|b_norm)$",
}
"""What LyCORIS and others write into files of the same names, by signs in them."""
TRANSFORMER = (
    r"(lora_(unet|transformer)_|diffusion_model\.|transformer\.)(double_|single_|joint_|transformer_|single_transformer_)?blocks"
    r"[._]"
)
"""Names of layers of Flux, SD3, Wan and others; a UNet has input, middle, output, down and up blocks."""
SAID = 8
"""Names of an error that are looked up among the model's."""


@dataclass(frozen=True)
class Delta:
    """``alpha / r B A`` at one layer, with A (r, in) and B (out, r), over the root of r when ``root``.

    Of a convolution A is (r, in, height, width) and B (out, r, 1, 1). With DoRA's ``magnitude`` (out).
    """

    address: Address
    a: Tensor
    b: Tensor
    alpha: float
    root: bool = False
    magnitude: Tensor | None = None


def deltas_of(opened: Opened, format: str) -> tuple[list[Delta], dict[str, LoRAConfig]]:
    """Return the deltas of whole layers, those of slices in one, with HF peft's configuration of each part."""
    opened.places(format, LowRank)
    deltas: list[Delta] = []
    configs: dict[str, LoRAConfig] = {}
    for role, part in opened.parts.items():
        if not part.places:
            continue
        layout, configs[role] = lay_out_low_rank(part)
        tensors = layout.pack(opened.tensors[role])
        for path, scale in layout.scales.items():
            a, b = (tensors[f"{PREFIX}{path}.lora_{letter}.weight"] for letter in "AB")
            magnitude = tensors.get(f"{PREFIX}{path}.lora_magnitude_vector")
            flat = None if magnitude is None else magnitude.flatten()
            deltas.append(Delta((role, path), a, b, scale * len(a), magnitude=flat))
    return deltas, configs


def layers(model: Model, *roles: str) -> dict[Address, nn.Module]:
    """Return the linear layers and convolutions of a model's parts."""
    return {
        (role, path): module
        for role, root in model.modules.items()
        if role in roles
        for path, module in own_modules(root)
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


def read_deltas(source: Path, model: Model, values: Mapping[str, Any], names: Mapping[str, Address]) -> list[Delta]:
    """Return the deltas of a file, by the names that its layers have there; all problems are one ValueError.

    A file without alpha has a scale of 1.
    """
    others = _others(values)
    layers_by_name, problems = _by_layer({key: value for key, value in values.items() if _kind(key) is None})
    problems = others + problems
    unknown = [name for name in layers_by_name if name not in names]
    problems += _unknown(unknown, len(layers_by_name), names)
    if not layers_by_name and not others:
        problems = ["no LoRA in it", Ledger(source, values).looks()]
    kept = {name: parts for name, parts in layers_by_name.items() if name not in unknown}
    sites = _sites(model)
    problems += [f"{name}: {'.'.join(names[name])} is no site of LoRA" for name in kept if names[name] not in sites]
    deltas = [_delta(name, parts, names[name], model, problems) for name, parts in kept.items()]
    refuse(source, problems)
    return [delta for delta in deltas if delta is not None]


def _others(values: Mapping[str, Any]) -> list[str]:
    """Say which other kinds of update a file has; a layer of one is none of LoRA's."""
    keys_by_kind: dict[str, list[str]] = {}
    for key in values:
        if kind := _kind(key):
            keys_by_kind.setdefault(kind, []).append(key)
    said = "only LoRA and DoRA are read"
    return [f"{kind}, {len(keys)} tensors such as {keys[0]}: {said}" for kind, keys in keys_by_kind.items()]


def _kind(key: str) -> str | None:
    """Return which other kind of update a tensor belongs to."""
    return next((kind for kind, sign in OTHERS.items() if re.search(sign, key)), None)


def refuse_transformer(model: Model, keys: Iterable[str], format: str) -> None:
    """Refuse what is for a diffusion transformer, by a file's names or by a model with nothing else."""
    names = [key for key in keys if re.match(TRANSFORMER, key)]
    known = {"unet", "text_encoder", "text_encoder_2"} & model.modules.keys()
    if "unet" not in model.modules and (names or not known):
        parts = ", ".join(model.modules)
        why = f"{names[0]!r} is a layer of a diffusion transformer" if names else f"the model is {parts}"
        raise ValueError(
            f"format {format} is read for UNets and CLIP's text encoders, and {why}: let diffusers read the file "
            "(pipeline.load_lora_weights) and write its own (save_lora_weights): format diffusers_lora"
        )


def named(deltas: Sequence[Delta], names: Mapping[Address, str], format: str) -> list[tuple[str, Delta]]:
    """Return deltas with the names that their layers have in a format; layers without one are a ValueError."""
    without = [".".join(delta.address) for delta in deltas if delta.address not in names]
    if without:
        raise ValueError(
            f"format {format} has no names for {len(without)} of the layers, such as {without[0]}: it is written for "
            "UNets and CLIP's text encoders; format diffusers_lora has all"
        )
    return [(names[delta.address], delta) for delta in deltas]


def _sites(model: Model) -> set[Address]:
    parts = model.labels.items()
    return {(role, site.path) for role, label in parts for site in model.anatomies[label].sites(WeightSite)}


def adapter_of(model: Model, deltas: list[Delta], notes: list[str]) -> Imported:
    """Return the adapter of these deltas: a method per part, rank, alpha and kind."""
    groups: dict[tuple[str, int, float, bool, bool], list[str]] = {}
    tensors: dict[str, Tensor] = {}
    for delta in deltas:
        role, path = delta.address
        name = "lora" if delta.magnitude is None else "dora"
        parts = {"lora_A": delta.a, "lora_B": delta.b, "magnitude": delta.magnitude}
        tensors |= {
            model.key(role, f"{path}.{name}.{key}"): v.contiguous() for key, v in parts.items() if v is not None
        }
        groups.setdefault((role, len(delta.a), delta.alpha, delta.root, name == "dora"), []).append(path)
    methods: list[Method] = []
    for (role, rank, alpha, root, dora), paths in groups.items():
        options: dict[str, Any] = {"rank": rank, "alpha": alpha, "rank_stabilized": root, "towers": model.towers(role)}
        methods.append((DoRA if dora else LoRA)(targets=tuple(paths), **options))
    return Imported(methods, tensors, notes, facts=())


def _by_layer(values: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return the values of each layer by what they are, and the names that are none of LoRA."""
    values_by_layer: dict[str, dict[str, Any]] = {}
    problems = []
    for key, value in values.items():
        for part, ends in PARTS.items():
            if match := re.fullmatch(rf"(.+?)({ends})", key):
                values_by_layer.setdefault(match[1], {})[part] = value
                break
        else:
            problems.append(f"unexpected {key}: neither LoRA nor DoRA")
    return values_by_layer, problems


def _delta(name: str, parts: dict[str, Any], address: Address, model: Model, problems: list[str]) -> Delta | None:
    layer: Any = model.modules[address[0]].get_submodule(address[1])
    if "a" not in parts or "b" not in parts:
        problems.append(f"{name}: without its {'down' if 'a' not in parts else 'up'} projection")
        return None
    a, b, rank, (out, *each) = parts["a"], parts["b"], len(parts["a"]), shape_of(layer.weight)
    if _bare(a.shape) != _bare((rank, *each)) or _bare(b.shape) != (out, rank):
        shapes = f"down {tuple(a.shape)} and up {tuple(b.shape)}"
        problems.append(f"{name}: {shapes} don't fit a layer of {tuple(shape_of(layer.weight))}")
        return None
    alpha = float(parts["alpha"]) if "alpha" in parts else float(rank)
    ones = [1] * len(each[1:])
    magnitude = _magnitude(name, parts, out, ones, problems)
    return Delta(address, a.reshape(rank, *each), b.reshape(out, rank, *ones), alpha, magnitude=magnitude)


def _bare(shape: Sequence[int]) -> tuple[int, ...]:
    """Return a shape without its 1 x 1 kernel: what is a linear layer in one model is a convolution in another."""
    return tuple(shape[:2] if tuple(shape[2:]) == (1, 1) else shape)


def _magnitude(name: str, parts: dict[str, Any], out: int, ones: list[int], problems: list[str]) -> Tensor | None:
    """Return DoRA's magnitudes (out): of a convolution peft has (1, out, 1, 1), kohya (out, 1, 1, 1)."""
    theirs = {"magnitude": (1, out, *ones) if ones else (out,), "dora_scale": (out, 1, *ones)}
    for kind, shape in theirs.items():
        if kind in parts and parts[kind].shape in ((out,), (out, 1), shape):
            flat: Tensor = parts[kind].flatten()
            return flat
        if kind in parts:
            given = tuple(parts[kind].shape)
            problems.append(f"{name}: magnitudes {given}, expected one for each of {out} rows, {shape}")
    return None


def _unknown(unknown: list[str], total: int, names: Mapping[str, Address]) -> list[str]:
    """Say which names are none of the model's, and what the nearest of its are; of many, the first ones."""
    if not unknown:
        return []
    if len(unknown) == total:
        return [f"no name in it is one of the model's: {unknown[0]}{_near(unknown[0], names)}"]
    said = [f"{name}: no layer of the model has this name{_near(name, names)}" for name in unknown[:SAID]]
    rest = len(unknown) - SAID
    return said + ([f"and {rest} more names that no layer of the model has"] if rest > 0 else [])


def _near(name: str, names: Mapping[str, Address]) -> str:
    close = get_close_matches(name, names, n=2, cutoff=0.5)
    return f" (did you mean {' or '.join(map(repr, close))}?)" if close else f" (such as {next(iter(names), None)!r})"
