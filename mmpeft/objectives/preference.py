"""Preference alignment: answers that are better or worse, with the adapters switched off as the reference policy."""

from __future__ import annotations

import torch
from accelerate.utils import reduce
from torch import Tensor, nn

from mmpeft.handle.adapters import Adapters
from mmpeft.objectives.base import Batch, Objective
from mmpeft.objectives.next_token import score_tokens
from mmpeft.objectives.preference_losses import Answered, pair_losses, rewards, single_losses
from mmpeft.objectives.preference_settings import PreferenceSettings
from mmpeft.objectives.reference import as_reference


def answer_scores(model: nn.Module, batch: Batch, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
    """Return of each row its answer's summed log-probability, and how many tokens that is over; both (rows,)."""
    scores, _, _, places = score_tokens(model, batch, rows)
    zeros = scores.new_zeros(len(batch["weights"][rows]))
    return zeros.index_add(0, places, scores), zeros.index_add(0, places, torch.ones_like(scores))


class Preference(Objective):
    """Losses of `preference_losses` over pairs: the first half of a batch's rows is chosen, the second rejected.

    Log-probabilities are summed over the tokens of an answer; the loss is a sum over pairs. Those by the reference come
    from the same model with its adapters off, or from the batch's ``reference`` (batch, 2). Scores: ``loss``,
    ``accuracy`` (pairs whose chosen answer has the larger reward) and ``margin`` (mean difference of the rewards), with
    ``chosen_reward`` and ``rejected_reward``.
    """

    score_names = ("loss", "accuracy", "chosen_reward", "rejected_reward", "margin")

    sums: Tensor
    """Of the evaluation so far, on this process: losses and their number, right pairs and theirs, rewards of good
    answers and their number, and of bad ones."""

    def __init__(self, adapters: Adapters, settings: PreferenceSettings) -> None:
        super().__init__()
        self.adapters, self.settings = adapters, settings
        self.register_buffer("sums", torch.zeros(4, 2, dtype=torch.float64), persistent=False)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the summed loss, and summed over pairs the ``accuracy`` and ``margin`` of the rewards."""
        chosen, rejected = self._pairs(model, batch)
        better, worse = (rewards(answers, self.settings).detach() for answers in (chosen, rejected))
        logs = {"accuracy": (better > worse).sum().float(), "margin": (better - worse).sum()}
        return pair_losses(chosen, rejected, self.settings).sum(), logs

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Add pairs to the sums."""
        chosen, rejected = self._pairs(model, batch)
        better, worse = rewards(chosen, self.settings), rewards(rejected, self.settings)
        losses = pair_losses(chosen, rejected, self.settings)
        self._add(losses, better > worse, better, worse)

    def compute(self) -> dict[str, float]:
        """Return the scores; those that nothing is known of are left out."""
        sums = reduce(self.sums.clone(), reduction="sum").tolist()
        self.sums.zero_()
        names = ("loss", "accuracy", "chosen_reward", "rejected_reward")
        scores = {name: total / count for name, (total, count) in zip(names, sums, strict=True) if count}
        if "chosen_reward" in scores and "rejected_reward" in scores:
            scores["margin"] = scores["chosen_reward"] - scores["rejected_reward"]
        return scores

    def _add(self, *values: Tensor) -> None:
        """Add losses, which pairs are right, and rewards of good and of bad answers."""
        self.sums += torch.stack([self.sums.new_tensor([float(value.sum()), len(value)]) for value in values])

    def _pairs(self, model: nn.Module, batch: Batch) -> tuple[Answered, Answered]:
        policy, tokens, text = self._policy(model, batch)
        reference = self._reference(model, batch) if self.settings.needs_reference else torch.zeros_like(policy)
        parts = zip(policy.chunk(2), reference.chunk(2), tokens.chunk(2), strict=True)
        chosen, rejected = (Answered(*part, text) for part in parts)
        return chosen, rejected

    def _policy(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return `answer_scores`, and where prompts are minimised too the mean over all tokens of the chosen rows."""
        if not self.settings.reads_prompts:
            return *answer_scores(model, batch), None
        answers = batch["weights"] > 0
        counted, pairs = answers.clone(), len(answers) // 2
        if "decoder_input_ids" not in batch:
            attended = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
            counted[:pairs, 1:] |= attended[:pairs, 1:].bool()
        scores, _, _, rows = score_tokens(model, batch, counted=counted)
        inside, zeros = answers[counted], scores.new_zeros(len(answers))
        sums = zeros.index_add(0, rows[inside], scores[inside])
        return sums, zeros.index_add(0, rows[inside], torch.ones_like(scores[inside])), scores[rows < pairs].mean()

    def _reference(self, model: nn.Module, batch: Batch, rows: slice = slice(None)) -> Tensor:
        if "reference" in batch:
            stored: Tensor = batch["reference"].T.flatten()[rows]
            return stored
        with as_reference(model, self.adapters):
            return answer_scores(model, batch, rows)[0]


class SinglePreference(Preference):
    """KTO and APO-zero: answers that are good or bad, one by one, ``w (1 - sigmoid(+-beta (log-ratio - z)))``.

    ``z`` estimates the divergence of the policy from the reference: the mean log-ratio of answers to other prompts, the
    second half of a batch's rows, over all processes, at least 0 and without a gradient. As it is a mean over a forward
    pass, accumulation changes it a little. APO-zero and an evaluation have z = 0; one of pairs has their scores.
    """

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the summed loss, and of KTO under ``kl`` the estimated divergence."""
        if self.settings.name != "kto":
            return single_losses(self._answers(model, batch), batch["label"], 0.0, self.settings).sum(), {}
        count = len(batch["label"])
        divergence = self._divergence(model, batch, slice(count, None))
        answers = self._answers(model, batch)
        losses = single_losses(answers, batch["label"], divergence, self.settings)
        return losses.sum(), {"kl": divergence * count}

    def idle(self, model: nn.Module, batch: Batch) -> None:
        """Pass a batch through the model as `update` does; the loss would wait for other processes."""
        self._answers(model, batch) if "label" in batch else self._pairs(model, batch)

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Add answers to the sums."""
        if "label" not in batch:
            self._update_pairs(model, batch)
            return
        answers, good = self._answers(model, batch), batch["label"]
        losses, worth = single_losses(answers, good, 0.0, self.settings), rewards(answers, self.settings)
        self._add(losses, good[:0], worth[good], worth[~good])

    def _update_pairs(self, model: nn.Module, batch: Batch) -> None:
        chosen, rejected = self._pairs(model, batch)
        better, worse = rewards(chosen, self.settings), rewards(rejected, self.settings)
        good = torch.ones_like(better, dtype=torch.bool)
        losses = [single_losses(*one, 0.0, self.settings) for one in ((chosen, good), (rejected, ~good))]
        self._add(torch.cat(losses), better > worse, better, worse)

    def _answers(self, model: nn.Module, batch: Batch) -> Answered:
        rows = slice(len(batch["label"]))
        reference = self._reference(model, batch, rows)
        policy, tokens = answer_scores(model, batch, rows)
        return Answered(policy, reference, tokens)

    def _divergence(self, model: nn.Module, batch: Batch, rows: slice) -> Tensor:
        """Return the mean log-ratio of answers to other prompts, over the batches of all processes that count."""
        reference = self._reference(model, batch, rows)
        with torch.no_grad():
            ratios = answer_scores(model, batch, rows)[0] - reference
        counted = float(batch["counted"])
        total, count = reduce(torch.stack([ratios.sum(), ratios.new_tensor(len(ratios))]) * counted, reduction="sum")
        return (total / count).clamp(min=0)
