"""Rows of the field's formats as examples: a prompt, what follows, and what is said of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mmpeft.data.language.config import FIELDS, OPTIONAL, LanguageData
from mmpeft.data.language.rows import BadRowError, read_rows
from mmpeft.data.samples import listed
from mmpeft.settings import nearest

Turns = tuple[dict[str, Any], ...]
"""What speakers said in turn: ``role`` and ``content``, and whatever else a chat template reads."""
Said = str | Turns
ROLES = {"system": "system", "developer": "developer", "user": "user", "human": "user", "assistant": "assistant"}
ROLES |= {"gpt": "assistant", "tool": "tool", "observation": "tool", "function": "tool", "function_call": "assistant"}
"""Who speaks, by the names in OpenAI's and ShareGPT's data."""
ALPACA = (
    "Below is an instruction that describes a task{paired}. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{prompt}\n\n{input}### Response:\n"
)
"""The prompt of Stanford Alpaca (Taori et al., 2023)."""
TRUTHS = {"true": True, "false": False, "1": True, "0": False, "good": True, "bad": False, "yes": True, "no": False}


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and an answer, either as texts or as turns; of a document only the answer."""

    prompt: Said
    answer: Said
    rejected: Said | None = None
    """A worse answer."""
    margin: float = 0.0
    """By how much it is worse."""
    label: bool | None = None
    """Whether the answer is good, where answers come alone."""
    tools: tuple[Any, ...] = ()
    """JSON schemas of tools that the assistant may call."""

    @property
    def key(self) -> str:
        """What rows of one split must not share with another's: the prompt, or a document as a whole."""
        return json.dumps(self.prompt or self.answer, sort_keys=True, default=str)


def read_example(row: dict[str, Any], config: LanguageData) -> Example:
    """Return the example that a row of the configured format is.

    Raises:
        BadRowError: If a column is missing or empty, a speaker unknown, or nobody answers.
    """
    return _READERS[config.name](_fields(row, config), config)


def ask(prompt: str, config: LanguageData, answer: str = "") -> Example:
    """Return a prompt, and what may be an answer to it, worded as those of the data are."""
    if config.name == "text":
        return Example(prompt, answer)
    if config.name in ("messages", "sharegpt"):
        return Example(*_as_turns(prompt, answer, "", {}, config))
    first: Said = ""
    if config.template is None:
        first = read_example(read_rows(config.path, config)[0], config).answer
    if isinstance(first, str):
        return Example(*_worded(prompt, answer, {}, config))
    return Example(*_as_turns(prompt, answer, "", {}, config))


def _fields(row: dict[str, Any], config: LanguageData) -> dict[str, Any]:
    """Return the values of the format's fields; an empty optional one is left out."""
    columns = FIELDS[config.name] | config.columns
    optional = {*OPTIONAL, *(("prompt",) if config.name == "preference" else ())} - config.columns.keys()
    for field, column in columns.items():
        if column not in row and field not in optional:
            hint = nearest(column, map(str, row))
            raise BadRowError(f"has no column {column!r}{hint}: name the right one by data.columns.{field}")
    return {field: row[column] for field, column in columns.items() if row.get(column) not in (None, "", [])}


def _read_text(fields: dict[str, Any], config: LanguageData) -> Example:
    return Example("", _text(fields, "text"))


def _read_conversation(fields: dict[str, Any], config: LanguageData) -> Example:
    turns = _with_system(_turns(fields.get("messages"), config), fields, config)
    last = max((index for index, turn in enumerate(turns) if turn["role"] == "assistant"), default=None)
    if last is None:
        raise BadRowError("has no turn of the assistant, so nothing to learn: remove it, or map its name by data.roles")
    return Example(turns[:last], turns[last:], tools=_tools(fields.get("tools", [])))


def _tools(value: Any) -> tuple[Any, ...]:
    try:
        tools = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise BadRowError(f"has tools that are no JSON ({error}): correct or remove them") from None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRowError("has tools that are no list of objects: correct or remove them")
    return tuple(tools)


def _read_completion(fields: dict[str, Any], config: LanguageData) -> Example:
    prompt, answer = _said(fields, "prompt", config), _said(fields, "completion", config)
    if "reasoning" in fields:
        answer = _thought(str(fields["reasoning"]), answer, config)
    return Example(*_worded(prompt, answer, fields, config))


