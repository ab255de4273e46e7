"""SQuAD's scores, the loss by hand, and answers over windows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmpeft.objectives.reading import Finding, Reading
from mmpeft.objectives.squad import exact_match, word_f1


@pytest.mark.parametrize(
    ("said", "truths", "exact", "f1"),
    [
        ("The red hat!", ["red hat"], 1, 1),
        ("a red hat", ["blue coat", "red"], 0, 2 / 3),
        ("red red", ["red"], 0, 2 / 3),
        ("", ["red"], 0, 0),
        ("red", [], 0, 0),
        ("", [], 1, 1),
        ("the", ["an"], 1, 1),
    ],
)
def test_squad_scores(said: str, truths: list[str], exact: float, f1: float) -> None:
    assert exact_match(said, truths) == exact
    assert word_f1(said, truths) == pytest.approx(f1)


class Given(nn.Module):
    """Gives the logits that are its input."""

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(start_logits=input_ids[..., 0], end_logits=input_ids[..., 1])


def batch(start: list[float], end: list[float], **more: Any) -> dict[str, Any]:
    """Return one window: nowhere, a word of the question, and the context "red hat ."."""
    return {
        "id": ["a"], "asked": ["a"], "context": ["red hat ."], "truths": [["red hat"]],
        "input_ids": torch.tensor([[start, end]]).mT, "allowed": torch.tensor([[1, 0, 1, 1, 1]]),
        "offsets": [[(0, 0), (0, 0), (0, 3), (4, 7), (8, 9)]],
        "nowhere": torch.tensor([0]), "start": torch.tensor([2]), "end": torch.tensor([3]), **more,
    }  # fmt: skip


def test_the_loss_is_over_the_tokens_at_which_an_answer_may_be() -> None:
    torch.manual_seed(0)
    start, end = torch.randn(2, 5).tolist()
    loss, _ = Reading().loss(Given(), batch(start, end))
    places = [0, 2, 3, 4]
    by_hand = [torch.tensor(of)[places].log_softmax(0)[places.index(at)] for of, at in ((start, 2), (end, 3))]
    torch.testing.assert_close(loss, -(by_hand[0] + by_hand[1]) / 2)


def test_the_best_span_is_in_the_context_forwards_and_short() -> None:
    objective = Reading(max_answer_length=2)
    objective.update(Given(), batch([9, 9, 5, 1, 4], [9, 9, 6, 3, 4]))
    assert objective.seen[0].text == "red"
    objective.seen = []
    objective.update(Given(), batch([0, 0, 5, 0, 1], [0, 0, 0, 3, 9]))
    assert objective.seen[0].text == "."
    assert objective.compute()["exact_match"] == 0


def test_an_answer_is_the_best_of_all_windows() -> None:
    parts = [
        Finding("a", "red", 1.0, 3.0, ("red",), 0.5),
        Finding("a", "blue", 2.0, 2.5, ("red",), 0.5),
        Finding("b", "sun", 2.0, 1.0, (), 1.0),
    ]
    objective = Reading()
    objective.seen = [*reversed(parts)]
    assert objective.compute() == {"f1": 0, "exact_match": 0, "loss": pytest.approx(2 / 3)}
    assert Reading(unanswerable=True).answer(parts[:2]) == ""
    assert Reading(unanswerable=True, threshold=0.6).answer(parts[:2]) == "blue"
    objective = Reading(unanswerable=True, threshold=0.6)
    objective.seen = [Finding("c", "sun", 2.0, 2.7, (), 1.0), *parts]
    scores = objective.compute()
    assert scores["unanswerable_accuracy"] == 0.5
    assert scores["answerable_f1"] == 0
