"""Reads the JSON-like core of YAML 1.2 and remembers the line of every value.

``3e-4`` is a number; ``no``, ``on`` and dates are text; there are no anchors, merge keys or tags. PyYAML alone reads
YAML 1.1, where ``3e-4`` is text and ``no`` is a boolean, and keeps the last of two equal keys without a word. It also
goes as deep as the text is nested, up to the end of the interpreter's stack: here there is a limit.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import yaml

from mmpeft.settings import shortened

SCALARS = {
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?(?:0|[1-9][0-9_]*)",
    "float": r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?",
    "null": r"~|null|Null|NULL|",
}

DEEPEST = 50
"""Sections within one another; configurations have five."""


class Resolver(yaml.resolver.BaseResolver):
    """Tells what a plain scalar is by the rules of YAML 1.2."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own class attribute)
        None: [(f"tag:yaml.org,2002:{kind}", re.compile(f"(?:{pattern})$")) for kind, pattern in SCALARS.items()]
    }


class _Loader(Resolver, yaml.SafeLoader):
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.tag is not None:
            raise yaml.MarkedYAMLError(None, None, "aliases and tags are not supported", event.start_mark)
        if self.depth > DEEPEST:
            raise yaml.MarkedYAMLError(None, None, f"nested more than {DEEPEST} deep", event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


@dataclass
class ConfigFile:
    """What one YAML text says: its data, the place of each dotted path, and what is wrong with it."""

    place: Callable[[int], str]
    """Puts a line number into words, such as ``run.yaml:3``."""
    data: Any = None
    origins: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    unread: set[str] = field(default_factory=set)
    """Dotted paths of values that could not be read, and are None in ``data``."""
    unreadable: bool = False
    """Whether nothing could be read, so that ``data`` says nothing."""


def decode(content: bytes, line_of: Callable[[int], str]) -> ConfigFile:
    """Return what a file of YAML says; bytes that are no UTF-8 become a problem."""
    try:
        return parse(content.decode("utf-8-sig"), line_of)
    except UnicodeDecodeError as error:
        where = line_of(content.count(b"\n", 0, error.start) + 1)
        return ConfigFile(line_of, problems=[f"{where}: cannot be read as UTF-8: {error.reason}"], unreadable=True)


def parse(text: str, line_of: Callable[[int], str], path: str = "") -> ConfigFile:
    """Return what a YAML text says, as the value at the dotted ``path``; broken YAML becomes a problem."""
    source = ConfigFile(line_of, origins={path: line_of(1)})
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        source.data = None if node is None else _value(loader, node, path, source)
    except yaml.reader.ReaderError as error:
        line, shown = text.count("\n", 0, error.position) + 1, f"the character {chr(error.character)!r} is not allowed"
        _refuse(source, path, line, shown)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        _refuse(source, path, mark.line + 1 if mark else 1, str(error.problem))
    return source


def _refuse(source: ConfigFile, path: str, line: int, problem: str) -> None:
    where = source.place(line)
    source.problems.append(f"{f'{path} ({where})' if path else where}: cannot be read as YAML: {problem}")
    source.unreadable = True


def _value(loader: _Loader, node: yaml.Node, path: str, source: ConfigFile) -> Any:
    source.origins.setdefault(path, source.place(node.start_mark.line + 1))
    if isinstance(node, yaml.MappingNode):
        return _mapping(loader, node, path, source)
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, item, join(path, str(index)), source) for index, item in enumerate(node.value)]
    try:
        return _scalar(loader, node)
    except ValueError as error:
        where = source.place(node.start_mark.line + 1)
        source.problems.append(f"{path} ({where}): cannot be read: {shortened(str(error), 100)}")
        source.unread.add(path)
        return None


def _scalar(loader: _Loader, node: yaml.Node) -> Any:
    """Return a number, text, truth value or None.

    Raises:
        ValueError: If it is a number of thousands of digits, or text that no file and no path can hold.
    """
    if "\0" in node.value:
        raise ValueError("text with a NUL character")
    node.value.encode()
    return loader.construct_object(node)


def _mapping(loader: _Loader, node: yaml.MappingNode, path: str, source: ConfigFile) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key, value in node.value:
        line = source.place(key.start_mark.line + 1)
        if not isinstance(key, yaml.ScalarNode):
            source.problems.append(f"{path or 'the file'} ({line}): a key is a word, not a list or a section")
            continue
        name = key.value
        inner = join(path, name)
        if name in mapping:
            source.problems.append(f"{inner} ({line}): this key was already given ({source.origins[inner]})")
            continue
        source.origins[inner] = line
        mapping[name] = _value(loader, value, inner, source)
    return mapping


def join(path: str, key: str) -> str:
    """Return the dotted path of ``key`` inside the section ``path``."""
    return f"{path}.{key}" if path else key
