"""
Two processes take the steps of one
===================================

The batch is that of the config whatever the number of processes: each takes its share of every mixed batch. So the
losses of a run with two processes are those of a run with one, up to the order of sums.
"""

# %%

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

folder = Path(tempfile.mkdtemp())
CHANGES = [
    *("tasks=[taxibj,enso]", "task_options={}", "data.train_samples=32", "data.test_samples=4", "data.val_samples=2"),
    *("model.trunk.depth=1", "train.epochs=2", "ranks.epochs=1", "train.epoch_samples=32", "train.log_every=1"),
]


def losses(devices: int) -> list[float]:
    command = [sys.executable, "-m", "unistd", "train", "--config", "demo", f"run=of{devices}", *CHANGES]
    command += [f"train.devices={devices}", "train.accelerator=cpu"]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    records = map(json.loads, (folder / f"of{devices}" / "log.jsonl").read_text().splitlines())
    return [record["loss"] for record in records if "loss" in record]


one, two = losses(1), losses(2)

# %%

figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
axis.plot(one, linewidth=4, alpha=0.4, label="one process")
axis.plot(two, "k--", linewidth=1, label="two processes")
axis.set(xlabel="step", ylabel="loss")
axis.legend(frameon=False)
print(f"{len(one)} steps, largest difference {max(abs(a - b) / a for a, b in zip(one, two, strict=True)):.1e}")
