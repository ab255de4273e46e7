"""The house stands from the ground up: a room imports from those above it in this list, never from those below."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mmpeft"
ROOMS = (
    ("settings", "mistakes", "files", "locks", "optional", "plugins", "kernels", "configuration", "data"),
    ("anatomies",),
    ("edits",),
    ("methods",),
    ("injection",),
    ("formats", "inspection"),
    ("handle",),
    ("heads",),
    ("zoo", "objectives"),
    ("training",),
    ("search", "pruning", "serve"),
    ("assembly",),
    ("cli", "__main__"),
)
"""From the ground up. Rooms of one row may import one another, but not in a circle."""
HEIGHT = {room: height for height, row in enumerate(ROOMS) for room in row}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imported(path: Path) -> Iterator[str]:
    """Yield every module of ours that a file imports: at the top, within functions and for annotations alike."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("mmpeft."))
        elif isinstance(node, ast.ImportFrom) and node.module == "mmpeft":
            yield from (f"mmpeft.{name.name}" for name in node.names if name.name != "__version__")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mmpeft."):
            submodules = [name.name for name in node.names if _is_module(f"{node.module}.{name.name}")]
            yield from (f"{node.module}.{name}" for name in submodules)
            if len(submodules) < len(node.names):
                yield node.module


def _is_module(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def room(module: str) -> str:
    return module.split(".")[1]


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def test_every_room_has_a_height() -> None:
    assert {room(name_of(path)) for path in FILES} <= HEIGHT.keys()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_arrow_runs_up(path: Path) -> None:
    own = HEIGHT[room(name_of(path))]
    assert [name for name in imported(path) if HEIGHT[room(name)] > own] == []


def test_no_circle_of_imports() -> None:
    """Not between modules, lazy imports and annotations included."""
    arrows = {name_of(path): set(imported(path)) for path in FILES}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way[way.index(module) :], module))
        if module not in done:
            for other in sorted(arrows.get(module, ())):
                visit(other, (*way, module))
            done.add(module)

    for module in arrows:
        visit(module, ())
