"""``mmpeft export`` and ``import``: adapters from and to other libraries' formats."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from mmpeft import formats
from mmpeft.cli.shipped import new_path
from mmpeft.configuration.document import Document
from mmpeft.settings import ConfigError


def export(options: Namespace) -> None:
    """Write one of our adapters in another library's format."""
    formats.export(Path(options.adapter), new_path(options.dest), options.format)
    print(f"{options.adapter} as {options.format}: {options.dest}")


def import_adapter(options: Namespace) -> None:
    """Write another library's adapter, or a paper's checkpoint, as one of ours, and say what was assumed."""
    document = Document("--options")
    for assignment in options.options:
        document.override(assignment)
    if document.problems:
        raise ConfigError(document.title, document.problems)
    notes = formats.convert(Path(options.source), new_path(options.dest), options.format, **document.data)
    print("\n".join([f"{options.source} as mmpeft: {options.dest}", *notes]))
