"""Preference losses against TRL's own, on the same logits, and what they are at the first step."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_language import make_model, tokenizer
from torch import Tensor

from mmpeft.objectives.preference import Preference, SinglePreference
from mmpeft.objectives.preference_losses import Answered, pair_losses, single_losses
from mmpeft.objectives.preference_settings import PreferenceSettings

TRIPLES = (
    ("what is a cat ?", " red .", " no no no"),
    ("a dog ?", " green", " blue ."),
    ("the sun ?", " yes yes .", " sorry"),
    ("one plus two", " three .", " four five"),
)


@pytest.fixture(scope="module")
def policy() -> tuple[Any, Any, Any, Any]:
    """Ours with adapters, and for TRL the same merged, and the frozen one; all in double precision."""
    scorer, adapters = make_model()
    scorer.double()
    with adapters.off():
        frozen = copy.deepcopy(scorer.backbone)
    adapters.merge()
    merged = copy.deepcopy(scorer.backbone)
    adapters.unmerge()
    return scorer, adapters, merged, frozen


def plain(model: Any) -> Any:
    """The model without any trace of ours, its weights as they are."""
    from transformers import LlamaForCausalLM

    made = LlamaForCausalLM(model.config).double()
    made.load_state_dict({name: value for name, value in model.state_dict().items() if "mmpeft" not in name})
    return made


def arguments(output: Path) -> dict[str, Any]:
    how = {"per_device_train_batch_size": 4, "report_to": [], "use_cpu": True, "gradient_checkpointing": False}
    return {**how, "output_dir": str(output), "bf16": False, "disable_dropout": True, "max_length": None}


SINGLE = 1e-6
"""Relative: TRL rounds the log-probability of each token to single precision, where ours stay double."""
NAMED_ALIKE = ("nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down", "sigmoid_norm")


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"name": "dpo"}, {"loss_type": "sigmoid"}),
        ({"name": "ipo"}, {"loss_type": "ipo"}),
        ({"name": "hinge"}, {"loss_type": "hinge"}),
        ({"name": "robust", "label_smoothing": 0.2}, {"loss_type": "robust", "label_smoothing": 0.2}),
        ({"name": "exo_pair", "label_smoothing": 1e-3}, {"loss_type": "exo_pair", "label_smoothing": 1e-3}),
        *(({"name": name}, {"loss_type": name}) for name in NAMED_ALIKE),
    ],
    ids=lambda value: str(value.get("name", "")),
)
def test_pairs_agree_with_trl_at_its_defaults(
    policy: Any, tmp_path: Path, ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")
    scorer, adapters, merged, frozen = policy
    rows = datasets.Dataset.from_list(
        [dict(zip(("prompt", "chosen", "rejected"), own, strict=True)) for own in TRIPLES]
    )
    trainer = trl.DPOTrainer(
        plain(merged), ref_model=plain(frozen), args=trl.DPOConfig(**arguments(tmp_path), **theirs),
        train_dataset=rows, processing_class=tokenizer(None),
    )  # fmt: skip
    batch = next(iter(trainer.get_train_dataloader()))
    expected = trainer.compute_loss(trainer.model, batch)
    own = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "id": [*"abcd"]}
    own["weights"] = batch["completion_mask"].float()
    loss, _ = Preference(adapters, PreferenceSettings(**ours)).loss(scorer, own)
    torch.testing.assert_close(loss / 4, expected.double(), rtol=SINGLE, atol=0)


@pytest.mark.parametrize("kind_of_loss", ["kto", "apo_zero_unpaired"])
def test_single_answers_agree_with_trl(policy: Any, tmp_path: Path, kind_of_loss: str) -> None:
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")
    scorer, adapters, merged, frozen = policy
    rows = [{"prompt": p, "completion": c, "label": i % 3 > 0} for i, (p, c, _) in enumerate(TRIPLES)]
    how = arguments(tmp_path) | {"loss_type": kind_of_loss, "desirable_weight": 1.3, "undesirable_weight": 0.7}
    trainer = trl.KTOTrainer(
        plain(merged), ref_model=plain(frozen), args=trl.KTOConfig(**how),
        train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer(None),
    )  # fmt: skip
    theirs = next(iter(trainer.get_train_dataloader()))
    expected = trainer.compute_loss(trainer.model, theirs)
    kinds = ("", "KL_") if kind_of_loss == "kto" else ("",)
    length = max(theirs[f"{kind}input_ids"].shape[1] for kind in kinds)
    batch: dict[str, Any] = {"label": torch.as_tensor(theirs["label"]).bool(), "id": [*"abcd"], "counted": True}
    for name, key in (("input_ids", "input_ids"), ("attention_mask", "attention_mask"), ("weights", "completion_mask")):
        parts = [theirs[f"{kind}{key}"] for kind in kinds]
        batch[name] = torch.cat([torch.nn.functional.pad(own, (0, length - own.shape[1])) for own in parts])
    batch["weights"] = batch["weights"].float()
    settings = PreferenceSettings.model_validate({"name": kind_of_loss, "desirable": 1.3, "undesirable": 0.7})
    loss, logs = SinglePreference(adapters, settings).loss(scorer, batch)
    torch.testing.assert_close(loss / 4, expected.double(), rtol=SINGLE, atol=0)
    if kind_of_loss == "kto":
        assert float(logs["kl"]) / 4 == pytest.approx(trainer._metrics["train"]["kl"][0], rel=SINGLE, abs=1e-6)


def make_answers(seed: int = 0) -> tuple[Answered, Answered]:
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Answered:
        policy, reference = (-torch.rand(5, generator=generator).double() * 9 - 0.1 for _ in range(2))
        return Answered(policy, reference, torch.randint(1, 7, (5,), generator=generator).double())

    return draw(), draw()


def without_reference(answers: Answered) -> Answered:
    return Answered(answers.policy, torch.zeros_like(answers.policy), answers.tokens)


def test_orpo_agrees_with_trl() -> None:
    orpo = pytest.importorskip("trl.experimental.orpo")
    chosen, rejected = map(without_reference, make_answers())
    trainer = SimpleNamespace(beta=0.2, accelerator=SimpleNamespace(device="cpu"))
    ratio, *_ = orpo.ORPOTrainer.odds_ratio_loss(trainer, chosen.mean, rejected.mean)
    found = pair_losses(chosen, rejected, PreferenceSettings(name="orpo", beta=0.2))
    torch.testing.assert_close(found, -chosen.mean - ratio.double(), rtol=SINGLE, atol=SINGLE)


def test_orpo_minimises_what_trl_does_over_prompts_and_answers(policy: Any) -> None:
    """The whole of TRL's own pass and loss, at its defaults, on a batch of unequal lengths."""
    orpo = pytest.importorskip("trl.experimental.orpo")
    scorer, adapters, merged, _ = policy
    lengths, prompts = torch.tensor([9, 6, 7, 5]), torch.tensor([4, 2, 4, 2])
    ids = torch.randint(3, 88, (4, 9), generator=torch.Generator().manual_seed(0))
    attended = torch.arange(9) < lengths[:, None]
    answers = attended & (torch.arange(9) >= prompts[:, None])
    accelerator = SimpleNamespace(device="cpu", gather_for_metrics=lambda value: value)
    passes = {
        "input_ids": ids, "attention_mask": attended.long(), "labels": ids.masked_fill(~answers, -100),
    }  # fmt: skip
    batch = {f"chosen_{key}": value[:2] for key, value in passes.items()}
    batch |= {f"rejected_{key}": value[2:] for key, value in passes.items()}
    trainer: Any = orpo.ORPOTrainer.__new__(orpo.ORPOTrainer)
    how = {"is_encoder_decoder": False, "padding_value": 0, "aux_loss_enabled": False, "beta": 0.1}
    vars(trainer).update(how | {"accelerator": accelerator})
    expected, _ = trainer.get_batch_loss_metrics(plain(merged), batch)
    own = {"input_ids": ids, "attention_mask": attended.long(), "weights": answers.double(), "id": ["a", "b"]}
    loss, _ = Preference(adapters, PreferenceSettings(name="orpo", nll_over="text")).loss(scorer, own)
    torch.testing.assert_close(loss / 2, expected.double(), rtol=SINGLE, atol=0)
    other, _ = Preference(adapters, PreferenceSettings(name="orpo")).loss(scorer, own)
    assert abs(other - loss) > 1e-3


