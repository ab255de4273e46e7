"""The two scores of SQuAD: exact match and F1 of words (Rajpurkar et al. 2016, arXiv:1606.05250)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

PUNCTUATION = str.maketrans("", "", string.punctuation)


def words(text: str) -> list[str]:
    """Return the words that are compared: in lower case, without punctuation and articles."""
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(PUNCTUATION)).split()


def exact_match(said: str, truths: Sequence[str]) -> float:
    """Return 1 if an answer has the words of one that is right, else 0; without right ones "" is right."""
    return float(any(words(said) == words(truth) for truth in truths or [""]))


def word_f1(said: str, truths: Sequence[str]) -> float:
    """Return the largest F1 of the words of an answer and of one that is right; without right ones "" has 1."""
    return max(_f1(words(said), words(truth)) for truth in truths or [""])


def _f1(said: list[str], truth: list[str]) -> float:
    if not said or not truth:
        return float(said == truth)
    return 2 * (Counter(said) & Counter(truth)).total() / (len(said) + len(truth))
