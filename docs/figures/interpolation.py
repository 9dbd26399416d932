"""The rank diagonal of an expert of rank at most 4, as the code computes it."""

import matplotlib.pyplot as plt
import torch

from fastmoe_lora import rank_diagonal

COLUMNS = 4
ranks = torch.linspace(0, COLUMNS, 401)
figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), sharey=True, layout="constrained")
for axis, window in zip(axes, (1.0, 3.0), strict=True):
    diagonal = rank_diagonal(ranks, COLUMNS, "linear", window)
    for column in range(COLUMNS):
        axis.plot(ranks, diagonal[:, column], label=f"d[{column}]")
    axis.set(title=f"window {window:g}", xlabel="rank r")
    axis.spines[["top", "right"]].set_visible(False)
axes[0].set_ylabel("d[k]")
axes[1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
