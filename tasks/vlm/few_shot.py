"""Few-shot classification: adapt a zero-shot classifier of CLIP or SigLIP to a few labelled images of each class.

mmpeft train vlm/coop_scenes
mmpeft train vlm/coop_scenes shots='[1, 2, 4, 8, 16]' seeds='[1, 2, 3]'
python tasks/vlm/few_shot.py configs/vlm/tip_adapter_f_scenes.yaml data.style=neon
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from pydantic import PositiveInt

from mmpeft.assembly.task import Task
from mmpeft.assembly.zero_shot_config import ZeroShotConfig
from mmpeft.training.run.run_directory import RunDirectory

if TYPE_CHECKING:
    from mmpeft.assembly.parts import Parts


class Config(ZeroShotConfig):
    """One run of few-shot classification, or its repetition over shots and seeds."""

    shots: tuple[PositiveInt, ...] = ()
    """Numbers of training images per class to repeat the run for (validation: at most 4); () takes the data's own."""


def assemble(config: Config) -> Parts:
    """Load the data, and the zero-shot classifier of its classes."""
    from mmpeft.assembly import zero_shot

    return zero_shot.assemble(config)


class FewShot(Task[Config]):
    """One run, or with ``shots`` or ``seeds`` its repetitions."""

    def run(self, config: Config) -> dict[str, Any]:
        """Train, write the run directory, and return its metrics, or those of the repetitions."""
        if not (config.shots or config.seeds):
            return super().run(config)
        from mmpeft.assembly.repeats import repeat

        RunDirectory(config.output).claim(config.train.resume)
        return repeat(config, super().run, config.shots, config.seeds)


TASK = FewShot(Config, assemble)

if __name__ == "__main__":
    TASK.main(sys.argv[1:])
