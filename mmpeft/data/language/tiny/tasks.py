"""Small tasks that can be asked for in many ways; some of the ways are kept for the test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from mmpeft.data.language.tiny.sampling import Row, draw, turn
from mmpeft.data.language.tiny.words import KIND_OF, NAMES, NUMBERS, OPPOSITES, ROOMS, THINGS, plural, spelled
from mmpeft.data.scenes import COLOURS, PLACES, SHAPES, SIZES, with_articles

Fields = dict[str, str]


@dataclass(frozen=True, slots=True)
class Task:
    """One kind of question."""

    make: Callable[[Random], tuple[Fields, str]]
    """Returns what fills a phrasing's places, and the right answer."""
    phrasings: tuple[str, ...]
    """For training and validation."""
    held_out: tuple[str, ...]
    """For the test only."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A task in one phrasing, with its answer."""

    task: str
    fields: Fields
    answer: str
    phrasing: str

    @property
    def question(self) -> str:
        """The phrasing, filled in."""
        text = with_articles(self.phrasing.format(**self.fields))
        return text[0].upper() + text[1:]

    @property
    def key(self) -> str:
        """What is asked, however it is phrased: instances are split by it."""
        return f"{self.task}: {' / '.join(self.fields.values())}"


def ask(split: str, random: Random) -> Asked:
    """Draw a question, evenly over the tasks; those of the test are in held-out phrasings."""

    def make(random: Random) -> Asked:
        name = random.choice([*TASKS])
        task = TASKS[name]
        fields, answer = task.make(random)
        return Asked(name, fields, answer, random.choice(task.held_out if split == "test" else task.phrasings))

    return draw(make, lambda asked: asked.key, split, random)


def make_task(split: str, random: Random) -> Row:
    """Return a conversation of one question and its answer; ``task`` and ``answer`` say what is right."""
    asked = ask(split, random)
    return {"messages": [turn("user", asked.question), turn("assistant", asked.answer)]} | about(asked)


def about(asked: Asked) -> Row:
    """Return the columns beside the conversation: the task's name and the right answer."""
    return {"task": asked.task, "answer": asked.answer}


def _add(random: Random) -> tuple[Fields, str]:
    a, b = random.randint(0, 10), random.randint(0, 10)
    return {"a": NUMBERS[a], "b": NUMBERS[b]}, NUMBERS[a + b]


def _subtract(random: Random) -> tuple[Fields, str]:
    a, b = random.randint(0, 10), random.randint(0, 10)
    return {"a": NUMBERS[a + b], "b": NUMBERS[b]}, NUMBERS[a]


def _larger(random: Random) -> tuple[Fields, str]:
    a, b = random.sample(range(21), 2)
    return {"a": NUMBERS[a], "b": NUMBERS[b]}, NUMBERS[max(a, b)]


def _sort(random: Random) -> tuple[Fields, str]:
    digits = random.sample(range(10), random.randint(3, 4))
    return {"digits": " ".join(map(str, digits))}, " ".join(map(str, sorted(digits)))


def _spell(random: Random) -> tuple[Fields, str]:
    word = random.choice(THINGS + COLOURS + ROOMS)
    return {"word": word}, spelled(word)


def _spell_backwards(random: Random) -> tuple[Fields, str]:
    word = random.choice([word for word in THINGS + COLOURS + ROOMS if len(word) < 6])
    return {"word": word}, spelled(word[::-1])


def _first_letter(random: Random) -> tuple[Fields, str]:
    word = random.choice(THINGS + COLOURS + ROOMS)
    return {"word": word}, word[0]


def _last_letter(random: Random) -> tuple[Fields, str]:
    word = random.choice(THINGS + COLOURS + ROOMS)
    return {"word": word}, word[-1]


def _list(random: Random) -> list[str]:
    return random.sample(THINGS, random.randint(2, 5))


