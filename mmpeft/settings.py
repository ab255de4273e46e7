"""The base of every configuration: frozen, strict, with errors that name the key, the value and what was near."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError


class Settings(BaseModel):
    """A validated, frozen set of options; an unknown key is an error that names the nearest one."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, defer_build=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _bool_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and not _mentions_bool(annotation):
            raise ValueError("should not be a boolean")
        return value

    @model_validator(mode="wrap")
    @classmethod
    def _explain_errors(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as error:
            lines = [_explained(line, cls.model_fields) for line in error.errors()]
            raise ValidationError.from_exception_data(cls.__name__, lines) from None


class ConfigError(ValueError):
    """A configuration with problems: all of them at once, one per line of the message."""

    def __init__(self, title: str, problems: list[str]) -> None:
        """Hold the problems of what ``title`` names, usually a file."""
        self.title, self.problems = title, problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"{title}: {count}", *(f"  {problem}" for problem in problems)]))


MOST_NAMED = 100
"""Options in an error message."""


def nearest(word: str, options: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for a close option, else the list of options, ready to end an error message.

    Options that are long or many, which a stranger's file can have, are cut.
    """
    names = sorted(option if len(option) <= 100 else f"{option[:97]}..." for option in options)
    close = get_close_matches(word[:100], names, n=3, cutoff=0.6)
    if close:
        return f" (did you mean {' or '.join(repr(name) for name in close)}?)"
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f" (one of: {', '.join(names[:MOST_NAMED])}{more})" if names else ""


def shortened(text: str, most: int = 200) -> str:
    """Return a text, or its beginning if it is long."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def _mentions_bool(annotation: Any) -> bool:
    """Tell whether a type has ``bool``, ``True`` or ``False`` anywhere in it."""
    inside = any(_mentions_bool(argument) for argument in get_args(annotation))
    return annotation in (bool, Any) or isinstance(annotation, bool) or inside


def _explained(line: ErrorDetails, fields: Iterable[str]) -> InitErrorDetails:
    """Return one of pydantic's errors again in our words, with the nearest options where that helps.

    As an error of our own it comes without a link to pydantic's pages.
    """
    kind, value, context = line["type"], line["input"], line.get("ctx", {})
    message = line["msg"].removeprefix("Value error, ").replace("Input should", "should")
    if "explained" in context:
        message = context["explained"]
    elif kind == "path_type":
        message = "should be a path"
    elif kind == "extra_forbidden":
        message = f"unknown key{nearest(str(line['loc'][-1]), fields)}"
    elif kind == "literal_error" and isinstance(value, str) and "expected" in context:
        options = re.findall(r"'([^']*)'", context["expected"])
        message = f"no such option{nearest(value, options)}"
    own = PydanticCustomError(kind, "{explained}", {"explained": message})
    return {"type": own, "loc": line["loc"], "input": value}
