"""From methods to an adapter in a model: `adapt`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from mmpeft.handle.adapters import Adapters
from mmpeft.handle.observed_keys import start_from_words
from mmpeft.injection.exchanges import watch_exchanges
from mmpeft.injection.first_pass import watch_first_pass
from mmpeft.injection.frozen import freeze, running_norms
from mmpeft.injection.graft import check_forward
from mmpeft.injection.pipelines import Modules, modules_of, vocabularies_of
from mmpeft.injection.planning import Anatomies, anatomies_of, plan
from mmpeft.kernels.compiled import reset_compiled
from mmpeft.methods.base import Method, parse


def adapt(
    model: nn.Module | Modules, methods: object, name: str = "main", *, dtype: torch.dtype | None = None
) -> Adapters:
    """Freeze a model and graft a new adapter into it, in place; it becomes the active one.

    ``model`` is a module, a dict of modules, or a pipeline with ``components``; ``methods`` a Method, a list of them, a
    registry name or a dict with the key ``method``. Weights are made in ``dtype``: by default the base's own precision,
    and fp32 on a half-precision base. A method without its sites in this model (in any module of a pipeline) raises a
    ValueError before anything is changed. Running statistics of batch norms are the frozen base's: they are used in
    ``model.train()`` too, and stay as they are.
    """
    return inject(model, parse(methods), name, dtype)


def inject(
    model: nn.Module | Modules,
    methods: Sequence[Method],
    name: str,
    dtype: torch.dtype | None = None,
    anatomies: Anatomies | None = None,
) -> Adapters:
    """Do what `adapt` does; ``anatomies`` are the model's, where they have been read."""
    modules = modules_of(model)
    handle = Adapters(modules)
    _check_name(handle, name)
    handle._unmerged("adapt")
    handle._for_everybody("adapt")
    for norm in [norm for module in modules.values() for norm in running_norms(module)]:
        check_forward(norm)
    vocabularies = vocabularies_of(model)
    planned = plan(anatomies_of(model) if anatomies is None else anatomies, methods, dtype)
    with handle.off():
        for label, adapter in planned.items():
            start_from_words(modules[label], adapter)
    watch_exchanges()
    for label, adapter in planned.items():
        if adapter.words:
            vocabularies[label].add(adapter.words)
        module = modules[label]
        tree = freeze(module)
        for active in tree.active:
            tree.adapters[active].requires_grad_(False)
        tree.attach(name, adapter)
        tree.activate({name: 1.0})
        watch_first_pass(module, tree)
    reset_compiled()
    return handle


def _check_name(handle: Adapters, name: str) -> None:
    if name in handle.names:
        raise ValueError(f"name: the model already has an adapter {name!r}: remove it or choose another name")
    if not name or not name.replace("_", "a").replace("-", "a").isalnum():
        raise ValueError(f"name: {name!r}: letters, digits, '-' and '_' only")
