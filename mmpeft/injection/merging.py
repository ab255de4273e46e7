"""Merging: active edits written into the base's weights, with the originals kept for an exact way back."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from mmpeft.anatomies.anatomy import own_modules
from mmpeft.anatomies.hosts import tensor_of
from mmpeft.anatomies.layers import unfit, unfit_to_scale
from mmpeft.anatomies.sites import NormSite, WeightSite
from mmpeft.edits.base import Call, Merges, Point
from mmpeft.injection.graft import graft
from mmpeft.injection.tree import Tree
from mmpeft.injection.twins import parameters_of
from mmpeft.kernels.quantized import dense, dtype_of, is_quantized, plain_forward, plain_parameter
from mmpeft.kernels.rows import put, take


def merge(trees: Mapping[str, Tree], modules: Mapping[str, nn.Module]) -> None:
    """Fold all active edits into their hosts; on one that has no place in a weight, raise before any is written.

    ``modules`` are those of the trees, by the same labels: a weight that others of theirs read too may not change.
    """
    hosts = {label: list(_active_hosts(tree)) for label, tree in trees.items()}
    problems = [problem for group in hosts.values() for host in group for problem in _problems(host)]
    if problems:
        raise ValueError("these edits can't be merged into weights:\n  " + "\n  ".join(problems))
    if not any(hosts.values()):
        raise ValueError("merge: no adapter is active")
    if any(tree.routes for tree in trees.values()):
        raise ValueError("merge: adapters that serve single samples of a batch can't be merged")
    folded = [(host, _folded(host)) for group in hosts.values() for host in group]
    problems = [*_spoilt(folded, modules), *_shared(folded, modules)]
    if problems:
        raise ValueError("merge would change more than it should:\n  " + "\n  ".join(problems))
    _say_what_grows(folded)
    for host, tensors in folded:
        graft(host).originals = {name: _original(tensor_of(host, name)) for name in tensors}
    for host, tensors in folded:
        _write(host, tensors)
    for tree in trees.values():
        tree.merged = True
        tree.activate(tree.active)


def unmerge(trees: Mapping[str, Tree]) -> None:
    """Copy the originals back and let the edits run again."""
    if not any(tree.merged for tree in trees.values()):
        raise ValueError("nothing is merged")
    for host in (host for tree in trees.values() for host in _active_hosts(tree, merged=True)):
        if graft(host).exchanged:
            path = next(binding.site.host_path for bindings in graft(host).bindings.values() for binding in bindings)
            raise ValueError(
                f"unmerge: {path} was exchanged while merged, for what has the merged weights: load the base anew"
            )
    for tree in trees.values():
        for host in _active_hosts(tree, merged=True):
            _restore(host)
        tree.merged = False
        tree.activate(tree.active)


def refuse_quantized(trees: Mapping[str, Tree]) -> None:
    """Raise a ValueError if a weight that would be merged for good is quantised."""
    hosts = (host for tree in trees.values() for host in _active_hosts(tree))
    if any(is_quantized(parameter) for host in hosts for parameter in host._parameters.values()):
        raise ValueError("merge_and_unload: the base is quantised: merge into the plain model, then quantise")


def forget(tree: Tree) -> None:
    """Drop the originals: what was merged is the base from now on."""
    for adapter in tree.adapters.values():
        for host in adapter.hosts():
            graft(host).originals = {}


def _active_hosts(tree: Tree, merged: bool = False) -> Iterable[nn.Module]:
    hosts = {id(host): host for name in tree.active for host in tree.adapters[name].hosts()}
    return [host for host in hosts.values() if merged or graft(host).calls]


def _problems(host: nn.Module) -> list[str]:
    problems = []
    for call in graft(host).calls:
        binding, edit = call.binding, call.binding.edit
        if binding.point == Point.CARRIER:
            continue
        if edit.input_gate is not None:
            problems.append(f"{binding.site.path}: {type(edit).__name__} has a gate, which depends on the input")
        elif not isinstance(edit, Merges):
            problems.append(f"{binding.site.path}: {type(edit).__name__} is no change of a weight")
        elif isinstance(binding.site, WeightSite) and (reason := _unfit(host, binding.site)):
            problems.append(f"{binding.site.path}: {reason}")
        elif getattr(binding.site, "shared", False):
            problems.append(f"{binding.site.path}: the base uses this weight in another place too, which would change")
        elif binding.point == Point.OUTPUT and getattr(host, "weight", None) is None:
            problems.append(f"{binding.site.path}: the layer has no weight")
        elif getattr(binding.site, "activated", False) and binding.point == Point.OUTPUT:
            problems.append(f"{binding.site.path}: an activation follows the weight inside the layer")
        elif edit.shifts and _bias(call) is None:
            problems.append(f"{binding.site.path}: {type(edit).__name__} needs a bias, and the layer has none")
        elif isinstance(binding.site, NormSite) and binding.point == Point.OUTPUT:
            reason = unfit_to_scale(host, binding.site.axis)
            problems += [f"{binding.site.path}: {reason}"] * bool(reason)
    return problems


def _unfit(host: nn.Module, site: WeightSite) -> str:
    """Return why a change of the host's weight is not what it computes with; empty where it is."""
    if host._parameters.get(site.weight) is None and getattr(host, site.weight, None) is not None:
        return f"its {site.weight} is made of others at each call (a parametrisation, weight_norm): remove that first"
    return unfit(host) if site.weight == "weight" else ""


