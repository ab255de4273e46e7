"""Data of the classic tasks of language models: labels, answers in a context, sources with targets. Needs no torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from mmpeft.data.language.source_config import TextSource
from mmpeft.settings import nearest


class TaskData(TextSource):
    """Rows whose columns have fixed meanings; a column inside another one is named with a dot (``translation.en``)."""

    known: ClassVar[dict[str, str]]
    """What is read, and the column that it has there unless ``columns`` says otherwise."""
    optional: ClassVar[tuple[str, ...]] = ()
    """What a row may lack."""
    asked: ClassVar[tuple[str, ...]]
    """What rows of one split must not share with those of another."""

    @model_validator(mode="after")
    def _known_columns(self) -> TaskData:
        for field in self.columns:
            if field not in self.known:
                hint = nearest(field, self.known)
                raise ValueError(f"columns.{field}: this task reads only {', '.join(self.known)}{hint}")
        return self


class LabelledTexts(TaskData):
    """A text, or two, with a class or a number."""

    known: ClassVar[dict[str, str]] = {"text": "text", "text_pair": "text_pair", "label": "label"}
    optional: ClassVar[tuple[str, ...]] = ("text_pair",)
    asked: ClassVar[tuple[str, ...]] = ("text", "text_pair")

    labels: Literal["classes", "number"] = "classes"
    """``classes``: one of several names, or numbers that stand for them; ``number``: regression."""
    classes: Annotated[tuple[str, ...], Field(min_length=2)] | None = None
    """Names of the classes in order, where a number is an index into them; null takes the labels of the training
    rows, sorted."""
    max_length: PositiveInt = 256
    """Tokens of a sample; of two texts the longer one is cut first."""

    @model_validator(mode="after")
    def _consistent(self) -> LabelledTexts:
        if self.labels == "number" and self.classes is not None:
            raise ValueError(f"classes: {list(self.classes)}: labels: number has none: null")
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes: {list(self.classes)}: a name comes twice")
        return self


class ReadingData(TaskData):
    """Questions whose answers are parts of a context, in the columns of SQuAD."""

    known: ClassVar[dict[str, str]] = {"context": "context", "question": "question", "answers": "answers"}
    asked: ClassVar[tuple[str, ...]] = ("context", "question")

    max_length: PositiveInt = 384
    """Tokens of a window: the question, and as much of the context as fits."""
    stride: NonNegativeInt = 128
    """Tokens that neighbouring windows of one context share."""
    unanswerable: bool = False
    """Whether a row without answers is right as it is, and the model may find that there is none (SQuAD 2.0)."""


class PairedTexts(TaskData):
    """A source and what it is to become: a translation, a summary."""

    known: ClassVar[dict[str, str]] = {"source": "source", "target": "target"}
    asked: ClassVar[tuple[str, ...]] = ("source",)

    prefix: str = ""
    """What is written in front of every source: ``"summarize: "`` is T5's."""
    max_length: PositiveInt = 512
    """Tokens of a source; what is longer is cut at the end."""
    max_target_length: PositiveInt = 128
    """Tokens of a target; what is longer is cut at the end."""
