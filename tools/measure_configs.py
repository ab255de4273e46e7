"""Run configurations on embedded data as they are, and write time and test accuracy into the third line of each.

python tools/measure_configs.py             (all of classification)
python tools/measure_configs.py vision/lora_digits vlm/coop_scenes

Run it on an otherwise idle machine: the seconds are part of what is written.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from mmpeft.cli.run import load_run

CONFIGS = Path(__file__).parents[1] / "configs"


def measured(path: Path) -> str:
    """Return the comment that says what a run of this configuration came to."""
    with TemporaryDirectory() as directory:
        task, config, _ = load_run(path, [f"output={directory}/run"])
        metrics = task.run(config)
    seconds = 5 * max(1, round(metrics["seconds"] / 5))
    accuracy = round(100 * metrics["test"]["accuracy"])
    frozen = f" (zero-shot {round(100 * metrics['frozen']['accuracy'])} %)" if "frozen" in metrics else ""
    return f"# About {seconds} s on {os.cpu_count()} cores, and {accuracy} % test accuracy{frozen}."


def main() -> None:
    """Measure the configurations that are named, or all."""
    every = [
        *CONFIGS.glob("vision/*_digits.yaml"),
        *CONFIGS.glob("vlm/*_digits.yaml"),
        *CONFIGS.glob("vlm/*_scenes.yaml"),
    ]
    classified = (path for path in every if not path.stem.startswith(("base_to_new", "retrieval")))
    for path in [CONFIGS / f"{name}.yaml" for name in sys.argv[1:]] or sorted(classified):
        comment = measured(path)
        what, command, *rest = path.read_text(encoding="utf-8").splitlines()
        settings = [line for line in rest if not line.startswith("#")]
        path.write_text("\n".join([what, command, comment, *settings]) + "\n", encoding="utf-8")
        print(path.stem, comment)


if __name__ == "__main__":
    main()