def _spoilt(folded: Sequence[tuple[nn.Module, Mapping[str, Tensor]]], modules: Mapping[str, nn.Module]) -> list[str]:
    """Return which weights would get numbers that are none, and had none of these."""
    paths = _paths(modules)
    return [
        f"{paths[id(host)]}.{name}: the adapter makes numbers of it that are not finite"
        for host, tensors in folded
        for name, value in tensors.items()
        if not value.isfinite().all() and dense(tensor_of(host, name)).isfinite().all()
    ]


def _shared(folded: Sequence[tuple[nn.Module, Mapping[str, Tensor]]], modules: Mapping[str, nn.Module]) -> list[str]:
    """Return which weights would change for modules whose edits, if they have any, make something else of them."""
    paths, made = (
        _paths(modules),
        {(id(host), name): value for host, tensors_of_host in folded for name, value in tensors_of_host.items()},
    )
    readers: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in modules.values():
        for _, reader in own_modules(module):
            for name, parameter in reader._parameters.items():
                if parameter is not None:
                    readers.setdefault(id(parameter), []).append((reader, name))
    problems = []
    for host, tensors in folded:
        for name, value in tensors.items():
            for reader, known in readers.get(id(host._parameters.get(name)), ()):
                other = made.get((id(reader), known))
                if reader is not host and (other is None or not torch.equal(value, other)):
                    problems.append(
                        f"{paths[id(host)]}.{name} is the weight of {paths[id(reader)]} too, which would change"
                    )
    return problems


def _paths(modules: Mapping[str, nn.Module]) -> dict[int, str]:
    pairs = (
        (f"{label}.{path}".strip("."), module) for label, root in modules.items() for path, module in own_modules(root)
    )
    return {id(module): path or type(module).__name__ for path, module in pairs}


def _bias(call: Call) -> Tensor | None:
    site = call.binding.site
    name = site.bias if isinstance(site, WeightSite) else "bias"
    return getattr(call.binding.host, name, None)


def _folded(host: nn.Module) -> dict[str, Tensor]:
    """The host's new parameters, folded in the order in which the edits run."""
    schedule = graft(host).now().schedule
    tensors: dict[str, Tensor] = {}
    with torch.no_grad():
        if schedule.parameters:
            tensors = {name: value.detach() for name, value in graft(host).mixed(host).items()}
        for call in (*schedule.projections, *schedule.projected, *schedule.outputs, *schedule.inputs):
            tensors |= _fold(host, call, tensors)
    return tensors


def _fold(host: nn.Module, call: Call, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    site, edit = call.binding.site, call.binding.edit
    assert isinstance(edit, Merges)
    names = (site.weight, site.bias) if isinstance(site, WeightSite) else ("weight", "bias")
    weight, bias = (tensors.get(name, getattr(host, name)) for name in names)
    weight = dense(weight)
    wide = torch.promote_types(weight.dtype, torch.float32)
    transposed = isinstance(site, WeightSite) and site.transposed
    w = (weight.T if transposed else weight).to(wide)
    b = None if bias is None else bias.to(wide)
    rows = call.binding.rows or slice(None)
    part, part_bias = take(w, rows, 0), None if b is None else take(b, rows, 0)
    new, new_bias = edit.fold(part, part_bias, host)
    w = put(w, rows, part + call.weight * (new - part) if call.weight != 1 else new, 0)
    changed = {names[0]: w.T if transposed else w}
    if b is not None and new_bias is not None and part_bias is not None:
        changed[names[1]] = put(b, rows, part_bias + call.weight * (new_bias - part_bias), 0)
    return changed


def _say_what_grows(folded: Iterable[tuple[nn.Module, Mapping[str, Tensor]]]) -> None:
    packed = [host._parameters.get(name) for host, tensors in folded for name in tensors]
    packed = [weight for weight in packed if is_quantized(weight)]
    if packed:
        kinds = ", ".join(sorted({str(dtype_of(w)).removeprefix("torch.") for w in packed if w is not None}))
        warnings.warn(f"merge: {len(packed)} quantised weights are held in {kinds} until unmerge()", stacklevel=4)


def _original(parameter: Tensor) -> Tensor:
    """What puts a parameter back: a quantised one itself, of any other a copy of its numbers."""
    return parameter if is_quantized(parameter) else parameter.detach().clone()


def _write(host: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Write numbers into a host's parameters; plain ones take the place of a quantised weight, and compute."""
    with torch.no_grad():
        for name, value in tensors.items():
            stored = tensor_of(host, name)
            if is_quantized(stored):
                host._parameters[name] = plain_parameter(value.to(dtype_of(stored)))
                graft(host).stand_in = plain_forward
            else:
                stored.copy_(value)


def _restore(host: nn.Module) -> None:
    carried = graft(host)
    with torch.no_grad():
        for name, value in carried.originals.items():
            if is_quantized(value):
                parameters_of(host)[name] = value
            else:
                tensor_of(host, name).copy_(value)
    carried.originals, carried.stand_in = {}, None
