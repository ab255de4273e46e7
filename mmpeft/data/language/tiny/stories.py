"""Generated stories for the classic task heads: moods, inference, likeness, questions, summaries, translations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from mmpeft.data.language.tiny.sampling import Row, draw
from mmpeft.data.language.tiny.words import GLAD, NAMES, ROOMS, SORRY, THINGS
from mmpeft.data.scenes import COLOURS, with_articles

FOLLOWS = ("yes", "no", "open")
"""Labels of `make_inferences`: the second sentence is true, false, or neither can be said."""


@dataclass(frozen=True, slots=True)
class Story:
    """Someone finds something somewhere, and someone else is elsewhere."""

    name: str
    room: str
    colour: str
    thing: str
    other: str
    elsewhere: str

    @property
    def found(self) -> str:
        """The thing with its colour."""
        return f"the {self.colour} {self.thing}"

    @property
    def text(self) -> str:
        """Three sentences."""
        return (
            f"{self.name} went to the {self.room}. There {self.name} found {self.found}. "
            f"{self.other} went to the {self.elsewhere}."
        )

    @property
    def summary(self) -> str:
        """What it comes to, in one sentence."""
        return f"{self.name} found {self.found} in the {self.room}."

    @property
    def key(self) -> str:
        """What stories are split by."""
        return f"{self.name} {self.room} {self.thing}"


def make_mood(split: str, random: Random) -> Row:
    """Return a ``text`` and its ``label``, glad or sad; half of the words that tell it occur in the test only."""
    story, glad = _draw(split, random), random.random() < 0.5
    words = GLAD if glad else SORRY
    word = random.choice(words[3:] if split == "test" else words[:3])
    text = f"{story.name} met {story.other} in the {story.room}. They saw {story.found}. {story.name} was {word}."
    return {"text": text, "label": "glad" if glad else "sad"}


def make_inference(split: str, random: Random) -> Row:
    """Return a ``text``, a second ``text_pair`` and a ``label`` of `FOLLOWS`."""
    story, label = _draw(split, random), random.choice(FOLLOWS)
    room = {"yes": story.room, "no": story.elsewhere}.get(label)
    third = random.choice([name for name in NAMES if name not in (story.name, story.other)])
    said = f"{third} was in the {story.room}." if room is None else f"{story.name} was in the {room}."
    return {"text": story.text, "text_pair": said, "label": label}


def make_likeness(split: str, random: Random) -> Row:
    """Return a ``text``, a ``text_pair`` and a ``label``: the share of four words that they have in common."""
    story, fresh = _draw(split, random), _imagine(random)
    kept = {name for name in ("name", "room", "colour", "thing") if random.random() < 0.5}
    other = replace(fresh, **{name: getattr(story, name) for name in kept})
    same = sum(getattr(story, name) == getattr(other, name) for name in ("name", "room", "colour", "thing"))
    return {"text": story.summary, "text_pair": other.summary, "label": same / 4}


def make_span(split: str, random: Random) -> Row:
    """Return a row as SQuAD's: ``id``, ``context``, ``question``, ``answers`` with ``text`` and ``answer_start``."""
    story, about = _draw(split, random), random.choice([*_ASKED])
    phrasing = _ASKED[about][split == "test"]
    question = phrasing.format(name=story.name, other=story.other, found=story.found)
    answer = str(getattr(story, about))
    answers = {"text": [answer], "answer_start": [story.text.index(answer)]}
    return {"id": f"{random.getrandbits(64):016x}", "context": story.text, "question": question, "answers": answers}


def make_summary(split: str, random: Random) -> Row:
    """Return a story as ``source`` and what it comes to, in one sentence, as ``target``."""
    story = _draw(split, random)
    return {"source": story.text, "target": story.summary}


def make_translation(split: str, random: Random) -> Row:
    """Return a sentence as ``source`` and its translation as ``target``.

    The language is invented: words are written backwards, and a colour follows its thing.
    """
    story = _draw(split, random)
    target = f"{story.name} dnuof {story.thing[::-1]} {story.colour[::-1]} ni {story.room[::-1]}."
    return {"source": story.summary, "target": target}


def make_log(split: str, random: Random) -> Row:
    """Return a ``text`` of a kind that `tiny/llm` never saw, a ship's log, for continued pretraining."""
    story = _draw(split, random)
    day, depth, wind = random.randint(1, 28), random.randint(2, 40), random.choice(("north", "south", "east", "west"))
    text = (
        f"Day {day}. Wind from the {wind}, sea calm. Depth {depth} fathoms. {story.name} at the helm, "
        f"{story.other} aloft. Sighted a {story.colour} {story.thing} adrift, hauled it aboard."
    )
    return {"text": with_articles(text)}


_ASKED = {
    "room": ("Where was {name}?", "In which place did {name} find something?"),
    "found": ("What did {name} find?", "Which thing was found by {name}?"),
    "name": ("Who found {found}?", "By whom was {found} found?"),
    "elsewhere": ("Where was {other}?", "To which place did {other} go?"),
}
"""Questions by what answers them: the first phrasing for training, the second for the test."""


def _draw(split: str, random: Random) -> Story:
    return draw(_imagine, lambda story: story.key, split, random)


def _imagine(random: Random) -> Story:
    (name, other), (room, elsewhere) = random.sample(NAMES, 2), random.sample(ROOMS, 2)
    return Story(name, room, random.choice(COLOURS), random.choice(THINGS), other, elsewhere)
