"""Plain English sentences for pretraining `tiny/llm`: numbers, letters, lists, drawn scenes, kinds of things, stories.

Everything is stated, nothing is asked for: no instruction, no chat turn, no refusal is among them. Those are what the
later stages teach. The words are those of mmpeft.data.language.tiny.words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from mmpeft.data.language.tiny.deeds import DEEDS
from mmpeft.data.language.tiny.words import (
    GLAD,
    KIND_OF,
    KINDS,
    NAMES,
    NUMBERS,
    OPPOSITES,
    ORDINALS,
    ROOMS,
    SORRY,
    THINGS,
    WEATHER,
    listed,
    plural,
    spelled,
)
from mmpeft.data.scenes import COLOURS, PLACES, SHAPES, SIZES, with_articles

Maker = Callable[[Random], str]


def add(random: Random) -> str:
    """A sum or a difference within twenty, in words or digits, alone or followed by another with its result."""
    first, second = random.randint(0, 10), random.randint(0, 10)
    total = first + second
    sentence = _sum(random, first, second, total) if random.random() < 0.5 else _rest(random, total, first, second)
    if random.random() < 0.3:
        step = random.randint(0, min(9, 20 - total))
        sentence += " " + _sum(random, total, step, total + step)
    return sentence


def _sum(random: Random, first: int, second: int, total: int) -> str:
    a, b, c = NUMBERS[first], NUMBERS[second], NUMBERS[total]
    forms = (
        f"{a} plus {b} is {c}.", f"{a} and {b} make {c}.", f"The sum of {a} and {b} is {c}.",
        f"{first} + {second} = {total}.", f"{a} plus {b} equals {c}.", f"If {b} is added to {a}, the result is {c}.",
    )  # fmt: skip
    return _upper(random.choice(forms))


def _rest(random: Random, total: int, first: int, second: int) -> str:
    a, b, c = NUMBERS[total], NUMBERS[first], NUMBERS[second]
    forms = (
        f"{a} minus {b} is {c}.", f"{a} less {b} leaves {c}.", f"The difference of {a} and {b} is {c}.",
        f"{total} - {first} = {second}.", f"If {b} is taken from {a}, {c} remains.", f"{a} minus {b} equals {c}.",
    )  # fmt: skip
    return _upper(random.choice(forms))


def count(random: Random) -> str:
    """Numbers in their order, up or down, and what comes before and after."""
    start, length = random.randint(0, 14), random.randint(3, 6)
    run = [NUMBERS[number] for number in range(start, start + length)]
    number = random.randint(1, 19)
    name = NUMBERS[number]
    forms = (
        f"Counting up: {', '.join(run)}.", f"Counting down: {', '.join(reversed(run))}.",
        f"After {name} comes {NUMBERS[number + 1]}.", f"Before {name} comes {NUMBERS[number - 1]}.",
        f"The next number after {name} is {NUMBERS[number + 1]}.", f"The word for {number} is {name}.",
        f"The number {name} is written {number}.", f"The number before {name} is {NUMBERS[number - 1]}.",
    )  # fmt: skip
    return _some(random, forms)


def compare(random: Random) -> str:
    """Which of two numbers is larger."""
    small, large = sorted(random.sample(range(21), 2))
    pair = [NUMBERS[small], NUMBERS[large]]
    either = " and ".join(random.sample(pair, 2))
    forms = (
        f"{pair[1]} is more than {pair[0]}.", f"{pair[0]} is less than {pair[1]}.",
        f"Of {either}, {pair[1]} is the larger.", f"Of {either}, {pair[0]} is the smaller.",
        f"{pair[1]} is larger than {pair[0]}.", f"{pair[0]} is smaller than {pair[1]}.",
    )  # fmt: skip
    return _some(random, [_upper(form) for form in forms])


def sort(random: Random) -> str:
    """Digits before and after sorting."""
    digits = random.sample(range(10), random.randint(3, 5))
    given = " ".join(map(str, digits))
    up, down = (" ".join(map(str, sorted(digits, reverse=turned))) for turned in (False, True))
    forms = (
        f"The numbers {given} sorted from small to large are {up}.", f"{given} in rising order is {up}.",
        f"The numbers {given} from large to small are {down}.", f"{given} in falling order is {down}.",
        f"Sorted, {given} becomes {up}.", f"The largest of {given} is {max(digits)} and the smallest is {min(digits)}.",
        f"Backwards, {given} is {' '.join(map(str, reversed(digits)))}.",
    )  # fmt: skip
    return _some(random, forms)


def spell(random: Random) -> str:
    """The letters of a word, its first and last, their number, and the word backwards."""
    word = random.choice(THINGS + COLOURS + ROOMS if random.random() < 0.7 else _ADJECTIVES)
    back, number = spelled(word[::-1]), NUMBERS[len(word)]
    forms = (
        f"The word {word} is spelled {spelled(word)}.", f"{word} has {number} letters: {spelled(word)}.",
        f"The word {word} starts with {word[0]} and ends with {word[-1]}.", f"Backwards, {word} is {back}.",
        f"The first letter of {word} is {word[0]}.", f"The last letter of {word} is {word[-1]}.",
        f"The letters of {word} are {spelled(word)}, in reverse order {back}.", f"{word}, {spelled(word)}, {back}.",
        f"The letters {spelled(word)} make the word {word}.", f"The word {word} has {number} letters.",
        f"{spelled(word)} backwards is {back}.",
    )  # fmt: skip
    return _some(random, forms)


def enumerate_words(random: Random) -> str:
    """A list of things: its length, its ends, its order."""
    words = random.sample(THINGS, random.randint(2, 5))
    joined = ", ".join(words)
    place = random.randrange(len(words))
    forms = (
        f"The list is {joined}. It has {NUMBERS[len(words)]} words.",
        f"In {joined} the first word is {words[0]} and the last word is {words[-1]}.",
        f"The list {joined} in reverse order is {', '.join(reversed(words))}.",
        f"Of the words {joined}, the {ORDINALS[place]} is {words[place]}.",
        f"{joined}: these are {NUMBERS[len(words)]} things.",
        f"{words[0]}, {words[0]}, {words[0]}: the word {words[0]} three times.",
        f"The word {words[0]} twice: {words[0]} {words[0]}.",
        f"Backwards, {joined} is {', '.join(reversed(words))}.",
        f"In the order of the alphabet, {joined} becomes {', '.join(sorted(words))}.",
    )
    return _some(random, [_upper(form) for form in forms])


def describe(random: Random) -> str:
    """A scene of one to three figures, and what can be said of one of them."""
    shapes = random.sample(SHAPES, random.randint(1, 3))
    colours, places = random.sample(COLOURS, len(shapes)), random.sample(PLACES, len(shapes))
    figures = [f"a {random.choice(SIZES)} {colour} {shape}" for colour, shape in zip(colours, shapes, strict=True)]
    placed = [f"{figure} {place}" for figure, place in zip(figures, places, strict=True)]
    begin = random.choice(("There is", "One can see", "The picture shows", "Here is"))
    which = random.randrange(len(shapes))
    shape, colour, place = shapes[which], colours[which], places[which]
    other = random.choice(COLOURS)
    forms = (
        f"The {shape} is {colour}.", f"The {shape} is {place}.", f"What colour is the {shape}? It is {colour}.",
        f"Where is the {shape}? It is {place}.", f"The colour of the {shape} is {colour}.",
        f"The {colour} one is the {shape}.",
        f"Is the {shape} {other}? {f'Yes, it is {colour}' if colour == other else f'No, it is {colour}'}.",
        f"Is the {shape} {colour}? Yes, it is {colour}.", f"What is {colour}? The {shape} is {colour}.",
    )  # fmt: skip
    return with_articles(f"{begin} {listed(placed)}. {_some(random, forms)}")


def classify(random: Random) -> str:
    """What kind of thing something is, opposites, plurals."""
    thing = random.choice(THINGS)
    kind = KIND_OF[thing]
    others = random.sample([other for other in KINDS[kind] if other != thing], 2)
    one, two = random.sample(random.choice(OPPOSITES), 2)
    wrong = random.choice([other for other in KINDS if other != kind])
    forms = (
        f"A {thing} is a {kind}.", f"{plural(thing)}, {plural(others[0])} and {plural(others[1])} are {kind}s.",
        f"A {kind} such as a {thing} or a {others[0]}.", f"The {thing} is a {kind}, not a {wrong}.",
        f"The opposite of {one} is {two}.", f"{one} and {two} are opposites.", f"What is not {one} is {two}.",
        f"One {thing}, two {plural(thing)}.",
        f"The plural of {thing} is {plural(thing)}.",
    )  # fmt: skip
    return with_articles(_some(random, [_upper(form) for form in forms]))


def wander(random: Random) -> str:
    """People go to places and carry things, then it is said where they are."""
    people, rooms = random.sample(NAMES, random.randint(1, 3)), random.sample(ROOMS, 3)
    moves = [
        f"{person} {random.choice(('went to', 'walked to', 'ran to'))} the {room}."
        for person, room in zip(people, rooms, strict=False)
    ]
    which = random.randrange(len(people))
    person, room = people[which], rooms[which]
    thing = f"the {random.choice(COLOURS)} {random.choice(THINGS)}"
    moves.insert(which + 1, f"There {person} {random.choice(('found', 'lost', 'saw', 'left'))} {thing}.")
    forms = (
        f"So {person} was in the {room}.", f"Where was {person}? {person} was in the {room}.",
        f"{thing} was in the {room}.", f"Where was {thing}? It was in the {room}.",
        f"Who was in the {room}? It was {person}.",
        f"In short, {person} was in the {room} with {thing}.",
    )  # fmt: skip
    return " ".join([*moves, _some(random, [_upper(form) for form in forms])])


def share(random: Random) -> str:
    """People have, give and lose things, and how many are left is said."""
    one, two = random.sample(NAMES, 2)
    thing = random.choice(THINGS)
    had, more = random.randint(2, 9), random.randint(1, 9)
    less = random.randint(1, had)
    if random.random() < 0.5:
        middle, left = f"{two} gave {one} {NUMBERS[more]} more.", had + more
    else:
        middle, left = f"{one} gave {NUMBERS[less]} of them to {two}.", had - less
    name = thing if left == 1 else plural(thing)
    return f"{one} had {NUMBERS[had]} {plural(thing)}. {middle} Now {one} has {NUMBERS[left]} {name}."


def feel(random: Random) -> str:
    """A story with a mood, glad or sad, of four or five sentences."""
    one, two = random.sample(NAMES, 2)
    glad = random.random() < 0.5
    thing, room = random.choice(THINGS), random.choice(ROOMS)
    mood = random.choice(GLAD if glad else SORRY)
    good = (f"{one} found a new {thing}.", f"{two} gave {one} a {thing}.", f"{one} and {two} played with the {thing}.")
    bad = (f"{one} lost the {thing}.", f"{two} broke the {thing}.", f"The {thing} was gone.")
    ends = (
        (
            "They laughed and sang.",
            f"{two} was {random.choice(GLAD)} too.",
            "It was a good day.",
            f"{one} thanked {two}.",
        )
        if glad
        else ("It was a bad day.", f"{two} was {random.choice(SORRY)} too.", f"{one} cried.", "Nobody spoke.")
    )
    begin = random.choice((f"{one} went to the {room} with {two}.", f"{one} met {two} in the {room}."))
    sky = f"{random.choice(WEATHER['glad' if glad else 'sad'])}. " if random.random() < 0.6 else ""
    because = random.choice((f"{one} was {mood}.", f"So {one} felt {mood}.", f"This made {one} {mood}."))
    return with_articles(f"{begin} {sky}{random.choice(good if glad else bad)} {because} {random.choice(ends)}")


def say_again(random: Random) -> str:
    """Something said twice, word by word."""
    one, two = random.sample(NAMES, 2)
    what = f"the {random.choice(COLOURS)} {random.choice(THINGS)} is in the {random.choice(ROOMS)}"
    if random.random() < 0.5:
        what = " ".join(random.choice(_EVERY) for _ in range(random.randint(2, 9)))
    forms = (
        f'{one} said "{what}" and {two} said "{what}" as well.',
        f'{one} said {what}. {two} repeated {what}. Then {one} said {what}.',
        f"{one} wrote: {what}. {two} wrote the same: {what}.", f"{what}. Once more: {what}. And again: {what}.",
    )  # fmt: skip
    return random.choice(forms)


def act(random: Random) -> str:
    """How something harmless is done; that something harmful is harmful."""
    deed = random.choice([deed for deed in DEEDS if not deed.held_out])
    name = random.choice(NAMES)
    mine = deed.words.replace(" my ", " a ")
    if deed.hint is None:
        forms = (
            f"To {mine} is wrong.", f"It is wrong to {mine}: it does harm.",
            f"{name} did not {mine}, for that is a crime.",
            f"To {mine} is dangerous and against the law.", f"Nobody should {mine}.",
        )  # fmt: skip
    else:
        forms = (
            f"To {mine}, {deed.hint}.", f"{name} likes to {mine}. It is easy: {deed.hint}.", f"It is fun to {mine}.",
            f"{name} wanted to {mine}. The way to do it: {deed.hint}.", f"To {mine} is useful.",
        )  # fmt: skip
    return random.choice(forms)


def _some(random: Random, forms: Sequence[str]) -> str:
    """Some of the sentences in any order: what is said first helps to say the next."""
    return " ".join(random.sample(forms, random.randint(2, 4)))


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]


_ADJECTIVES = tuple(word for pair in OPPOSITES for word in pair)
_EVERY = THINGS + COLOURS + ROOMS + _ADJECTIVES + SHAPES
MAKERS: dict[str, tuple[Maker, float]] = {
    "sums": (add, 5), "counting": (count, 1), "larger and smaller": (compare, 1), "sorting": (sort, 2),
    "letters": (spell, 4), "lists": (enumerate_words, 3), "scenes": (describe, 2), "kinds": (classify, 1.5),
    "places": (wander, 2), "sharing": (share, 1), "moods": (feel, 2), "said again": (say_again, 5), "deeds": (act, 2),
}  # fmt: skip
"""Each kind of sentence, and how often it is chosen."""


def write(random: Random, kinds: Sequence[str] = tuple(MAKERS)) -> str:
    """Write one document: one to four times one kind of sentence, or a mixture."""
    weights = [MAKERS[kind][1] for kind in kinds]
    chosen = random.choices(kinds, weights, k=random.randint(1, 4))
    if random.random() < 0.7:
        chosen = [chosen[0]] * len(chosen)
    return random.choice("  \n").join(MAKERS[kind][0](random) for kind in chosen)
