"""A model becomes the frozen base of adapters, and is itself again after the last."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmpeft.anatomies.anatomy import own_modules
from mmpeft.anatomies.hosts import carried_by
from mmpeft.injection.containers import CONTAINERS, TREE
from mmpeft.injection.graft import graft, ungraft
from mmpeft.injection.tree import Tree


def running_norms(module: nn.Module) -> list[_BatchNorm]:
    """Return the batch norms of a model that keep running statistics."""
    norms = (norm for _, norm in own_modules(module) if isinstance(norm, _BatchNorm))
    return [norm for norm in norms if norm.running_mean is not None]


def freeze(module: nn.Module) -> Tree:
    """Return the tree of a model's adapters; the first time it is made, and the model is frozen, statistics too."""
    tree = module._modules.get(TREE)
    if isinstance(tree, Tree):
        return tree
    tree = Tree(module)
    module.requires_grad_(False)
    for norm in running_norms(module):
        graft(norm).settled = True
    module._modules[TREE] = tree
    if isinstance(module, CONTAINERS):
        graft(module).rooted = True
    return tree


def thaw(module: nn.Module, tree: Tree) -> None:
    """Take an empty tree out of a model, and let it be trained as before."""
    del module._modules[TREE]
    for host in [module, *running_norms(module)]:
        if carried_by(host):
            graft(host).rooted, graft(host).settled, graft(host).first = False, False, None
            if not graft(host).needed:
                ungraft(host)
    trainable = set(tree.unfrozen)
    for key, parameter in module.named_parameters():
        parameter.requires_grad_(key in trainable)
