"""Time to import mmpeft and to ask its command line something, beside peft and trl: fresh processes, in turn.

python benchmarks/import_time.py            about 1.5 minutes, idle; --write adds the table to benchmarks/RESULTS.md
python benchmarks/import_time.py --quick    few rounds, half a minute

The clock is the CPU time of the new process and its children, of all their threads.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from pathlib import Path

from measure import Row, Timing, publish, timed

BIN = Path(sys.executable).parent
ARMS: dict[str, list[str]] = {
    "import": ["-c", "import mmpeft"],
    "configure": ["-c", "import mmpeft; mmpeft.LoRA(rank=8)"],
    "adapt": ["-c", "from mmpeft import adapt"],
    "list": ["-m", "mmpeft", "list", "methods"],
    "help": ["-m", "mmpeft", "--help"],
    "peft": ["-c", "from peft import LoraConfig, PeftType, get_peft_model; LoraConfig(r=8)"],
    "trl": [str(BIN / "trl"), "--help"],
    "bare": ["-c", "pass"],
    "torch": ["-c", "import torch"],
}
"""What is done, as arguments of Python. peft loads all it has when it is imported: one arm stands for all its uses."""
PAIRS = {
    "import mmpeft; import peft": ("import", "peft"),
    "a configuration of LoRA": ("configure", "peft"),
    "the function that adapts a model (loads torch)": ("adapt", "peft"),
    "a list of all methods": ("list", "peft"),
    "mmpeft --help; trl --help": ("help", "trl"),
}
"""Rows: ours and the peer's."""


def spent(arguments: list[str]) -> float:
    """Run Python and return the seconds of CPU time it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(arguments)} failed:\n{done.stderr}"
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def in_turn(rounds: int, **arms: list[str]) -> dict[str, Timing]:
    """Run the arms in turn, after a round that fills the disk's cache and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds + 1):
        for name, arguments in arms.items():
            elapsed = spent(arguments)
            if number:
                seconds[name].append(elapsed)
    return {name: Timing(tuple(own)) for name, own in seconds.items()}


def main() -> None:
    """Measure all pairs and publish the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--write", action="store_true", help="add the table to benchmarks/RESULTS.md")
    options = parser.parse_args()
    times = in_turn(2 if options.quick else 7, **ARMS)
    rows = [timed(what, {"ours": times[own], "peft": times[peer]}) for what, (own, peer) in PAIRS.items()]
    rows += [Row("for comparison: python that does nothing; import torch", str(times["bare"]), str(times["torch"]))]
    publish("import_time", rows, ("torch", "peft", "trl"), options.write, ("mmpeft", "peer"))


if __name__ == "__main__":
    main()
