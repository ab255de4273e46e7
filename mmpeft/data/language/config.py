"""Data of language models: the field's formats, and how rows become tokens. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from mmpeft.data.config import FilePath
from mmpeft.data.language.source_config import TextSource
from mmpeft.settings import Settings

FormatName = Literal["text", "messages", "prompt_completion", "alpaca", "sharegpt", "preference", "unpaired", "prompts"]
Packing = Literal["none", "whole", "wrapped"]
FIELDS: dict[str, dict[str, str]] = {
    "text": {"text": "text"},
    "messages": {"messages": "messages", "tools": "tools"},
    "sharegpt": {"messages": "conversations", "system": "system", "tools": "tools"},
    "prompt_completion": {"prompt": "prompt", "completion": "completion"},
    "alpaca": {
        "prompt": "instruction",
        "input": "input",
        "completion": "output",
        "system": "system",
        "history": "history",
    },
    "preference": {
        "prompt": "prompt",
        "input": "input",
        "chosen": "chosen",
        "rejected": "rejected",
        "margin": "margin",
        "system": "system",
    },
    "unpaired": {"prompt": "prompt", "input": "input", "completion": "completion", "label": "label"},
    "prompts": {"prompt": "prompt", "input": "input", "system": "system"},
}
"""What each format reads, and the column that it has there unless `columns` says otherwise."""
for _fields in ("prompt_completion", "alpaca"):
    FIELDS[_fields]["reasoning"] = "reasoning"
OPTIONAL = ("tools", "system", "input", "history", "margin", "reasoning")
"""Fields that a row may lack."""


class Reasoning(Settings):
    """Thoughts in front of an answer (chain of thought), between two tags."""

    tags: tuple[str, str] = ("<think>", "</think>")
    """What opens and what closes them, in the text of the answer."""
    weight: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Weight of their tokens in the loss, tags included; 0 masks them, the answer itself has 1."""


class Refusals(Settings):
    """Rows whose right answer is to decline, mixed into the training."""

    path: FilePath
    """Like ``data.path``, in the same format and with the same columns."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Their share of the training samples; where there are too few of them they come several times."""
    benign_path: FilePath | None = None
    """Harmless requests that look harmful, for the rate of over-refusals; null counts those of the test split. If its
    files name splits, or it is a generated set, those of its training split are learned too."""
    markers: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "i can't",
        "i cannot",
        "i can not",
        "i won't",
        "i will not",
        "i'm sorry",
        "i am sorry",
        "i'm not able",
        "i am not able",
        "i'm unable",
        "i am unable",
    )
    """Any of these, in any case, makes an answer a refusal."""


class LanguageData(TextSource):
    """One data set of texts and its splits."""

    name: FormatName
    """``text``: documents; ``messages``: conversations of ``role`` and ``content`` (OpenAI), ``sharegpt``: of ``from``
    and ``value``; ``prompt_completion``: a prompt and what follows, as texts or turns; ``alpaca``: ``instruction``,
    ``input``, ``output``; ``preference``: a ``chosen`` and a ``rejected`` answer to a prompt, or to what both begin
    with; ``unpaired``: an answer and a ``label`` that says whether it is good; ``prompts``: what the model is to
    answer."""
    roles: dict[str, Literal["system", "developer", "user", "assistant", "tool"]] = Field(default_factory=dict)
    """Names of speakers in the data, and what they are: ``{bot: assistant}``."""
    system: str | None = None
    """A system turn for conversations that have none."""
    template: Literal["chat", "alpaca", "plain"] | None = None
    """How a prompt is worded: by the tokenizer's chat template, by Stanford Alpaca's sentences, or as it is; null takes
    ``chat`` for turns and ``alpaca``, and ``plain`` for prompts that are texts."""
    chat_template: Path | None = None
    """A file with a chat template (Jinja) in place of the tokenizer's own."""
    template_options: dict[str, str | bool | int] = Field(default_factory=dict)
    """What a chat template takes besides the turns: ``{enable_thinking: false}``."""
    learn: Literal["completion", "assistant", "all"] | None = None
    """What is learned: the last answer, every turn of the assistant, or all; null: ``assistant`` for conversations,
    ``all`` for text, else ``completion``."""
    reasoning: Reasoning = Reasoning()
    """How thoughts in answers count."""
    packing: Packing = "none"
    """Several rows in one training sample, none of which sees another: ``whole`` fills it with whole rows, ``wrapped``
    cuts the row of all documents at every ``max_length``."""
    refusals: Refusals | None = None
    """Refusals to mix in."""

    @property
    def documents(self) -> bool:
        """Whether a row may be a text file as a whole."""
        return self.name == "text"

    @model_validator(mode="after")
    def _consistent(self) -> LanguageData:
        problems = [*self._column_problems(), *self._template_problems()]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _column_problems(self) -> list[str]:
        known = FIELDS[self.name]
        unknown = [field for field in self.columns if field not in known]
        return [f"columns.{unknown[0]}: name: {self.name} has only {', '.join(known)}"] if unknown else []

    def _template_problems(self) -> list[str]:
        problems, pairs = [], self.name in ("preference", "unpaired", "prompts")
        if pairs and self.packing != "none":
            problems.append(f"packing: {self.packing!r}: answers of name: {self.name} are compared whole: none")
        if pairs and self.learn not in (None, "completion"):
            problems.append(f"learn: {self.learn!r}: of name: {self.name} only the answers count: null")
        if pairs and self.refusals is not None:
            problems.append(f"refusals: are for instruction tuning, not for name: {self.name}")
        if self.name == "text" and (self.template not in (None, "plain") or self.learn not in (None, "all")):
            problems.append(f"template: {self.template!r}, learn: {self.learn!r}: all of a text is learned as it is")
        if self.template == "plain" and self.name in ("messages", "sharegpt"):
            problems.append(
                "template: 'plain': turns are put together by a chat template: chat, or chat_template: FILE"
            )
        return problems
