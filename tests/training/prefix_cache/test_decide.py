"""A run starts its epochs from the cache, or says why not; its numbers are the same."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_program import Pictures, Splits, make_splits, make_trainer, weights

import mmpeft
from mmpeft.inspection.frozen_prefix import FrozenPrefix
from mmpeft.objectives.classification import Classification
from mmpeft.training.config import TrainConfig
from mmpeft.training.trainer import Trainer

METHODS: dict[str, list[Any]] = {
    "head": [mmpeft.LinearProbe()],
    "side": [mmpeft.SideTuning(channels=4, depth=2), mmpeft.LinearProbe()],
    "last": [mmpeft.LoRA(rank=2, layers="last:1", dropout=0.3), mmpeft.LinearProbe()],
    "tokens": [mmpeft.VPT(tokens=2, layers="last:1"), mmpeft.LinearProbe()],
}
PLACES = dict.fromkeys(("head", "side"), "the input of head") | dict.fromkeys(
    ("last", "tokens"), "the input of blocks.1"
)


def trained(output: Path, data: Splits | None = None, **options: Any) -> Trainer:
    trainer = make_trainer(output, data, **options)
    trainer.fit()
    return trainer


def check_same(one: Trainer, other: Trainer) -> None:
    """The log of all losses, gradient norms and scores, and the adapter, to the bit."""
    assert one.directory.log.read_text() == other.directory.log.read_text()
    assert all(torch.equal(value, weights(other)[name]) for name, value in weights(one).items())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "settings",
    [{}, {"precision": "bf16", "workers": 1}, {"accumulate": 2, "clip": 0.5, "ema": 0.9, "eval_batch_size": 5}],
    ids=["plain", "bf16", "accumulate"],
)
def test_the_same_numbers_with_and_without(tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    plain = trained(tmp_path / "plain", methods=METHODS[name], cache="off", **settings)
    cached = trained(tmp_path / "cached", methods=METHODS[name], **settings)
    assert plain.prefix_cache["store"] == "off"
    assert cached.prefix_cache["store"] == "memory"
    assert cached.prefix_cache["place"] == PLACES[name]
    check_same(plain, cached)
    assert plain.evaluate("val") == cached.evaluate("val")


@dataclass(frozen=True)
class Counted(Pictures):
    """Tells who was opened."""

    opened: Any = None

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.opened.append(index)
        return super().__getitem__(index)


@pytest.mark.parametrize(("name", "times"), [("head", 1), ("side", 6)])
def test_images_are_opened_once_unless_they_are_read(tmp_path: Path, name: str, times: int) -> None:
    data, opened = make_splits(), []
    data = replace(data, train=Counted(22, 1, opened=opened))
    trained(tmp_path, data, methods=METHODS[name], epochs=5)
    assert opened.count(7) == times


def test_views_are_used_in_turn(tmp_path: Path) -> None:
    """Three views in three epochs are what augmentation gives; after that they come again."""
    options: dict[str, Any] = {"methods": METHODS["head"], "evaluate_every": 6}
    plain = trained(tmp_path / "plain", make_splits(noise=0.5), cache="off", **options, epochs=6)
    cached = trained(tmp_path / "cached", make_splits(noise=0.5), cache={"views": 3}, **options, epochs=6)
    assert cached.prefix_cache["views"] == 3
    losses = [[record["loss"] for record in run.directory.records()][: 3 * 6] for run in (plain, cached)]
    assert losses[0] == losses[1]
    cached.order.epoch = 0
    first = [batch["prefix"] for batch, _ in cached.loaders.loader("train", cached.order)]
    shuffled = cached.order._order(22)
    cached.order.epoch = 3
    again = [batch["prefix"] for batch, _ in cached.loaders.loader("train", cached.order)]
    rows = [
        dict(zip(order, torch.cat(batches), strict=True))
        for order, batches in ((shuffled, first), (cached.order._order(22), again))
    ]
    assert all(torch.equal(rows[0][row], rows[1][row]) for row in range(22))


class Large(Pictures):
    """Pictures of 32 x 32 pixels."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = super().__getitem__(index)
        return {**sample, "image": sample["image"].repeat(1, 2, 2)}


