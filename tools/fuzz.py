"""Feed broken and hostile input to every reader: each case ends in one clear error or a right result, within bounds.

    make fuzz MINUTES=5 SEED=0              all parts, in turn
    python tools/fuzz.py --part formats --minutes 5 --seed 0
    python tools/fuzz.py --part formats --seed 0 --only 1234     one case again

A case is made from the seed and its number alone, so that any can be repeated. Inputs that show a fault are kept in
out/fuzz. A new part is a class like ``Part`` and a line in ``PARTS``.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random
from typing import Protocol

PARTS = {
    "formats": "fuzz_formats.Formats",
    "configurations": "fuzz_configurations.Configurations",
    "data": "fuzz_data.Data",
    "kills": "fuzz_kills.Kills",
}
"""The parts by name: the module in this folder, and the class in it."""
CPU_SECONDS = 20
"""What a case may take; usual ones take a hundredth of a second."""
MEMORY = 512 * 2**20
"""Bytes by which the process may grow in one case; the inputs have some kilobytes."""
LONGEST_MESSAGE = 20_000
"""Characters of an error."""


@dataclass(frozen=True)
class Case:
    """One mutated input, already on disk, and what is done with it."""

    label: str
    """The kind of input, for the summary."""
    run: Callable[[], object]
    """Reads the input; returns where it is read rightly, and raises one of ``errors`` where it is refused."""
    named: tuple[str, ...]
    """A refusal has to contain one of these: the file's name, or a configuration's."""
    errors: tuple[type[Exception], ...] = (ValueError,)
    check: Callable[[bool], None] = lambda refused: None
    """Called at the end with whether the input was refused; raises AssertionError where the model was touched."""


class Part(Protocol):
    """What is attacked: made once, it yields cases."""

    def case(self, random: Random, directory: Path) -> Case:
        """Write a mutated input into an empty directory; all that is random comes from ``random``."""


class OverTimeError(BaseException):
    """A case used more CPU than it may; no ``except Exception`` of a reader can hide it."""


def make(name: str) -> Part:
    """Return a part by its name."""
    module, kind = PARTS[name].rsplit(".", 1)
    part: Part = getattr(importlib.import_module(module), kind)()
    return part


def fault_of(case: Case) -> str | None:
    """Run a case; return what is wrong with how it ended, if anything is."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        fault = _ending(case)
    except OverTimeError:
        return f"more than {CPU_SECONDS} s of CPU"
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    return fault or (f"{grown // 2**20} MiB more memory" if grown > MEMORY else None)


def _ending(case: Case) -> str | None:
    refused = False
    try:
        with _bounded():
            case.run()
    except case.errors as error:
        refused, message = True, str(error)
        if not any(name in message for name in case.named):
            return f"the error doesn't name {' or '.join(case.named)}: {message[:500]}"
        if len(message) > LONGEST_MESSAGE:
            return f"an error of {len(message)} characters: {message[:500]}"
    except Exception as error:
        last = "".join(traceback.format_tb(error.__traceback__)[-2:])
        return f"{type(error).__name__}: {str(error)[:500]}\n{last}"
    try:
        case.check(refused)
    except AssertionError as error:
        return f"after {'a refusal' if refused else 'it was read'}: {error}"
    return None


@contextmanager
def _bounded() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise OverTimeError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def run_one(part: Part, name: str, seed: int, number: int, kept: Path | None = None) -> tuple[str, str | None]:
    """Return the label of a case and its fault; the input of one with a fault is moved to ``kept``."""
    directory = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        case = part.case(Random(f"{name} {seed} {number}"), directory)
        fault = fault_of(case)
        if fault and kept is not None:
            target = kept / f"{name}-{seed}-{number}"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(directory, target, symlinks=True)
            (target / "fault.txt").write_text(fault, encoding="utf-8")
        return case.label, fault
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def faults_in(name: str, seed: int, cases: int) -> list[str]:
    """Run a number of a part's cases; return their faults, one text each."""
    part = make(name)
    results = ((number, *run_one(part, name, seed, number)) for number in range(cases))
    return [f"{name} --seed {seed} --only {number} ({label}): {fault}" for number, label, fault in results if fault]


def attack(name: str, seed: int, seconds: float, kept: Path) -> int:
    """Run a part's cases for a time, print each fault, and return how many there were."""
    part, until, faults, labels = make(name), time.monotonic() + seconds, 0, Counter[str]()
    for number in count():
        if time.monotonic() > until:
            break
        faulthandler.dump_traceback_later(20 * CPU_SECONDS, exit=True)  # a loop in C that no signal reaches
        label, fault = run_one(part, name, seed, number, kept)
        faulthandler.cancel_dump_traceback_later()
        labels[label] += 1
        if fault:
            faults += 1
            print(f"FAULT {name} --seed {seed} --only {number} ({label}): {fault}", flush=True)
    said = ", ".join(f"{label} {n}" for label, n in sorted(labels.items()))
    print(f"{name}: {labels.total()} cases, {faults} faults ({said})", flush=True)
    return faults


def main() -> int:
    """Attack the parts that are asked for, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append", help="all when not given")
    parser.add_argument("--minutes", type=float, default=5, help="in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of one case")
    parser.add_argument("--kept", type=Path, default=Path("out/fuzz"), help="where inputs with a fault are kept")
    options = parser.parse_args()
    names = options.part or list(PARTS)
    if options.only is not None:
        faults = [run_one(make(name), name, options.seed, options.only, options.kept) for name in names]
        print(*(f"{label}: {fault or 'no fault'}" for label, fault in faults), sep="\n")
        return any(fault for _, fault in faults)
    share = 60 * options.minutes / len(names)
    return bool(sum(attack(name, options.seed, share, options.kept) for name in names))


if __name__ == "__main__":
    sys.modules["fuzz"] = sys.modules["__main__"]  # the parts import this module
    sys.exit(main())
