"""The forward launch on a GPU: tasks of programs over time, and the flags between them."""

import sys
from pathlib import Path

sys.path.append(str(Path("figures").resolve()))

from drawing import arrow, box, canvas

axis = canvas(17, 8)
box(axis, 0.2, 6.6, 3.2, 1, "counter: next row block", "plain")
for program in range(3):
    y = 4.6 - 2 * program
    axis.text(0.2, y + 0.5, f"program {program}", va="center", fontsize=8)
    box(axis, 2.4, y, 3, 1, f"producer\nt of row block {program}", "adapter")
    box(axis, 5.9, y, 3.4, 1, "consumer: x Wᵀ\nof one tile", "base")
    box(axis, 9.3, y, 1.6, 1, "+ t Bᵀ", "adapter")
    box(axis, 10.9, y, 1.2, 1, "y", "out")
    box(axis, 12.4, y, 3.4, 1, "the next tile ...", "base")
    arrow(axis, (2.6, 6.6), (3.4, y + 1) if program == 0 else (2.6, y + 1))
box(axis, 7.4, 6.6, 4.6, 1, "flags: t of row block i is there", "plain")
arrow(axis, (5.3, 5.6), (7.6, 6.6), "raise")
arrow(axis, (10.4, 6.6), (10.1, 5.6), "       wait")
arrow(axis, (2.4, 0.2), (15.8, 0.2), "time")
