"""The folder of a run: which file is where, who may write there, and the model that it holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from unistd.files import remove_leftovers, require
from unistd.model import AdapterConfig, TrunkConfig, UniSTD
from unistd.model.sources import trunk_config
from unistd.training.checkpoint import CheckpointError
from unistd.training.checkpoints import LINKS, read_chosen, weights_alone
from unistd.training.config import Config
from unistd.training.data import steps_per_epoch, task_specs
from unistd.training.lock import locked
from unistd.training.memory import check_memory
from unistd.training.ranks import restore_window
from unistd.training.settings import load_config
from unistd.training.sources import Unit, stored_units
from unistd.training.state import KEYS, WEIGHTS, check_config_of, check_model


@dataclass(frozen=True)
class Run:
    """Paths of the files below a run's folder."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    @property
    def earlier(self) -> Path:
        """the checkpoints before the last one, as step_00000042.pt, and links to the last and the best one"""
        return self.folder / "checkpoints"

    @property
    def best(self) -> Path:
        """the weights of the best validation"""
        return self.folder / "best.safetensors"

    @property
    def adapters(self) -> Path:
        return self.folder / "adapters"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.json"

    @property
    def before(self) -> Path:
        """results, before the first step, of the tasks that were learned in another run"""
        return self.folder / "before.json"

    @property
    def log(self) -> Path:
        return self.folder / "log.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.folder / "tensorboard"

    @property
    def scores(self) -> Path:
        """the final evaluation's part of TensorBoard"""
        return self.tensorboard / "test"

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    @property
    def profile(self) -> Path:
        """trace of `unistd train --profile`, which is no training"""
        return self.folder / "profile.json"

    @property
    def exports(self) -> Path:
        return self.folder / "exports"

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Inside `with`, no other process writes here (see `locked`), and each name has what it should, or nothing.

        Raises RunInUse; OSError naming the folder or the file that is, say, a named pipe.
        """
        with locked(self.folder):
            results = (self.metrics, self.before, self.report, self.profile)
            for file in (self.config, self.checkpoint, self.best, self.log, *results):
                require(file, "a file", "nothing")
            for folder in (self.earlier, self.adapters, self.tensorboard, self.scores, self.exports):
                require(folder, "a folder", "nothing")
            remove_leftovers(self.folder)
            if self.earlier.exists():
                remove_leftovers(self.earlier)
            for leftover in self.adapters.glob("adapters.*.new"):  # of fastmoe_lora, likewise
                leftover.unlink(missing_ok=True)
            yield

    def delete_files(self) -> None:
        """Removes what an earlier training left here; files of others stay.

        Results first, then the checkpoints that they are of, the last one last, then the log: a run whose deletion was
        cut short goes on or starts anew, and shows no results that are not its own.
        """
        adapters, files = self.adapters.glob("adapters.*"), "events.out.tfevents.*"
        events = (*self.tensorboard.glob(files), *self.scores.glob(f"*/{files}"))
        exports = (*self.exports.glob("*.onnx"), *self.exports.glob("*.pt2"))
        earlier = (*self.earlier.glob("step_*.pt"), *(self.earlier / name for name in LINKS))
        checkpoints = (*earlier, self.best, self.checkpoint)
        for file in (self.metrics, self.report, *exports, *adapters, *checkpoints, self.before, self.log, *events):
            file.unlink(missing_ok=True)
        scores = (*self.scores.glob("*/"), self.scores)
        for folder in (self.earlier, self.adapters, *scores, self.tensorboard, self.exports):
            with suppress(OSError):  # not there, or with files of others in it
                folder.rmdir()


def use_threads(config: Config) -> None:
    """Sets the number of CPU threads of this process to the config's."""
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)


def build_model(config: Config, load_pretrained: bool = True, training: bool = False) -> UniSTD:
    """The network of a config, at its start.

    Args:
        load_pretrained: False where a checkpoint brings the trunk's weights.
        training: it will be trained, which takes more memory.

    Raises ValueError as `UniSTD` does, and, before anything is made, where this machine's memory is too small.
    """
    specs = task_specs(config)
    trunk, adapter = model_sizes(config)
    check_memory(config, specs, trunk, adapter, training)
    options = config.model
    return UniSTD(
        list(specs.values()),
        options.trunk if isinstance(options.trunk, str) else trunk,
        options.pretrained,
        adapter=adapter,
        hidden=options.hidden,
        residual=options.residual,
        skips=options.skips,
        checkpointing=options.checkpointing,
        load_pretrained=load_pretrained,
    )


def model_sizes(config: Config) -> tuple[TrunkConfig, AdapterConfig]:
    """The sizes of a config's Transformer, a pretrained one's too, and of the adapters in it; raises ValueError."""
    options = config.model
    trunk = options.trunk if isinstance(options.trunk, str) else options.trunk.trunk_config()
    adapter = AdapterConfig(
        qkv_experts=options.qkv_experts,
        proj_experts=options.proj_experts,
        temporal_experts=options.temporal_experts,
        temporal_width=options.temporal_width,
        max_rank=options.max_rank,
        init_rank=options.init_rank,
        interpolation="sampled" if config.ranks.recipe == "sampled" else "linear",
    )
    return trunk_config(trunk, options.pretrained), adapter


def use_units(model: UniSTD, units: Mapping[str, Unit]) -> None:
    """Gives the model's tasks the units of the data that it was trained on."""
    model.tasks = {name: spec.replace(**units.get(name, {})) for name, spec in model.tasks.items()}


def find_run(folder: str | Path) -> Run:
    """The run in a folder; raises CheckpointError where there is none."""
    run = Run(Path(folder))
    if not run.config.exists():
        raise CheckpointError(f"{run.folder}: not the folder of a run (no {run.config.name} in it)")
    return run


@dataclass(frozen=True)
class TrainedRun:
    """A run whose checkpoint was read: its model (in evaluation mode, on the CPU) after `step` steps."""

    run: Run
    config: Config
    model: UniSTD
    step: int
    checkpoint: Path
    """the file that was read"""
    sources: Mapping[str, str]
    """where each task's training data came from, as `source_kinds` says; empty in checkpoints of earlier releases"""
    units: Mapping[str, Unit]
    """what each task's values mean, which `model.tasks` say too; empty likewise"""


def open_run(folder: str | Path) -> tuple[Run, Config, UniSTD]:
    """A run's paths, config and trained model (in evaluation mode, on the CPU).

    Raises CheckpointError: not the folder of a run, no checkpoint yet, a damaged one, or one that was trained with
    another config than the folder's.
    """
    trained = read_run(folder)
    return trained.run, trained.config, trained.model


def read_run(folder: str | Path, which: str = "last") -> TrainedRun:
    """As `open_run`, with what else the checkpoint says; which: of its checkpoints (see `read_chosen`)."""
    run = find_run(folder)
    config = load_config(run.config)
    use_threads(config)
    checkpoint, state = read_chosen(run, which)
    keys = WEIGHTS if weights_alone(checkpoint) else KEYS
    trained = check_config_of(state, config, checkpoint, f"{run.config.name} is not what it was trained with", keys)
    model = build_model(config, load_pretrained=False)
    check_model(state, trained, model, checkpoint)
    model.load_state_dict(state["model"])
    restore_window(model, config.ranks, config.ranks.epochs * steps_per_epoch(config), state["step"])
    units = stored_units(state)
    use_units(model, units)
    return TrainedRun(run, config, model.eval(), state["step"], checkpoint, state.get("sources", {}), units)
