"""Run the digits configurations as they are, and write time and test accuracy into the third line of each.

python tools/measure_configs.py             (all of them)
python tools/measure_configs.py lora vpt_deep

Run it on an otherwise idle machine: the seconds are part of what is written.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from mmpeft.cli.run import load_run

CONFIGS = Path(__file__).parents[1] / "configs" / "vision"


def measured(path: Path) -> str:
    """Return the comment that says what a run of this configuration came to."""
    with TemporaryDirectory() as directory:
        task, config, _ = load_run(path, [f"output={directory}/run"])
        metrics = task.run(config)
    seconds = 5 * max(1, round(metrics["seconds"] / 5))
    accuracy = round(100 * metrics["test"]["accuracy"])
    return f"# About {seconds} s on {os.cpu_count()} cores, and {accuracy} % test accuracy."


def main() -> None:
    """Measure the configurations that are named, or all."""
    names = sys.argv[1:] or sorted(path.stem.removesuffix("_digits") for path in CONFIGS.glob("*_digits.yaml"))
    for name in names:
        path = CONFIGS / f"{name}_digits.yaml"
        comment = measured(path)
        what, command, *rest = path.read_text(encoding="utf-8").splitlines()
        settings = [line for line in rest if not line.startswith("#")]
        path.write_text("\n".join([what, command, comment, *settings]) + "\n", encoding="utf-8")
        print(name, comment)


if __name__ == "__main__":
    main()
