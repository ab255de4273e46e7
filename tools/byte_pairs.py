"""Train the byte-pair merges of `tiny/clip`, in the format of open_clip's SimpleTokenizer (Sennrich et al., 2016).

Words are counted in the captions (so heavily that each of their words becomes one token), in the names of digits and
letters, and in the English of Python's own documentation, so that any text is encoded in few tokens.
"""

from __future__ import annotations

import gzip
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from pydoc_data.topics import topics

DIGITS = "zero one two three four five six seven eight nine digit number"


def count_words(captions: Iterable[str], names: Iterable[str]) -> Counter[str]:
    """Count lower-case words, those of the captions a thousandfold, names ten thousandfold."""
    counts: Counter[str] = Counter()
    for weight, texts in ((1, topics.values()), (1000, captions), (10_000, (DIGITS, *names))):
        for word, count in Counter(re.findall("[a-z]+", " ".join(texts).lower())).items():
            counts[word] += weight * count
    return counts


def train_merges(counts: Counter[str], size: int) -> list[tuple[str, str]]:
    """Merge the most frequent pair of symbols, `size` times; among equals the first in the alphabet."""
    words = {word: (*word[:-1], word[-1] + "</w>") for word in counts}
    merges = []
    for _ in range(size):
        pairs: dict[tuple[str, str], int] = defaultdict(int)
        for word, symbols in words.items():
            for pair in pairwise(symbols):
                pairs[pair] += counts[word]
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = {word: _merged(symbols, best) for word, symbols in words.items()}
    return merges


def _merged(symbols: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    if pair[0] not in symbols:
        return symbols
    merged: list[str] = []
    for symbol in symbols:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return tuple(merged)


def write_merges(merges: list[tuple[str, str]], path: Path) -> None:
    """Write a header and one merge a line, compressed without a time stamp, so that the file is always the same."""
    text = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)])
    path.write_bytes(gzip.compress(text.encode(), mtime=0))