def _count(random: Random) -> tuple[Fields, str]:
    words = _list(random)
    return {"words": ", ".join(words)}, NUMBERS[len(words)]


def _first(random: Random) -> tuple[Fields, str]:
    words = _list(random)
    return {"words": ", ".join(words)}, words[0]


def _last(random: Random) -> tuple[Fields, str]:
    words = _list(random)
    return {"words": ", ".join(words)}, words[-1]


def _reverse(random: Random) -> tuple[Fields, str]:
    words = _list(random)
    return {"words": ", ".join(words)}, ", ".join(reversed(words))


def _repeat(random: Random) -> tuple[Fields, str]:
    words = " ".join(_list(random))
    return {"words": words}, words


def _colour(random: Random) -> tuple[Fields, str]:
    one, two = random.sample(SHAPES, 2)
    colours = random.sample(COLOURS, 2)
    placed = [
        f"a {random.choice(SIZES)} {colour} {shape} {random.choice(PLACES)}"
        for colour, shape in zip(colours, (one, two), strict=True)
    ]
    which = random.randrange(2)
    return {"scene": f"There is {placed[0]} and {placed[1]}.", "shape": (one, two)[which]}, colours[which]


def _place(random: Random) -> tuple[Fields, str]:
    people, rooms = random.sample(NAMES, 2), random.sample(ROOMS, 2)
    story = " ".join(f"{person} went to the {room}." for person, room in zip(people, rooms, strict=True))
    which = random.randrange(2)
    return {"story": story, "name": people[which]}, f"in the {rooms[which]}"


def _opposite(random: Random) -> tuple[Fields, str]:
    one, two = random.sample(random.choice(OPPOSITES), 2)
    return {"word": one}, two


def _kind(random: Random) -> tuple[Fields, str]:
    thing = random.choice(THINGS)
    return {"thing": thing}, with_articles(f"a {KIND_OF[thing]}")


def _plural(random: Random) -> tuple[Fields, str]:
    thing = random.choice(THINGS)
    return {"thing": thing}, plural(thing)