@pytest.mark.parametrize("kind", ["cpo", "simpo"])
def test_cpo_and_simpo_agree_with_trl(kind: str) -> None:
    cpo = pytest.importorskip("trl.experimental.cpo")
    chosen, rejected = map(without_reference, make_answers())
    name = {"cpo": "sigmoid", "simpo": "simpo"}[kind]
    own = {"alpha": 0.0, "beta": 2.0, "label_smoothing": 0.1, "simpo_gamma": 0.7, "loss_type": name}
    trainer = SimpleNamespace(**own, accelerator=SimpleNamespace(device="cpu"))
    scores = [answers.mean if kind == "simpo" else answers.policy for answers in (chosen, rejected)]
    expected = cpo.CPOTrainer.cpo_loss(trainer, *scores)[0] - (chosen.mean if kind == "cpo" else 0)
    more = {"gamma": 0.7} if kind == "simpo" else {}
    settings = PreferenceSettings(name=kind, beta=2.0, label_smoothing=0.1, **more)
    torch.testing.assert_close(pair_losses(chosen, rejected, settings), expected)


def test_conservative_dpo_is_the_mean_over_flipped_pairs() -> None:
    chosen, rejected = make_answers()
    sure = PreferenceSettings(name="dpo", beta=0.5)
    both = pair_losses(chosen, rejected, sure), pair_losses(rejected, chosen, sure)
    smoothed = pair_losses(chosen, rejected, PreferenceSettings(name="dpo", beta=0.5, label_smoothing=0.2))
    torch.testing.assert_close(smoothed, 0.8 * both[0] + 0.2 * both[1])
    robust = pair_losses(chosen, rejected, PreferenceSettings(name="robust", beta=0.5, label_smoothing=0.2))
    torch.testing.assert_close(0.8 * robust + 0.2 * pair_losses(rejected, chosen, PreferenceSettings(
        name="robust", beta=0.5, label_smoothing=0.2)), both[0])  # fmt: skip


