"""Reads the JSON-like core of YAML 1.2 and remembers the line of every value.

``3e-4`` is a number; ``no``, ``on`` and dates are text; there are no anchors, merge keys or tags. PyYAML alone reads
YAML 1.1, where ``3e-4`` is text and ``no`` is a boolean, and keeps the last of two equal keys without a word.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import yaml

SCALARS = {
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?(?:0|[1-9][0-9_]*)",
    "float": r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?",
    "null": r"~|null|Null|NULL|",
}


class Resolver(yaml.resolver.BaseResolver):
    """Tells what a plain scalar is by the rules of YAML 1.2."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own class attribute)
        None: [(f"tag:yaml.org,2002:{kind}", re.compile(f"(?:{pattern})$")) for kind, pattern in SCALARS.items()]
    }


class _Loader(Resolver, yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.tag is not None:
            raise yaml.MarkedYAMLError(None, None, "aliases and tags are not supported", event.start_mark)
        return super().compose_node(parent, index)


@dataclass
class ConfigFile:
    """What one YAML text says: its data, the place of each dotted path, and what is wrong with it."""

    place: Callable[[int], str]
    """Puts a line number into words, such as ``run.yaml:3``."""
    data: Any = None
    origins: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def parse(text: str, place: Callable[[int], str], path: str = "") -> ConfigFile:
    """Return what a YAML text says, as the value at the dotted ``path``; broken YAML becomes a problem."""
    source = ConfigFile(place, origins={path: place(1)})
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        source.data = None if node is None else _value(loader, node, path, source)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "not text"
        where = place(mark.line + 1 if mark else 1)
        source.problems.append(f"{f'{path} ({where})' if path else where}: cannot be read as YAML: {problem}")
    return source


def _value(loader: _Loader, node: yaml.Node, path: str, source: ConfigFile) -> Any:
    source.origins.setdefault(path, source.place(node.start_mark.line + 1))
    if isinstance(node, yaml.MappingNode):
        return _mapping(loader, node, path, source)
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, item, join(path, str(index)), source) for index, item in enumerate(node.value)]
    return loader.construct_object(node)


def _mapping(loader: _Loader, node: yaml.MappingNode, path: str, source: ConfigFile) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key, value in node.value:
        name = key.value if isinstance(key, yaml.ScalarNode) else str(loader.construct_object(key, deep=True))
        inner, place = join(path, name), source.place(key.start_mark.line + 1)
        if name in mapping:
            source.problems.append(f"{inner} ({place}): this key was already given ({source.origins[inner]})")
            continue
        source.origins[inner] = place
        mapping[name] = _value(loader, value, inner, source)
    return mapping


def join(path: str, key: str) -> str:
    """Return the dotted path of ``key`` inside the section ``path``."""
    return f"{path}.{key}" if path else key
