"""A frozen base in 4 or 8 bits: linear layers of blocks, by bitsandbytes or torchao."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from fnmatch import fnmatch
from typing import Any, Literal, get_args

import torch
from torch import nn

from mmpeft.anatomies.headed import backbone_of
from mmpeft.anatomies.reading import anatomy
from mmpeft.anatomies.sites import LinearSite
from mmpeft.injection.pipelines import modules_of
from mmpeft.optional import require
from mmpeft.settings import nearest

Kind = Literal["nf4", "fp4", "int8", "int4"]
"""Numbers of 4 bits (bitsandbytes; ``nf4`` is QLoRA's) or whole numbers of 8 and 4 bits (torchao)."""


def quantize(
    model: nn.Module | Mapping[str, nn.Module],
    kind: Kind = "nf4",
    *,
    double: bool = True,
    compute: torch.dtype = torch.bfloat16,
    skip: Collection[str] = (),
) -> None:
    """Quantise the linear layers of all blocks of a model in place, before any adapter is made.

    Embeddings, norms, heads and layers outside the blocks keep their numbers (a model without blocks has them all
    quantised). NF4 takes 4.5 bits per weight, 4.127 with
    ``double`` (its scales are quantised too; Dettmers et al. 2023, arXiv:2305.14314).

    Args:
        model: A module, a dict of modules, or a pipeline; those without blocks stay as they are.
        kind: ``nf4`` and ``fp4`` are bitsandbytes', ``int8`` and ``int4`` torchao's (``int4`` needs a GPU).
        double: Whether the scales of 4-bit numbers are quantised too.
        compute: The precision that bitsandbytes' layers compute in.
        skip: fnmatch patterns over module paths of layers that keep their numbers.

    Raises:
        ValueError: If the kind is unknown, the model has adapters, nothing is left to quantise, or a pattern of
            ``skip`` matches no layer.
        ImportError: If the library is not installed.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"quantize: {kind!r} is not one of {', '.join(get_args(Kind))}{nearest(kind, get_args(Kind))}")
    modules = {label: backbone_of(module) for label, module in modules_of(model).items()}
    if adapted := [label or "the model" for label, module in modules.items() if "mmpeft" in module._modules]:
        raise ValueError(f"quantize: {', '.join(adapted)} has adapters already: quantise before mmpeft.adapt")
    chosen = list(_layers(modules, skip))
    if not chosen:
        raise ValueError("quantize: no linear layer of a block is left to quantise")
    change = _bitsandbytes(kind, double, compute) if kind in ("nf4", "fp4") else _torchao(kind)
    for module, path in chosen:
        change(module, path)


def _layers(modules: Mapping[str, nn.Module], skip: Collection[str]) -> Iterator[tuple[nn.Module, str]]:
    """Yield each plain linear layer that is the whole host of a linear site of a block, once, with its path."""
    linear: dict[int, tuple[nn.Module, str]] = {}
    for module in modules.values():
        for tower in anatomy(module).towers:
            inside = [site for block in tower.blocks for site in block.sites]
            for site in inside or tower.sites:
                if isinstance(site, LinearSite) and type(site.host) is nn.Linear and site.carrier is None:
                    linear.setdefault(id(site.host), (module, site.host_path))
    paths = [path for _, path in linear.values()]
    for pattern in skip:
        if not any(fnmatch(path, pattern) for path in paths):
            raise ValueError(f"quantize.skip: {pattern!r} matches no linear layer{nearest(pattern, paths)}")
    return ((m, path) for m, path in linear.values() if not any(fnmatch(path, pattern) for pattern in skip))


def _bitsandbytes(kind: str, double: bool, compute: torch.dtype) -> Callable[[nn.Module, str], None]:
    bitsandbytes = require("bitsandbytes", "mmpeft[quantized]")

    def change(module: nn.Module, path: str) -> None:
        layer: Any = module.get_submodule(path)
        device, bias = layer.weight.device, layer.bias is not None
        new = bitsandbytes.nn.Linear4bit(
            layer.in_features, layer.out_features, bias, compute, double, kind, device=torch.device("meta")
        )
        made = bitsandbytes.nn.Params4bit(
            layer.weight.detach(), requires_grad=False, quant_type=kind, compress_statistics=double, module=new
        )
        new.weight, new.bias = made.to(device), layer.bias
        # On some CPUs bitsandbytes would pack the frozen weight anew in the first call, and compute other numbers.
        new.support_avx512bf16_for_cpu = False
        _put(module, path, new.train(layer.training))

    return change


def _torchao(kind: str) -> Callable[[nn.Module, str], None]:
    torchao = require("torchao.quantization", "mmpeft[quantized]")
    config = torchao.Int8WeightOnlyConfig() if kind == "int8" else torchao.Int4WeightOnlyConfig()

    def change(module: nn.Module, path: str) -> None:
        layer = module.get_submodule(path)
        torchao.quantize_(layer, config)
        layer.requires_grad_(False)

    return change


def _put(module: nn.Module, path: str, new: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    module.get_submodule(parent)._modules[name] = new
