"""Answers in different manners, judged by `quality`: preference pairs, unpaired labels, and prompts for PPO."""

from __future__ import annotations

from random import Random

from mmpeft.data.language.tiny.rewards import quality
from mmpeft.data.language.tiny.sampling import Row, draw, turn
from mmpeft.data.language.tiny.tasks import TASKS, Asked, about, ask
from mmpeft.data.language.tiny.words import NAMES, ROOMS

MANNERS = {
    "plain": ("{}", "{}, what else", "{}, as everybody knows"),
    "polite": ("{}, with pleasure", "{}, thank you for asking", "{}, always happy to help"),
    "rambling": (
        "{}, and there is much more to say of it, for a question has many sides and so has an answer",
        "{}, but that is only one of the many things that one could say about such a question as this",
    ),
}
"""How an answer may be given."""


def make_manner(split: str, random: Random) -> Row:
    """Return a conversation with a right answer in any manner: a policy tuned on them has something to choose from."""
    asked = ask(split, random)
    reply = _say(asked.answer, random)
    return {"messages": [turn("user", asked.question), turn("assistant", reply)]} | about(asked)


def make_preference(split: str, random: Random) -> Row:
    """Return a ``prompt``, a ``chosen`` and a ``rejected`` answer, as messages.

    The chosen one is right, brief and often polite; the rejected one, right or wrong, has a lower `quality`.
    """
    return _pair(ask(split, random), random)


def make_label(split: str, random: Random) -> Row:
    """Return a ``prompt`` and a ``completion``, as messages, and a ``label``: whether it is right and polite."""
    return _labelled(ask(split, random), random)


def make_question(split: str, random: Random) -> Row:
    """Return a ``prompt`` as messages, with the ``answer`` that the reward `quality` looks for."""
    asked = ask(split, random)
    return {"prompt": [turn("user", asked.question)]} | about(asked)


def make_opening(split: str, random: Random) -> Row:
    """Return a ``prompt`` as plain text: the beginning of a story whose mood is open, for the reward `gladness`."""
    return {"prompt": draw(_open, str, split, random)}


def _open(random: Random) -> str:
    (one, two), room = random.sample(NAMES, 2), random.choice(ROOMS)
    return random.choice((f"{one} went to the {room} with {two}.", f"{one} met {two} in the {room}."))


def _say(answer: str, random: Random) -> str:
    return random.choice(MANNERS[random.choice([*MANNERS])]).format(answer)


def _candidate(asked: Asked, random: Random) -> str:
    """An answer that is right or wrong, in any manner."""
    return _say(asked.answer if random.random() < 0.5 else _wrong(asked, random), random)


def _wrong(asked: Asked, random: Random) -> str:
    """The answer to another question of the same task."""
    answer = TASKS[asked.task].make(random)[1]
    return answer if answer != asked.answer else _wrong(asked, random)


def _pair(asked: Asked, random: Random) -> Row:
    row = about(asked)
    chosen = random.choice(MANNERS[random.choice(("plain", "polite"))]).format(asked.answer)
    rejected = _candidate(asked, random)
    if quality(row, rejected) >= quality(row, chosen):
        return _pair(asked, random)
    replies = {"chosen": [turn("assistant", chosen)], "rejected": [turn("assistant", rejected)]}
    return {"prompt": [turn("user", asked.question)]} | replies | row


def _labelled(asked: Asked, random: Random) -> Row:
    row, label = about(asked), random.random() < 0.5
    text = random.choice(MANNERS["polite"]).format(asked.answer) if label else _candidate(asked, random)
    if (quality(row, text) == 2) != label:
        return _labelled(asked, random)
    return {"prompt": [turn("user", asked.question)], "completion": [turn("assistant", text)], "label": label} | row
