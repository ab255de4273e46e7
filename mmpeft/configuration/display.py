"""Writes configurations as YAML that reads back as the same values, on wish with the origin of each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from mmpeft.configuration.document import Document
from mmpeft.configuration.source import Resolver, join
from mmpeft.settings import Settings


class _Dumper(yaml.SafeDumper):
    """Quotes text that a reader of YAML 1.1 or of 1.2 would take for something else."""

    yaml_implicit_resolvers = yaml.SafeDumper.yaml_implicit_resolvers | Resolver.yaml_implicit_resolvers


def as_yaml(config: Settings) -> str:
    """Return the whole configuration, defaults included, as YAML."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, width=120)


def resolved(config: Settings, document: Document) -> str:
    """Return the whole configuration as YAML with a comment on each line: where its value was set."""
    lines = list(_lines(config.model_dump(mode="json"), "", 0))
    width = min(60, max(len(text) for text, _, _ in lines))
    commented = (
        f"{text:<{width}}  # {_origin(document, path, value)}" if path else text for text, path, value in lines
    )
    return "\n".join(commented) + "\n"


def _lines(section: dict[str, Any], path: str, depth: int) -> Iterator[tuple[str, str, Any]]:
    """Yield each line of YAML with the path and value that it sets; headings of sections have neither."""
    for key, value in section.items():
        start, inner = f"{'  ' * depth}{key}:", join(path, key)
        if isinstance(value, dict) and value:
            yield start, "", None
            yield from _lines(value, inner, depth + 1)
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            yield start, "", None
            for index, item in enumerate(value):
                heading, *rest = _lines(item, join(inner, str(index)), depth + 2)
                yield f"{'  ' * (depth + 1)}- {heading[0].lstrip()}", *heading[1:]
                yield from rest
        else:
            yield f"{start} {_flow(value)}", inner, value


def _flow(value: Any) -> str:
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")


def _origin(document: Document, path: str, value: Any) -> str:
    """A bare name stands for a whole section: it is the origin of the one value that repeats it."""
    known, there = document.locate(path)
    return document.origins.get(known, "default") if known == path or there == value else "default"