def _read_preference(fields: dict[str, Any], config: LanguageData) -> Example:
    chosen, rejected = _said(fields, "chosen", config), _said(fields, "rejected", config)
    prompt = _said(fields, "prompt", config) if "prompt" in fields else None
    if prompt is None:
        prompt, chosen, rejected = _common(chosen, rejected)
    if chosen == rejected:
        raise BadRowError("has the same chosen and rejected answer, so nothing to prefer: remove it")
    asked, chosen = _worded(prompt, chosen, fields, config)
    _, rejected = _worded(prompt, rejected, fields, config)
    return Example(asked, chosen, rejected, _number(fields.get("margin", 0.0)))


def _read_unpaired(fields: dict[str, Any], config: LanguageData) -> Example:
    prompt, answer = _said(fields, "prompt", config), _said(fields, "completion", config)
    value = fields.get("label")
    label = value if isinstance(value, bool) else TRUTHS.get(str(value).lower())
    if label is None:
        raise BadRowError(f"has the label {_shown(value)}: true (or 1) for a good answer, false (or 0) for a bad one")
    prompt, answer = _worded(prompt, answer, fields, config)
    return Example(prompt, answer, label=label)


def _read_prompt(fields: dict[str, Any], config: LanguageData) -> Example:
    prompt = _said(fields, "prompt", config)
    if isinstance(prompt, str):
        return Example(*_worded(prompt, "", fields, config))
    return Example(_with_system(prompt, fields, config), ())


_READERS: dict[str, Callable[[dict[str, Any], LanguageData], Example]] = {
    "text": _read_text,
    "messages": _read_conversation,
    "sharegpt": _read_conversation,
    "prompt_completion": _read_completion,
    "alpaca": _read_completion,
    "preference": _read_preference,
    "unpaired": _read_unpaired,
    "prompts": _read_prompt,
}


def _text(fields: dict[str, Any], field: str) -> str:
    text = fields.get(field, "")
    if not isinstance(text, str | int | float) or isinstance(text, bool):
        raise BadRowError(f"has {type(text).__name__} as its {field}: a text is wanted")
    if not str(text).strip():
        raise BadRowError(f"has an empty {field}, so nothing to learn: remove it")
    return str(text)


def _said(fields: dict[str, Any], field: str, config: LanguageData) -> Said:
    """Return what is said in a field, as a text or, from a list of turns (or one turn), as turns."""
    value = fields.get(field, "")
    return _turns(value, config) if isinstance(value, list | dict) else _text(fields, field)


def _turns(value: Any, config: LanguageData) -> Turns:
    """Return turns with ``role`` and ``content``, from these or from ``from`` and ``value``."""
    turns = [value] if isinstance(value, dict) else value
    if not isinstance(turns, list) or not turns:
        raise BadRowError(
            f"has {_shown(value)} in place of a list of turns: remove it, or name the column by data.columns"
        )
    return tuple(_turn(turn, config) for turn in turns)


def _turn(turn: Any, config: LanguageData) -> dict[str, Any]:
    if not isinstance(turn, dict) or not ({"role", "from"} & turn.keys()):
        raise BadRowError(f"has the turn {_shown(turn)}: an object with role and content, or from and value, is wanted")
    speaker = str(turn["role"] if "role" in turn else turn["from"])
    roles = ROLES | config.roles
    if speaker not in roles:
        raise BadRowError(f"has the unknown role {_shown(speaker)}{nearest(speaker[:99], roles)}: map it by data.roles")
    said = turn.get("content", turn.get("value"))
    if isinstance(said, list):
        said = "".join(_part(part) for part in said)
    if not isinstance(said, str | None):
        raise BadRowError(f"has {type(said).__name__} as what {speaker} says: a text is wanted")
    role = roles[speaker]
    if role == "assistant" and not (said or "").strip() and not turn.get("tool_calls"):
        raise BadRowError("has an empty turn of the assistant: remove it")
    rest = {key: value for key, value in turn.items() if key not in ("role", "from", "content", "value")}
    return {"role": role, "content": said or "", **{key: value for key, value in rest.items() if value is not None}}


