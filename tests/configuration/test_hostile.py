"""Whatever stands in a configuration or an override: one error that names the file, and the key where there is one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mmpeft.configuration import read_document
from mmpeft.settings import ConfigError
from mmpeft.training.config import RunConfig, read_run

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

RUN = """task: vision/classify
model: tiny/vit
adapters: {main: lora}
data: {name: digits}
train: {epochs: 1, lr: 1e-3}
"""


def problems(directory: Path, text: str | bytes, *overrides: str) -> list[str]:
    path = directory / "run.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        read_run(path, overrides).validate(RunConfig)
    return [problem.replace(str(path), "run.yaml") for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("output: 3", "output (run.yaml:6): should be a path, got 3"),
        ("output: [1]", "output (run.yaml:6): should be a path, got [1]"),
        ("attention: {a: 1}", "attention (run.yaml:6): should be "),
        ('output: "a\\0b"', "output (run.yaml:6): cannot be read: text with a NUL character"),
        ('output: "\\ud800"', "output (run.yaml:6): cannot be read: 'utf-8' codec can't encode"),
        ("? [1]\n: 2", "the file (run.yaml:6): a key is a word, not a list or a section"),
    ],
)
def test_a_value_of_another_kind_is_one_problem_with_its_line(tmp_path: Path, line: str, problem: str) -> None:
    (said,) = problems(tmp_path, f"{RUN}{line}\n")
    assert said.startswith(problem)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("main: lora", "main: {method: [1]}", "adapters.main (run.yaml:3): method: unknown [1]"),
        ("main: lora", "main: {method: {a: 1}}", "adapters.main (run.yaml:3): method: unknown {'a': 1}"),
        ("tiny/vit", "{name: tiny/vit, merged: [1]}", "model.merged.0 (run.yaml:2): should be a path, got 1"),
        ("epochs: 1", "epochs: 1, cache: {folder: [1]}", "train.cache.folder (run.yaml:5): should be a path"),
        (
            "epochs: 1",
            "epochs: 1, workers: " + "9" * 5000,
            "train.workers (run.yaml:5): cannot be read: Exceeds the limit",
        ),
    ],
)
def test_a_bad_value_in_a_section_is_one_problem(tmp_path: Path, old: str, new: str, problem: str) -> None:
    (said,) = problems(tmp_path, RUN.replace(old, new))
    assert said.startswith(problem)
    assert len(said) < 1000


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (RUN + "x: " + "{a: " * 3000, "run.yaml:6: cannot be read as YAML: nested more than 50 deep"),
        (RUN + "x:\n" + " -" * 3000, "run.yaml:7: cannot be read as YAML: nested more than 50 deep"),
        (RUN + "x: [", "run.yaml:6: cannot be read as YAML: expected the node content"),
        (RUN + "x: \0", "run.yaml:6: cannot be read as YAML: the character '\\x00' is not allowed"),
        (RUN.encode() + b"# \xe9\n", "run.yaml:6: cannot be read as UTF-8: invalid continuation byte"),
        (b"a" * (2**20 + 1), "more than the 1048576 bytes that are read of a configuration"),
    ],
)
def test_a_file_that_cannot_be_read_has_no_problem_but_this_one(
    tmp_path: Path, text: str | bytes, problem: str
) -> None:
    """What the rest of it says, and leaves out, nobody knows."""
    (said,) = problems(tmp_path, text)
    assert said.startswith(problem)


def test_reading_goes_on_after_a_file_that_was_too_deep(tmp_path: Path) -> None:
    """The interpreter is left as it was: CPython 3.11 crashes after some stack overflows in PyYAML."""
    (tmp_path / "deep.yaml").write_text("{a: " * 3000)
    (tmp_path / "good.yaml").write_text(RUN)
    for _ in range(20):
        assert read_document(tmp_path / "deep.yaml").unreadable
        assert read_document(tmp_path / "good.yaml").data["model"] == "tiny/vit"


def test_bases_that_cannot_be_read(tmp_path: Path) -> None:
    for name in ("x" * 300, "gone.yaml", "."):
        (said,) = problems(tmp_path, f"{RUN}base: {name}\n")
        assert said.startswith("base (run.yaml:6): there is no file ")
    (said,) = problems(tmp_path, f"{RUN}base: [1]\n")
    assert said == "base (run.yaml:6): should be the path of a file, got [1]"


def test_overrides_of_what_is_no_section(tmp_path: Path) -> None:
    (said,) = problems(tmp_path, RUN.replace("main: lora", "main: [lora, ssf]"), "adapters.main.0.rank=3")
    assert (
        said
        == "adapters.main.0.rank (override): adapters.main is a list, which is given as a whole: adapters.main='[...]'"
    )
    (said,) = problems(tmp_path, RUN.replace("main: lora", "main: {method: lora}"), "adapters.main.0.rank=3")
    assert said.startswith("adapters.main.0 (override): unknown key")


def test_an_override_goes_into_what_a_bare_word_stands_for(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    document = read_run(path, ["model.quantize=nf4", "model.merged=[a]", "adapters.main.rank=3", "train.cache=off"])
    config = document.validate(RunConfig)
    assert config.model.name == "tiny/vit"
    assert config.model.quantize is not None and config.model.quantize.kind == "nf4"
    assert config.model.merged == (Path("a"),)
    assert config.adapters["main"][0].specification()["rank"] == 3
    assert document.origin("model.name") == f"{path}:2"


def test_another_way_to_say_how_long_replaces_the_one_below(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(RUN.replace("epochs: 1", "epochs: 3, warmup_epochs: 1"))
    (tmp_path / "run.yaml").write_text("base: base.yaml\ntrain: {max_steps: 9, warmup_steps: 2}\n")
    document = read_run(tmp_path / "run.yaml")
    train = document.validate(RunConfig).train
    assert (train.epochs, train.max_steps, train.warmup_epochs, train.warmup_steps) == (None, 9, 0, 2)
    again = read_run(tmp_path / "run.yaml", ["train.epochs=4", "train.warmup_steps=0"]).validate(RunConfig).train
    assert (again.epochs, again.max_steps, again.warmup_steps) == (4, None, 0)
    (said,) = problems(tmp_path, RUN, "train.epochs=2", "train.max_steps=5")
    assert "epochs: 2 and max_steps: 5 contradict each other" in said


def test_mutated_configurations() -> None:
    """A few of `make fuzz`: what is random is the same in every run."""
    from fuzz import faults_in

    assert faults_in("configurations", seed=1, cases=60) == []
