"""Caches of keys and values that begin with learned vectors: their holder counts the words, the adapted tower all.

transformers' ``generate`` takes the length of a cache for the number of words that were read, and feeds the rest.
"""

from __future__ import annotations

from typing import Any

_KINDS: dict[type, type] = {}


def vectors_in(cache: Any) -> int:
    """Return with how many learned vectors a cache begins."""
    vectors: int = cache.vectors if type(cache) in _KINDS.values() else 0
    return vectors


def enter(cache: Any, vectors: int) -> None:
    """Count all of a cache, which begins with that many learned vectors (or soon will), within the tower."""
    if type(cache) not in _KINDS.values():
        cache.__class__ = _kind(type(cache))
    cache.vectors, cache.outside = vectors, False


def leave(cache: Any) -> None:
    """Count only the words of a cache, outside of the tower."""
    cache.outside = True


def _kind(cls: Any) -> type:
    """Return the class of a cache that tells its vectors from words; the same one each time."""

    def get_seq_length(self: Any, *args: Any, **kwargs: Any) -> Any:
        length = cls.get_seq_length(self, *args, **kwargs)
        return max(length - self.vectors, 0) if self.outside else length

    def crop(self: Any, count: int) -> None:  # a positive one is the length to crop to
        cls.crop(self, count + self.vectors if self.outside and count > 0 else count)

    if cls not in _KINDS:
        body: dict[str, Any] = {"get_seq_length": get_seq_length, "crop": crop, "vectors": 0, "outside": False}
        names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
        _KINDS[cls] = type(cls.__name__, (cls,), body | names)
    return _KINDS[cls]
