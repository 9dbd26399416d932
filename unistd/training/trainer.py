"""The training loop: mixed batches, rank phase, checkpoints; a run that was stopped goes on exactly where it was."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from typing import Any, NoReturn

import torch
from rich.console import Console
from rich.text import Text
from torch import Tensor
from torch.nn import functional as F

from fastmoe_lora import check_adapters, save_adapters
from unistd.masks import masked_mse
from unistd.messages import printable
from unistd.output import OutputLost
from unistd.training.baseline import repeat_last_errors
from unistd.training.checkpoint import load_checkpoint, save_checkpoint
from unistd.training.config import Config
from unistd.training.data import Batch, steps_per_epoch, task_specs, train_loader
from unistd.training.device import open_device
from unistd.training.errors import TrainingError
from unistd.training.evaluate import Results, evaluate, held_out, values_of
from unistd.training.log import RunLog, records_until
from unistd.training.optim import build_optimizer, build_schedule
from unistd.training.progress import TrainingProgress
from unistd.training.ranks import RankPhase
from unistd.training.run import Run, build_model, use_threads, use_units
from unistd.training.sources import check_data, source_kinds, stored_units, units_of
from unistd.training.state import (
    check_config_of,
    check_model,
    check_training,
    random_state,
    set_random_state,
)
from unistd.training.stop import Stopped, StopRequest, StopRequested


class Trainer:
    """Trains the model of a config and keeps its state in a run's folder.

    Args:
        config: what to train.
        run: folder of the run.
        console: where progress is shown.
        resume: go on from the run's checkpoint, which brings all weights: a pre-trained file is not read again. Raises
            CheckpointError where it is missing, damaged, or of a config that would have trained something else.
    """

    def __init__(self, config: Config, run: Run, console: Console, resume: bool = False) -> None:
        self.config, self.run, self.console = config, run, console
        use_threads(config)
        self.specs = task_specs(config)
        self.epoch_steps = steps_per_epoch(config)
        self.steps = config.train.epochs * self.epoch_steps
        self.step, self.seconds = 0, 0.0
        state = self._read() if resume else None
        self.fabric = open_device(config.train)
        torch.manual_seed(config.train.seed)
        model = build_model(config, load_pretrained=state is None, training=True)
        self.ranks = RankPhase(model, config.ranks, config.ranks.epochs * self.epoch_steps)
        optimizer = build_optimizer(model, config.optim, exclude=self.ranks.ranks)
        self.schedule = build_schedule(optimizer, config.optim, self.steps)
        if state is not None:
            check_model(state, config, model, run.checkpoint)
            check_training(state, config, model, optimizer, self.schedule, self.ranks.optimizer, run.checkpoint)
            self.step, self.seconds = state["step"], state["seconds"]
        self.model, self.optimizer = self.fabric.setup(model, optimizer)
        self._logged: dict[str, Any] | None = None  # state of the log at the last checkpoint
        self.loader = train_loader(config, range(self.step, self.steps))
        self.baselines = self._baselines() if state is None else state["baselines"]
        datasets = self.loader.dataset.datasets
        self.sources, self.units = source_kinds(datasets), units_of(datasets)
        use_units(model, self.units)
        if state is not None:
            check_data(state.get("sources", {}), stored_units(state), datasets, run.checkpoint)
            self._load(state)

    @property
    def complete(self) -> bool:
        """Whether all steps are done."""
        return self.step == self.steps

    def fit(self) -> None:
        """Trains to the end and leaves a checkpoint there.

        Raises:
            Stopped: Ctrl-C, SIGTERM or SIGHUP came, or nobody reads the output any more; the checkpoint holds the last
                step that was done.
            TrainingError: an adapter that the model does not use, before the first step; or the loss or its
                gradient is NaN or infinite: the checkpoint is the last good one.
            WorkerError: a loading process died; the checkpoint is the last one.
        """
        self._check_adapters()
        log = RunLog(self.run, self.config.train.log_every, self._logged)
        if not log.records:
            log.baselines(self.baselines)
        validation = held_out(self.config, "val") if self.config.data.val_samples else {}
        progress = TrainingProgress(self.console, self.steps, self.step, self.epoch_steps, self.baselines)
        self.model.train()
        self._clock = time.perf_counter()
        try:
            if log.lost:
                self._say(f"{self.run.log}: {log.lost} records are missing, the run goes on without them")
            with StopRequest() as stop, progress, closing(iter(self.loader)) as batches:
                if self._validate(validation, log, stop):  # a stop came before it, or in the middle
                    self.save(log)
                for batch, waited in _timed(batches):
                    self._train_step(batch, waited, log, progress)
                    stop.check()
                    self._validate(validation, log, stop)
                    if self._checkpoint_due():
                        self.save(log)
                    stop.check()
        except (StopRequested, OutputLost) as reason:
            self.stop(reason, log)
        except TrainingError:
            log.flush()  # what led up to it; it is dropped where the run goes on from its checkpoint
            raise
        finally:
            log.close()

    def stop(self, reason: StopRequested | OutputLost, log: RunLog | None = None) -> NoReturn:
        """Writes the checkpoint and raises Stopped."""
        self.save(log)
        where = f"stopped at step {self.step} of {self.steps}, checkpoint saved"
        raise Stopped(reason.signum, f"{where} ({reason})" if isinstance(reason, OutputLost) else where) from None

    def evaluate(self, datasets: Mapping[str, Any], advance: Callable[[str], None] = lambda task: None) -> Results:
        """Results on data sets per task: of the model and the repeated last frame."""
        config = self.config
        batch_size, workers = config.train.batch_size, config.data.workers
        return values_of(evaluate(self.model, datasets, batch_size, workers, self.fabric.to_device, advance))

    def save(self, log: RunLog | None = None) -> None:
        """Writes the checkpoint: all that is needed to go on exactly from here, and how much of `log` belongs to it.

        Raises TrainingError where a weight is NaN or infinite, OSError where the file cannot be written; the checkpoint
        before is untouched.
        """
        if log is not None:
            self._logged = log.state_dict()
        state = {
            "config": self.config.model_dump(),
            "step": self.step,
            "seconds": self.seconds,
            "baselines": self.baselines,
            "model": self.model.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "ranks": self.ranks.state_dict(),
            "random": random_state(),
            "sources": self.sources,
            "units": self.units,
            "log": self._logged,
        }
        self._check_finite(state["model"])
        for moments in state["optimizer"]["state"].values():
            self._check_finite(moments)
        save_checkpoint(self.run.checkpoint, state)

    def save_adapters(self) -> None:
        """Writes the adapters alone, for `fastmoe_lora.load_adapters`."""
        save_adapters(self.model.module, self.run.adapters, also=())  # the checkpoint has the rest

    def _baselines(self) -> dict[str, float]:
        """Each task's error of repeating the last frame; raises TrainingError where it is none to divide by."""
        try:
            return repeat_last_errors(self.loader.dataset, self.specs, self._say)
        except ValueError as error:
            raise TrainingError(str(error)) from None

    def _say(self, line: str) -> None:
        self.console.print(Text(printable(line)), soft_wrap=True, highlight=False)

    def _read(self) -> dict[str, Any]:
        state = load_checkpoint(self.run.checkpoint)
        check_config_of(state, self.config, self.run.checkpoint, "cannot be resumed")
        return state

    def _load(self, state: Mapping[str, Any]) -> None:
        """Takes over a state that was checked as a whole."""
        self.model.module.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.ranks.load_state_dict(state["ranks"])
        self.ranks.restore_window(self.step)
        self._logged = state["log"] if "log" in state else records_until(self.run.log, self.step)
        set_random_state(state["random"])

    def _train_step(self, batch: Batch, waited: float, log: RunLog, progress: TrainingProgress) -> None:
        self.ranks.begin_step(self.step)
        batch = self.fabric.to_device(batch)
        predictions = self.model({task: inputs for task, (inputs, _) in batch.items()})
        errors = {task: self._error(task, predictions[task].float(), targets) for task, (_, targets) in batch.items()}
        losses = dict(zip(errors, torch.stack(list(errors.values())).tolist(), strict=True))
        self._check_losses(losses, batch)
        losses = {task: loss for task, loss in losses.items() if self._measured(task, batch)}
        self.fabric.backward(self._objective(errors))
        self._clip_gradients()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ranks.end_step()
        rate = self.schedule.get_last_lr()[0]
        self.schedule.step()
        self.step += 1
        if self.complete and not self.ranks.frozen:
            self.ranks.freeze()
        samples = sum(len(targets) for _, targets in batch.values())
        now = time.perf_counter()
        took, self._clock = now - self._clock, now
        self.seconds += took
        summary = self.ranks.summary()
        speed = {"samples_per_second": samples / took, "waiting": waited / took, "seconds": self.seconds}
        log.step(self.step, losses, {"lr": rate, **speed, "window": self.ranks.window} | summary)
        if self.complete:
            log.flush()
        phase = "frozen" if self.ranks.frozen else "learning"
        ranks = f"ranks {phase} {summary['rank_mean']:.2f} ± {summary['rank_spread']:.2f}"
        progress.step(self.step, losses, ranks, samples / took)

    def _error(self, task: str, prediction: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error over what was measured."""
        return (masked_mse if self.specs[task].missing else F.mse_loss)(prediction, targets)

    def _measured(self, task: str, batch: Batch) -> bool:
        """Whether anything of a task's targets was, so that its loss says something."""
        return not (self.specs[task].missing and bool(batch[task][1].isnan().all()))

    def _validate(self, validation: Mapping[str, Any], log: RunLog, stop: StopRequest) -> bool:
        """Writes the held-out results at an epoch's end, unless the log has them; whether it did."""
        due = bool(validation) and self.step % self.epoch_steps == 0 and self.step > log.validated
        if due:
            log.validation(self.step, self.evaluate(validation, lambda task: stop.check()))
        return due

    def _check_adapters(self) -> None:
        """Runs one sample of the smallest task there and back, which leaves everything as it was: the trunk, which has
        the adapters, is that of all tasks."""
        task = min(self.specs, key=lambda name: math.prod(self.specs[name].input_shape))
        frames = self.fabric.to_device(torch.zeros(1, *self.specs[task].input_shape))
        try:
            with self.fabric.autocast():
                check_adapters(self.model.module, frames, task)
        except ValueError as error:
            raise TrainingError(str(error)) from None

    def _objective(self, errors: Mapping[str, Tensor]) -> Tensor:
        relative = self.config.optim.loss == "relative"
        terms = [error / self.baselines[task] if relative else error for task, error in errors.items()]
        return torch.stack(terms).mean() + self.ranks.penalty()

    def _check_losses(self, losses: Mapping[str, float], batch: Batch) -> None:
        for task, loss in losses.items():
            if not math.isfinite(loss):
                missing = self.specs[task].missing
                wrong = any(bool((frames.isinf() if missing else ~frames.isfinite()).any()) for frames in batch[task])
                held = f"its frames hold {'Inf' if missing else 'NaN or Inf'}"
                cause = held if wrong else "its frames are finite: try a lower optim.lr"
                raise TrainingError(f"step {self.step + 1}: the loss of task {task!r} is {loss}; {cause}")

    def _check_finite(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if not bool(tensor.isfinite().all()):
                raise TrainingError(f"step {self.step}: {name!r} holds NaN or Inf: try a lower optim.lr")

    def _clip_gradients(self) -> None:
        largest = math.inf if self.config.optim.clip is None else self.config.optim.clip
        try:
            self.fabric.clip_gradients(self.model, self.optimizer, max_norm=largest)
        except RuntimeError:
            raise TrainingError(f"step {self.step + 1}: the gradient is NaN or Inf: try a lower optim.lr") from None

    def _checkpoint_due(self) -> bool:
        return self.complete or self.step % (self.epoch_steps * self.config.train.checkpoint_every) == 0


def _timed(batches: Iterator[Batch]) -> Iterator[tuple[Batch, float]]:
    """Each batch with the seconds that it was waited for."""
    begin = time.perf_counter()
    for batch in batches:
        yield batch, time.perf_counter() - begin
        begin = time.perf_counter()
