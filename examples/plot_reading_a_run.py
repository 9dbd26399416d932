"""
Reading a run
=============

What a run writes, and how to read it. The report shows all of this in a browser; here it is read from the files.
"""

# %%
# A short run of two tasks.

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

folder = Path(tempfile.mkdtemp())
CHANGES = [
    *("tasks=[taxibj,enso]", "task_options={}", "data.train_samples=64", "data.test_samples=8", "data.val_samples=4"),
    *("model.trunk.depth=2", "train.epochs=4", "ranks.epochs=2", "train.epoch_samples=64", "train.log_every=4"),
]
subprocess.run(
    [sys.executable, "-m", "unistd", "train", "--config", "demo", "run=run", *CHANGES],
    cwd=folder,
    check=True,
    stdout=subprocess.DEVNULL,
)
print(*sorted(path.name for path in (folder / "run").iterdir()))

# %%
# **metrics.json** has every measure, of the model and of the baselines. A model that does not beat repeating the last
# frame has learned nothing that helps.

metrics = json.loads((folder / "run" / "metrics.json").read_text())
print(*metrics)

# %%
# **log.jsonl** has a record a line.

records = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
steps = [(record["step"], record["loss"]) for record in records if "loss" in record]
figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
axis.plot(*zip(*steps, strict=True))
axis.set(xlabel="step", ylabel="loss (1: as good as repeating)")
