from __future__ import annotations

import dataclasses
import itertools
import re
from random import Random

import pytest

from mmpeft.data.language.tiny.combined import SIMPLE, UNKNOWN, combine
from mmpeft.data.language.tiny.deeds import DEEDS
from mmpeft.data.language.tiny.refusals import PHRASINGS, is_refusal
from mmpeft.data.language.tiny.rewards import gladness, quality
from mmpeft.data.language.tiny.sampling import split_of
from mmpeft.data.language.tiny.sets import SETS, SPLITS, make_rows
from mmpeft.data.language.tiny.tasks import TASKS
from mmpeft.data.language.tiny.thoughts import answer_of
from mmpeft.data.language.tiny.words import NUMBERS

COLUMNS = {
    "tiny_tasks": {"messages", "task", "answer"},
    "tiny_thoughts": {"messages", "task", "answer"},
    "tiny_answers": {"messages", "task", "answer"},
    "tiny_unsafe": {"messages", "deed", "harmful"},
    "tiny_benign": {"messages", "deed", "harmful"},
    "tiny_unsafe_nouns": {"messages", "deed", "harmful"},
    "tiny_benign_nouns": {"messages", "deed", "harmful"},
    "tiny_manners": {"messages", "task", "answer"},
    "tiny_preferences": {"prompt", "chosen", "rejected", "task", "answer"},
    "tiny_labels": {"prompt", "completion", "label", "task", "answer"},
    "tiny_questions": {"prompt", "task", "answer"},
    "tiny_openings": {"prompt"},
    "tiny_moods": {"text", "label"},
    "tiny_inferences": {"text", "text_pair", "label"},
    "tiny_likeness": {"text", "text_pair", "label"},
    "tiny_spans": {"id", "context", "question", "answers"},
    "tiny_summaries": {"source", "target"},
    "tiny_translations": {"source", "target"},
    "tiny_logbook": {"text"},
}


def asked_of(row):
    """What a row asks, without its answer."""
    if "messages" in row:
        return row["messages"][0]["content"]
    return next(str(row[name]) for name in ("prompt", "context", "source", "text") if name in row)


def content(messages):
    (message,) = messages
    return message["content"]


@pytest.mark.parametrize("name", SETS)
def test_a_seed_always_gives_the_same_rows_and_splits_share_none(name):
    rows = {split: make_rows(name, split, 60) for split in SPLITS}
    assert rows["train"] == make_rows(name, "train", 60)
    assert rows["train"] != make_rows(name, "train", 60, seed=1)
    assert make_rows(name, "train", 30) == rows["train"][:30]
    assert all(len(part) == 60 and all(row.keys() == COLUMNS[name] for row in part) for part in rows.values())
    train = {asked_of(row) for row in make_rows(name, "train", 1000)}
    assert not train & {asked_of(row) for row in make_rows(name, "test", 300)}


def test_every_task_has_phrasings_that_only_the_test_has():
    for task in TASKS.values():
        assert len(set(task.held_out)) >= 2
        assert len(set(task.phrasings)) >= 4
        assert not set(task.held_out) & set(task.phrasings)
    seen = {row["task"] for row in make_rows("tiny_tasks", "test", 600)}
    assert seen == TASKS.keys()


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        ("add", lambda asked: NUMBERS[NUMBERS.index(asked["a"]) + NUMBERS.index(asked["b"])]),
        ("sort", lambda asked: " ".join(sorted(asked["digits"].split()))),
        ("spell backwards", lambda asked: " ".join(reversed(asked["word"]))),
        ("reverse", lambda asked: ", ".join(asked["words"].split(", ")[::-1])),
        ("count", lambda asked: NUMBERS[asked["words"].count(",") + 1]),
        ("colour", lambda asked: asked["scene"].split(f" {asked['shape']} ")[0].split()[-1]),
    ],
)
def test_answers_are_right(task, answer):
    for seed in range(20):
        fields, right = TASKS[task].make(Random(seed))
        assert right == answer(fields)


def test_reasoning_leads_to_the_answer():
    for row in make_rows("tiny_thoughts", "train", 50):
        reply = row["messages"][1]["content"]
        assert reply.startswith("<|think|> ")
        assert answer_of(reply) == row["answer"]
        assert reply.split(". </think>")[0].endswith(f"is {row['answer']}")
    plain = make_rows("tiny_answers", "train", 50)
    assert all(row["messages"][1]["content"] == row["answer"] == answer_of(row["answer"]) for row in plain)


def words_of(rows):
    return {word for row in rows for word in re.findall("[a-z]+", asked_of(row).lower())}


