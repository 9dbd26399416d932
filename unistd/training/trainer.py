"""The training loop: mixed batches, rank phase, checkpoints; a run that was stopped goes on exactly where it was."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

import torch
from rich.console import Console
from rich.text import Text
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from fastmoe_lora import check_adapters, save_adapters
from fastmoe_lora._wrappers import gathered
from unistd.interrupts import say
from unistd.messages import printable
from unistd.model import UniSTD
from unistd.output import OutputLost
from unistd.training.account import Account
from unistd.training.balance import LossBalance
from unistd.training.baseline import repeat_last_errors
from unistd.training.best import save_best
from unistd.training.checkpoints import Checkpoints, read_last
from unistd.training.compiling import compile_parts, uncompiled
from unistd.training.config import Config
from unistd.training.data import Batch, passes_of, steps_of, steps_per_epoch, task_specs, train_loader
from unistd.training.device import open_device
from unistd.training.errors import TrainingError
from unistd.training.evaluate import Results, evaluate, held_out, values_of
from unistd.training.forgetting import write_before
from unistd.training.formats import FORMAT
from unistd.training.log import NoLog, RunLog, records_until
from unistd.training.objective import Errors, Objective, task_weights
from unistd.training.optim import build_optimizer, build_schedule, replan
from unistd.training.parts import freeze_parts
from unistd.training.precision import LossScale
from unistd.training.processes import ALONE, Processes
from unistd.training.progress import TrainingProgress
from unistd.training.ranks import RankPhase
from unistd.training.run import Run, build_model, use_threads, use_units
from unistd.training.sharding import is_sharded, shard_state, whole
from unistd.training.skipping import Skips
from unistd.training.sources import check_data, source_kinds, stored_units, units_of
from unistd.training.start import start_from, was_learned
from unistd.training.state import (
    check_config_of,
    check_model,
    check_training,
    random_state,
    set_random_state,
)
from unistd.training.stop import Stopped, StopRequest, StopRequested
from unistd.training.validations import Validations


class Trainer:
    """Trains the model of a config and keeps its state in a run's folder.

    Args:
        config: what to train.
        run: folder of the run.
        console: where progress is shown.
        resume: go on from the run's checkpoint, which brings all weights: a pre-trained file is not read again. Raises
            CheckpointError where it is missing, damaged, or of a config that would have trained something else.
        processes: those that share each batch and have met. All make a trainer and call what it has; the first one
            alone writes files. They take the same steps, whatever their number: each adds its part to the gradient of
            the whole batch, and draws the same random numbers.
    """

    def __init__(
        self, config: Config, run: Run, console: Console, resume: bool = False, processes: Processes = ALONE
    ) -> None:
        self.config, self.run, self.console, self.processes = config, run, console, processes
        use_threads(config)
        self.specs = task_specs(config)
        self.epoch_steps = steps_per_epoch(config)
        self.steps = config.train.epochs * self.epoch_steps
        self.step = 0
        self.validations, self.checkpoints = Validations(), Checkpoints(run, config.train.keep, [])
        source, state, planned = self._read() if resume else (run.checkpoint, None, config)
        planned_steps = planned.train.epochs * self.epoch_steps
        self.fabric = open_device(config.train, processes)
        torch.manual_seed(config.train.seed)
        start = config.train.init_from if state is None else None
        self.learned: list[str] = []  # tasks that were taken over
        model = build_model(config, load_pretrained=state is None and start is None, training=True)
        if start is not None:
            self.learned, line = start_from(model, config, start)
            self._say(line)
        freeze_parts(model, config)
        if state is not None:
            check_model(state, planned, model, source)
            self.learned = state.get("learned", [])
            ranks, optimizer, schedule = self._optimizers(model, planned_steps)
            check_training(state, planned, model, optimizer, schedule, ranks.optimizer, source)
            self.step = state["step"]
        self._logged: dict[str, Any] | None = None  # state of the log at the last checkpoint
        balanced = config.train.sampling == "loss_balanced"
        self.balance = LossBalance(config.learned, config.train.seed) if balanced else None
        self.loader = train_loader(config, range(self.step, self.steps), processes, self.balance)
        self.baselines = self._baselines() if state is None else state["baselines"]
        datasets = self.loader.dataset.datasets
        self.sources, self.units = source_kinds(datasets), units_of(datasets)
        use_units(model, self.units)
        if state is not None:
            check_data(state.get("sources", {}), stored_units(state), datasets, source)
            model.load_state_dict(state["model"])  # while it is whole
        self.model = self.fabric.setup_module(model.to(self.fabric.device))
        compile_parts(model, config.train)
        self.ranks, optimizer, self.schedule = self._optimizers(model, planned_steps)
        self.optimizer = self.fabric.setup_optimizers(optimizer)
        trained = {task: self.specs[task] for task in config.learned}
        self.scale = LossScale(config.train, self.fabric.device)
        weights = task_weights(config, self.baselines)
        self.objective = Objective(self.model, self.fabric, trained, weights, processes, self.scale)
        sampler, dataset = self.loader.batch_sampler.sampler, self.loader.dataset
        skips = Skips(config.train.skip_limit, sampler, dataset, self.scale.enabled)
        tell = self._say if processes.first else lambda line: None
        self.account = Account(config, self.ranks, skips, self.balance, self.baselines, tell)
        if state is not None:
            self._load(state, last=source == run.checkpoint)
            if planned_steps < self.steps:
                replan(self.schedule, config.optim, self.steps)
                rate = f"from step {self.step} the learning rate is {self.schedule.get_last_lr()[0]:.3g}"
                self._say(f"train.epochs {planned.train.epochs} becomes {config.train.epochs}: {rate}")

    @property
    def complete(self) -> bool:
        """Whether all steps are done, or validation has ended the run early."""
        return self.step == self.steps or self.validations.exhausted(self.config.train.patience)

    def fit(self) -> None:
        """Trains to the end and leaves a checkpoint there.

        Raises:
            Stopped: Ctrl-C or its like (`interrupts.STOPS`) came, or nobody reads the output any more; the checkpoint
                holds the last step that was done.
            TrainingError: an adapter that the model does not use, before the first step; or the loss or its
                gradient is NaN or infinite, by bad data or more than `train.skip_limit` times in a row: the checkpoint
                is the last good one.
            WorkerError: a loading process died; the checkpoint is the last one.
        """
        self._check_adapters()
        log = RunLog(self.run, self.config.train.log_every, self._logged) if self.processes.first else NoLog()
        if self.processes.first and not log.records:
            log.baselines(self.baselines)
        self._validated = self.processes.of_first(lambda: log.validated)
        validation = held_out(self.config, "val") if self.config.data.val_samples else {}
        progress = TrainingProgress(self.console, self.steps, self.step, self.epoch_steps, self.baselines)
        self.model.train()
        self.account.start()
        try:
            with (
                StopRequest(self.processes) as stop,
                stop.noting_loss(),
                progress,
                closing(self.passes()) as batches,
            ):
                if self.processes.first and log.lost:
                    self._say(f"{self.run.log}: {log.lost} records are missing, the run goes on without them")
                if self.step == 0 and self.learned:
                    self._measure_before(stop)
                if self._validate(validation, log, stop):  # a stop came before it, or in the middle
                    self.save(log, regular=self._checkpoint_due())
                for passes, waited in steps_of(batches, self.config.train.accumulate):
                    if self.complete:
                        break
                    with stop.noting_loss():
                        self.account.waited += waited
                        self._train_step(passes)
                        progress.advance(self.step)
                        if self._reading_due():
                            self.account.read(self.step, log, progress)
                        if self.complete:
                            log.flush()
                    stop.check()
                    validated, due = self._validate(validation, log, stop), self._checkpoint_due()
                    if due:
                        self.save(log, regular=True)
                    if validated or due:  # which took a while; processes ask one another no more often than that
                        stop.check()
            if self.step < self.steps:
                found = self.validations
                self._say(
                    f"stopped early at step {self.step} of {self.steps}: {found.waited} validations were no better than"
                    f" that after step {found.step}, whose weights are in {self.run.best}"
                )
        except (StopRequested, OutputLost) as reason:
            self.account.read(self.step, log, progress)
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
        to_device, processes = self.fabric.to_device, self.processes
        with uncompiled(self.config.train):
            found = evaluate(self.model, datasets, batch_size, workers, to_device, advance, processes=processes)
        return values_of(found)

    def save(self, log: RunLog | None = None, regular: bool = False) -> None:
        """Writes the checkpoint: all that is needed to go on exactly from here, and how much of `log` belongs to it.

        The same file whatever the number of processes and their strategy.

        regular: every run writes one here, whether it is stopped or not.

        Raises TrainingError where a weight is NaN or infinite, OSError where the file cannot be written; the checkpoint
        before is untouched.
        """
        if log is not None:
            self._logged = log.state_dict()
        state = whole(self._state())
        if self.processes.first:
            self._check_finite(state["model"])
            for moments in state["optimizer"]["state"].values():
                self._check_finite(moments)
            self.checkpoints.save(self.step, regular, state)
        self.processes.of_first(lambda: None)  # it is there when any of them goes on, or ends

    def _state(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "config": self.config.model_dump(),
            "step": self.step,
            "seconds": self.account.seconds,
            "baselines": self.baselines,
            "model": self.model.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "ranks": self.ranks.state_dict(),
            "random": random_state(self.fabric.device),
            "sources": self.sources,
            "units": self.units,
            "log": self._logged,
            "validations": self.validations.state_dict(),
            "skips": self.account.skips.state_dict(),
        } | self._own_state()

    def _own_state(self) -> dict[str, Any]:
        """What a run has that starts from another one, samples by losses, or computes in float16."""
        learned = {} if self.config.train.init_from is None else {"learned": self.learned}
        balance = {} if self.balance is None else {"balance": self.balance.state_dict()}
        return learned | balance | ({"scale": self.scale.state_dict()} if self.scale.enabled else {})

    def save_adapters(self) -> None:
        """Writes the adapters alone, for `fastmoe_lora.load_adapters`."""
        if self.processes.first or is_sharded(self.model.module):  # of shards all call it, and the first writes
            save_adapters(self.model.module, self.run.adapters, also=())  # the checkpoint has the rest

    def _optimizers(self, model: UniSTD, steps: int) -> tuple[RankPhase, AdamW, LambdaLR]:
        """What moves the ranks, what moves all else, and the schedule of that over `steps` steps, at the start."""
        ranks = RankPhase(model, self.config.ranks, self.config.ranks.epochs * self.epoch_steps)
        factor = self.config.train.learned_lr_factor
        learned = was_learned(self.learned) if factor < 1 else lambda name: False
        optimizer = build_optimizer(model, self.config.optim, ranks.ranks, learned, factor)
        return ranks, optimizer, build_schedule(optimizer, self.config.optim, steps)

    def _baselines(self) -> dict[str, float]:
        """Each task's error of repeating the last frame; raises TrainingError where it is none to divide by."""
        try:
            return self.processes.of_first(lambda: repeat_last_errors(self.loader.dataset, self.specs, self._say))
        except ValueError as error:
            raise TrainingError(str(error)) from None

    def _say(self, line: str) -> None:
        self.console.print(Text(printable(line)), soft_wrap=True, highlight=False)

    def _read(self) -> tuple[Path, dict[str, Any], Config]:
        """The checkpoint's file, its state, and the config that it was trained with."""
        source, state = read_last(self.run, say if self.processes.first else lambda line: None)
        return source, state, check_config_of(state, self.config, source, "cannot be resumed")

    def _load(self, state: Mapping[str, Any], last: bool) -> None:
        """Takes over a state that was checked as a whole, but for the model's part, which is there already; last: it
        is that of the run's last checkpoint."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.ranks.load_state_dict(state["ranks"])
        for optimizer in (self.optimizer.optimizer, self.ranks.optimizer):
            shard_state(optimizer)
        self.ranks.restore_window(self.step)
        if self.balance is not None:
            self.balance.load_state_dict(state["balance"])
        if self.scale.enabled:
            self.scale.load_state_dict(state["scale"])
        self._logged = state["log"] if "log" in state else records_until(self.run.log, self.step)
        self.validations = Validations(**state.get("validations", {}))
        self.account.load(state)
        self.checkpoints.kept = state.get("kept", [])
        self.checkpoints.last = self.step if last else None
        if self.processes.first:
            self.checkpoints.remove_others()
        set_random_state(state["random"], self.fabric.device)

    def _train_step(self, passes: Sequence[Batch]) -> None:
        """Takes a step. Nothing is read from the device: what the step came to waits in the account."""
        self.ranks.begin_step(self.step)
        self.update(self.objective.backward(passes, self.ranks.penalty))
        self.step += 1
        if self.complete and not self.ranks.frozen:
            self.ranks.freeze()

    def update(self, errors: Errors) -> None:
        """Moves weights and ranks along the gradient of a step, unless that is to be skipped."""
        self.scale.unscale([self.optimizer.optimizer, *([] if self.ranks.frozen else [self.ranks.optimizer])])
        norm, scale = self._clip_gradients(), self.scale.now()
        self.scale.update()
        rate, window = self.schedule.get_last_lr()[0], self.ranks.window
        skip = self.account.steps.add(self.step + 1, errors, norm, scale, rate, window)
        self.optimizer.optimizer.found_inf = skip
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ranks.end_step(skip)
        self.schedule.step()

    def _reading_due(self) -> bool:
        return self.complete or self.step % self.config.train.log_every == 0 or self.step % self.epoch_steps == 0

    def _validate(self, validation: Mapping[str, Any], log: RunLog | NoLog, stop: StopRequest) -> bool:
        """Writes the held-out results at an epoch's end, unless the log has them; whether it did."""
        done = max(self._validated, self.validations.last)
        due = bool(validation) and self.step % self.epoch_steps == 0 and self.step > done
        if due:
            results = self.evaluate(validation, lambda task: stop.check())
            log.validation(self.step, results)
            samples, learned = self.config.data.val_samples, self.step > self.ranks.steps
            if self.validations.note(self.step, results, self.baselines, samples, counts=learned):
                self._save_best()
            if self.complete:
                log.flush()
        return due

    def _measure_before(self, stop: StopRequest) -> None:
        """Keeps the results of the tasks that were taken over, which this run may worsen."""
        datasets = {task: data for task, data in held_out(self.config, "test").items() if task in self.learned}
        results = self.evaluate(datasets, lambda task: stop.check())
        sizes = {task: len(data) for task, data in datasets.items()}
        self.processes.of_first(lambda: write_before(self.run.before, sizes, results))

    def _save_best(self) -> None:
        weights = whole(self.model.module.state_dict())
        about = {"config": self.config.model_dump(), "step": self.step, "sources": self.sources, "units": self.units}
        if self.processes.first:
            self._check_finite(weights)
            save_best(self.run.best, {"model": weights, **about})
        self.processes.of_first(lambda: None)

    def _check_adapters(self) -> None:
        """Runs one sample of the smallest task there and back, which leaves everything as it was: the trunk, which has
        the adapters, is that of all tasks."""
        task = min(self.specs, key=lambda name: math.prod(self.specs[name].input_shape))
        frames = self.fabric.to_device(torch.zeros(1, *self.specs[task].input_shape))
        try:
            with self.fabric.autocast(), uncompiled(self.config.train):
                check_adapters(self.model.module, frames, task)
        except ValueError as error:
            raise TrainingError(str(error)) from None

    def _check_finite(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if not bool(tensor.isfinite().all()):
                raise TrainingError(f"step {self.step}: {name!r} holds NaN or Inf: try a lower optim.lr")

    def _clip_gradients(self) -> Tensor:
        """Clips the gradient and returns its norm before that, and that of the ranks' beside it: (), on the device."""
        largest = math.inf if self.config.optim.clip is None else self.config.optim.clip
        norm = self.fabric.clip_gradients(self.model, self.optimizer, max_norm=largest, error_if_nonfinite=False)
        return gathered(norm) + self.ranks.gradient_norm()

    def passes(self) -> Iterator[Batch]:
        """This process's passes of the steps to come. Where losses decide which samples an epoch has, they are asked
        for, also of the processes that load ahead, once the epoch before is done."""
        if self.balance is None:
            yield from self.loader
        while self.balance is not None and self.step < self.steps:
            epoch = self.step // self.epoch_steps
            self.balance.begin_epoch(epoch * self.epoch_steps * self.config.turns)
            yield from passes_of(self.loader, range(self.step, (epoch + 1) * self.epoch_steps))

    def _checkpoint_due(self) -> bool:
        return self.complete or self.step % (self.epoch_steps * self.config.train.checkpoint_every) == 0
