"""Documents: bases, overrides, origins, and every problem at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from mmpeft.configuration import load_config, read_document
from mmpeft.settings import ConfigError, Settings

Write = Callable[[str, str], Path]


class Train(Settings):
    """A section."""

    lr: float
    name: str = "a"
    optimizer: Literal["adamw", "sgd"] = "adamw"
    layers: Literal["all"] | tuple[int, ...] = "all"
    epochs: int | None = None


class Config(Settings):
    """A configuration."""

    train: Train
    adapters: dict[str, Any] | None = None


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.chdir(tmp_path)

    def write_file(name: str, text: str) -> Path:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
        return Path(name)

    return write_file


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides, Config)
    return caught.value.problems


def test_every_problem_at_once(write: Write) -> None:
    path = write(
        "c.yaml", "train:\n  lrr: 1\n  name: 3\n  name: x\n  optimizer: adam\n  layers: q\ntrian: {}\nadapters: 7\n"
    )
    assert problems(path, "train.epochs=soon", "seed=1", "train.lr") == [
        "train.name (c.yaml:4): this key was already given (c.yaml:3)",
        "'train.lr': an override looks like key=value, such as train.lr=3e-4",
        "train.lr (c.yaml:1): this key is required",
        "train.name (c.yaml:3): should be a valid string, got 3",
        "train.optimizer (c.yaml:5): no such option (did you mean 'adamw'?), got 'adam'",
        "train.layers (c.yaml:6): no such option (one of: all), got 'q' or should be a valid tuple, got 'q'",
        "train.epochs (override): should be a valid integer, unable to parse string as an integer, got 'soon'",
        "train.lrr (c.yaml:2): unknown key (did you mean 'lr'?), got 1",
        "adapters (c.yaml:8): should be a valid dictionary, got 7",
        "trian (c.yaml:7): unknown key (did you mean 'train'?)",
        "seed (override): unknown key (one of: adapters, train), got 1",
    ]


def test_overrides_are_yaml(write: Write) -> None:
    path = write("c.yaml", "train: {lr: 1}\n")
    config, origins = load_config(
        path, ["train.lr=3e-4", "train.name=no", "train.layers=[1, 2]", "train.epochs=5", "train.epochs="], Config
    )
    assert config.train == Train(lr=3e-4, name="no", layers=(1, 2), epochs=None)
    assert origins["train.lr"] == "override"
    assert origins["train"] == "c.yaml:1"
    assert "train.optimizer" not in origins


def test_an_override_replaces_a_whole_section(write: Write) -> None:
    path = write("c.yaml", "train: {lr: 1}\nadapters: {main: {method: lora, rank: 4}, other: ssf}\n")
    document = read_document(path, ["adapters.main={method: lora}", "train.epochs="])
    assert document.data["adapters"] == {"main": {"method": "lora"}, "other": "ssf"}
    assert list(document.data["adapters"]) == ["main", "other"]
    assert document.origins["adapters.main"] == document.origins["train.epochs"] == "override"


def test_broken_override(write: Write) -> None:
    path = write("c.yaml", "train: {lr: 1}\n")
    (problem,) = problems(path, "train.layers=[1")
    assert problem.startswith("train.layers (override): cannot be read as YAML: ")
    assert problems(path, "train..lr=1")[0].startswith("'train..lr=1': an override looks like")


def test_base_is_relative_and_laid_under(write: Write) -> None:
    write("base/b.yaml", "train:\n  lr: 1\n  epochs: 3\n")
    path = write("sub/c.yaml", "base: ../base/b.yaml\ntrain:\n  lr: 2\n")
    config, origins = load_config(path, ["train.name=x"], Config)
    assert config.train == Train(lr=2, epochs=3, name="x")
    assert origins["train.lr"] == "sub/c.yaml:3"
    assert origins["train.epochs"] == "sub/../base/b.yaml:3"


def test_another_method_replaces_the_options_of_the_base(write: Write) -> None:
    write("b.yaml", "train: {lr: 1}\nadapters: {main: {method: lora, rank: 4}}\n")
    other = write("c.yaml", "base: b.yaml\nadapters: {main: {method: ssf}}\n")
    same = write("d.yaml", "base: b.yaml\nadapters: {main: {alpha: 2}}\n")
    document = read_document(other)
    assert document.data["adapters"] == {"main": {"method": "ssf"}}
    assert document.origin("adapters.main.rank") == "c.yaml:2"
    assert read_document(same).data["adapters"] == {"main": {"method": "lora", "rank": 4, "alpha": 2}}


def test_base_has_one_level(write: Write) -> None:
    write("a.yaml", "train: {lr: 1}\n")
    write("b.yaml", "base: a.yaml\n")
    assert problems(write("c.yaml", "base: b.yaml\ntrain: {lr: 1}\n")) == [
        "base (b.yaml:1): a base cannot have a base of its own"
    ]
    assert problems(write("d.yaml", "base: gone.yaml\n")) == ["base (d.yaml:1): there is no file 'gone.yaml'"]


def test_files_that_are_no_configuration(write: Write) -> None:
    assert problems(Path("gone.yaml")) == ["there is no such file"]
    assert problems(write("c.yaml", "- 1\n"))[0] == "c.yaml:1: expected key: value lines, got [1]"
    assert problems(write("d.yaml", "a: 1\nb: [\n"))[0].startswith("d.yaml:3: cannot be read as YAML")
