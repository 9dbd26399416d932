"""The forward pass on a CPU: what one thread does with a block of rows."""

import sys
from pathlib import Path

sys.path.append(str(Path("figures").resolve()))

from drawing import arrow, box, canvas

axis = canvas(17, 7)
box(axis, 0.3, 2.2, 2.8, 1.4, "x: a block of rows\n(in the cache)", "x")
box(axis, 4.6, 5, 3.4, 1.2, "[A; router]\npacked panels", "adapter")
box(axis, 9.4, 5, 3.6, 1.2, "gates · diagonal\nt of these rows", "adapter")
for panel in range(5):
    box(axis, 4.6 + panel * 0.9, 2.2, 0.8, 1.4, f"W\n{panel}", "base")
for panel in range(5):
    box(axis, 9.6 + panel * 0.9, 2.2, 0.8, 1.4, f"B\n{panel}", "adapter")
box(axis, 4.6, 0.2, 9.3, 0.9, "y = x · W panel + t · B panel + b, written once, panel by panel", "out")
arrow(axis, (3.1, 3.4), (4.6, 5.3))
arrow(axis, (3.1, 2.9), (4.6, 2.9))
arrow(axis, (8, 5.6), (9.4, 5.6))
arrow(axis, (11.2, 5), (11.2, 3.6))
arrow(axis, (6.8, 2.2), (6.8, 1.1))
arrow(axis, (11.8, 2.2), (11.8, 1.1))
