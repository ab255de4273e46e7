from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from training_program import make_trainer, weights

from mmpeft.objectives.base import Batch
from mmpeft.objectives.classification import Classification
from mmpeft.training.failures import NonFiniteLossError
from mmpeft.training.run.checkpoints import load_checkpoint

SGD = {"optimizer": "sgd", "lr": 0.05, "epochs": 2}
"""Adam would hide a gradient of the wrong size."""


class Breaking(Classification):
    """A loss that turns NaN (or only its gradient does) in the given call; looking for a prefix makes calls too."""

    def __init__(self, call: int, gradient_only: bool = False) -> None:
        super().__init__()
        self.call, self.gradient_only, self.calls = call, gradient_only, 0

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, logs = super().loss(model, batch)
        self.calls += 1
        if self.calls != self.call:
            return loss, logs
        return loss + torch.sqrt(loss * 0) if self.gradient_only else loss * float("nan"), logs


@pytest.mark.parametrize("accumulate", [2, 3])
def test_accumulation_equals_the_big_batch(tmp_path: Path, accumulate: int) -> None:
    """22 samples leave a last window, and in it a last batch, that are smaller than the others."""
    small = make_trainer(tmp_path / "small", batch_size=4, accumulate=accumulate, clip=0.5, **SGD)
    big = make_trainer(tmp_path / "big", batch_size=4 * accumulate, clip=0.5, **SGD)
    small.fit()
    big.fit()
    expected = weights(big)
    assert max(float((value - expected[name]).abs().max()) for name, value in weights(small).items()) < 1e-6
    losses = [[record["loss"] for record in trainer.directory.records()] for trainer in (small, big)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_loss_that_is_not_finite_stops_with_the_state_before_it(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, objective=Breaking(call=8), batch_size=4, seed=3, cache="off")
    with pytest.raises(NonFiniteLossError) as caught:
        trainer.fit()
    message, saved = str(caught.value), tmp_path / "checkpoints" / "step_7"
    place, lr = "stopped at step 8 (epoch 2, batch 2)", f"learning rate {trainer.schedule(7):g}"
    ids = [f"picture-1-{key.position}" for key in list(trainer.order)[1]]
    assert all(part in message for part in (place, "loss nan", lr, *ids, str(saved)))
    assert len(ids) == message.count("picture-") == 4
    groups, state = load_checkpoint(saved)
    assert [state["progress"][key] for key in ("step", "epoch", "batch")] == [7, 1, 1]
    settings = {"seed": 3, "schedule": "constant", "warmup_steps": 0, "cache": "off"}
    good = make_trainer(tmp_path / "good", epochs=None, max_steps=7, **settings)
    bad = make_trainer(tmp_path / "bad", objective=Breaking(8), **settings)
    good.fit()
    with pytest.raises(NonFiniteLossError):
        bad.fit()
    expected, _ = load_checkpoint(tmp_path / "good" / "checkpoints" / "step_7")
    groups, _ = load_checkpoint(tmp_path / "bad" / "checkpoints" / "step_7")
    assert all(torch.equal(value, expected["weights"][name]) for name, value in groups["weights"].items())


def test_a_gradient_that_is_not_finite_stops_too(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, objective=Breaking(call=3, gradient_only=True), cache="off")
    with pytest.raises(NonFiniteLossError, match=r"stopped at step 3 .* gradient norm (nan|inf)"):
        trainer.fit()
    assert (tmp_path / "checkpoints" / "step_2").is_dir()


def test_weights_that_are_spoilt_already_are_not_saved(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, epochs=1)
    next(iter(trainer.adapters.parameters())).data.fill_(float("inf"))
    with pytest.raises(NonFiniteLossError, match="an earlier step spoilt the weights"):
        trainer.fit()


def test_a_parameter_that_the_loss_does_not_reach_is_named(tmp_path: Path) -> None:
    class Features(Classification):
        def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            return model.forward_features(batch["image"]).square().sum(), {}

    with pytest.raises(ValueError, match=r"2 adapter parameters got no gradient.*head\.linear_probe\.weight"):
        make_trainer(tmp_path, objective=Features()).fit()


def test_clipping_bounds_the_step(tmp_path: Path) -> None:
    settings = {"optimizer": "sgd", "momentum": 0.0, "max_steps": 1, "epochs": None, "warmup_steps": 0, "lr": 1.0}
    lengths = []
    for clip in (None, 0.01):
        trainer = make_trainer(tmp_path / str(clip), clip=clip, schedule="constant", weight_decay=0.0, **settings)
        before = weights(trainer)
        trainer.fit()
        after = weights(trainer)
        lengths.append(torch.stack([(after[name] - before[name]).norm() for name in before]).norm().item())
    assert lengths[1] == pytest.approx(0.01, rel=1e-3)
    assert lengths[0] > 0.1