@pytest.mark.parametrize(
    ("name", "expected"), [("dpo", math.log(2)), ("robust", math.log(2)), ("hinge", 1), ("ipo", 25)]
)
def test_an_untouched_policy(name: str, expected: float) -> None:
    chosen, rejected = (Answered(own.policy, own.policy, own.tokens) for own in make_answers())
    torch.testing.assert_close(
        pair_losses(chosen, rejected, PreferenceSettings(name=name)), torch.full((5,), float(expected)).double()
    )
    good = torch.tensor([True, False, True, False, False])
    found = single_losses(chosen, good, torch.zeros(()).double(), PreferenceSettings(name="kto"))
    assert found.tolist() == [0.5] * 5


def test_weights_of_single_answers_are_not_rounded() -> None:
    """In double precision: 1.3 as a single number is 5e-8 away."""
    answers, _ = make_answers()
    good = torch.tensor([True, False, True, False, True])
    weighted = PreferenceSettings(name="kto", desirable=1.3, undesirable=0.7)
    plain_losses = single_losses(answers, good, 0.2, PreferenceSettings(name="kto"))
    expected = torch.where(good, torch.tensor(1.3).double(), torch.tensor(0.7).double()) * plain_losses
    exact = torch.tensor([1.3 if kind else 0.7 for kind in good], dtype=torch.float64) * plain_losses
    assert torch.equal(single_losses(answers, good, 0.2, weighted), exact)
    assert not torch.equal(expected, exact), "the numbers would show it"


def test_the_odds_of_near_certain_answers_are_finite() -> None:
    tokens = torch.ones(3, dtype=torch.float64)
    sure = torch.tensor([-1e-12, 0.0, -1e-3], dtype=torch.float64, requires_grad=True)
    unlike = torch.tensor([-500.0, -1e-3, -1e-12], dtype=torch.float64)
    loss = pair_losses(
        Answered(sure, 0 * sure, tokens), Answered(unlike, 0 * unlike, tokens), PreferenceSettings(name="orpo")
    )
    loss.sum().backward()
    assert loss.isfinite().all()
    assert isinstance(sure.grad, Tensor)
    assert sure.grad.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"name": "dpo", "gamma": 1.0}, "gamma: 1 is for name: simpo"), ({"name": "kto", "nll": 1.0}, "nll: 1 is for"),
     ({"name": "orpo", "label_smoothing": 0.1}, "label_smoothing"), ({"name": "exo_pair"}, "exo_pair, which divides"),
     ({"name": "kto", "nll_over": "text"}, "nll_over: text is for"), ({"name": "dpp"}, "did you mean 'dpo'")],
)  # fmt: skip
def test_contradictions(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PreferenceSettings.model_validate(settings)


def test_the_reference_is_the_model_without_adapters(policy: Any) -> None:
    scorer, adapters, _, frozen = policy
    ids = torch.randint(3, 88, (4, 7))
    weights = (torch.arange(7) > 0).float().expand(4, 7)
    batch = {"input_ids": ids, "weights": weights, "id": ["a", "b"]}
    found = Preference(adapters, PreferenceSettings())._reference(scorer, batch)
    logits = frozen(ids).logits.log_softmax(-1)
    expected = logits[:, :-1].gather(-1, ids[:, 1:, None])[..., 0].sum(1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not found.requires_grad
    assert adapters.active
