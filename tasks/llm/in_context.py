"""Labels by examples in the prompt: a frozen language model and finished adapters, side by side; nothing is trained.

mmpeft train llm/in_context_moods
mmpeft train llm/in_context_moods load.tuned=runs/sft_moods/adapter shots='[0, 4]'
python tasks/llm/in_context.py configs/llm/in_context_moods.yaml seeds='[0, 1, 2]'
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

import mmpeft
from mmpeft.assembly.task import run_script
from mmpeft.data.language.prompt_format import PromptFormat
from mmpeft.data.language.task_config import LabelledTexts
from mmpeft.kernels.backends import Backend
from mmpeft.settings import Settings
from mmpeft.training.config import AdapterName
from mmpeft.training.run.run_directory import RunDirectory

if TYPE_CHECKING:
    from mmpeft.data.language.demonstrations import Prompts
    from mmpeft.data.language.labelled import LabelledRows
    from mmpeft.heads.token_probabilities import TokenScorer

FROZEN = "frozen"


class InContextTexts(LabelledTexts):
    """Labelled texts; examples are of the training split, questions of the test split."""

    max_length: PositiveInt = 4096
    """Tokens of a prompt with its label; a longer one is an error, as is one beyond the model's positions."""


class Config(Settings):
    """What is asked, with how many examples, and who answers."""

    task: str
    """``llm/in_context``."""
    model: str
    """A language model that writes: ``tiny/llm``, ``hf/OWNER/NAME`` or a local folder."""
    load: dict[AdapterName, str] = Field(default={})
    """Finished adapters by name, each asked alone: their directories, ``runs/NAME/adapter``."""
    data: InContextTexts
    """Where texts and labels come from."""
    prompt: PromptFormat = PromptFormat()
    """How examples and the question are written."""
    shots: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (0, 1, 4, 8)
    """Numbers of examples in the prompt, over all classes."""
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (0,)
    """Of the draws of examples; accuracies are means over them. Without examples there is nothing to draw."""
    calibration: tuple[str, ...] = ()
    """Content-free inputs of contextual calibration, such as ``[N/A, "[MASK]", ""]``; () leaves it out."""
    batch_size: PositiveInt = 32
    """Prompts with a label per forward pass."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the frozen weights."""
    attention: Backend = "auto"
    """The kernel of the model's attention; ``auto`` is its library's own way, ``xformers`` needs that extra."""
    output: Path
    """The run directory."""

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if FROZEN in self.load:
            raise ValueError(f"load.{FROZEN}: this is what the model without adapters is called: another name")
        if self.data.labels == "number":
            raise ValueError("data.labels: 'number': a label is chosen among classes: classes")
        return self


def make(config: Config) -> tuple[TokenScorer, Prompts, LabelledRows, int]:
    """Load the model with all adapters, the prompts and the data, and the number of tokens that a prompt may have."""
    from mmpeft.data.language.demonstrations import Prompts
    from mmpeft.data.language.labelled import read_labelled
    from mmpeft.heads.token_probabilities import TokenScorer
    from mmpeft.zoo.language_models import load_language_model
    from mmpeft.zoo.precision import DTYPES

    rows = read_labelled(config.data)
    backbone, tokenizer = load_language_model(config.model, DTYPES[config.precision])
    if backbone.config.is_encoder_decoder:
        raise ValueError(f"model: {config.model!r} reads its prompt by an encoder: a decoder is wanted")
    prompts = Prompts(tokenizer, config.prompt, rows.classes)
    mmpeft.use_attention(backbone, config.attention)
    scorer = TokenScorer(backbone)
    for name, path in config.load.items():
        mmpeft.load(scorer, path, name=name)
    positions = getattr(backbone.config.get_text_config(), "max_position_embeddings", config.data.max_length)
    return scorer.eval(), prompts, rows, min(positions, config.data.max_length)


def run(config: Config) -> None:
    """Ask, print the accuracies, and write them to ``metrics.json`` and ``curves.png``."""
    import torch

    from mmpeft.assembly.in_context import by_count, draw_accuracies, make_shots, table

    directory = RunDirectory(config.output)
    directory.claim(None)
    config.output.mkdir(parents=True, exist_ok=True)
    scorer, prompts, rows, limit = make(config)
    scorer.to("cuda" if torch.cuda.is_available() else "cpu")
    drawn = {
        (count, seed): make_shots(prompts, rows, count, seed, config.calibration, limit)
        for count in config.shots
        for seed in (config.seeds if count else config.seeds[:1])
    }
    accuracies = {}
    for name in (FROZEN, *config.load):
        if config.load:
            mmpeft.adapters(scorer).activate(*([] if name == FROZEN else [name]))
        accuracies[name] = by_count(scorer, drawn, config.batch_size)
    print(table(accuracies))
    means = {name: {f"{k}": fmean(seeds) for k, seeds in own.items()} for name, own in accuracies.items()}
    examples = {f"k={k} seed={seed}": [row.id for row in shots.examples] for (k, seed), shots in drawn.items()}
    last = {name: by[f"{config.shots[-1]}"] for name, by in means.items()}
    asked = {"accuracy": means, "accuracy_by_seed": accuracies, "seeds": config.seeds, "examples": examples}
    directory.write_json("metrics.json", {"test": last, **asked, "config": config.model_dump(mode="json")})
    draw_accuracies(accuracies, 1 / len(rows.classes), config.output / "curves.png")
    print(f"run directory: {config.output}")


def check(config: Config) -> None:
    """Print the first test row's prompt with the most examples, and its label; write nothing."""
    from mmpeft.assembly.in_context import make_shots

    _, prompts, rows, limit = make(config)
    shots = make_shots(prompts, rows, max(config.shots), config.seeds[0], config.calibration, limit)
    row = rows.parts["test"][0]
    print(prompts.render(shots.examples, row.fields, prompts.words[row.fields["label"]])[1])


def main(arguments: list[str]) -> None:
    """Ask as the command line says."""
    run_script(arguments, Config, run)


if __name__ == "__main__":
    main(sys.argv[1:])
