"""``mmpeft export`` and ``import``: adapters from and to other libraries' formats."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from mmpeft import formats
from mmpeft.cli.shipped import new_path


def export(options: Namespace) -> None:
    """Write one of our adapters in another library's format."""
    formats.export(Path(options.adapter), new_path(options.dest), options.format)
    print(f"{options.adapter} as {options.format}: {options.dest}")


def import_adapter(options: Namespace) -> None:
    """Write another library's adapter as one of ours."""
    formats.convert(Path(options.source), new_path(options.dest), options.format)
    print(f"{options.source} as mmpeft: {options.dest}")
