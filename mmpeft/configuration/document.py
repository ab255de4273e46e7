"""A configuration document: files and overrides laid over one another, then validated as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from mmpeft.configuration.source import ConfigFile, decode, join, parse
from mmpeft.settings import ConfigError, Settings, shortened

SettingsT = TypeVar("SettingsT", bound=Settings)
LARGEST = 2**20
"""Bytes of a file; configurations have a few thousand."""


@dataclass
class Document:
    """What files and overrides say together, not yet validated."""

    title: str
    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    """Where each dotted path was set: ``FILE:LINE`` or ``override``."""
    bare: Mapping[str, str] = field(default_factory=dict)
    """By fnmatch pattern of paths, such as ``model``: the key that a bare word there stands for, such as ``name``."""
    problems: list[str] = field(default_factory=list)
    unread: set[str] = field(default_factory=set)
    """Paths of values that could not be read: they have a problem already."""
    unreadable: bool = False
    """Whether a whole file or override could not be read, so that nobody knows what else is wrong."""

    def lay(self, source: ConfigFile) -> None:
        """Lay a source over what is there: sections merge key by key, everything else is replaced."""
        self.problems += source.problems
        self.unread |= source.unread
        self.unreadable = self.unreadable or source.unreadable
        if isinstance(source.data, dict):
            self._lay_section(self.data, source.data, source.origins, "")
        elif not source.problems:
            self.problems.append(f"{source.place(1)}: expected key: value lines, got {source.data!r}")

    def override(self, assignment: str) -> None:
        """Lay one ``dotted.key=value`` over what is there; the value is read as YAML."""
        key, equals, text = assignment.partition("=")
        if not equals or not all(key.split(".")):
            self.problems.append(f"{assignment!r}: an override looks like key=value, such as train.lr=3e-4")
            return
        source = parse(text, lambda _: "override", key)
        source.origins |= dict.fromkeys(_beginnings(key), "override")
        if source.unreadable:
            self.problems += source.problems
            return
        items = next((path for path in _beginnings(key) if isinstance(self._at(path), list)), None)
        if items is not None:
            self.problems.append(f"{key} (override): {items} is a list, which is given as a whole: {items}='[...]'")
            return
        self._clear(key.split("."))
        for part in reversed(key.split(".")):
            source.data = {part: source.data}
        self.lay(source)

    def settle(self, either: Iterable[tuple[str, ...]]) -> None:
        """Of paths that say the same in other ways keep those of the uppermost layer: override, file, base."""
        for paths in either:
            given = [path for path in paths if self._at(path) is not None]
            uppermost = max((self._height(path) for path in given), default=0)
            for path in given:
                if self._height(path) < uppermost:
                    section, _, key = path.rpartition(".")
                    del self._at(section)[key]

    def _height(self, path: str) -> int:
        origin = self.origin(path)
        return 2 if origin == "override" else int(origin.startswith(f"{self.title}:"))

    def locate(self, path: str) -> tuple[str, Any]:
        """Return the innermost path on the way to ``path`` that was set, and its value."""
        node, reached = self.data, ""
        for part in path.split("."):
            if part not in _keys(node):
                break
            node, reached = node[part] if isinstance(node, dict) else node[int(part)], join(reached, part)
        return reached, node

    def origin(self, path: str) -> str:
        """Return where the value at ``path``, or the innermost section on the way to it, was set."""
        return self.origins.get(self.locate(path)[0], self.title)

    def validate(self, model_class: type[SettingsT]) -> SettingsT:
        """Return the typed configuration; a ConfigError tells every problem of files, overrides and values."""
        if self.unreadable:
            raise ConfigError(self.title, self.problems)
        try:
            config = model_class.model_validate(self.data)
        except ValidationError as error:
            raise ConfigError(self.title, self.problems + self._explain(error)) from None
        if self.problems:
            raise ConfigError(self.title, self.problems)
        return config

    def _clear(self, keys: list[str]) -> None:
        """Make room at a path, in its place among its neighbours: what an override says replaces all that was there."""
        section: Any = self.data
        for key in keys[:-1]:
            section = section.get(key) if isinstance(section, dict) else None
        if isinstance(section, dict) and keys[-1] in section:
            section[keys[-1]] = None

    def _lay_section(self, below: dict[str, Any], above: dict[str, Any], origins: dict[str, str], path: str) -> None:
        for key, value in above.items():
            inner = join(path, key)
            if isinstance(below.get(key), str) and isinstance(value, dict):
                self._open(below, key, inner)
            if key in below and _merges(below[key], value):
                self._lay_section(below[key], value, origins, inner)
            else:
                below[key] = value
                self.origins |= {at: origin for at, origin in origins.items() if f"{at}.".startswith(f"{inner}.")}

    def _open(self, section: dict[str, Any], key: str, path: str) -> None:
        """Turn a bare word into the section that it stands for, so that more can be laid over it."""
        name = next((name for pattern, name in self.bare.items() if fnmatchcase(path, pattern)), None)
        if name is not None:
            self.origins[join(path, name)] = self.origins[path]
            section[key] = {name: section[key]}

    def _at(self, path: str) -> Any:
        """Return the value at a path, or None where there is nothing."""
        reached, value = self.locate(path)
        return value if reached == path else None

    def _explain(self, error: ValidationError) -> list[str]:
        messages: dict[str, list[str]] = {}
        for line in error.errors():
            path = _dotted(line["loc"], self.data)
            if path not in self.unread:
                messages.setdefault(path, []).append(_message(line))
        return [f"{shortened(path)} ({self.origin(path)}): {' or '.join(said)}" for path, said in messages.items()]


def read_document(path: Path, overrides: Iterable[str] = (), bare: Mapping[str, str] | None = None) -> Document:
    """Read a configuration file, the one that its ``base:`` names (relative to it), and ``key=value`` overrides.

    ``bare`` says by path what a bare word stands for where a section may stand: with ``{"model": "name"}`` the line
    ``model: tiny/vit`` and the override ``model.image_size=64`` are one section.
    """
    document, top = Document(str(path), bare=bare or {}), _read(path)
    base = top.data.pop("base", None) if isinstance(top.data, dict) else None
    if base is not None:
        document.lay(_read_base(path, top, base))
    document.lay(top)
    for assignment in overrides:
        document.override(assignment)
    return document


def load_config(path: Path, overrides: Iterable[str], model_class: type[SettingsT]) -> tuple[SettingsT, dict[str, str]]:
    """Return the configuration of a file with overrides, and the origin of each value that was set."""
    document = read_document(path, overrides)
    return document.validate(model_class), document.origins


def _read_base(path: Path, top: ConfigFile, name: Any) -> ConfigFile:
    if not isinstance(name, str):
        shown = shortened(repr(name))
        raise ConfigError(str(path), [f"base ({top.origins['base']}): should be the path of a file, got {shown}"])
    file = path.parent / name
    try:
        below = _read(file)
    except ConfigError:
        shown = shortened(str(file))
        raise ConfigError(str(path), [f"base ({top.origins['base']}): there is no file {shown!r}"]) from None
    if isinstance(below.data, dict) and below.data.pop("base", None) is not None:
        below.problems.append(f"base ({below.origins['base']}): a base cannot have a base of its own")
    return below


def _read(path: Path) -> ConfigFile:
    """Return what a file says.

    Raises:
        ConfigError: If there is none, or it may not be read, or is larger than a configuration can be.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise ConfigError(str(path), ["there is no such file" if missing else f"{error.strerror}"]) from None
    if len(content) > LARGEST:
        raise ConfigError(str(path), [f"more than the {LARGEST} bytes that are read of a configuration"])
    return decode(content, lambda line: f"{path}:{line}")


