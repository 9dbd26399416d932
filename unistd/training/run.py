"""The folder of a run: which file is where, and the model that it holds."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from unistd.model import AdapterConfig, TrunkConfig, UniSTD
from unistd.training.checkpoint import CheckpointError, load_checkpoint, load_weights
from unistd.training.config import Config
from unistd.training.data import task_specs
from unistd.training.settings import load_config


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
    def adapters(self) -> Path:
        return self.folder / "adapters"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.json"

    @property
    def log(self) -> Path:
        return self.folder / "log.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.folder / "tensorboard"

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    def delete_files(self) -> None:
        """Removes what an earlier training left here; files of others stay."""
        for folder in (self.tensorboard, self.adapters):
            shutil.rmtree(folder, ignore_errors=True)
        for file in (self.checkpoint, self.log, self.metrics, self.report):
            file.unlink(missing_ok=True)


def use_threads(config: Config) -> None:
    """Sets the number of CPU threads of this process to the config's."""
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)


def build_model(config: Config, load_pretrained: bool = True) -> UniSTD:
    """The network of a config, at its start; `load_pretrained=False` where a checkpoint brings the trunk's weights."""
    options = config.model
    trunk = options.trunk if isinstance(options.trunk, str) else TrunkConfig(**options.trunk.model_dump())
    adapter = AdapterConfig(
        qkv_experts=options.qkv_experts,
        proj_experts=options.proj_experts,
        temporal_experts=options.temporal_experts,
        temporal_width=options.temporal_width,
        max_rank=options.max_rank,
        init_rank=options.init_rank,
        interpolation="sampled" if config.ranks.recipe == "sampled" else "linear",
    )
    return UniSTD(
        list(task_specs(config).values()),
        trunk,
        options.pretrained,
        adapter=adapter,
        hidden=options.hidden,
        residual=options.residual,
        checkpointing=options.checkpointing,
        load_pretrained=load_pretrained,
    )


def open_run(folder: str | Path) -> tuple[Run, Config, UniSTD]:
    """A run's paths, config and trained model (in evaluation mode, on the CPU).

    Raises CheckpointError: not the folder of a run, no checkpoint yet, or one of another architecture.
    """
    run = Run(Path(folder))
    if not run.config.is_file():
        raise CheckpointError(f"{folder}: not the folder of a run (no {run.config.name} in it)")
    config = load_config(run.config)
    use_threads(config)
    state = load_checkpoint(run.checkpoint)
    model = build_model(config, load_pretrained=False)
    load_weights(model, state["model"], run.checkpoint)
    return run, config, model.eval()
