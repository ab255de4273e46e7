"""How much of a right text is in a written one: BLEU, chrF and ROUGE, as counts that add up over a corpus."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

BLEU_ORDER, CHRF_ORDER = 4, 6
BLEU_COUNTS, CHRF_COUNTS = 2 * BLEU_ORDER + 2, 3 * CHRF_ORDER
NAMES = ("rouge_1", "rouge_2", "rouge_l", "exact_match", "texts")
OVERLAPS = ("chrf", "bleu", *NAMES[:-1])
"""Names of the scores."""
COUNTS = BLEU_COUNTS + CHRF_COUNTS + len(NAMES)
"""How many numbers `overlap_counts` gives."""
MARKS = re.compile(r"([!-&(-+:-@\[-`{-~/])")
"""What BLEU counts as words of their own, wherever it stands: ASCII punctuation without ``' , - .``"""


def overlap_counts(said: str, truth: str) -> list[float]:
    """Return what is counted of one text; the counts of a corpus are the sums."""
    words = rouge_words(said), rouge_words(truth)
    rouge = [_rouge_n(*words, order=1), _rouge_n(*words, order=2), _rouge_l(*words)]
    exact = float(said.strip() == truth.strip())
    return [*_bleu_counts(bleu_words(said), bleu_words(truth)), *_chrf_counts(said, truth), *rouge, exact, 1.0]


def overlap_scores(counts: Sequence[float]) -> dict[str, float]:
    """Return the scores of a corpus in [0, 1] by its counts.

    ``chrf``: character n-grams up to 6, ``F_2`` of the mean precision and recall (Popovic 2015); ``bleu``: word n-grams
    up to 4 with a brevity penalty (Papineni et al. 2002), tokens and smoothing as sacrebleu's; ``rouge_1``, ``rouge_2``
    and ``rouge_l``: F1 of words, pairs of words and the longest common subsequence, mean over texts (Lin 2004; words in
    lower case, without stemming); ``exact_match``.
    """
    totals = dict(zip(NAMES, counts[-len(NAMES) :], strict=True))
    texts = max(totals.pop("texts"), 1)
    means = {name: total / texts for name, total in totals.items()}
    bleu, chrf = counts[:BLEU_COUNTS], counts[BLEU_COUNTS : BLEU_COUNTS + CHRF_COUNTS]
    return {"chrf": _chrf(chrf), "bleu": _bleu(bleu), **means}


def bleu_words(text: str) -> list[str]:
    """Return the tokens of BLEU (mteval-v13a): punctuation apart, but for what is inside a number."""
    text = MARKS.sub(r" \1 ", f" {' '.join(text.split())} ")
    text = re.sub(r"([^0-9])([.,])", r"\1 \2 ", text)
    text = re.sub(r"([.,])([^0-9])", r" \1 \2", text)
    return re.sub(r"([0-9])(-)", r"\1 \2 ", text).split()


def rouge_words(text: str) -> list[str]:
    """Return the words of ROUGE: letters and digits of English, in lower case."""
    return re.findall(r"[a-z0-9]+", text.lower())


def _grams(items: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(items[start : start + order]) for start in range(len(items) - order + 1))


def _bleu_counts(said: list[str], truth: list[str]) -> list[int]:
    """Return the matches of each order, the n-grams of each order that were written, and both lengths."""
    pairs = [(_grams(said, order), _grams(truth, order)) for order in range(1, BLEU_ORDER + 1)]
    matches = [(left & right).total() for left, right in pairs]
    return [*matches, *(left.total() for left, _ in pairs), len(said), len(truth)]


def _bleu(counts: Sequence[float]) -> float:
    """Orders without a match count as 1/2, 1/4 ... of a match, one after another."""
    matches, totals, (said, truth) = counts[:BLEU_ORDER], counts[BLEU_ORDER : 2 * BLEU_ORDER], counts[-2:]
    if not any(matches) or not all(totals):
        return 0.0
    halvings, logs = 0, 0.0
    for match, total in zip(matches, totals, strict=True):
        halvings += match == 0
        logs += math.log((match or 0.5**halvings) / total)
    return math.exp(min(0.0, 1 - truth / said) + logs / BLEU_ORDER)


def _chrf_counts(said: str, truth: str) -> list[int]:
    """Return for each order the n-grams written, those that are right, and the matches; white space doesn't count."""
    said, truth = "".join(said.split()), "".join(truth.split())
    counts = []
    for order in range(1, CHRF_ORDER + 1):
        left, right = _grams(said, order), _grams(truth, order)
        counts += [left.total(), right.total(), (left & right).total()]
    return counts


def _chrf(counts: Sequence[float]) -> float:
    orders = [(left, right, both) for left, right, both in zip(*[iter(counts)] * 3, strict=True) if left and right]
    if not orders:
        return 0.0
    precision = sum(both / left for left, _, both in orders) / len(orders)
    recall = sum(both / right for _, right, both in orders) / len(orders)
    return 5 * precision * recall / (4 * precision + recall) if precision + recall else 0.0


def _rouge_n(said: list[str], truth: list[str], *, order: int) -> float:
    left, right = _grams(said, order), _grams(truth, order)
    return _f1((left & right).total(), left.total(), right.total())


def _rouge_l(said: list[str], truth: list[str]) -> float:
    """Return the F1 of the longest common subsequence, by dynamic programming over one row."""
    row = [0] * (len(truth) + 1)
    for word in said:
        corner = 0
        for column, right in enumerate(truth, 1):
            corner, row[column] = row[column], corner + 1 if word == right else max(row[column], row[column - 1])
    return _f1(row[-1], len(said), len(truth))


def _f1(both: int, said: int, truth: int) -> float:
    return 2 * both / (said + truth) if both else 0.0
