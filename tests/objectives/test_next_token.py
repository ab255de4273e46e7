"""Every token weighs the same: in batches of any split, in two processes, packed or not."""

from __future__ import annotations

import itertools
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_language import LENGTHS, make_model, make_rows
from torch import Tensor

from mmpeft.data.language.batches import pad_sequences
from mmpeft.data.language.encoding import Encoded
from mmpeft.data.language.packing import fill_packs, join_pack
from mmpeft.heads.token_probabilities import TokenScorer
from mmpeft.objectives.next_token import LanguageModelling


def gradient(batches: list[dict[str, Tensor]]) -> tuple[float, list[Tensor]]:
    """The trainer's rule: sums of losses over the sum of all weights."""
    scorer, adapters = make_model()
    objective = LanguageModelling()
    weight = sum(objective.weight(batch) for batch in batches)
    total = 0.0
    for batch in batches:
        loss, _ = objective.loss(scorer, batch)
        (loss / weight).backward()
        total += loss.item() / weight
    return total, [parameter.grad for parameter in adapters.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("cuts", [(1, 2), (3, 4, 7), tuple(range(1, 8))])
def test_uneven_microbatches_equal_the_big_batch(cuts: tuple[int, ...]) -> None:
    rows = make_rows()
    whole = gradient([pad_sequences(rows, 0, 0.3)])
    edges = [0, *cuts, len(rows)]
    parts = [pad_sequences(rows[a:b], 0, 0.3) for a, b in itertools.pairwise(edges)]
    found = gradient(parts)
    assert found[0] == pytest.approx(whole[0], rel=1e-5)
    torch.testing.assert_close(found[1], whole[1], rtol=1e-4, atol=1e-6)
    naive = sum(gradient([part])[0] for part in parts) / len(parts)
    assert naive != pytest.approx(whole[0], rel=1e-3)  # a mean of means


def test_packed_loss_and_gradient_are_the_unpacked_ones() -> None:
    rows = make_rows()
    packs = [join_pack([rows[i] for i in pack]) for pack in fill_packs(LENGTHS, 22)]
    assert len(packs) == 3
    assert len({len(pack.tokens) for pack in packs}) > 1  # so that one is filled up
    packed, plain = gradient([pad_sequences(packs, 0, 0.3)]), gradient([pad_sequences(rows, 0, 0.3)])
    assert packed[0] == pytest.approx(plain[0], rel=1e-5)
    torch.testing.assert_close(packed[1], plain[1], rtol=1e-4, atol=1e-6)


def test_thoughts_weigh_what_they_are_told() -> None:
    (row,) = make_rows((12,))
    scorer, _ = make_model()
    batch = pad_sequences([row], 0, 0.25)
    ids = torch.from_numpy(row.tokens).long()[None]
    scores = scorer(ids, torch.ones_like(ids))[0]
    table = torch.tensor([0.0, 1.0, 0.25])[torch.from_numpy(row.kinds[1:]).long()]
    loss, _ = LanguageModelling().loss(scorer, batch)
    torch.testing.assert_close(loss, -(table * scores).sum())
    assert LanguageModelling().weight(batch) == pytest.approx(float(table.sum()))


def test_a_fill_that_is_the_end_of_the_text_stays_learned() -> None:
    rows = [Encoded(np.array([5, 6, 2], np.int32), np.array([0, 1, 1], np.uint8)),
            Encoded(np.array([5, 2], np.int32), np.array([0, 1], np.uint8))]  # fmt: skip
    batch = pad_sequences(rows, fill=2)
    assert batch["weights"].tolist() == [[0, 1, 1], [0, 1, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


def test_scores_of_an_evaluation_are_over_tokens() -> None:
    rows, objective = make_rows(), LanguageModelling()
    scorer, _ = make_model()
    with torch.no_grad():
        for part in (rows[:3], rows[3:]):
            objective.update(scorer, pad_sequences(part, 0))
        found = objective.compute()
        loss, logs = objective.loss(scorer, batch := pad_sequences(rows, 0))
    weight = objective.weight(batch)
    assert found["loss"] == pytest.approx(float(loss) / weight, rel=1e-5)
    assert found["perplexity"] == pytest.approx(np.exp(found["loss"]))
    assert found["token_accuracy"] == pytest.approx(float(logs["token_accuracy"]) / weight)


SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.mark.parametrize(
    ("loss", "port", "how"), [("language", "29651", {}), ("kto", "29652", {}), ("language", "29653", SHARDED)]
)
def test_two_processes_are_one_with_the_big_batch(tmp_path: Path, loss: str, port: str, how: dict[str, str]) -> None:
    """Through the trainer, with batches of different lengths on both, and a last one for one of them alone."""
    program = Path(__file__).parent / "two_processes.py"
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port)
    command = [sys.executable, *launcher, str(program), str(tmp_path / "two"), "2", loss]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"} | how
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    runpy.run_path(str(program))["main"](str(tmp_path / "one"), "4", loss)
    one, two = (torch.load(tmp_path / name / "outcome.pt") for name in ("one", "two"))
    assert one["test"] == pytest.approx(two["test"], rel=1e-4)
    torch.testing.assert_close(one["weights"], two["weights"], rtol=1e-4, atol=1e-6)


def test_an_encoder_decoder_learns_its_answers() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    size = {"d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 4, "d_kv": 8, "decoder_start_token_id": 0}
    model = T5ForConditionalGeneration(T5Config(vocab_size=88, **size)).eval()
    ids, labels = torch.randint(3, 88, (2, 6)), torch.randint(3, 88, (2, 5))
    labels[1, 3:] = -100
    started = torch.cat([torch.zeros(2, 1, dtype=torch.long), labels.clamp(min=0)], 1)
    weights = torch.cat([torch.zeros(2, 1), (labels != -100).float()], 1)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": started, "weights": weights}
    loss, _ = LanguageModelling().loss(TokenScorer(model), batch)
    torch.testing.assert_close(loss / LanguageModelling().weight(batch), model(ids, labels=labels).loss)
