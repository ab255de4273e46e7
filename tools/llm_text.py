"""The English of Python's own documentation: docstrings of the standard library, and the topics of ``help()``.

Both are on every machine with Python, under the PSF licence. Code, tables and tests are left out.
"""

from __future__ import annotations

import ast
import re
import sysconfig
import warnings
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from pydoc_data.topics import topics

LEFT_OUT = (
    "site-packages",
    "test",
    "tests",
    "idlelib",
    "idle_test",
    "pydoc_data",
    "lib2to3",
    "turtledemo",
    "encodings",
)
SHORTEST = 60
"""Characters of a paragraph that is worth reading."""


def read_documents() -> list[str]:
    """Return every docstring and topic as paragraphs of prose, each text once, in a fixed order."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    texts = [text for path in sorted(folder.rglob("*.py")) if _is_wanted(path, folder) for text in _docstrings(path)]
    prose = (keep_prose(text) for text in (*texts, *topics.values()))
    return sorted({text for text in prose if text})


def is_held_out(text: str) -> bool:
    """Whether a document is for measuring only: one of forty, by a hash."""
    return sha256(text.encode()).digest()[0] % 40 == 0


def keep_prose(text: str) -> str:
    """Return the paragraphs that are mostly words, each on one line.

    >>> keep_prose("x = 1")
    ''
    """
    paragraphs = (re.sub(r"\s+", " ", part).strip() for part in re.split(r"\n\s*\n", text))
    return "\n".join(part for part in paragraphs if len(part) >= SHORTEST and _is_prose(part))


def _is_prose(text: str) -> bool:
    """Letters and spaces make up nearly all of it, it is no session of an interpreter, and plain ASCII."""
    share = sum(letter.isalpha() or letter == " " for letter in text) / len(text)
    return share > 0.88 and ">>>" not in text and text.isascii()


def _is_wanted(path: Path, folder: Path) -> bool:
    return not set(path.relative_to(folder).parts) & set(LEFT_OUT)


def _docstrings(path: Path) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""
