"""What the benchmarks share: interleaved timing, a table of rows, and where results go."""

from __future__ import annotations

import datetime
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Timing:
    """Seconds of each round; the median and the quartiles describe them."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return first, third

    def over(self, other: Timing) -> float:
        """Median of the ratios round by round: what slows the machine down for a while slows both."""
        return statistics.median(a / b for a, b in zip(self.seconds, other.seconds, strict=True))

    def __str__(self) -> str:
        first, third = self.quartiles
        return f"{1e3 * self.median:.1f} ms ({1e3 * first:.1f}-{1e3 * third:.1f})"


@dataclass(frozen=True)
class Arm:
    """One side of a comparison: ``run`` is timed, with what ``prepare`` made for it before."""

    run: Callable[[Any], object]
    prepare: Callable[[], Any] = lambda: None


def interleave(rounds: int, **arms: Arm) -> dict[str, Timing]:
    """Time the arms in turn, A, B, A, B ..., after one round that does not count.

    The clock is the CPU time of this process: on a shared machine the neighbours then count much less than on the wall.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    gc.collect()
    gc.freeze()  # what is there stays there: the collections below need not look at it again
    for number in range(rounds + 1):
        for name, arm in arms.items():
            prepared = arm.prepare()
            gc.collect()
            start = time.process_time()
            result = arm.run(prepared)
            elapsed = time.process_time() - start
            del prepared, result
            if number:
                seconds[name].append(elapsed)
    gc.unfreeze()
    return {name: Timing(tuple(own)) for name, own in seconds.items()}


def peak(step: Callable[[], None]) -> int:
    """Return the most bytes that a step, not the first one, has allocated at once on top of weights and moments."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = most = 0
    for _, change in changes:
        held += change
        most = max(most, held)
    return most


@dataclass(frozen=True)
class Row:
    """One line of the table: what was measured, ours, the peer's, and ours over the peer's (below 1: ours is less)."""

    what: str
    ours: str
    peer: str = "-"
    ratio: float | None = None


def timed(what: str, times: dict[str, Timing], peer: str = "peft") -> Row:
    """Return the row that compares ``ours`` with a peer."""
    return Row(what, str(times["ours"]), str(times[peer]), times["ours"].over(times[peer]))


def counted(what: str, ours: int, peer: int) -> Row:
    """Return the row that compares two numbers of bytes."""
    return Row(what, mib(ours), mib(peer), ours / peer)


def mib(count: int) -> str:
    """Return a number of bytes as text."""
    return f"{count / 2**20:.1f} MiB"


def machine() -> str:
    """Return the kind of machine: the number of cores and their architecture."""
    return f"{os.cpu_count()}-core {platform.machine().replace('x86_64', 'x86')} CPU, 1 thread"


def versions(*packages: str) -> str:
    """Return packages with their versions."""
    return ", ".join([f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)])


def table(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    rows = (columns, ["---"] * len(columns), *lines)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def publish(
    name: str, rows: list[Row], packages: tuple[str, ...], write: bool, sides: tuple[str, str] = ("mmpeft", "peft")
) -> None:
    """Publish rows that compare two sides; ``sides`` are the names of the two columns."""
    columns = ("measured", *sides, " / ".join(sides))
    lines = [(r.what, r.ours, r.peer, "" if r.ratio is None else f"{r.ratio:.2f}") for r in rows]
    publish_table(name, table(columns, lines), [asdict(row) for row in rows], packages, write)


def publish_table(
    name: str, markdown: str, records: list[dict[str, Any]], packages: tuple[str, ...], write: bool
) -> None:
    """Print the table, keep it as JSON in benchmarks/out, and with ``write`` add it to benchmarks/RESULTS.md.

    ``records`` are its rows as numbers, for benchmarks/picture.py.
    """
    command = f"python benchmarks/{name}.py {' '.join(sys.argv[1:])}".strip()
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    load = f"{os.getloadavg()[0]:.1f} processes wanted the cores, on average over the last minute"
    head = {"command": command, "machine": machine(), "load": load, "date": today, "versions": versions(*packages)}
    print("\n".join(f"{key}: {value}" for key, value in head.items()), markdown, sep="\n\n")
    (HERE / "out").mkdir(exist_ok=True)
    kept = {"name": name, **head, "table": markdown, "rows": records}
    (HERE / "out" / f"{name}.json").write_text(json.dumps(kept, indent=2))
    if write:
        facts = "\n".join(f"- {key}: {value}" for key, value in head.items())
        with (HERE / "RESULTS.md").open("a") as file:
            file.write(f"\n## {name}, {today}\n\n{facts}\n\n{markdown}\n")
