"""The small world of `tiny/llm`: words of its pretraining (tools/llm_sentences.py) and of the generated data sets."""

from __future__ import annotations

NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip
"""Each number by its value."""
ORDINALS = ("first", "second", "third", "fourth", "fifth")
NAMES = (
    "Anna", "Ben", "Clara", "David", "Emma", "Finn", "Grace", "Hugo", "Ida", "Jack", "Lena", "Max", "Nora", "Oscar",
    "Rosa", "Sam", "Tina", "Victor", "Lily", "Tom",
)  # fmt: skip
KINDS = {
    "animal": (
        "cat", "dog", "hen", "cow", "pig", "fox", "owl", "bee", "duck", "frog", "goat", "bird", "horse", "mouse",
        "sheep",
    ),
    "fruit": ("apple", "pear", "plum", "fig", "lemon", "cherry", "grape", "peach", "melon"),
    "tool": ("hammer", "saw", "axe", "rope", "nail", "brush", "ladder", "spade"),
    "garment": ("hat", "coat", "shoe", "sock", "shirt", "scarf", "glove", "belt"),
    "vehicle": ("car", "bus", "train", "boat", "bike", "van", "truck", "ship"),
    "toy": ("ball", "kite", "doll", "drum", "puzzle", "robot", "marble"),
}  # fmt: skip
"""Kinds of things, and the things."""
THINGS = tuple(thing for things in KINDS.values() for thing in things)
KIND_OF = {thing: kind for kind, things in KINDS.items() for thing in things}
OPPOSITES = (
    ("big", "small"), ("hot", "cold"), ("tall", "short"), ("fast", "slow"), ("old", "new"), ("wet", "dry"),
    ("hard", "soft"), ("full", "empty"), ("open", "closed"), ("dark", "bright"), ("heavy", "light"),
    ("early", "late"), ("happy", "sad"), ("loud", "quiet"), ("near", "far"), ("clean", "dirty"), ("thick", "thin"),
    ("high", "low"), ("rich", "poor"), ("strong", "weak"), ("left", "right"), ("day", "night"), ("rough", "smooth"),
    ("sweet", "sour"),
)  # fmt: skip
ROOMS = (
    "garden", "kitchen", "park", "school", "shop", "barn", "forest", "field", "cave", "library", "market", "station",
    "hall", "cellar", "attic", "tower",
)  # fmt: skip
"""Where people go in stories."""
GLAD = ("happy", "glad", "cheerful", "proud", "pleased", "joyful")
SORRY = ("sad", "upset", "gloomy", "worried", "angry", "lonely")
"""Moods of stories; `GLAD` is what the reward of PPO counts."""
WEATHER = {"glad": ("The sun was warm", "The sky was blue"), "sad": ("The rain was cold", "The wind was sharp")}


def plural(thing: str) -> str:
    """Return the plural of a thing: ``cats``, ``cherries``, ``axes``."""
    irregular = {"mouse": "mice", "sheep": "sheep"}
    if thing in irregular:
        return irregular[thing]
    if thing.endswith("y") and thing[-2] not in "aeiou":
        return thing[:-1] + "ies"
    return thing + ("es" if thing.endswith(("s", "x", "ch", "sh")) else "s")


def listed(words: list[str]) -> str:
    """Join words as a sentence does: ``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def spelled(word: str) -> str:
    """Write the letters of a word apart: ``c a t``."""
    return " ".join(word)
