"""A training run that takes seconds: three tasks, one block of width 16, eight steps."""

from pathlib import Path

from unistd.training import Config
from unistd.training.settings import check_config

TINY = {
    "tasks": ["taxibj", "kth", "enso"],
    "task_options": {
        "taxibj": {"height": 8, "width": 8, "patch": 4, "frames_in": 2, "frames_out": 2},
        "kth": {"height": 16, "width": 16, "patch": 8, "frames_in": 3, "frames_out": 2},
        "enso": {"height": 8, "width": 16, "patch": 4, "frames_in": 3, "frames_out": 4},
    },
    "data": {"train_samples": 6, "val_samples": 2, "test_samples": 3},
    "model": {
        "trunk": {"width": 16, "depth": 1, "heads": 2, "mlp_ratio": 2.0},
        "qkv_experts": 2,
        "temporal_width": 8,
        "max_rank": 4,
        "init_rank": 2.5,
        "hidden": 4,
    },
    "optim": {"lr": 0.01},
    "ranks": {"epochs": 2, "lr": 0.2},
    "train": {"epochs": 4, "epoch_samples": 4, "batch_size": 2, "log_every": 1, "accelerator": "cpu"},
}
STEPS = 8  # two an epoch; ranks learn in the first four


def tiny_config(folder: Path, changes: dict[str, object] | None = None) -> Config:
    """The tiny run in `folder`, with `{"key.sub": value}` changed."""
    tree = {key: dict(value) if isinstance(value, dict) else value for key, value in TINY.items()}
    tree["run"] = str(folder)
    for key, value in (changes or {}).items():
        section, _, name = key.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[name] = value
    return check_config(tree)
