"""The base of every configuration: frozen, strict, with errors that name the key, the value and what was near."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A validated, frozen set of options; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def nearest(word: str, options: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for a close option, else the list of options, ready to end an error message."""
    names = sorted(options)
    close = get_close_matches(word, names, n=3, cutoff=0.6)
    if close:
        return f" (did you mean {' or '.join(repr(name) for name in close)}?)"
    return f" (one of: {', '.join(names)})" if names else ""
