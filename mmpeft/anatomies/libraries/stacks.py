"""Repeated stacks of blocks in any model: where they are, and what the tower that each is part of is called."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count

from torch import nn

from mmpeft.anatomies.hosts import plain_class

BLOCK = re.compile(r"(Layer|Block)$")
"""How libraries call the classes of blocks, where no two of a stack are of one class."""
NO_STACK = re.compile(r"embed|head|pred|classif|proj|resnets|samplers|temp_convs")
"""Names of lists of like modules that are no blocks: a detector's heads, one for each layer; parts of a UNet's."""
NAMES = {
    r"vision|visual|image|pixel|backbone|eyes": "vision",
    r"audio|speech": "audio",
    r"qformer": "qformer",
    r"language_model|llm": "decoder",
    r"text": "text",
    r"decoder": "decoder",
    r"encoder": "encoder",
}
"""What a tower is called, by the path of the module that holds its blocks; the first that fits."""


def stacks(modules: Mapping[str, nn.Module]) -> dict[str, list[str]]:
    """Return the paths of the blocks of every repeated stack, by the path of the module that holds it, in order.

    A stack is a list of composite modules, like each other; stages of stages count as their blocks. Stacks inside a
    block (experts, heads) are parts of it.
    """
    containers: dict[str, list[str]] = {}
    blocks: set[str] = set()
    for path, module in modules.items():
        if not _inside(path, blocks) and _is_stack(path, module):
            inner = _blocks(path, module)
            containers.setdefault(path.rpartition(".")[0], []).extend(inner)
            blocks.update(inner, _children(path, module))
    return containers


def root_of(parent: str, others: Iterable[str]) -> str:
    """Return the outermost module around a stack's parent that holds none of the ``others``, which are blocks."""
    around = {".".join(path.split(".")[:end]) for path in others for end in range(path.count(".") + 1)}
    above = parent.split(".")
    roots = (".".join(above[:end]) for end in range(1, len(above) + 1))
    return next((root for root in roots if root not in around), parent)


def tower_names(parents: Sequence[str]) -> list[str]:
    """Return a name for the tower that each path is the root of; ``model`` where there is one only."""
    return ["model"] if len(parents) == 1 else free_names(parents, ())


def free_names(parents: Sequence[str], taken: Iterable[str]) -> list[str]:
    """Return a name for the tower that each path is the root of, by what the path says, no two of them the same."""
    names, used = list[str](), {*taken}
    for parent in parents:
        known = (name for form, name in NAMES.items() if re.search(form, parent.lower()))
        name = next(known, parent.replace(".", "_") or "model")
        numbered = (name if number == 1 else f"{name}_{number}" for number in count(1))
        names.append(next(free for free in numbered if free not in used))
        used.add(names[-1])
    return names


def _inside(path: str, blocks: set[str]) -> bool:
    parts = path.split(".")
    return any(".".join(parts[:end]) in blocks for end in range(1, len(parts) + 1))


def _children(path: str, module: nn.Module) -> dict[str, nn.Module]:
    """Return the members of a list of modules by their paths, adapters left out."""
    members = module._modules.items()
    return {f"{path}.{name}".lstrip("."): child for name, child in members if child is not None and name != "mmpeft"}


def _is_stack(path: str, module: nn.Module) -> bool:
    children = [*_children(path, module).values()]
    if not _is_list(module) or len(children) < 2 or NO_STACK.search(path.rpartition(".")[2]):
        return False
    kinds = [plain_class(child) for child in children]
    alike = len({*kinds}) < len(kinds) or all(BLOCK.search(kind.__name__) for kind in kinds)
    return alike and all(child._modules for child in children)


def _is_list(module: nn.Module | None) -> bool:
    return isinstance(module, nn.ModuleList | nn.Sequential)


def _blocks(path: str, module: nn.Module) -> list[str]:
    """Return the members of a stack, or theirs where each of them is a stage that holds a list of blocks."""
    children = _children(path, module)
    stages = [stage for at, child in children.items() if (stage := next(_lists(at, child), None)) is not None]
    if len(stages) < len(children):
        return [*children]
    return [block for at, inner in stages for block in _blocks(at, inner)]


def _lists(path: str, stage: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the lists of blocks of one class that a stage is, or holds."""
    for at, child in {path: stage, **_children(path, stage)}.items():
        members = [*_children(at, child).values()]
        composite = bool(members) and all(member._modules for member in members)
        if _is_list(child) and composite and len({plain_class(member) for member in members}) == 1:
            yield at, child
