"""The fuzzer's part for what a killed process leaves: every file operation of saving a checkpoint or an adapter.

A case saves again over what is there, ends at one operation (as a kill does, or by an error of the system), and looks
whether what is left is the old or the new, whole, and whether the next save works.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from random import Random

import torch
from fuzz import Case

from mmpeft.formats.storage import replaced_directory, standing
from mmpeft.training.run.checkpoints import checkpoints, load_checkpoint, save_checkpoint
from mmpeft.training.run.run_directory import RunDirectory

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from kill_points import KilledError, Operations

OPERATIONS = 60
"""More than a save has."""


class Kills:
    """Saves that end at a drawn operation."""

    def case(self, random: Random, directory: Path) -> Case:
        """Save some versions, of a checkpoint or an adapter, into an empty directory."""
        kind = random.choice((Checkpoint, SavedAdapter))(directory, random)
        operations = Operations(random.randint(1, OPERATIONS), random.choice(("kill", "error")))

        def run() -> None:
            with operations.watched(), suppress(KilledError, OSError):
                kind.save(1.0)

        return Case(type(kind).__name__, run, (str(directory),), check=lambda refused: kind.check())


class Checkpoint:
    """Checkpoints of a run: some steps of version 0, and step 5 of the version that is saved."""

    def __init__(self, directory: Path, random: Random) -> None:
        self.run = RunDirectory(directory)
        self.before = sorted(random.sample((2, 3, 4, 5, 8), random.randint(0, 4)))
        for step in self.before:
            self.save(0.0, step)

    def save(self, version: float, step: int = 5) -> None:
        """Save a step."""
        groups = {"weights": {"a": torch.full((50,), version)}}
        save_checkpoint(self.run.checkpoints, step, groups, {"version": version})

    def check(self) -> None:
        """Whatever counts as a checkpoint is whole; there are none only where there were none, and a run may start."""
        whole = checkpoints(self.run.checkpoints)
        assert whole or not self.before, "nothing is left"
        for path in whole:
            groups, state = load_checkpoint(path)
            assert bool((groups["weights"]["a"] == state["version"]).all()), f"{path.name} is of two versions"
        if not whole:
            self.run.claim(None)
        self.save(2.0)
        files = [path for path in self.run.checkpoints.rglob("*") if path.is_file()]
        assert len(files) == 2 * len(checkpoints(self.run.checkpoints)) <= 4, f"rubbish: {files}"


class SavedAdapter:
    """An adapter's directory of two files, perhaps there in version 0."""

    def __init__(self, directory: Path, random: Random) -> None:
        self.path, self.there = directory / "adapter", random.random() < 0.8
        if self.there:
            self.save(0.0)

    def save(self, version: float) -> None:
        """Write both files."""
        with replaced_directory(self.path) as partial:
            for name in ("mmpeft.json", "adapter_model.safetensors"):
                (partial / name).write_text(f"{version}")

    def check(self) -> None:
        """What a reader finds is of one version; the next save leaves nothing else."""
        found = standing(self.path)
        assert found.is_dir() or not self.there, "nothing is left"
        texts = [file.read_text() for file in found.iterdir()] if found.is_dir() else ["1.0"] * 2
        assert texts in (["0.0"] * 2, ["1.0"] * 2), f"two versions, or half of one: {texts}"
        self.save(2.0)
        assert [path.name for path in self.path.parent.iterdir()] == ["adapter"], "rubbish is left"
