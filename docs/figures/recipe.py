"""Window and phases of the ranks over a training whose ranks learn in the first tenth of the epochs."""

import matplotlib.pyplot as plt

from fastmoe_lora import rank_window

EPOCHS, RANK_EPOCHS = 90, 10
learning = [RANK_EPOCHS * step / 200 for step in range(201)]
figure, axis = plt.subplots(figsize=(8, 2.4), layout="constrained")
axis.plot(learning, [rank_window(epoch / RANK_EPOCHS) for epoch in learning], color="tab:blue")
axis.axvspan(0, RANK_EPOCHS, color="tab:blue", alpha=0.1)
axis.axvline(RANK_EPOCHS, color="tab:red", linestyle="--")
axis.annotate("frozen and compacted", (RANK_EPOCHS, 2), xytext=(8, 0), textcoords="offset points", color="tab:red")
axis.annotate("ranks are drawn from the window", (0.2, 3.15), color="tab:blue")
axis.set(xlabel="epoch", ylabel="window", xlim=(0, 30), ylim=(0, 3.5))
axis.spines[["top", "right"]].set_visible(False)
