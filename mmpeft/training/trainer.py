"""The training loop: steps, evaluations and checkpoints, in an order that a resumed run repeats to the bit."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from accelerate.utils import send_to_device, set_seed
from torch import Tensor, nn
from torch.optim import Optimizer

from mmpeft.handle.adapters import Adapters
from mmpeft.inspection.step_memory import StepMemory, predict
from mmpeft.objectives.base import Batch, Objective
from mmpeft.settings import nearest
from mmpeft.training import memory
from mmpeft.training.accelerator import finish_trackers, make_accelerator, start_trackers
from mmpeft.training.average import make_average
from mmpeft.training.evaluation import evaluate, set_training_mode
from mmpeft.training.failures import NonFiniteLossError, explained_out_of_memory
from mmpeft.training.interruption import Interrupted, Interruption
from mmpeft.training.loader import Loaded, Loaders, SplitName, Splits
from mmpeft.training.optimizer import make_optimizer, set_lr
from mmpeft.training.parallel import let_first, parallelise
from mmpeft.training.prefix_cache.decide import PrefixCache
from mmpeft.training.preview import Preview
from mmpeft.training.run.checkpoints import find_checkpoint
from mmpeft.training.run.progress import ProgressDisplay
from mmpeft.training.run.run_directory import RunDirectory
from mmpeft.training.run.state import Progress
from mmpeft.training.run.store import Store
from mmpeft.training.schedule import make_schedule
from mmpeft.training.step import Stepper

if TYPE_CHECKING:
    from mmpeft.training.config import TrainConfig


@dataclass(frozen=True)
class Result:
    """What a training came to: its length, its cost, and the step whose weights were kept for their score."""

    steps: int
    epochs: int
    best_step: int
    best_score: float | None
    seconds: float
    peak_memory_bytes: int


class Trainer:
    """Trains the active adapters of a model; works the same in one process and under ``accelerate launch``."""

    def __init__(
        self,
        model: nn.Module,
        adapters: Adapters,
        objective: Objective,
        data: Splits,
        config: TrainConfig,
        output: Path,
        preview: Preview | None = None,
    ) -> None:
        if config.monitor is not None and not len(data.val):
            raise ValueError("train.monitor: there is no validation split to choose by; null keeps the last weights")
        if config.monitor is not None and objective.score_names and config.monitor.metric not in objective.score_names:
            metric = config.monitor.metric
            raise ValueError(f"train.monitor.metric: no score {metric!r}{nearest(metric, objective.score_names)}")
        self.score_names = objective.score_names
        self.data, self.config, self.adapters, self.plain, self.preview = data, config, adapters, model, preview
        self.accelerator = make_accelerator(config, output)
        self.objective = objective.to(self.accelerator.device)
        self.model = parallelise(model, adapters.parameters(), self.accelerator)
        parameters = dict(adapters.named_parameters())
        self.average = make_average(parameters, config)
        self.loaders = Loaders(data, config, self.accelerator.process_index, self.accelerator.num_processes)
        self.order = self.loaders.order("train")
        self.batches = self.loaders.loader("train", self.order)
        self.schedule = make_schedule(config, len(self.order), self.order.processes)
        self.optimizer = make_optimizer(
            parameters, config, adapters.rates(config.layer_decay), adapters.fixed_factors()
        )
        self.stepper = Stepper(self.model, adapters, self.objective, self.optimizer, self.accelerator, config.clip)
        self.directory = RunDirectory(output)
        self.store = Store(
            self.directory,
            self.model,
            adapters,
            self.optimizer,
            self.average,
            self.accelerator,
            self._fixed(parameters),
        )
        self.progress = Progress()
        self.prefix_cache: dict[str, Any] = {}
        self._interruption, self._is_alone = Interruption(), False

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let no other run write to the directory of this one inside the block, which may stand in another such."""
        with ExitStack() as stack:
            if not self._is_alone:
                claimed = self.directory.claimed(self.config.resume)
                let_first(self.accelerator, lambda: stack.enter_context(claimed))
                self._is_alone = True
                stack.callback(setattr, self, "_is_alone", False)
            yield

    def fit(self, describe: Callable[[], None] = lambda: None) -> Result:
        """Train to the end; leave the model with the weights that were best on the validation split.

        An adapter without parameters (a cache) is only evaluated. Once it is sure that the run can start or go on,
        ``describe`` is called; nothing in its directory has been changed before.
        """
        with self.alone():
            return self._fit(describe)

    def _fit(self, describe: Callable[[], None]) -> Result:
        memory.reset_peak()
        self._clock = monotonic()
        self._restore()
        self._cache_prefix()
        describe()
        start_trackers(self.accelerator, self.config)
        try:
            self._begin()
            with self._interruption, self._new_display() as self._display:
                if not self.adapters.parameters():
                    self._validate()
                while self.adapters.parameters() and not self._finished():
                    self._train_epoch()
        finally:
            finish_trackers(self.accelerator)
        self.store.restore_best()
        done = self.progress
        return Result(done.step, done.epoch, done.best_step, done.best, done.seconds, memory.peak_bytes())

    def evaluate(self, split: SplitName) -> dict[str, float]:
        """Return the scores of the model as it is on a split."""
        with explained_out_of_memory(self.config):
            scores = evaluate(self.model, self.objective, self.loaders.loader(split), self.accelerator)
        assert not self.score_names or scores.keys() <= set(self.score_names), (
            f"scores that the objective doesn't name: {scores}"
        )
        return scores

    def first_window(self) -> list[Loaded]:
        """Return the batches of the first optimizer step."""
        return list(islice(self.batches, self.config.accumulate))

    def try_step(self, window: list[Loaded]) -> dict[str, float]:
        """Make one optimizer step and return its numbers; nothing is written."""
        set_training_mode(self.model)
        with explained_out_of_memory(self.config):
            return self._make_steps(window)

    def predict_step(self, window: list[Loaded]) -> StepMemory:
        """Return the memory of an optimizer step from the second one on; nothing is changed."""

        def run(batch: Batch) -> Tensor:
            set_training_mode(self.plain)
            with self.accelerator.autocast():
                return self.objective.loss(self.plain, batch)[0]

        def optimizer(parameters: list[nn.Parameter]) -> Optimizer:
            named = dict(zip(names, parameters, strict=True))
            return make_optimizer(
                named, self.config, self.adapters.rates(self.config.layer_decay), self.adapters.fixed_factors()
            )

        names, parameters = zip(*self.adapters.named_parameters(), strict=True)
        batches = send_to_device(self._learned_from(window), self.accelerator.device)
        return predict([self.plain, self.objective], run, batches, [*parameters], optimizer)

    def _learned_from(self, window: list[Loaded]) -> list[Batch]:
        """Return the batches that the first optimizer step of a window learns from."""
        return [batch for batch, _ in window]

    def _fixed(self, parameters: dict[str, nn.Parameter]) -> dict[str, object]:
        """Return what a resumed run must have in common with the interrupted one."""
        config = self.config
        return {
            "training samples": self.order.samples,
            "train.batch_size x processes": self.order.size,
            "processes": self.order.processes,
            "train.accumulate": config.accumulate,
            "train.drop_last": config.drop_last,
            "train.seed": config.seed,
            "train.optimizer": config.optimizer,
            "train.ema": config.ema,
            "train.average": config.average and config.average.model_dump(),
            "trainable parameters": sum(parameter.numel() for parameter in parameters.values()),
        }

    @property
    def _main(self) -> bool:
        return self.accelerator.is_main_process

    def _restore(self) -> None:
        """Take the state of the checkpoint to go on from, or that of the seed."""
        if self.config.resume is not None:
            self.progress = self.store.resume(find_checkpoint(self.directory.checkpoints, self.config.resume))
        else:
            set_seed(self.config.seed + self.accelerator.process_index)

    def _begin(self) -> None:
        """Have the log forget what came after the checkpoint to go on from, or save the first one."""
        if self.config.resume is None:
            self.store.save(self.progress)
        elif self._main:
            self.directory.forget_after(self.progress.step)
        self.accelerator.wait_for_everyone()

    def _new_display(self) -> ProgressDisplay:
        return ProgressDisplay(self.schedule.total, self.progress.step, shown=self._main)

    def _cache_prefix(self) -> None:
        """Compute once what lies in front of the first edit, if that pays, and go on from there."""
        epochs = -(-self.schedule.total * self.config.accumulate // len(self.order))
        parts = (self.plain, self.objective, self.loaders, self.config, self.accelerator, self.directory.path)
        devices = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        with explained_out_of_memory(self.config), torch.random.fork_rng(devices):
            cached = PrefixCache(*parts, epochs, self._new_display().say).prepare()
        self.prefix_cache, self.loaders = cached.summary, cached.loaders
        self.objective = self.stepper.objective = cached.objective
        self.batches = self.loaders.loader("train", self.order)

    def _finished(self) -> bool:
        patience = self.config.early_stopping
        return self.progress.step >= self.schedule.total or (patience is not None and self.progress.stale >= patience)

    def _train_epoch(self) -> None:
        """Train from the present place to the end of the epoch; evaluate and save where they are due."""
        done, config = self.progress, self.config
        self.order.epoch, self.order.batch = done.epoch, done.batch
        batches = iter(self.batches)
        set_training_mode(self.model)
        while done.step < self.schedule.total and (window := list(islice(batches, config.accumulate))):
            with explained_out_of_memory(config):
                self._train_step(window)
        if done.batch >= len(self.order):
            done.epoch, done.batch = done.epoch + 1, 0
            if self.average:
                self.average.after_epoch(done.epoch)
        if done.epoch % config.evaluate_every == 0 or self._finished():
            self._validate()
        if done.epoch % config.save_every == 0 or self._finished():
            self._save()

    def _train_step(self, window: list[Loaded]) -> None:
        done, lr = self.progress, self.schedule(self.progress.step)
        set_lr(self.optimizer, lr)
        try:
            values = self._make_steps(window)
        except NonFiniteLossError as error:
            self._stop_before(error)
        done.step, done.batch = done.step + 1, done.batch + len(window)
        if self.average:
            self.average.after_step(done.step)
        self._record("train", {**values, "lr": lr})
        if self.preview is not None and self.preview.is_due(done.step, last=self._finished()):
            self._show(self.preview)
        self._display.step(done.step, done.epoch, values["loss"], lr)

    def _make_steps(self, window: list[Loaded]) -> dict[str, float]:
        """Have the optimizer step on a window of batches, and return the numbers of it."""
        return self.stepper.step(window, self._agree_on_weight(window))

    def _show(self, preview: Preview) -> None:
        """Have pictures drawn by the model as it would be saved now; the training goes on as if nothing had been."""
        step = self.progress.step
        self.model.eval()
        with self.average.applied() if self.average else nullcontext(), self.accelerator.autocast():
            record, problem = preview.show(self.directory.path, step, self.accelerator)
        set_training_mode(self.model)
        if self._main:
            self.directory.append({"step": step, "epoch": self._epoch(), "split": "preview", **record})
        self._display.say(f"step {step}  pictures {record['pictures']}{problem}")

    def _agree_on_weight(self, window: list[Loaded]) -> float:
        """Return the weight of the window over all processes; when one of them got a signal, all of them stop here."""
        values = [sum(self.objective.weight(batch) * counted for batch, counted in window), self._interruption.signal]
        if self.accelerator.num_processes > 1:
            tensor = torch.tensor(values, dtype=torch.float64, device=self.accelerator.device)
            values = self.accelerator.reduce(tensor, reduction="sum").tolist()
        weight, stopped = values
        if stopped:
            saved = self._save()
            self._display.say(
                f"Interrupted after step {self.progress.step}; saved {saved}. Continue: train.resume=latest"
            )
            raise Interrupted(128 + (self._interruption.signal or signal.SIGINT))
        return weight

    def _stop_before(self, error: NonFiniteLossError) -> NoReturn:
        done = self.progress
        moment = f"training stopped at step {done.step + 1} (epoch {done.epoch + 1}, batch {done.batch + 1})"
        if self.store.finite():
            state = f"the state before it is in {self._save()}"
        else:
            state = f"an earlier step spoilt the weights: go back to a checkpoint in {self.directory.checkpoints}"
        advice = "Try a lower train.lr, train.clip=1, or train.precision=fp32"
        raise NonFiniteLossError(f"{moment}: {error}; {state}. {advice}") from None

    def _validate(self) -> None:
        """Evaluate on the validation split, if there is one, and keep the weights if they are the best so far."""
        done = self.progress
        with self.average.applied() if self.average else nullcontext():
            scores = self.evaluate("val") if len(self.data.val) else {}
            kept = self._is_kept(scores)
            if kept:
                self.store.keep_best()
        if scores:
            self._record("validation", scores)
            values = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
            best = "  (best)" if kept and self.config.monitor else ""
            self._display.say(f"epoch {done.epoch}  step {done.step}  validation {values}{best}")

    def _is_kept(self, scores: dict[str, float]) -> bool:
        """Tell whether these weights are the ones to keep so far: the best, or without a monitor the latest."""
        monitor, done = self.config.monitor, self.progress
        if monitor is None:
            done.best_step = done.step
            return True
        if monitor.metric not in scores:
            raise ValueError(f"train.monitor.metric: no score {monitor.metric!r}{nearest(monitor.metric, scores)}")
        return done.judge(scores[monitor.metric], monitor.mode)

    def _save(self) -> Path:
        now = monotonic()
        self.progress.seconds, self._clock = self.progress.seconds + now - self._clock, now
        return self.store.save(self.progress)

    def _record(self, split: str, values: dict[str, float]) -> None:
        """Write values to the log and the trackers."""
        step = self.progress.step
        if self._main:
            self.directory.append({"step": step, "epoch": self._epoch(), "split": split, **values})
        self.accelerator.log({f"{split}/{name}": value for name, value in values.items()}, step=step)

    def _epoch(self) -> float:
        return round(self.progress.epoch + self.progress.batch / len(self.order), 4)
