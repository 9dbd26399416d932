"""What a release writes, kept in `tests/fixtures/RELEASE` so that every later one is seen to open it.

`PYTHONPATH=.:tests python tests/support/written.py tests/fixtures/RELEASE` writes that folder with the sources that
are there: a training run that was stopped at its third step, what it says and forecasts there and where it ends, and
the adapters of a small model.
"""

import shutil
import signal
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

CONFIG = """\
run: run
tasks: [enso, taxibj]
task_options:
  enso: {height: 8, width: 8, patch: 4, frames_in: 2, frames_out: 2}
  taxibj: {height: 8, width: 8, patch: 4, frames_in: 2, frames_out: 2}
data: {train_samples: 6, val_samples: 2, test_samples: 3}
model:
  trunk: {width: 8, depth: 1, heads: 1, mlp_ratio: 1.0}
  qkv_experts: 2
  proj_experts: 1
  temporal_experts: 1
  temporal_width: 4
  max_rank: 2
  init_rank: 1.5
  hidden: 2
optim: {lr: 0.01}
ranks: {epochs: 2, lr: 0.2}
train: {epochs: 3, epoch_samples: 4, batch_size: 2, log_every: 1, accelerator: cpu, threads: 1}
"""  # two steps an epoch; ranks learn in the first four of six
STOP = 3  # step at which the run was stopped; its validation after the second is the best
WINDOW = 2.0  # of the ranks of the small model
TASK, FRAMES_IN = "enso", (2, 1, 8, 8)


def frames() -> np.ndarray:
    """What the run's model forecasts from."""
    return np.linspace(0, 1, int(np.prod(FRAMES_IN)), dtype=np.float32).reshape(FRAMES_IN)


def rows() -> torch.Tensor:
    """What goes into the small model."""
    return torch.linspace(-1, 1, 18).reshape(3, 6)


def small_model() -> torch.nn.Module:
    """A model with adapters, of whatever weights: its file has all of them."""
    from fastmoe_lora import RAMoELinear

    layer = RAMoELinear(6, 9, splits=3, num_experts=2, max_rank=4, init_rank=2.5, interpolation="sampled")
    return torch.nn.Sequential(layer, torch.nn.Linear(9, 2))


def command(*words: object) -> int:
    """`unistd` with these words."""
    from unistd.cli import main

    return main([str(word) for word in words])


def write_run(folder: Path) -> None:
    """run/, stopped and evaluated; forecast.npy of it there; ended.jsonl, its log once it went on to its end."""
    from unistd.training.trainer import Trainer

    file, run = folder / "config.yaml", folder / "run"
    file.write_text(CONFIG)
    step = Trainer._train_step

    def stopping(trainer: Trainer, *arguments: object) -> None:
        step(trainer, *arguments)
        if trainer.step == STOP:
            signal.raise_signal(signal.SIGTERM)

    Trainer._train_step = stopping
    words = ("train", "--config", file, f"run={run}")
    assert command(*words) == 128 + signal.SIGTERM
    Trainer._train_step = step
    with TemporaryDirectory() as there:
        np.save(f"{there}/in.npy", frames())
        asked = ("--task", TASK, "--input", f"{there}/in.npy", "--output", folder / "forecast.npy")
        assert command("predict", run, *asked) == 0
        assert command("evaluate", run) == 0
        stopped = shutil.copytree(run, Path(there) / "run", symlinks=True)
        assert command(*words, "--resume") == 0
        shutil.move(run / "log.jsonl", folder / "ended.jsonl")
        shutil.rmtree(run)
        shutil.copytree(stopped, run)
    for name in ("tensorboard", "checkpoints"):  # nothing is read from there
        shutil.rmtree(run / name, ignore_errors=True)
    file.unlink()
    (run / ".lock").unlink()
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace(str(run), "run"))


def write_adapters(folder: Path) -> None:
    """adapters.json and adapters.safetensors of a small model, all else of it in them, and output.npy of `rows`."""
    from fastmoe_lora import save_adapters

    torch.manual_seed(1)
    model = small_model()
    torch.nn.init.normal_(model[0].lora_B)
    model[0].rank_window = WINDOW
    save_adapters(model, folder, also=["*"])
    with torch.no_grad():
        np.save(folder / "output.npy", model.eval()(rows()).numpy())


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True)
    write_run(target)
    write_adapters(target)
