"""Mixed batches: the tokens of all tasks in one matrix, so that each linear layer is one launch for all of them.

Attention and the temporal module work sample by sample. Tasks whose grids have the same number of tokens form one group
there, so that ten tasks need five attention calls or fewer.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, cat

Layout = tuple[tuple[int, int], ...]
"""Rows of the packed matrix: per group (samples, tokens per sample), in order of the tokens per sample."""


def pack(tokens: Mapping[str, Tensor]) -> tuple[Tensor, Layout]:
    """Tokens per task, (B_task, N_task, L), to one matrix (M, L), M = Σ B_task·N_task, and its layout."""
    order = packing_order(tokens)
    samples: dict[int, int] = {}
    for name in order:
        batch, count, _ = tokens[name].shape
        samples[count] = samples.get(count, 0) + batch
    rows = [tokens[name].flatten(0, 1) for name in order]
    return (rows[0] if len(rows) == 1 else cat(rows)), tuple((batch, count) for count, batch in samples.items())


def unpack(packed: Tensor, shapes: Mapping[str, tuple[int, int]]) -> dict[str, Tensor]:
    """The reverse: (M, L) and (B_task, N_task) per task to tokens per task, in the order of `shapes`."""
    order = sorted(shapes, key=lambda name: shapes[name][1])
    parts = packed.split([shapes[name][0] * shapes[name][1] for name in order])
    found = {name: part.unflatten(0, shapes[name]) for name, part in zip(order, parts, strict=True)}
    return {name: found[name] for name in shapes}


def packing_order(tokens: Mapping[str, Tensor]) -> list[str]:
    """Task names by tokens per sample; `sorted` is stable, so equal ones keep the caller's order."""
    return sorted(tokens, key=lambda name: tokens[name].shape[1])


def groups(packed: Tensor, layout: Layout) -> list[Tensor]:
    """Views of the packed rows (M, ...), one per group: (samples, tokens, ...)."""
    if len(layout) == 1:
        return [packed.unflatten(0, layout[0])]
    parts = packed.split([samples * tokens for samples, tokens in layout])
    return [part.unflatten(0, shape) for part, shape in zip(parts, layout, strict=True)]


def join(parts: list[Tensor]) -> Tensor:
    """Per-group tensors (samples, tokens, ...) back to packed rows (M, ...)."""
    return parts[0].flatten(0, 1) if len(parts) == 1 else cat([part.flatten(0, 1) for part in parts])
