"""From methods to edits: what an adapter will be in each module of a model, before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from mmpeft.anatomies.anatomy import Anatomy, NoSiteError
from mmpeft.anatomies.hosts import plain_class
from mmpeft.anatomies.reading import anatomy
from mmpeft.anatomies.sites import Site
from mmpeft.edits.base import Edit
from mmpeft.injection.pipelines import Modules, modules_of, vocabularies_of
from mmpeft.injection.tree import Adapter

if TYPE_CHECKING:
    from mmpeft.methods.base import Method

Pairs = list[tuple[Site, Edit]]


Anatomies = Mapping[str, Anatomy]
"""The anatomies of a model's modules by label: "" for a single module."""


def plan(anatomies: Anatomies, methods: Sequence[Method], dtype: torch.dtype | None = None) -> dict[str, Adapter]:
    """Make an adapter's weights for each module of a model, without touching it.

    Of several modules, each gets the methods that have their sites there, and says what it lacks for others. A method
    that has its sites nowhere, or nowhere in what one of its ``towers`` names, is an error; so is any other problem.
    """

    def made(module: nn.Module) -> tuple[AbstractContextManager[object], Callable[[Edit], Edit]]:
        reference = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
        precision = dtype or torch.promote_types(reference.dtype, torch.float32)
        return torch.device(reference.device), lambda edit: edit.to(precision).train(module.training)

    return _plan(anatomies, methods, made)


def sketch(anatomies: Anatomies, methods: Sequence[Method]) -> dict[str, Adapter]:
    """Plan an adapter on the meta device: places and shapes, without weights."""
    return _plan(anatomies, methods, lambda module: (torch.device("meta"), lambda edit: edit.to("meta")))


def _plan(
    anatomies: Anatomies,
    methods: Sequence[Method],
    how: Callable[[nn.Module], tuple[AbstractContextManager[object], Callable[[Edit], Edit]]],
) -> dict[str, Adapter]:
    planned = {label: Adapter([]) for label in anatomies}
    problems: list[str] = []
    for method in methods:
        resolved: dict[str, Method] = {}
        lacking: dict[str, str] = {}
        for label, drawn in anatomies.items():
            device, change = how(drawn.model)
            try:
                with device:
                    chosen, pairs = _pairs(method, drawn)
            except NoSiteError as error:
                lacking[label] = str(error)
                continue
            except ValueError as error:
                problems.append(_said(label, error))
                continue
            if pairs:
                resolved[label] = chosen
            if pairs and drawn.ids_for is not None:
                planned[label].words += chosen.new_words()
            for site, edit in pairs:
                planned[label].place(site, change(edit), method.name)
        problems += _lost(method, anatomies, lacking)
        for label, adapter in planned.items():
            adapter.methods.append(resolved.get(label) or next(iter(resolved.values()), method))
            adapter.lacking += [f"{method.name}: {lacking[label]}"] if label in lacking else []
    if not problems and not any(adapter.places for adapter in planned.values()):
        problems = [_nothing(methods, anatomies.values())]
    if problems:
        raise ValueError("\n".join(problems))
    return planned


def _pairs(method: Method, anatomy: Anatomy) -> tuple[Method, Pairs]:
    """Return a method with what this model knows, and its edits: none where the model is not among its towers."""
    if not anatomy.chosen_towers(method.towers):
        return method, []
    method = method.resolve(anatomy)
    pairs = list(method.plan(anatomy))
    if not pairs:
        raise NoSiteError(_nothing([method], [anatomy]))
    return method, pairs


def _lost(method: Method, anatomies: Anatomies, lacking: Mapping[str, str]) -> list[str]:
    """Return the problems of a method that has its sites nowhere, or in no module that one of its ``towers`` names."""
    lost: set[str] = set()
    problems: list[str] = []
    for name in [method.towers] if isinstance(method.towers, str) else method.towers:
        named = {label for label, anatomy in anatomies.items() if anatomy.towers and anatomy.is_named(name)}
        if named <= lacking.keys():
            lost |= named or lacking.keys()
        if not named and name in anatomies:
            problems.append(f"towers: {name!r} ({anatomies[name].describe()}) has nothing to adapt")
    said = [lacking[label] for label in lost]
    once = len(lost) > 1 and len(set(said)) == 1
    return problems + (said[:1] if once else [_said(label, lacking[label]) for label in anatomies if label in lost])


def _said(label: str, problem: object) -> str:
    return f"{label}: {problem}" if label else str(problem)


def _nothing(methods: Sequence[Method], anatomies: Iterable[Anatomy]) -> str:
    searched = [*anatomies]
    names = ", ".join(plain_class(anatomy.model).__name__ for anatomy in searched)
    there = f". {searched[0].targets_there_are()}" if len(searched) == 1 else ""
    return f"methods: no site for {', '.join(method.name for method in methods)} in {names}{there}"


def anatomies_of(model: nn.Module | Modules) -> dict[str, Anatomy]:
    """Read the anatomy of each module of a model; each knows the others and, of a pipeline, its tokenizer's words."""
    anatomies, vocabularies = {}, vocabularies_of(model)
    for label, module in modules_of(model).items():
        anatomies[label] = replace(anatomy(module), label=label)
        if label in vocabularies:
            words = vocabularies[label]
            anatomies[label] = replace(anatomies[label], words=words.words, ids_for=words.ids_for)
    return {label: replace(drawn, others=_others(drawn, anatomies)) for label, drawn in anatomies.items()}


def _others(drawn: Anatomy, anatomies: Anatomies) -> tuple[Anatomy, ...]:
    return tuple(other for other in anatomies.values() if other is not drawn)
