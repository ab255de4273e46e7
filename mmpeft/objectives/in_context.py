"""Classification by the log-probabilities of labels behind a prompt, and contextual calibration."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmpeft.heads.token_probabilities import TokenScorer

Choices = Sequence[tuple[Sequence[int], int]]
"""For each class the tokens of a prompt with its label, and how many of them are the prompt's."""


@torch.no_grad()
def score_choices(scorer: TokenScorer, rows: Sequence[Choices], batch_size: int) -> Tensor:
    """Return the mean log-probability of the tokens of each label, (rows, classes), in nats per token.

    ``score(y) = 1/|y| sum_t log p(y_t | prompt, y_<t)``. ``batch_size`` counts prompts with a label.
    """
    flat = [choice for row in rows for choice in row]
    longest_first = sorted(range(len(flat)), key=lambda row: -len(flat[row][0]))
    scores = torch.empty(len(flat))
    for start in range(0, len(flat), batch_size):
        places = longest_first[start : start + batch_size]
        scores[places] = _mean_scores(scorer, [flat[row] for row in places])
    return scores.view(len(rows), -1)


def calibrate(scores: Tensor, content_free: Tensor) -> Tensor:
    """Return log-probabilities (rows, classes) by contextual calibration (Zhao et al. 2021, arXiv:2102.09690).

    ``q = softmax over classes of log p - log p_cf``, with ``p`` the softmax of a row's scores and ``p_cf`` the mean of
    that of the content-free inputs (inputs, classes): a prompt that says nothing is then undecided.
    """
    bias = content_free.softmax(-1).mean(0).log()
    return (scores.log_softmax(-1) - bias).log_softmax(-1)


def _mean_scores(scorer: TokenScorer, choices: Choices) -> Tensor:
    device, longest = next(scorer.parameters()).device, max(len(tokens) for tokens, _ in choices)
    ids, counted, mask = (torch.zeros(len(choices), longest, dtype=torch.long) for _ in range(3))
    for row, (tokens, start) in enumerate(choices):
        ids[row, : len(tokens)] = torch.as_tensor(tokens)
        mask[row, : len(tokens)] = 1
        counted[row, start : len(tokens)] = 1
    scores, _ = scorer(ids.to(device), counted.to(device), attention_mask=mask.to(device))
    lengths = counted.sum(-1)
    owner = torch.arange(len(choices)).repeat_interleave(lengths)
    return torch.zeros(len(choices)).index_add(0, owner, scores.float().cpu()) / lengths