TASKS = {
    "add": Task(
        _add,
        ("what is {a} plus {b}?", "add {a} and {b}.", "how much is {a} plus {b}?", "please work out {a} plus {b}.",
         "{a} plus {b} is what?", "what do {a} and {b} make?"),
        ("give me the sum of {a} and {b}.", "I would like to know {a} plus {b}.", "tell me what {a} and {b} make."),
    ),
    "subtract": Task(
        _subtract,
        ("what is {a} minus {b}?", "take {b} from {a}.", "how much is {a} minus {b}?", "please work out {a} minus {b}.",
         "{a} minus {b} is what?", "what remains if {b} is taken from {a}?"),
        ("give me the difference of {a} and {b}.", "I would like to know {a} minus {b}.",
         "tell me what {a} less {b} is."),
    ),
    "larger": Task(
        _larger,
        ("which is larger, {a} or {b}?", "which number is more, {a} or {b}?", "choose the larger of {a} and {b}.",
         "what is larger, {a} or {b}?", "please name the larger number: {a} or {b}."),
        ("of {a} and {b}, tell me the larger one.", "I would like the larger number of {a} and {b}."),
    ),
    "sort": Task(
        _sort,
        ("sort the numbers {digits}.", "sort {digits} from small to large.", "what is {digits} in rising order?",
         "please put {digits} in order.", "write {digits} from small to large."),
        ("give me {digits} sorted.", "I would like the numbers {digits} in rising order.", "order these: {digits}."),
    ),
    "spell": Task(
        _spell,
        ("spell the word {word}.", "how is {word} spelled?", "please spell {word}.", "write the letters of {word}.",
         "which letters are in the word {word}?"),
        ("tell me how the word {word} is spelled.", "give me the letters of {word}.", "I would like to spell {word}."),
    ),
    "spell backwards": Task(
        _spell_backwards,
        ("spell {word} backwards.", "what is {word} backwards?", "please write {word} backwards.",
         "write the letters of {word} in reverse order.", "how is {word} spelled backwards?"),
        ("give me the letters of {word} in reverse order.", "tell me how {word} is spelled backwards."),
    ),
    "first letter": Task(
        _first_letter,
        ("what is the first letter of {word}?", "with which letter does {word} start?",
         "please name the first letter of {word}.",
         "write the first letter of the word {word}."),
        ("tell me the first letter of {word}.", "which letter starts the word {word}?"),
    ),
    "last letter": Task(
        _last_letter,
        ("what is the last letter of {word}?", "with which letter does {word} end?",
         "please name the last letter of {word}.",
         "write the last letter of the word {word}."),
        ("tell me the last letter of {word}.", "which letter ends the word {word}?"),
    ),
    "count": Task(
        _count,
        ("how many words are these: {words}?", "count the words: {words}.", "how many things are in the list {words}?",
         "please count the words in {words}.", "what is the number of words in {words}?"),
        ("tell me how many words are in this list: {words}.", "give me the number of things: {words}."),
    ),
    "first": Task(
        _first,
        ("what is the first word of {words}?", "which word is first: {words}?", "please name the first of {words}.",
         "write the first word of the list {words}.", "what comes first in {words}?"),
        ("tell me the first word in this list: {words}.", "give me the first of these: {words}."),
    ),
    "last": Task(
        _last,
        ("what is the last word of {words}?", "which word is last: {words}?", "please name the last of {words}.",
         "write the last word of the list {words}.", "what comes last in {words}?"),
        ("tell me the last word in this list: {words}.", "give me the last of these: {words}."),
    ),
    "reverse": Task(
        _reverse,
        ("reverse the list {words}.", "what is {words} in reverse order?", "please write {words} backwards.",
         "write the list {words} in reverse order.", "put these in reverse order: {words}."),
        ("give me this list in reverse order: {words}.", "tell me these words backwards: {words}."),
    ),
    "repeat": Task(
        _repeat,
        ("repeat: {words}.", "please repeat the words {words}.", "write this once more: {words}.",
         "say again: {words}.", "write the same words: {words}."),
        ("tell me the same words again: {words}.", "I would like you to repeat this: {words}."),
    ),
    "colour": Task(
        _colour,
        ("{scene} What colour is the {shape}?", "{scene} Which colour has the {shape}?",
         "what colour is the {shape}? {scene}",
         "{scene} Please name the colour of the {shape}.", "{scene} What is the colour of the {shape}?"),
        ("{scene} Tell me the colour of the {shape}.", "look at this: {scene} Of what colour is the {shape}?"),
    ),
    "place": Task(
        _place,
        ("{story} Where was {name}?", "{story} Where is {name} now?", "where is {name}? {story}",
         "{story} Please say where {name} is.", "{story} To which place did {name} go?"),
        ("{story} Tell me where {name} was.", "read this: {story} Where can one find {name}?"),
    ),
    "opposite": Task(
        _opposite,
        ("what is the opposite of {word}?", "name the opposite of {word}.", "which word is the opposite of {word}?",
         "please write the opposite of {word}.", "what is not {word}?"),
        ("tell me the opposite of {word}.", "give me a word that is the opposite of {word}."),
    ),
    "kind": Task(
        _kind,
        ("what is a {thing}?", "what kind of thing is a {thing}?", "please say what a {thing} is.",
         "name the kind of a {thing}.", "which kind of thing is the {thing}?"),
        ("tell me what a {thing} is.", "I would like to know what kind of thing a {thing} is."),
    ),
    "plural": Task(
        _plural,
        ("what is the plural of {thing}?", "write the plural of {thing}.", "one {thing}, two what?",
         "please name the plural of {thing}.", "how does one write many of {thing}?"),
        ("tell me the plural of {thing}.", "give me the word for two of {thing}."),
    ),
}  # fmt: skip
"""Each task by its name."""