def _beginnings(key: str) -> Iterator[str]:
    """Yield the paths of the sections that a dotted key lies in, the outermost first."""
    path = ""
    for part in key.split(".")[:-1]:
        path = join(path, part)
        yield path


def _merges(below: Any, above: Any) -> bool:
    """Two sections merge, except where the upper one chooses another method."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return False
    return above.get("method", below.get("method")) == below.get("method")


def _keys(node: Any) -> Iterable[str]:
    return (
        [str(index) for index in range(len(node))] if isinstance(node, list) else node if isinstance(node, dict) else ()
    )


def _dotted(location: tuple[int | str, ...], data: Any) -> str:
    """Return pydantic's location as the user's path: without union tags and indices that the data does not have."""
    path = ""
    for part in location:
        item = isinstance(part, int) and isinstance(data, list) and part < len(data)
        if item or (isinstance(part, str) and isinstance(data, dict) and part in data):
            data, path = data[part], join(path, str(part))
        elif isinstance(data, dict) and part is location[-1] and isinstance(part, str) and part != "[key]":
            path = join(path, part)
    return path


def _message(line: ErrorDetails) -> str:
    if line["type"] == "missing":
        return "this key is required"
    message, value = line["msg"], line["input"]
    shown = "" if isinstance(value, dict) or repr(value) in message else f", got {shortened(repr(value))}"
    return shortened(message, 2000) + shown
