"""Continued pretraining: a language model goes on with texts of your own, packed.

mmpeft train llm/pretrain_folder data.path=my_texts
mmpeft predict runs/pretrain_folder prompt="Once upon"
accelerate launch tasks/llm/pretrain.py configs/llm/pretrain_folder.yaml
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from mmpeft.assembly.language_config import LanguageConfig
from mmpeft.assembly.task import Task
from mmpeft.data.language.config import LanguageData, Packing

if TYPE_CHECKING:
    from mmpeft.assembly.parts import Parts


class PretrainingData(LanguageData):
    """Documents, one after another, cut at every ``max_length`` tokens."""

    packing: Packing = "wrapped"
    """Several documents in one training sample, none of which sees another: ``wrapped`` cuts the row of all documents
    at every ``max_length``, ``whole`` fills samples with whole documents; ``none`` takes each by itself."""


class Config(LanguageConfig):
    """One run of continued pretraining."""

    data: PretrainingData
    """Where texts come from, and how they become tokens."""


def assemble(config: Config) -> Parts:
    """Load the model and its tokenizer; all tokens of the documents are learned."""
    from mmpeft.assembly import language
    from mmpeft.objectives.next_token import LanguageModelling

    return language.assemble(config, lambda adapters, tokenizer: LanguageModelling())


TASK = Task(Config, assemble)

if __name__ == "__main__":
    TASK.main(sys.argv[1:])
