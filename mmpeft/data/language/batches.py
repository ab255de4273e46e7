"""Sequences of different lengths as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmpeft.data.language.encoding import Encoded


def pad_sequences(rows: Sequence[Encoded], fill: int, thought_weight: float = 1.0) -> dict[str, Tensor]:
    """Return ``input_ids`` and ``weights`` (rows, length), the loss weight of each token as something to predict.

    Shorter rows are filled at the end, by their length alone: a fill that is also the end of the text stays learned
    where it is one. Packed rows have ``position_ids``, in which the fill is a document of its own; others an
    ``attention_mask``.
    """
    length = max(len(row.tokens) for row in rows)
    table = np.asarray([0.0, 1.0, thought_weight], dtype=np.float32)
    weights = [table[row.kinds] for row in rows]
    for row_weights in weights:
        row_weights[0] = 0.0
    batch = {
        "input_ids": _filled([row.tokens for row in rows], length, fill).long(),
        "weights": _filled(weights, length, 0.0),
    }
    if rows[0].positions is None:
        return batch | {"attention_mask": _filled([np.ones_like(row.tokens) for row in rows], length, 0).long()}
    positions = [np.concatenate([row.positions, np.arange(length - len(row.tokens))]) for row in rows]
    return batch | {"position_ids": torch.from_numpy(np.stack(positions)).long()}


def pad_prompts(prompts: Sequence[np.ndarray], fill: int) -> dict[str, Tensor]:
    """Return ``prompt_ids`` and ``prompt_mask`` (rows, length), filled at the front: answers begin side by side."""
    length = max(map(len, prompts))
    backwards = [prompt[::-1] for prompt in prompts]
    ids = _filled(backwards, length, fill).flip(1).long()
    return {"prompt_ids": ids, "prompt_mask": _filled([np.ones_like(p) for p in backwards], length, 0).flip(1).long()}


def fill_of(tokenizer: Any) -> int:
    """Return the token that fills up shorter rows: any will do, for masks hide it."""
    fill = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return int(fill or 0)


def _filled(rows: Sequence[np.ndarray], length: int, fill: Any) -> Tensor:
    padded = np.full((len(rows), length), fill, dtype=rows[0].dtype)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return torch.from_numpy(padded)
