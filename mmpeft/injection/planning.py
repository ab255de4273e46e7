"""From methods to edits: what an adapter will be in each module of a model, before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from mmpeft.injection.anatomy import Anatomy, anatomy
from mmpeft.injection.edits.base import Edit
from mmpeft.injection.graft import plain_class
from mmpeft.injection.sites import Site
from mmpeft.injection.tree import Adapter
from mmpeft.injection.vocabulary import vocabularies_of

if TYPE_CHECKING:
    from mmpeft.methods.base import Method

Modules = Mapping[str, nn.Module]
Pairs = list[tuple[Site, Edit]]


def modules_of(model: nn.Module | Modules) -> dict[str, nn.Module]:
    """Return the modules that an adapter spans, by label: "" for a single module."""
    if isinstance(model, nn.Module):
        return {"": model}
    components = model if isinstance(model, Mapping) else getattr(model, "components", None)
    if components is None:
        raise ValueError(f"model: {type(model).__name__} is neither a torch module, a dict of them, nor a pipeline")
    return {label: module for label, module in components.items() if isinstance(module, nn.Module)}


def plan(model: nn.Module | Modules, methods: Sequence[Method], dtype: torch.dtype | None = None) -> dict[str, Adapter]:
    """Make an adapter's weights for each module of a model, without touching it.

    Of several modules, each gets the methods that have their sites there; one that has them nowhere is an error.
    """

    def made(module: nn.Module) -> tuple[AbstractContextManager[object], Callable[[Edit], Edit]]:
        reference = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
        own = dtype or torch.promote_types(reference.dtype, torch.float32)
        return torch.device(reference.device), lambda edit: edit.to(own).train(module.training)

    return _plan(model, methods, made)


def sketch(model: nn.Module | Modules, methods: Sequence[Method]) -> dict[str, Adapter]:
    """Plan an adapter on the meta device: places and shapes, without weights."""
    return _plan(model, methods, lambda module: (torch.device("meta"), lambda edit: edit.to("meta")))


def _plan(
    model: nn.Module | Modules,
    methods: Sequence[Method],
    how: Callable[[nn.Module], tuple[AbstractContextManager[object], Callable[[Edit], Edit]]],
) -> dict[str, Adapter]:
    anatomies = _anatomies(model)
    problems: dict[int, list[str]] = {}
    resolved: dict[tuple[int, str], Method] = {}
    planned = {label: Adapter([]) for label in anatomies}
    for label, own in anatomies.items():
        device, change = how(own.model)
        for number, method in enumerate(methods):
            try:
                with device:
                    chosen, pairs = _pairs(method, own)
            except ValueError as error:
                problems.setdefault(number, []).append(f"{label}: {error}" if label else str(error))
                continue
            resolved[number, label] = chosen
            if own.ids_for is not None:
                planned[label].words += chosen.new_words()
            for site, edit in pairs:
                planned[label].place(site, change(edit), method.name)
    _refuse([said for said in problems.values() if len(said) == len(anatomies)], methods, planned, anatomies)
    for label, adapter in planned.items():
        for number in range(len(methods)):
            anywhere = next(method for (n, _), method in resolved.items() if n == number)
            adapter.methods.append(resolved.get((number, label), anywhere))
    return planned


def _pairs(method: Method, anatomy: Anatomy) -> tuple[Method, Pairs]:
    method = method.resolve(anatomy)
    return method, list(method.plan(anatomy))


def _anatomies(model: nn.Module | Modules) -> dict[str, Anatomy]:
    found, vocabularies = {}, vocabularies_of(model)
    for label, module in modules_of(model).items():
        found[label] = replace(anatomy(module), label=label)
        if label in vocabularies:
            words = vocabularies[label]
            found[label] = replace(found[label], words=words.words, ids_for=words.ids_for)
    return found


def _refuse(
    problems: list[list[str]],
    methods: Sequence[Method],
    planned: Mapping[str, Adapter],
    anatomies: Mapping[str, Anatomy],
) -> None:
    """Raise the problems of methods that have their sites nowhere."""
    if not problems and not any(adapter.places for adapter in planned.values()):
        searched = ", ".join(plain_class(own.model).__name__ for own in anatomies.values())
        problems = [[f"methods: no site for {', '.join(method.name for method in methods)} in {searched}"]]
    if problems:
        raise ValueError("\n".join(line for said in problems for line in said))
