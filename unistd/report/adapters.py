"""Tables of the experts: their ranks per layer, and the gates that the tasks give them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from unistd.model import UniSTD

PROJECTIONS = {
    ("attention.qkv", 0): "query",
    ("attention.qkv", 1): "key",
    ("attention.qkv", 2): "value",
    ("attention.proj", 0): "output",
    ("temporal.up", 0): "temporal",
}


@dataclass(frozen=True)
class RankGroup:
    """Ranks of one projection: `rows[expert][block]`."""

    projection: str
    rows: list[list[float]]


def rank_groups(model: UniSTD) -> list[RankGroup]:
    """The ranks of every expert, by projection."""
    columns: dict[str, list[list[float]]] = {name: [] for name in PROJECTIONS.values()}
    for (kind, split), projection in PROJECTIONS.items():
        for layer in _layers_of(model.ramoe_layers(), kind):
            columns[projection].append(layer.rank[split].tolist())
    return [RankGroup(name, [list(row) for row in zip(*blocks, strict=True)]) for name, blocks in columns.items()]


@dataclass(frozen=True)
class GateGroup:
    """Gates of one projection: `rows[task][block][expert]`, each as gate · experts, so that 1 is an even share."""

    projection: str
    rows: dict[str, list[list[float]]]


def gate_groups(gates: Mapping[str, Mapping[str, Tensor]]) -> list[GateGroup]:
    """Mean gates by projection, from task -> layer name -> (S, E)."""
    return [
        GateGroup(
            projection,
            {
                task: [(gate[split] * gate.shape[1]).tolist() for gate in _layers_of(layers, kind)]
                for task, layers in gates.items()
            },
        )
        for (kind, split), projection in PROJECTIONS.items()
    ]


def _layers_of(layers: Mapping[str, object], kind: str) -> list:
    return [layer for name, layer in layers.items() if name.endswith(f".{kind}")]
