"""What every task of language models that write shares: model with tokenizer, data, and an answer to a prompt."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

import mmpeft
from mmpeft.anatomies.headed import Headed, backbone_of
from mmpeft.assembly.grafting import checkpoint_blocks
from mmpeft.assembly.language_config import LanguageConfig
from mmpeft.assembly.parts import Parts, TaskData, announced
from mmpeft.assembly.prediction import Prediction, checked_index
from mmpeft.data.language.encoding import Encoder
from mmpeft.data.language.formats import ask
from mmpeft.data.language.text_sets import Shape, load_texts
from mmpeft.handle.adapters import Adapters
from mmpeft.heads.token_probabilities import TokenScorer
from mmpeft.injection.pipelines import Vocabulary
from mmpeft.objectives.base import Objective
from mmpeft.objectives.generation import Writer
from mmpeft.training.accelerator import make_accelerator
from mmpeft.zoo.language_models import load_language_model
from mmpeft.zoo.precision import DTYPES

MakeObjective = Callable[[Adapters, Any], Objective]
"""From the adapters and the tokenizer to the objective of a task."""


def assemble(
    config: LanguageConfig,
    objective: MakeObjective,
    *,
    shape: Shape = "sequences",
    questions: bool = False,
    head: type[Headed] = TokenScorer,
    read: Callable[[Any, Any], TaskData] | None = None,
    speaker: str | None = None,
) -> Parts:
    """Load the model and its tokenizer; the data is read when it is needed.

    Args:
        config: The configuration.
        objective: Makes what is minimised.
        shape: What a sample is.
        questions: Whether the model is also to answer the questions of validation and test.
        head: Puts a head of ours around the library's model.
        read: Makes the splits of the data's configuration and the tokenizer, where they are not texts of a ``shape``.
        speaker: The adapter that writes, where others beside it don't; None for all.
    """
    model, tokenizer = load(config, head)

    def texts(questions: bool) -> Any:
        if read is not None:
            return read(config.data, tokenizer)
        return load_texts(config.data, tokenizer, shape, questions=questions)

    def test_prompt(index: int) -> np.ndarray:
        test = announced(texts(questions=True)).test
        prompt: np.ndarray = test.question(checked_index(test, index))[0]
        return prompt

    return Parts(
        config,
        model,
        read=lambda: texts(questions),
        objective=lambda adapters: objective(adapters, tokenizer),
        answer=lambda index: Prediction(write(config, model, tokenizer, partial(test_prompt, index), speaker)),
        loading=_loading(config.model.name, head),
        tokenizer=tokenizer,
        frozen=True,
        once_adapted=partial(_fit_model, model, config),
    )


def load(config: LanguageConfig, head: type[Headed]) -> tuple[Headed, Any]:
    """Load the model, with the task's head around it, and its tokenizer."""
    backbone, tokenizer = load_language_model(config.model.name, DTYPES[config.precision])
    model: Headed = head(backbone)
    model.words = Vocabulary(tokenizer).words
    return model, tokenizer


def _loading(name: str, head: type[Headed]) -> str:
    """Return the Python that makes the model; adapters of next-token models load into the library's own."""
    backbone = f'mmpeft.load_model("{name}")'
    if head is TokenScorer:
        return f"model = {backbone}"
    return f"from {head.__module__} import {head.__name__}\n\nmodel = {head.__name__}({backbone})"


def write(
    config: LanguageConfig, model: nn.Module, tokenizer: Any, test_prompt: Callable[[], np.ndarray], speaker: str | None
) -> str:
    """Return what the model writes after the configured ``prompt``, or else after the prompt of a test sample.

    Raises:
        ValueError: If there is neither, for the test split has documents.
    """
    if config.prompt is None and config.data.name == "text":
        raise ValueError("prompt: give one; the test split has documents, not questions")
    if speaker is not None:
        mmpeft.adapters(model).activate(speaker)
    encoder = Encoder(tokenizer, config.data)
    given = config.prompt
    prompt = test_prompt() if given is None else encoder.encode_prompt(ask(given, config.data))
    model.to(make_accelerator(config.train, config.output).device).eval()
    ids = torch.from_numpy(prompt).long()[None].to(next(model.parameters()).device)
    how = config.writing
    sampled = {"do_sample": True, "temperature": how.temperature, "top_p": how.top_p} if how.temperature else {}
    set_seed(config.train.seed)
    return Writer(tokenizer, encoder.ends(), how.max_new_tokens)(model, ids, torch.ones_like(ids), **sampled)[0]


def _fit_model(model: Headed, config: LanguageConfig) -> None:
    """Make an adapted model ready for training as the configuration says."""
    if config.data.packing != "none":
        check_packing(model)
    if config.train.gradient_checkpointing:
        checkpoint_blocks(model.backbone)


DOCUMENT, BEFORE = (5, 3, 8, 6, 4, 7), ((3, 4, 5, 6, 7, 8, 3, 4), (8, 8, 6, 5, 4, 3, 7, 3))
"""Token ids of a document, and of two others that may stand in front of it."""
LEAK = {"single": 1e-3, "half": 5e-2}
"""How far the scores of a document may move with what stands in front of it, as a share of how far they move with its
first token: that much is rounding. No bound in nats would do, for the scores of random weights hardly move at all."""


@torch.no_grad()
def check_packing(model: nn.Module) -> None:
    """Raise a ValueError unless a document behind another one is scored as it is alone, whatever the other one is."""
    training, half = model.training, torch.finfo(next(model.parameters()).dtype).eps > 1e-4
    model.eval()
    alone, behind, behind_another = (_document_scores(model, before, DOCUMENT) for before in ((), *BEFORE))
    reach = (_document_scores(model, (), (7, *DOCUMENT[1:])) - alone).abs().max()
    model.train(training)
    allowed = LEAK["half" if half else "single"] * reach
    shifted, leaked = (behind - alone).abs().max(), (behind - behind_another).abs().max()
    if not (leaked <= allowed and shifted <= allowed + 1e-2 * half):
        name = type(backbone_of(model)).__name__
        raise ValueError(
            f"data.packing: with these adapters {name} does not score a document behind another one as it does alone "
            "(it makes no mask from positions, or inserted tokens stand in front of the first one only): none"
        )


def _document_scores(model: nn.Module, before: tuple[int, ...], document: tuple[int, ...]) -> Tensor:
    """Return the log-probabilities of all tokens of a document but the first, packed behind another one."""
    device = next(model.parameters()).device
    ids = torch.tensor([[*before, *document]], device=device)
    positions = torch.tensor([[*range(len(before)), *range(len(document))]], device=device)
    counted = torch.arange(ids.shape[1], device=device)[None] > len(before)
    scores, _ = model(ids, counted, **({"position_ids": positions} if before else {}))
    return scores.double()
