"""BLEU, chrF and ROUGE against sacrebleu and rouge_score."""

from __future__ import annotations

import pytest

from mmpeft.objectives.overlap import COUNTS, bleu_words, overlap_counts, overlap_scores

TRUTHS = [
    "The cat sat on the mat, and it was 3.5 m long!",
    "He said: \"I can't; you won't.\" (Really?)",
    "Two of 1,000 hats - 20-30 - were red & blue/green.",
    "It is warm.",
]
SAID = [
    [
        "The cat sat on a mat and it was 3.5 m long.",
        "He said: \"You can't, I won't.\" (Really?)",
        "Two of 1,000 hats were red & blue.",
        "It is warm.",
    ],
    ["a cat", "he", "", "Warm it is. It is."],
    ["nothing like this", "xyz", "qqq", "www zzz"],
]


def scores(said: list[str]) -> dict[str, float]:
    counts = [sum(column) for column in zip(*map(overlap_counts, said, TRUTHS), strict=True)]
    assert len(counts) == COUNTS
    return overlap_scores(counts)


@pytest.mark.parametrize("said", SAID)
def test_scores_are_sacrebleus_and_rouge_scores(said: list[str]) -> None:
    sacrebleu, rouge = pytest.importorskip("sacrebleu"), pytest.importorskip("rouge_score.rouge_scorer")
    found = scores(said)
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(said, [TRUTHS]).score / 100, abs=1e-9)
    assert found["chrf"] == pytest.approx(sacrebleu.corpus_chrf(said, [TRUTHS]).score / 100, abs=1e-9)
    scorer = rouge.RougeScorer(["rouge1", "rouge2", "rougeL"])
    for name in ("rouge_1", "rouge_2", "rouge_l"):
        own = name.replace("_", "").replace("l", "L")
        each = [scorer.score(truth, text)[own].fmeasure for text, truth in zip(said, TRUTHS, strict=True)]
        assert found[name] == pytest.approx(sum(each) / len(each))


def test_the_right_text_has_1_and_none_0() -> None:
    assert scores(TRUTHS) == pytest.approx(dict.fromkeys(scores(TRUTHS), 1.0))
    assert scores([""] * 4) == dict.fromkeys(scores([""] * 4), 0.0)
    assert scores(SAID[0])["exact_match"] == 0.25


def test_punctuation_is_apart_but_in_numbers() -> None:
    assert bleu_words("3.5 m, 20-30 (a.b)") == ["3.5", "m", ",", "20", "-", "30", "(", "a", ".", "b", ")"]