@pytest.mark.parametrize("method", ["coop", "cocoop", "clip_adapter", "tip_adapter"])
def test_the_image_side_of_clip(tmp_path: Path, make_case: Any, method: str) -> None:
    """To the last digit but one: ``nn.MultiheadAttention`` computes another way without gradients."""
    case, runs = make_case(method, "zero_shot"), []
    for store in ("off", "memory"):
        model = case.build()
        config = TrainConfig.model_validate({"epochs": 3, "batch_size": 4, "lr": 1e-2, "cache": store})
        data = Splits(Large(22, 1), Large(11, 2), Large(11, 3))
        adapters = case.adapt(model, seed=1)
        runs.append(Trainer(model, adapters, Classification(), data, config, tmp_path / store))
        runs[-1].fit()
    assert runs[1].prefix_cache["store"] == "memory"
    for name, value in weights(runs[0]).items():
        torch.testing.assert_close(weights(runs[1])[name], value, rtol=1e-5, atol=1e-5)
    logs = [[record["loss"] for record in run.directory.records()] for run in runs]
    assert logs[1] == pytest.approx(logs[0], rel=1e-5)
    assert len(logs[0]) == 3 * 6 + 3


OFF: list[tuple[dict[str, Any], float, str]] = [
    ({"methods": METHODS["head"]}, 0.5, "the training images are augmented at random: train.cache.views=N"),
    ({"methods": METHODS["head"], "epochs": 1}, 0.0, "no view of an image comes twice in 1 epochs"),
    (
        {"methods": METHODS["head"], "cache": {"views": 9}},
        0.5,
        "no view of an image comes twice in 3 epochs (train.cache.views: 9)",
    ),
    ({}, 0.0, "the first edit sits in blocks.0.attn.qkv"),
]


@pytest.mark.parametrize(("options", "noise", "reason"), OFF)
def test_it_is_off_and_says_why(tmp_path: Path, capsys: Any, options: Any, noise: float, reason: str) -> None:
    trainer = trained(tmp_path, make_splits(noise), **options)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("prefix cache")]
    assert len(said) == 1
    assert said[0].startswith(f"prefix cache: off, for {reason}")
    assert trainer.prefix_cache["store"] == "off"
    assert trainer.prefix_cache["reason"].startswith(reason)


def test_too_much_for_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmpeft.training.prefix_cache.decide.available_bytes", lambda: 10_000)
    trainer = trained(tmp_path / "auto", methods=METHODS["head"])
    assert "more than a quarter of the free memory" in trainer.prefix_cache["reason"]
    assert trained(tmp_path / "memory", methods=METHODS["head"], cache="memory").prefix_cache["store"] == "memory"


def test_what_can_not_be_cached_can_not_be_insisted_on(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.cache\.store: 'disk' has nothing to cache: the first edit sits in"):
        trained(tmp_path, cache="disk")


def test_a_run_that_was_cut_off_goes_on_with_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"methods": METHODS["last"], "eval_batch_size": 5}
    reference = trained(tmp_path / "reference", **options)
    cut = make_trainer(tmp_path / "cut", **options)
    steps, step = iter(range(8)), cut.stepper.step

    def stopping(*arguments: Any) -> Any:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(cut.stepper, "step", stopping)
    with pytest.raises(KeyboardInterrupt):
        cut.fit()
    resumed = trained(tmp_path / "cut", **options, resume="latest")
    assert resumed.prefix_cache["store"] == "memory"
    check_same(resumed, reference)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that go through the prefix."""
    sizes: list[int] = []
    compute = FrozenPrefix.compute

    def counting(prefix: FrozenPrefix, run: Any) -> Any:
        found = compute(prefix, run)
        sizes.append(len(found))
        return found

    monkeypatch.setattr(FrozenPrefix, "compute", counting)
    return sizes


def test_the_disk_serves_other_runs(tmp_path: Path, computed: list[int]) -> None:
    options: dict[str, Any] = {"methods": METHODS["last"], "cache": {"store": "disk", "folder": str(tmp_path / "kept")}}
    first = trained(tmp_path / "first", **options)
    assert sum(computed) == 22 + 11
    computed.clear()
    second = trained(tmp_path / "second", **options)
    assert not computed
    check_same(first, second)
    check_same(first, trained(tmp_path / "plain", methods=METHODS["last"], cache="off"))


def test_what_is_stale_is_never_found(tmp_path: Path, computed: list[int]) -> None:
    options: dict[str, Any] = {"methods": METHODS["head"], "cache": {"store": "disk", "folder": str(tmp_path / "kept")}}
    trained(tmp_path / "first", **options)
    computed.clear()

    other = make_trainer(tmp_path / "weights", **options)
    other.plain.get_parameter("blocks.0.mlp.fc1.weight").data[3, 3] += 1e-3
    other.fit()
    assert sum(computed) == 22 + 11
    computed.clear()

    head = make_trainer(tmp_path / "head", **options)
    head.plain.get_parameter("head.weight").data += 1
    head.fit()
    assert not computed, "the head lies behind the landing"

    trained(tmp_path / "precision", **options, precision="bf16")
    assert sum(computed) == 22 + 11
    computed.clear()

    trained(tmp_path / "images", replace(make_splits(), train=Pictures(22, 9)), **options)
    assert sum(computed) == 22
