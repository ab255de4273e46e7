"""A configuration document: files and overrides laid over one another, then validated as a whole."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from mmpeft.configuration.source import ConfigFile, join, parse
from mmpeft.settings import ConfigError, Settings

SettingsT = TypeVar("SettingsT", bound=Settings)


@dataclass
class Document:
    """What files and overrides say together, not yet validated."""

    title: str
    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    """Where each dotted path was set: ``FILE:LINE`` or ``override``."""
    problems: list[str] = field(default_factory=list)

    def lay(self, source: ConfigFile) -> None:
        """Lay a source over what is there: sections merge key by key, everything else is replaced."""
        self.problems += source.problems
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
        if source.data is None and source.problems:
            self.problems += source.problems
            return
        self._clear(key.split("."))
        for part in reversed(key.split(".")):
            source.data = {part: source.data}
        self.lay(source)

    def locate(self, path: str) -> tuple[str, Any]:
        """Return the innermost path on the way to ``path`` that was set, and its value."""
        node, found = self.data, ""
        for part in path.split("."):
            if part not in _keys(node):
                break
            node, found = node[part] if isinstance(node, dict) else node[int(part)], join(found, part)
        return found, node

    def origin(self, path: str) -> str:
        """Return where the value at ``path``, or the innermost section on the way to it, was set."""
        return self.origins.get(self.locate(path)[0], self.title)

    def validate(self, model_class: type[SettingsT]) -> SettingsT:
        """Return the typed configuration; a ConfigError tells every problem of files, overrides and values."""
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
            if key in below and _merges(below[key], value):
                self._lay_section(below[key], value, origins, inner)
            else:
                below[key] = value
                self.origins |= {at: place for at, place in origins.items() if f"{at}.".startswith(f"{inner}.")}

    def _explain(self, error: ValidationError) -> list[str]:
        messages: dict[str, list[str]] = {}
        for line in error.errors():
            messages.setdefault(_dotted(line["loc"], self.data), []).append(_message(line))
        return [f"{path} ({self.origin(path)}): {' or '.join(found)}" for path, found in messages.items()]


def read_document(path: Path, overrides: Iterable[str] = ()) -> Document:
    """Read a configuration file, the one that its ``base:`` names (relative to it), and ``key=value`` overrides."""
    document, top = Document(str(path)), _read(path)
    base = top.data.pop("base", None) if isinstance(top.data, dict) else None
    if base is not None:
        below = _read_base(path, top, str(base))
        document.lay(below)
    document.lay(top)
    for assignment in overrides:
        document.override(assignment)
    return document


def load_config(path: Path, overrides: Iterable[str], model_class: type[SettingsT]) -> tuple[SettingsT, dict[str, str]]:
    """Return the configuration of a file with overrides, and the origin of each value that was set."""
    document = read_document(path, overrides)
    return document.validate(model_class), document.origins


def _read_base(path: Path, top: ConfigFile, name: str) -> ConfigFile:
    file = path.parent / name
    if not file.is_file():
        raise ConfigError(str(path), [f"base ({top.origins['base']}): there is no file {str(file)!r}"])
    below = _read(file)
    if isinstance(below.data, dict) and below.data.pop("base", None) is not None:
        below.problems.append(f"base ({below.origins['base']}): a base cannot have a base of its own")
    return below


def _read(path: Path) -> ConfigFile:
    if not path.is_file():
        raise ConfigError(str(path), ["there is no such file"])
    return parse(path.read_text(encoding="utf-8"), lambda line: f"{path}:{line}")


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
        if str(part) in _keys(data):
            data, path = data[part], join(path, str(part))
        elif isinstance(data, dict) and part is location[-1] and isinstance(part, str) and part != "[key]":
            path = join(path, part)
    return path


def _message(line: ErrorDetails) -> str:
    if line["type"] == "missing":
        return "this key is required"
    message = line["msg"].removeprefix("Value error, ").replace("Input should", "should")
    value = line["input"]
    shown = "" if isinstance(value, dict) or repr(value) in message else f", got {value!r}"
    return message + shown
