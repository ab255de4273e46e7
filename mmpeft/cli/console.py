"""What the commands print, through rich: results to stdout, mistakes to stderr."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text


def refuse(message: str) -> None:
    """Print a mistake of the user's to stderr, as it is."""
    Console(stderr=True).print(Text("error: ", style="bold red") + Text(message, style="not bold"), soft_wrap=True)


def print_table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Print a table to stdout; without a terminal it is as wide as its content, so that nothing is cut."""
    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    plain = Console()
    console = plain if plain.is_terminal else Console(width=500)
    console.print(table)


def print_heading(text: str) -> None:
    """Print a line across the terminal with a text in it."""
    Console().rule(Text(text, style="bold"), align="left")
