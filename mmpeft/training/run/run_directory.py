"""The run directory: what lies where in it, and who may write there. Needs no torch but to claim one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from mmpeft.files import write_text
from mmpeft.locks import locked, refuse_if_locked

PATIENCE = 2.0
"""Seconds within which another process that comes at the same time has taken the directory, or given it up."""


@dataclass(frozen=True)
class RunDirectory:
    """Paths of a run, and its log ``metrics.jsonl``: one record per optimizer step and per evaluation."""

    path: Path

    def adapters(self, names: Sequence[str]) -> dict[str, Path]:
        """Return where the best weights of each adapter lie: ``adapter/``, or a folder in it for each of several."""
        return {name: self.path / "adapter" / name if len(names) > 1 else self.path / "adapter" for name in names}

    @property
    def checkpoints(self) -> Path:
        """Everything needed to go on."""
        return self.path / "checkpoints"

    @property
    def log(self) -> Path:
        """The log, one JSON object per line."""
        return self.path / "metrics.jsonl"

    def claim(self, resume: str | None) -> None:
        """Raise if the directory holds a run that a new one would overwrite, or if another process writes here."""
        from mmpeft.training.run.checkpoints import checkpoints

        refuse_if_locked(self.log)
        results = any(path.exists() for path in (self.path / "adapter", self.log))
        if resume is None and (results or checkpoints(self.checkpoints)):
            raise ValueError(
                f"output: {str(self.path)!r} already holds a run: continue it with train.resume=latest, "
                "or choose another output"
            )

    @contextmanager
    def claimed(self, resume: str | None) -> Iterator[None]:
        """Be the only process that writes here, inside the block; raise if there is nothing to resume."""
        from mmpeft.training.run.checkpoints import find_checkpoint

        self.claim(resume)
        if resume is not None:
            find_checkpoint(self.checkpoints, resume)
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.log, PATIENCE):
            self.claim(resume)
            yield

    def finished(self) -> dict[str, Any] | None:
        """Return the metrics of a finished run, or None."""
        path = self.path / "metrics.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def append(self, record: dict[str, Any]) -> None:
        """Add a record to the log; a number that is not finite, which JSON can't say, becomes null."""
        finite = {
            key: None if isinstance(value, float) and not isfinite(value) else value for key, value in record.items()
        }
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite) + "\n")

    def records(self) -> list[dict[str, Any]]:
        """Read the log; a last line that a crash cut off doesn't count."""
        if not self.log.exists():
            return []
        lines = self.log.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def forget_after(self, step: int) -> None:
        """Drop the records of steps after ``step``, which a resumed run makes again."""
        kept = [record for record in self.records() if record["step"] <= step]
        write_text(self.log, "".join(json.dumps(record) + "\n" for record in kept))

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file atomically."""
        write_text(self.path / name, json.dumps(content, indent=2) + "\n")