def _part(part: Any) -> str:
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise BadRowError(f"has a part of a turn that is no text: {_shown(part)}: remove it")
    return str(part["text"])


def _shown(value: Any) -> str:
    """Return a value as it is written, cut where it is long."""
    return listed([repr(value)])


def _with_system(turns: Turns, fields: dict[str, Any], config: LanguageData) -> Turns:
    """Put the row's system prompt, or else the configuration's, in front of turns that have none."""
    system = fields.get("system", config.system)
    if system is None or turns[0]["role"] in ("system", "developer"):
        return turns
    return ({"role": "system", "content": str(system)}, *turns)


def _thought(thoughts: str, answer: Said, config: LanguageData) -> Said:
    opening, closing = config.reasoning.tags
    before = f"{opening}\n{thoughts.strip()}\n{closing}\n\n"
    if isinstance(answer, str):
        return before + answer
    return ({**answer[0], "content": before + answer[0]["content"]}, *answer[1:])


def _worded(prompt: Said, answer: Said, fields: dict[str, Any], config: LanguageData) -> tuple[Said, Said]:
    """Return prompt and answer as the template wants them: both as texts, or both as turns."""
    given = str(fields.get("input", ""))
    turns = not (isinstance(prompt, str) and isinstance(answer, str))
    template = config.template or ("chat" if turns or config.name == "alpaca" else "plain")
    if template == "chat":
        return _as_turns(prompt, answer, given, fields, config)
    if turns:
        raise BadRowError(f"has turns, which data.template: {template} can't put together: chat")
    if template == "plain":
        return f"{prompt}\n{given}" if given else prompt, answer
    paired = ", paired with an input that provides further context" if given else ""
    return ALPACA.format(paired=paired, prompt=prompt, input=given and f"### Input:\n{given}\n\n"), answer


def _as_turns(
    prompt: Said, answer: Said, given: str, fields: dict[str, Any], config: LanguageData
) -> tuple[Turns, Turns]:
    if isinstance(prompt, str):
        earlier = _earlier(fields.get("history", []))
        asked = {"role": "user", "content": f"{prompt}\n{given}" if given else prompt}
        prompt = (*earlier, asked)
    if isinstance(answer, str):
        answer = ({"role": "assistant", "content": answer},)
    if answer[-1]["role"] != "assistant":
        raise BadRowError(f"ends with the {answer[-1]['role']}, not with the assistant: remove it")
    return _with_system(prompt, fields, config), answer


def _earlier(history: Any) -> Turns:
    """Return the turns of Alpaca's history, pairs of what was asked and answered."""
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise BadRowError("has a history that is no list of pairs: correct or remove it")
    roles = ("user", "assistant")
    return tuple(
        {"role": role, "content": str(said)} for pair in history for role, said in zip(roles, pair, strict=True)
    )


def _common(chosen: Said, rejected: Said) -> tuple[Said, Said, Said]:
    """Return what both begin with as the prompt, and the two ends."""
    if isinstance(chosen, str) and isinstance(rejected, str):
        shared = chosen[: first_difference(chosen, rejected)]
        shared = shared[: max(shared.rfind(" "), shared.rfind("\n")) + 1].rstrip(" ")
        if not shared.strip():
            raise BadRowError("has answers that begin with nothing in common, and no prompt: data.columns.prompt")
        ends = chosen[len(shared) :], rejected[len(shared) :]
        if not all(end.strip() for end in ends):
            raise BadRowError("has an answer that the other one begins with, and no prompt: remove it")
        return shared, *ends
    if isinstance(rejected, str) and not isinstance(chosen, str) and len(chosen) > 1:
        return chosen[:-1], chosen[-1:], rejected
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise BadRowError("has a chosen text and rejected turns, and no prompt: data.columns.prompt")
    same = first_difference(chosen, rejected)
    if same in (0, len(chosen), len(rejected)):
        raise BadRowError(
            "has conversations that begin with nothing in common or don't differ, and no prompt: remove it"
        )
    return chosen[:same], chosen[same:], rejected[same:]


def first_difference(left: Sequence[Any], right: Sequence[Any]) -> int:
    """Return how long two texts, or two conversations, are the same."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(left), len(right)))


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise BadRowError(f"has the margin {_shown(value)}: a number is wanted")
    return number
