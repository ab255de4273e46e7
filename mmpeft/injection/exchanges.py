"""Hosts that are exchanged for other modules after injection: their edits would be lost without a word.

Libraries do it: transformers' ``resize_token_embeddings``, timm's ``reset_classifier``, torch's
``SyncBatchNorm.convert_sync_batchnorm``. torch tells of every module that is put in the place of another one.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from mmpeft.anatomies.hosts import plain_class
from mmpeft.injection.containers import CONTAINERS, TREE
from mmpeft.injection.frozen import running_norms
from mmpeft.injection.graft import Graft, graft


@cache
def watch_exchanges() -> None:
    """Have torch tell of every module that is put in the place of another one; once in a process."""
    register_module_module_registration_hook(_note)


def _note(parent: nn.Module, name: str, new: nn.Module | None) -> None:
    """Mark the hosts that leave a model with ``parent.name``; what comes for them refuses to run while they should.

    Batch norms that come for those of a frozen base leave their statistics as they are, too. A list of some of the
    layers that were there is no exchange: those that it leaves out are not meant to run.
    """
    old = parent._modules.get(name)
    if old is None or old is new or any(TREE in module._modules for module in old.modules()):
        return  # the first of its name, the same, or a whole model that takes its adapters along
    staying = {} if new is None else {id(module): module for module in new.modules()}
    for carried in _grafts(staying.values()):
        carried.exchanged, carried.successors = "", []
    lost = _grafts(module for module in old.modules() if id(module) not in staying)
    bound = [carried for carried in lost if carried.bindings]
    bound += [carried for other in lost for carried in other.replaces if carried.exchanged]
    if new is None:
        for carried in bound:
            carried.exchanged = "nothing"
        return
    if any(carried.settled for carried in lost):
        for norm in running_norms(new):
            graft(norm).settled = True
    before = {id(module) for module in old.modules()}
    called = [*new.children()] if isinstance(new, nn.ModuleList | nn.ModuleDict) else [new]
    chosen = isinstance(new, CONTAINERS) and all(id(child) in before for child in new.children())
    for module in [] if chosen or not bound else called:
        graft(module).replaces += bound
        for carried in bound:
            carried.exchanged = f"another {plain_class(module).__name__}"
            carried.successors.append(module)


def _grafts(modules: Iterable[nn.Module]) -> list[Graft]:
    return [module.__dict__["_graft"] for module in modules if "_graft" in module.__dict__]
