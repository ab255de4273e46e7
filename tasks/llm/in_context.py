"""In-context evaluation: k examples in the prompt, with the frozen model and with adapters of finished runs.

mmpeft train llm/in_context_moods
mmpeft train llm/in_context_moods 'load={tuned: runs/sft_tasks/adapter}'
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from random import Random
from statistics import mean
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

import mmpeft
from mmpeft.data.language.labelled import labelled_rows
from mmpeft.data.language.task_config import LabelledTexts
from mmpeft.files import write_text
from mmpeft.heads.language import TokenScorer
from mmpeft.objectives.in_context import Quiz, Row, Wording, draw_examples
from mmpeft.settings import Settings
from mmpeft.training.config import read_run
from mmpeft.training.language import DTYPES
from mmpeft.training.run_directory import RunDirectory
from mmpeft.zoo.language import load_language_model

FROZEN = "frozen"


class Config(Settings):
    """What to ask, and whom."""

    task: str
    """``llm/in_context``."""
    model: str
    """The language model: ``hf/OWNER/NAME``, ``tiny/llm`` or a folder of transformers."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of its weights."""
    load: dict[str, Path] = Field(default={})
    """Directories of finished adapters by name, each asked by itself beside the frozen model."""
    data: LabelledTexts
    """Labelled texts: examples come from the training split, questions from the test split."""
    prompt: str = "{text}\nLabel:"
    """A text (and ``{text_pair}``) up to the place where the word of its class follows."""
    words: dict[str, str] = Field(default={})
    """Words for classes whose names say little; each follows a space."""
    shots: tuple[NonNegativeInt, ...] = (0, 1, 4, 8)
    """How many examples are in front of a question."""
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (0,)
    """Draws of the examples; accuracies are means over them."""
    calibrate: bool = False
    """Whether the scores behind a prompt without content ("N/A") are taken off (Zhao et al. 2021)."""
    batch_size: PositiveInt = 16
    """Questions of a forward pass; each has a row for every word."""
    output: Path
    """The folder of ``metrics.json`` and ``table.md``."""

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if FROZEN in self.load:
            raise ValueError(f"load: {FROZEN!r} is what the model without adapters is called: choose another name")
        if self.data.labels != "classes":
            raise ValueError("data.labels: 'number': words are of classes")
        return self


def run(config: Config) -> None:
    """Ask, print accuracies by adapter and number of examples, and write them."""
    print(table(ask(config)))


def check(config: Config) -> None:
    """Print three questions as the model reads them, with their words; write nothing."""
    wording, train, test, _ = load_questions(config)
    for place, row in enumerate(test[:3]):
        shown = draw_examples(train, len(wording.words), max(config.shots), Random(f"{config.seeds[0]}/{place}"))
        print(f"{wording.question(row, shown)}[{wording.words[row['label']]}]\n")


def ask(config: Config) -> dict[str, dict[str, float]]:
    """Return accuracies by adapter and number of examples, and write them."""
    directory = RunDirectory(config.output)
    directory.claim(None)
    wording, train, test, notes = load_questions(config)
    backbone, tokenizer = load_language_model(config.model, DTYPES[config.precision])
    model = TokenScorer(backbone).to("cuda" if torch.cuda.is_available() else "cpu").eval()
    for name, path in config.load.items():
        mmpeft.load(model, path, name=name)
    found: dict[str, dict[str, float]] = {}
    for name in (FROZEN, *config.load):
        with mmpeft.adapters(model).off() if config.load else nullcontext():
            if name != FROZEN:
                mmpeft.adapters(model).activate(name)
            quiz = Quiz(model, tokenizer, wording, train, test, config.calibrate, config.batch_size)
            found[name] = {str(k): mean(quiz.accuracy(k, seed) for seed in config.seeds) for k in config.shots}
    directory.path.mkdir(parents=True, exist_ok=True)
    directory.write_json("metrics.json", {"model": config.model, "accuracy": found, "notes": notes})
    write_text(config.output / "table.md", table(found))
    return found


def load_questions(config: Config) -> tuple[Wording, list[Row], list[Row], list[str]]:
    """Return the wording, rows for examples and rows to ask, and what there is to say of the data."""
    parts, classes, notes = labelled_rows(config.data)
    words = tuple(f" {config.words.get(name, name)}" for name in classes)
    train, test = ([row.fields for row in parts[name]] for name in ("train", "test"))
    return Wording(config.prompt, words), train, test, notes


def table(found: dict[str, dict[str, float]]) -> str:
    """Return accuracies as a Markdown table: a row for each adapter, a column for each number of examples."""
    shots = list(next(iter(found.values())))
    lines = [f"| examples | {' | '.join(shots)} |", f"|---{'|--:' * len(shots)}|"]
    lines += [f"| {name} | {' | '.join(f'{own[k]:.4f}' for k in shots)} |" for name, own in found.items()]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    """Ask as the command line says."""
    path, *overrides = arguments
    run(read_run(Path(path), overrides).validate(Config))


if __name__ == "__main__":
    main(sys.argv[1:])
