"""A task: its configuration, what builds the parts of a run from it, and the verbs, which all tasks share.

Needs no torch until a verb is called: a task script can be read for its configuration in no time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mmpeft.mistakes import exit_code
from mmpeft.settings import Settings
from mmpeft.training.config import RunConfig, read_run
from mmpeft.training.run.run_directory import RunDirectory

if TYPE_CHECKING:
    from mmpeft.assembly.parts import Parts
    from mmpeft.assembly.prediction import Prediction
    from mmpeft.training.trainer import Trainer

ConfigT = TypeVar("ConfigT", bound=RunConfig)
SettingsT = TypeVar("SettingsT", bound=Settings)


class Task(Generic[ConfigT]):
    """Training, trying, evaluating and asking adapters; a subclass changes a verb where its protocol is another.

    Args:
        config: The class of the task's configuration.
        assemble: From a configuration to the parts of a run: model, data, objective, and what else is particular.
    """

    def __init__(self, config: type[ConfigT], assemble: Callable[[ConfigT], Parts]) -> None:
        self.Config, self._assemble = config, assemble

    def run(self, config: ConfigT) -> dict[str, Any]:
        """Train, write the run directory, and return its metrics: scores are of the best adapter."""
        from mmpeft.training.run.report import train_and_report

        RunDirectory(config.output).claim(config.train.resume)
        trainer, parts = self.build(config)
        if parts.prepare is not None:
            parts.prepare(trainer)
        told: dict[str, Any] = {"frozen": parts.frozen, "tune": parts.tune, "notes": parts.data.notes}
        return train_and_report(trainer, parts.config, parts.loading, **told)

    def check(self, config: ConfigT) -> None:
        """Print what would be trained, three samples, and the numbers of one step; write no run directory."""
        from mmpeft.training.check import check_run

        trainer, parts = self.build(config)
        print(trainer.adapters.report())
        check_run(trainer, parts.data.train.describe)

    def evaluate(self, config: ConfigT) -> dict[str, float]:
        """Return the test scores of the adapters in the run directory of a finished run."""
        return self.load_adapted(config).evaluate()

    def predict(self, config: ConfigT, index: int) -> Prediction:
        """Return what the adapters of a finished run say of a test sample, or of what the configuration asks."""
        return self.load_adapted(config).answer(index)

    def build(self, config: ConfigT) -> tuple[Trainer, Parts]:
        """Put together a trainer, with the configured adapters in the model."""
        from mmpeft.assembly.grafting import add_adapters

        parts = self.assemble(config)
        data = parts.data
        adapters = add_adapters(parts.carrier, config, head=parts.head)
        if parts.once_adapted is not None:
            parts.once_adapted()
        preview = None if parts.preview is None else parts.preview()
        objective = parts.objective(adapters)
        return parts.trainer(parts.model, adapters, objective, data, config.train, config.output, preview), parts

    def load_adapted(self, config: ConfigT) -> Parts:
        """Return the parts with the adapters that the run directory holds in the model, in evaluation mode."""
        from mmpeft.assembly.grafting import load_adapters

        parts = self.assemble(config)
        load_adapters(parts.carrier, config)
        parts.model.eval()
        return parts

    def assemble(self, config: ConfigT) -> Parts:
        """Return the parts of a run, the model without adapters; the same for the same seed."""
        from accelerate.utils import set_seed

        set_seed(config.train.seed)
        return self._assemble(config)

    def main(self, arguments: Sequence[str]) -> None:
        """Train as the command line of a task script says, and print the metrics; see `run_script` for mistakes."""
        run_script(arguments, self.Config, self._train_and_print)

    def _train_and_print(self, config: ConfigT) -> None:
        metrics = self.run(config)
        from accelerate import PartialState

        PartialState().print(metrics)


def run_script(arguments: Sequence[str], config: type[SettingsT], run: Callable[[SettingsT], object]) -> None:
    """Run what a script does with the configuration that its command line gives.

    A mistake of the user's is one message and the exit code 2, as with ``mmpeft``; ``--debug`` shows the traceback.

    Raises:
        SystemExit: With the exit code, if it is not 0.
    """
    given = [argument for argument in arguments if argument != "--debug"]

    def work() -> None:
        run(read_arguments(given, config))

    if code := exit_code(work, debug=len(given) < len(arguments)):
        raise SystemExit(code)


def read_arguments(arguments: Sequence[str], config: type[SettingsT]) -> SettingsT:
    """Return the configuration that a script's command line gives: a file, and ``key=value`` overrides.

    Raises:
        ConfigError: If there is no such file, or it has problems: all of them at once.
        ValueError: If no file is named.
    """
    if not arguments:
        raise ValueError("which configuration? A script is called with CONFIG [key=value ...]")
    path, *overrides = arguments
    return read_run(Path(path), overrides).validate(config)
