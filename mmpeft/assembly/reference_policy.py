"""What the reference policy gives every answer, computed once before training."""

from __future__ import annotations

import torch
from accelerate.utils import reduce, send_to_device

from mmpeft.data.language.splits import TextSplit
from mmpeft.objectives.preference import Preference, answer_scores
from mmpeft.objectives.reference import as_reference
from mmpeft.training.trainer import Trainer


def precompute_reference(trainer: Trainer) -> None:
    """Add to each sample of all splits its ``reference`` log-probabilities (sequences,); each process does a share."""
    assert isinstance(trainer.objective, Preference)
    for split in (trainer.data.train, trainer.data.val, trainer.data.test):
        assert isinstance(split, TextSplit)
        if len(split):
            split.extras["reference"] = [*_scores(trainer, split).cpu()]


def _scores(trainer: Trainer, split: TextSplit) -> torch.Tensor:
    accelerator, size = trainer.accelerator, trainer.config.eval_batch_size or trainer.config.batch_size
    totals = torch.zeros(len(split), len(split.sequences(0)), device=accelerator.device)
    starts = range(0, len(split), size)
    passes = -(-len(starts) // accelerator.num_processes)
    for step in range(passes):
        turn = (step * accelerator.num_processes + accelerator.process_index) % len(starts)
        rows = range(starts[turn], min(starts[turn] + size, len(split)))
        batch = send_to_device(split.collate([split[row] for row in rows]), accelerator.device)
        with accelerator.autocast(), as_reference(trainer.model, trainer.adapters):
            scores, _ = answer_scores(trainer.model, batch)
        if step * accelerator.num_processes + accelerator.process_index < len(starts):
            totals[rows.start : rows.stop] = scores.view(-1, len(rows)).T
    return reduce(totals, reduction="sum")