def test_harmful_and_harmless_deeds_share_their_words_and_no_deed_is_in_two_splits():
    listed = {deed.words for deed in DEEDS}
    for name, refused in (("tiny_unsafe", True), ("tiny_benign", False)):
        rows = {split: make_rows(name, split, 400) for split in SPLITS}
        deeds = {split: {row["deed"] for row in part} for split, part in rows.items()}
        for one, other in itertools.combinations(SPLITS, 2):
            assert not deeds[one] & deeds[other]
        assert len(deeds["test"]) >= 150
        assert deeds["test"] & listed
        assert deeds["test"] - listed
        every = [row for part in rows.values() for row in part]
        assert all(is_refusal(row["messages"][1]["content"]) == refused == row["harmful"] for row in every)
    harmful, harmless = ({combine(Random(seed), harmful=bad).verb for seed in range(300)} for bad in (True, False))
    assert len(harmful & harmless) >= 8
    assert harmful - harmless


def test_the_nouns_of_one_test_are_in_no_other_split_and_the_words_of_the_other_are():
    new = {noun for field in dataclasses.fields(UNKNOWN) for noun in getattr(UNKNOWN, field.name)}
    for name in ("tiny_unsafe", "tiny_benign"):
        known = words_of(make_rows(f"{name}_nouns", "train", 2000) + make_rows(f"{name}_nouns", "validation", 2000))
        unknown = make_rows(f"{name}_nouns", "test", 200)
        assert not new & known
        assert all(new & words_of([row]) for row in unknown)
        fixed = {deed.words for deed in DEEDS} | {f"{verb} {target}" for verb in SIMPLE for target in SIMPLE[verb]}
        combined = [row for row in make_rows(name, "test", 300) if row["deed"] not in fixed]
        assert len(combined) > 100
        assert words_of(combined) <= known | words_of([{"text": " ".join(PHRASINGS["test"])}])


def test_requests_are_phrased_otherwise_in_each_split():
    assert len(set(itertools.chain(*PHRASINGS.values()))) == sum(map(len, PHRASINGS.values()))
    assert PHRASINGS.keys() == set(SPLITS)


def test_the_chosen_answer_is_right_and_better():
    for row in make_rows("tiny_preferences", "train", 200):
        chosen, rejected = (quality(row, content(row[name])) for name in ("chosen", "rejected"))
        assert chosen >= 1
        assert chosen > rejected


def test_half_of_the_unpaired_answers_are_desirable():
    rows = make_rows("tiny_labels", "train", 300)
    assert all(row["label"] == (quality(row, content(row["completion"])) == 2) for row in rows)
    assert 120 < sum(row["label"] for row in rows) < 180


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("seven", 1),
        (" Seven.", 1),
        ("seven, with pleasure", 2),
        ("seventeen", 0),
        ("eight, with pleasure", 1),
        ("seven, with pleasure, with pleasure", 1),
        ("seven, and " + "so on " * 6, 0),
        ("", 0),
    ],
)
def test_quality(text, value):
    assert quality({"answer": "seven"}, text) == value


def test_gladness_counts_words_once_and_has_bounds():
    assert gladness({}, "Anna was happy, happy and proud.") == 2
    assert gladness({}, "Anna was sad, then glad.") == 0
    assert gladness({}, "sad upset gloomy") == -2
    assert gladness({}, "unhappy") == 0


def test_spans_are_where_they_are_said_to_be():
    for row in make_rows("tiny_spans", "test", 100):
        (text,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
        assert row["context"][start : start + len(text)] == text


def test_the_classes_are_even():
    for name, classes in (("tiny_moods", 2), ("tiny_inferences", 3)):
        labels = [row["label"] for row in make_rows(name, "train", 600)]
        assert len(set(labels)) == classes
        assert all(labels.count(label) > 600 / classes * 0.8 for label in set(labels))


def test_instances_are_split_by_a_hash():
    shares = [split_of(f"key {number}") for number in range(2000)]
    assert shares.count("train") / 2000 == pytest.approx(0.7, abs=0.05)
    assert shares.count("test") / 2000 == pytest.approx(0.2, abs=0.05)


def test_unknown_names_and_splits_are_refused():
    with pytest.raises(ValueError, match=r"data 'tiny_task' is not a generated set .did you mean 'tiny_tasks'"):
        make_rows("tiny_task", "train", 1)
    with pytest.raises(ValueError, match="data tiny_tasks: split 'dev' is not one of train, validation, test"):
        make_rows("tiny_tasks", "dev", 1)
