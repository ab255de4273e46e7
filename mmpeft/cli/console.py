"""What the commands print, through rich, to stdout."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from PIL.Image import Image


def print_table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Print a table to stdout; without a terminal it is as wide as its content, so that nothing is cut."""
    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    plain = Console()
    console = plain if plain.is_terminal else Console(width=500)
    console.print(table)


def print_picture(image: Image, rows: int = 8) -> None:
    """Print an image as characters, the lighter the denser, two per pixel of a ``rows`` x ``rows`` copy."""
    values = list(image.convert("L").resize((rows, rows)).tobytes())
    for start in range(0, len(values), rows):
        print("".join(2 * " .:-=+*#%@"[value * 10 // 256] for value in values[start : start + rows]))


def print_heading(text: str) -> None:
    """Print a line across the terminal with a text in it."""
    Console().rule(Text(text, style="bold"), align="left")
