"""The parts of one run: what a task script puts together, and a trainer or an evaluation is made of."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeVar

from accelerate import PartialState
from torch import nn

import mmpeft
from mmpeft.assembly.prediction import Prediction
from mmpeft.handle.adapters import Adapters
from mmpeft.objectives.base import Objective
from mmpeft.training.config import RunConfig
from mmpeft.training.evaluation import evaluate_split
from mmpeft.training.loader import Split
from mmpeft.training.preview import Preview
from mmpeft.training.trainer import Trainer


class DescribedSplit(Split, Protocol):
    """A split that can say what is to be learned of a sample."""

    def describe(self, index: int) -> str:
        """Say what is to be learned of a sample, for people."""


class TaskData(Protocol):
    """The three splits of a data set, and what is worth saying of how they were made."""

    @property
    def train(self) -> DescribedSplit:
        """Samples to learn from."""

    @property
    def val(self) -> DescribedSplit:
        """Samples that select the weights."""

    @property
    def test(self) -> DescribedSplit:
        """Samples for the final scores."""

    @property
    def notes(self) -> Sequence[str]:
        """What was left out, or mixed in."""


DataT = TypeVar("DataT", bound=TaskData)


@dataclass(frozen=True)
class Parts:
    """What a run is put together from. The model has no adapters yet."""

    config: RunConfig
    """The configuration, with what the data decided filled in: this one is saved."""
    model: nn.Module
    """What is trained and evaluated."""
    read: Callable[[], TaskData]
    """Reads the data; called once, and only if the data is needed."""
    objective: Callable[[Adapters], Objective]
    """What is minimised, made when the adapters are in the model."""
    answer: Callable[[int], Prediction]
    """What the adapted model says of a test sample, given its index."""
    loading: str
    """Python that makes ``model``, for the model card."""
    tokenizer: Any = None
    """Of a model of texts."""
    pipeline: Any = None
    """What carries the adapters where this is not ``model``: a pipeline, or a dict of modules."""
    head: bool | Collection[str] = False
    """Whether the model's head is new, and so trained beside every adapter; or the adapters that train it."""
    frozen: bool = False
    """Whether the model without its adapters is tested too: it can do the task by itself."""
    once_adapted: Callable[[], None] | None = None
    """Called when the adapters are in the model that is to be trained."""
    prepare: Callable[[Trainer], None] | None = None
    """Called before training, with what trains."""
    tune: Callable[[], None] | None = None
    """Called with the best adapter in the model; what it changes there is kept."""
    preview: Callable[[], Preview] | None = None
    """Makes what draws pictures on the way; called after the adapters, whose start is the same with and without."""
    trainer: type[Trainer] = Trainer
    """What trains."""

    @property
    def carrier(self) -> Any:
        """The module, or the pipeline, that carries the adapters."""
        return self.model if self.pipeline is None else self.pipeline

    @cached_property
    def data(self) -> TaskData:
        """The splits; what is worth saying of them is printed when they are read."""
        return announced(self.read())

    def evaluate(self) -> dict[str, float]:
        """Return the test scores of the model as it is."""
        objective = self.objective(mmpeft.adapters(self.carrier))
        return evaluate_split(self.model, objective, self.data, self.config.train, self.config.output)


def announced(data: DataT) -> DataT:
    """Print what is worth saying of the data, once for all processes, and return it."""
    for note in data.notes:
        PartialState().print(note)
    return data
