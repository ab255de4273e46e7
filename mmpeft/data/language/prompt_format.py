"""How solved examples and a question become one prompt. Needs no torch."""

from __future__ import annotations

from string import Formatter
from typing import Annotated

from pydantic import AfterValidator, Field

from mmpeft.settings import Settings, nearest

FIELDS = ("text", "text_pair", "label")


def _checked(template: str) -> str:
    try:
        names = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(f"{template!r} is no template: {error}; write a brace as {{{{ or }}}}") from None
    for name in names:
        if name not in FIELDS:
            raise ValueError(f"{template!r}: {{{name}}} is none of {', '.join(FIELDS)}{nearest(name, FIELDS)}")
    if "text" not in names or names.count("label") != 1 or not template.endswith("{label}"):
        raise ValueError(f"{template!r}: a template has {{text}}, and ends with {{label}}, which comes once")
    return template


class PromptFormat(Settings):
    """How examples and the question are written."""

    template: Annotated[str, AfterValidator(_checked)] = "{text}\nLabel: {label}"
    """One example with ``{text}``, ``{text_pair}`` where there is one, and ``{label}`` at its end."""
    separator: str = "\n\n"
    """What stands between examples."""
    instruction: str = ""
    """What stands in front of all, or in a chat is the system's turn."""
    words: dict[str, str] = Field(default={})
    """Words for classes, ``{"0": negative, "1": positive}``; a class that is not named stands for itself."""
    chat: bool = False
    """Whether examples are turns of the tokenizer's chat template: the user's up to the label, then the assistant's."""
