"""The handle on a model's adapters: make, switch, mix, route, merge, save and remove them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from mmpeft.edits.base import Edit, UpdatesWeight
from mmpeft.edits.routes import Route
from mmpeft.edits.weights import Weight, check_patterns, weight_at
from mmpeft.formats.stages import remember
from mmpeft.handle.routed_batch import check_batch
from mmpeft.handle.saving import kept_tensors, save, stage_of
from mmpeft.injection import merging
from mmpeft.injection.first_pass import check_called
from mmpeft.injection.frozen import thaw
from mmpeft.injection.pipelines import Modules, modules_of
from mmpeft.injection.tree import Adapter, Tree
from mmpeft.kernels.compiled import reset_compiled
from mmpeft.kernels.scoped import replacements, within
from mmpeft.settings import nearest

if TYPE_CHECKING:
    from mmpeft.handle.report import Report
    from mmpeft.inspection.step_memory import MakeOptimizer
    from mmpeft.methods.base import Method


class Adapters:
    """Everything one can do with the adapters of a model, or of a pipeline of several modules.

    It holds no state of its own: ``mmpeft.adapters(model)`` gives an equal handle at any time.
    """

    def __init__(self, modules: Modules) -> None:
        self.modules = dict(modules)

    @property
    def trees(self) -> dict[str, Tree]:
        """The subtree of each module that has one, by the module's label ("" when there is one module)."""
        subtrees = {label: module._modules.get("mmpeft") for label, module in self.modules.items()}
        return {label: tree for label, tree in subtrees.items() if isinstance(tree, Tree)}

    @property
    def names(self) -> list[str]:
        """Names of all adapters, in order of their making."""
        return list(dict.fromkeys(name for tree in self.trees.values() for name in tree.adapters))

    @property
    def active(self) -> dict[str, Weight]:
        """The active adapters and their mixing weights, in the order in which they apply."""
        return {name: weight for tree in self.trees.values() for name, weight in tree.active.items()}

    def parts(self, name: str | None = None) -> dict[str, Adapter]:
        """Return one adapter's part in each module; without a name, those of the only active (or only) adapter."""
        name = self._known(name or self._only())
        return {label: tree.adapters[name] for label, tree in self.trees.items() if name in tree.adapters}

    def methods(self, name: str | None = None) -> list[Method]:
        """Return the methods that an adapter was made of."""
        return next(iter(self.parts(name).values())).methods

    # ---- weights -------------------------------------------------------------------------------------------------

    def named_parameters(self, name: str | None = None) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the trainable parameters of the active adapters (or of one), by adapter name and key."""
        for adapter in [name] if name else self.active:
            for label, part in self.parts(adapter).items():
                part.check_present(adapter)
                for key, parameter in part.named_parameters():
                    if parameter.requires_grad:
                        yield _join(adapter, label, key), parameter

    def parameters(self, name: str | None = None) -> list[nn.Parameter]:
        """Return the trainable parameters of the active adapters: what an optimizer gets."""
        return [parameter for _, parameter in self.named_parameters(name)]

    def rates(self, layer_decay: float = 1.0) -> dict[str, float]:
        """Return the factors on the learning rate of those trainable parameters that have one, by name.

        A ``layer_decay`` below 1 multiplies them by itself for each layer that follows, as timm's option of this name
        does: timm's own grouping gives every adapter the rate of the head.
        """
        rates = {f"{key}.{name}": rate for key, edit in self._running() for name, rate in edit.rates.items()}
        if layer_decay == 1.0:
            return rates
        from mmpeft.handle.layer_decay import layer_rates

        names = {name: rates.get(name, 1.0) for name, _ in self.named_parameters()}
        for adapter in self.active:
            for key, rate in layer_rates(self.parts(adapter), self.modules, layer_decay).items():
                inside = f"{_join(adapter, key)}."
                names |= {name: factor * rate for name, factor in names.items() if name.startswith(inside)}
        return names

    def parameter_groups(self, lr: float, layer_decay: float = 1.0) -> list[dict[str, object]]:
        """Return the trainable parameters as groups for a torch optimizer, each with its ``lr`` times its factor."""
        rates = self.rates(layer_decay)
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            groups.setdefault(rates.get(name, 1.0), []).append(parameter)
        return [{"params": parameters, "lr": lr * rate} for rate, parameters in groups.items()]

    def fixed_factors(self) -> dict[str, tuple[Tensor, float]]:
        """Return A and s of every ``s B A`` of which only B is trained, by B's name."""
        edits = ((key, edit) for key, edit in self._running() if isinstance(edit, UpdatesWeight))
        return {f"{key}.{name}": fixed for key, edit in edits for name, fixed in edit.fixed_factors().items()}

    def state_dict(self, name: str | None = None) -> dict[str, Tensor]:
        """Return one adapter's tensors, by key inside the adapter (behind the module's label in a pipeline)."""
        parts = self.parts(name)
        return {_join(label, key): value for label, part in parts.items() for key, value in part.state_dict().items()}

    def kept(self, name: str | None = None) -> dict[str, Tensor]:
        """Return the tensors of one adapter that are saved, by the same keys: what only served its training is not."""
        return kept_tensors(self.parts(name))

    def load_state_dict(self, state: Mapping[str, Tensor], name: str | None = None) -> None:
        """Copy tensors into an adapter. All missing, unexpected and misshapen keys are one error, before any copy."""
        tensors = self.state_dict(name)
        problems = [f"missing {key}" for key in tensors if key not in state]
        problems += [f"unexpected {key}{nearest(key, tensors)}" for key in state if key not in tensors]
        problems += [
            f"{key}: shape {tuple(state[key].shape)}, expected {tuple(tensors[key].shape)}"
            for key in tensors
            if key in state and state[key].shape != tensors[key].shape
        ]
        if problems:
            raise ValueError(
                f"adapter {name or self._only()!r} can't take this state dict:\n  " + "\n  ".join(problems)
            )
        with torch.no_grad():
            for key, value in tensors.items():
                value.copy_(state[key])

    def check_gradients(self) -> None:
        """Raise a ValueError that names every active adapter parameter without a gradient; call it after backward."""
        lost = [key for key, parameter in self.named_parameters() if parameter.grad is None]
        if lost:
            raise ValueError(
                f"{len(lost)} adapter parameters got no gradient, so they would silently not train: "
                f"{', '.join(lost[:8])}{' ...' if len(lost) > 8 else ''}. Is their module called in this forward pass?"
            )

    def save(self, directory: str | Path, name: str | None = None) -> Path:
        """Write one adapter as safetensors and JSON; see ``mmpeft.formats.native``. Returns the directory."""
        name = name or self._only()
        return save(self.parts(name), self.modules, Path(directory), name)

    def report(self, batch: object = None, optimizer: MakeOptimizer = AdamW) -> Report:
        """Count trainable and total parameters per tower and site, and bytes; ``print`` shows a table.

        With a ``batch`` (a tensor, a dict of keyword arguments, or a tuple of positional ones) it also predicts the
        memory of a training step with an ``optimizer`` (its class, or a function that makes one of parameters). The
        step is made with tensors without numbers, on no memory, and nothing is changed; it minimises the model's own
        loss where it returns one, else the mean of its outputs. Call it as you will train: under the same autocast,
        with the same gradient checkpointing, within ``given``.
        """
        from mmpeft.handle.report import make_report

        return make_report(self.trees, self.modules, batch, optimizer)

    # ---- switching -----------------------------------------------------------------------------------------------

    def activate(self, *names: str, weights: Sequence[Weight] | None = None, trainable: bool | None = None) -> None:
        """Make these the active adapters for everybody, in this order, each scaled by its weight (1 by default).

        A weight is a number, or numbers by pattern over sites' names and paths, and 0 where none matches:
        ``{"up_blocks.*": 1.0, "up_blocks.0.*": 0.4}`` (of several that match, the last).
        ``trainable`` sets whether their parameters get gradients; None leaves that as it is. Within ``off``, ``route``
        and ``using``, where it would change nothing, it is a ValueError.
        """
        if weights is not None and len(weights) != len(names):
            raise ValueError(f"weights: {list(weights)} for {len(names)} adapters {list(names)}")
        chosen = dict(zip(names, weights or [1.0] * len(names), strict=True))
        for name, weight in chosen.items():
            self._weighable(self._known(name), weight)
        self._unmerged("activate")
        self._for_everybody("activate")
        for tree in self.trees.values():
            tree.forget()
            tree.activate({name: weight for name, weight in chosen.items() if name in tree.adapters})
            for name in chosen:
                if trainable is not None and name in tree.adapters:
                    tree.adapters[name].requires_grad_(trainable)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within this context the model is the frozen model, bit for bit: in this thread or asynchronous task only."""
        self._unmerged("switch off")
        with self._choice({}):
            yield

    @contextmanager
    def using(self, *names: str) -> Iterator[None]:
        """Within this context exactly these adapters are active, in this order: in this thread or task only."""
        self._unmerged("switch")
        with self._choice({self._known(name): 1.0 for name in names}):
            yield

    @contextmanager
    def route(self, names: Sequence[str | None]) -> Iterator[None]:
        """Within this context sample i of the batch runs with adapter ``names[i]``; None is the frozen model.

        What ``generate`` makes of a sample (beams, returned sequences) runs with the sample's adapter.
        That holds in this thread or asynchronous task only; others route batches of their own meanwhile.
        Adapters of the same kind are computed together, from stacks of their weights. These are kept for the next batch
        with the same adapters, until they change or ``activate`` is called.
        """
        self._unmerged("route")
        samples: dict[str, list[int]] = {}
        for sample, name in enumerate(names):
            if name is not None:
                samples.setdefault(name, []).append(sample)
        self._routable(samples, len(names))
        with ExitStack() as contexts:
            for label, tree in self.trees.items():
                module = self.modules[label]
                device = next(module.parameters()).device
                routes = {name: Route(tuple(served), len(names), device) for name, served in samples.items()}
                contexts.enter_context(within(tree.chosen(dict.fromkeys(samples, 1.0), routes)))
                check = partial(check_batch, len(names), tree, tree.table.value)
                contexts.callback(module.register_forward_pre_hook(check, with_kwargs=True).remove)
            yield

    @contextmanager
    def given(self, conditions: Mapping[str, object]) -> Iterator[None]:
        """Within this context the named adapters get what they need besides the model's input: a control image ...

        They do in this thread or asynchronous task only.
        """
        takers = {name: [e.takes for e in self._edits(self._known(name)) if e.takes is not None] for name in conditions}
        useless = [name for name, taken in takers.items() if not taken]
        if useless:
            able = [name for name in self.names if any(edit.takes is not None for edit in self._edits(name))]
            raise ValueError(f"given: {useless[0]!r} takes no condition{nearest(useless[0], able)}")
        with within({condition: conditions[name] for name, taken in takers.items() for condition in taken}):
            yield

    # ---- merging and removing ------------------------------------------------------------------------------------

    def merge(self) -> None:
        """Write the active adapters into the base weights (in fp32, or fp64 for a fp64 base), keeping the originals.

        An adapter with an edit that has no place in a weight is an error that names it, and nothing is written; so is a
        weight that other modules read too (a head tied to the embedding), and an adapter with NaN.
        """
        self._unmerged("merge")
        for name in self.active:
            for part in self.parts(name).values():
                part.check_present(name)
        for tree in self.trees.values():
            check_called(tree)
        merging.merge(self.trees, self.modules)
        reset_compiled()

    def unmerge(self) -> None:
        """Put the original base weights back, bit for bit, and let the active adapters run beside them again."""
        merging.unmerge(self.trees)
        reset_compiled()

    def merge_and_unload(self) -> None:
        """Write the active adapters into the base weights for good, and forget all adapters: there is no way back.

        Raises:
            ValueError: If an edit has no place in a weight, or the base is quantised; nothing is changed then.
        """
        merging.refuse_quantized(self.trees)
        stages = {name: stage_of(self.parts(name), self.modules, name, weight) for name, weight in self.active.items()}
        self.merge()
        for module in self.modules.values():
            tree = module._modules.get("mmpeft")
            if isinstance(tree, Tree):
                remember(module, [stages[name] for name in tree.active])
                tree.merged = False
                tree.activate({})
                merging.forget(tree)
                for name in [*tree.adapters]:
                    tree.detach(name)
                thaw(module, tree)

    def remove(self, name: str | None = None) -> None:
        """Remove one adapter (the only one without a name); after the last, the model is as it was before the first."""
        name = self._known(name or self._only())
        self._unmerged("remove")
        for module in self.modules.values():
            tree = module._modules.get("mmpeft")
            if isinstance(tree, Tree) and name in tree.adapters:
                tree.activate({other: weight for other, weight in tree.active.items() if other != name})
                tree.detach(name)
                if not tree.adapters:
                    thaw(module, tree)
        reset_compiled()

    @contextmanager
    def _choice(self, weights: Mapping[str, Weight]) -> Iterator[None]:
        """Make exactly these adapters active within this context, as far as each module has them."""
        with ExitStack() as contexts:
            for tree in self.trees.values():
                chosen = {name: weight for name, weight in weights.items() if name in tree.adapters}
                contexts.enter_context(within(tree.chosen(chosen)))
            yield

    def _for_everybody(self, verb: str) -> None:
        """Raise a ValueError where this context has chosen its own adapters: it would not see the change."""
        chosen = replacements() or {}
        if any(tree.selection in chosen for tree in self.trees.values()):
            raise ValueError(
                f"can't {verb} within off(), route() or using(), which choose the adapters of this thread or task: "
                "leave that first, or choose with adapters.using(...)"
            )

    # ---- the rest ------------------------------------------------------------------------------------------------

    def _running(self) -> Iterator[tuple[str, Edit]]:
        """Yield the edits of the active adapters, by the names of their parameters without the last part."""
        for adapter in self.active:
            for label, part in self.parts(adapter).items():
                yield from ((_join(adapter, label, key), edit) for _, edit, key in part.places)

    def _edits(self, name: str) -> list[Edit]:
        return [edit for part in self.parts(name).values() for _, edit, _ in part.places]

    def _known(self, name: str) -> str:
        if not any(name in tree.adapters for tree in self.trees.values()):
            raise ValueError(f"no adapter {name!r}{nearest(name, self.names) or ': the model has none'}")
        return name

    def _only(self) -> str:
        candidates = list(self.active) or self.names
        if len(candidates) != 1:
            raise ValueError(f"name: which adapter? {candidates or 'the model has none'}")
        return candidates[0]

    def _weighable(self, name: str, weight: Weight) -> None:
        """Raise a ValueError if a pattern matches nothing, or if the weight of tokens is not 1."""
        places = [bound for part in self.parts(name).values() for bound in part.places]
        check_patterns(weight, [site for site, _, _ in places], "weights")
        if any(edit.count and weight_at(weight, site) != 1.0 for site, edit, _ in places):
            raise ValueError(f"weights: {weight} for {name!r}: inserted tokens can't be mixed by weight, only 1")

    def _unmerged(self, verb: str) -> None:
        if any(tree.merged for tree in self.trees.values()):
            raise ValueError(f"can't {verb} while adapters are merged into the base: call unmerge() first")

    def _routable(self, samples: Mapping[str, list[int]], batch: int) -> None:
        counts: dict[tuple[object, ...], list[str]] = {}
        trees = self.trees.values()
        for name in samples:
            demands = [tree.adapters[name].demands for tree in trees if name in tree.adapters]
            counts.setdefault(tuple(demand.tokens for demand in demands if demand.tokens), []).append(self._known(name))
            if any(demand.condition for demand in demands):
                raise ValueError(f"route: {name!r} takes a condition, which is given for the whole batch")
            unfrozen = next((demand.unfrozen for demand in demands if demand.unfrozen is not None), None)
            if unfrozen is not None:
                raise ValueError(f"route: {name!r} unfreezes parameters of {unfrozen!r}, not one layer's")
        if sum(map(len, samples.values())) < batch and set(counts) - {()}:
            counts.setdefault((), []).append("None")
        if len(counts) > 1:
            raise ValueError(
                f"route: adapters that insert different numbers of tokens in one batch: {list(counts.values())}"
            )

    def __repr__(self) -> str:
        active = ", ".join(name if weight == 1 else f"{name} x {weight}" for name, weight in self.active.items())
        return f"Adapters({self.names}, active: {active or 'none'})"


def adapters(model: nn.Module | Modules) -> Adapters:
    """Return the handle on the adapters of a model (or of a dict of modules, or a pipeline)."""
    return Adapters(modules_of(model))


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)
