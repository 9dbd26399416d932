"""
Forecasting radar frames of your own
====================================

A folder of pictures and a YAML file of a few lines are a task. Here the pictures are drawn by a program, as showers
that drift; put yours in their place.
"""

# %%
# Pictures that are named by their time, and the description beside them.

import subprocess
import sys
import tempfile
from datetime import datetime, timedelta
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

folder = Path(tempfile.mkdtemp())
(folder / "radar").mkdir()
random = np.random.default_rng(0)
showers = random.uniform(0, 32, (12, 2))
rows, columns = np.mgrid[:32, :32]
time = datetime(2026, 5, 1)
for step in range(400):
    centres = (showers + 0.7 * step * np.array([0.4, 1.0])) % 32
    away = [((rows - r + 16) % 32 - 16) ** 2 + ((columns - c + 16) % 32 - 16) ** 2 for r, c in centres]
    rain = sum(np.exp(-distance / 8) for distance in away)
    picture = (np.clip(rain, 0, 1.4) * 150).astype(np.uint8)
    Image.fromarray(picture).save(folder / "radar" / f"{time + step * timedelta(minutes=5):%Y%m%d%H%M}.png")

(folder / "rain.yaml").write_text(
    """
title: Rain over our valley
discipline: weather
files: radar/*.png
frames_in: 4
frames_out: 4
"""
)

# %%
# Train, as on the command line.


def unistd(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "unistd", *words], cwd=folder, check=True, stdout=subprocess.DEVNULL)


unistd(
    *("train", "--config", "demo", "tasks=[rain.yaml]", "task_options={}", "run=rain"),
    *("train.epochs=3", "ranks.epochs=1", "train.epoch_samples=96", "data.test_samples=8"),
)

# %%
# Forecast the frames that follow the last four.

paths = sorted((folder / "radar").iterdir())
frames = np.stack([np.asarray(Image.open(path), np.float32) for path in paths[-8:]])[:, None]
seen, truth = frames[:4], frames[4:]
np.save(folder / "seen.npy", seen)
unistd("predict", "rain", "--task=rain", "--input=seen.npy", "--output=forecast.npy", "--units=physical")
forecast = np.load(folder / "forecast.npy")

figure, axes = plt.subplots(2, 4, figsize=(8, 4), layout="constrained")
for lead, (above, below) in enumerate(axes.T):
    above.imshow(truth[lead, 0], vmin=0, vmax=210)
    below.imshow(forecast[lead, 0], vmin=0, vmax=210)
    above.set_title(f"+{5 * (lead + 1)} min")
for axis in axes.flat:
    axis.set(xticks=[], yticks=[])
axes[0, 0].set_ylabel("truth")
axes[1, 0].set_ylabel("forecast")
print(f"error {np.abs(forecast - truth).mean():.1f}, repeating the last frame {np.abs(seen[-1:] - truth).mean():.1f}")
