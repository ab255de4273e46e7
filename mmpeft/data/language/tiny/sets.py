"""The generated data sets for `tiny/llm` by their names; a seed always gives the same rows."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from mmpeft.data.language.tiny.manners import make_label, make_manner, make_opening, make_preference, make_question
from mmpeft.data.language.tiny.refusals import make_benign, make_benign_noun, make_unsafe, make_unsafe_noun
from mmpeft.data.language.tiny.sampling import Row
from mmpeft.data.language.tiny.stories import (
    make_inference,
    make_likeness,
    make_log,
    make_mood,
    make_span,
    make_summary,
    make_translation,
)
from mmpeft.data.language.tiny.tasks import make_task
from mmpeft.data.language.tiny.thoughts import make_answer, make_thought
from mmpeft.settings import nearest

SPLITS = ("train", "validation", "test")
SETS: dict[str, Callable[[str, Random], Row]] = {
    "tiny_tasks": make_task,
    "tiny_thoughts": make_thought,
    "tiny_answers": make_answer,
    "tiny_unsafe": make_unsafe,
    "tiny_benign": make_benign,
    "tiny_unsafe_nouns": make_unsafe_noun,
    "tiny_benign_nouns": make_benign_noun,
    "tiny_manners": make_manner,
    "tiny_preferences": make_preference,
    "tiny_labels": make_label,
    "tiny_questions": make_question,
    "tiny_openings": make_opening,
    "tiny_moods": make_mood,
    "tiny_inferences": make_inference,
    "tiny_likeness": make_likeness,
    "tiny_spans": make_span,
    "tiny_summaries": make_summary,
    "tiny_translations": make_translation,
    "tiny_logbook": make_log,
}
"""What makes one row of each set, of a split, with a source of randomness."""


def make_rows(name: str, split: str, count: int, seed: int = 0) -> list[Row]:
    """Return the first rows of a generated set, so many; each is the same however many are asked for.

    Raises:
        ValueError: If there is no such set or split.
    """
    if name not in SETS:
        raise ValueError(f"data {name!r} is not a generated set{nearest(name, SETS)}")
    if split not in SPLITS:
        raise ValueError(f"data {name}: split {split!r} is not one of {', '.join(SPLITS)}")
    return [SETS[name](split, Random(f"{name}/{split}/{seed}/{number}")) for number in range(count)]
