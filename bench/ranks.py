"""Do the learned ranks find the ranks that a target really has? Planted maps, the printed recipe beside ours.

Each RA-MoE layer (one expert, R = 8) is to learn a 32 x 32 map of known rank, under a joint budget of 4.5 a layer.
"""

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fastmoe_lora import RAMoELinear, RankOptimizer, rank_budget_loss, rank_window, set_rank_window

PLANTED = ((1, 8), (2, 5, 7), (1, 3, 8, 8))
RECIPES = ("printed", "ours")
WIDTH, MAX_RANK, INIT_RANK, BATCH = 32, 8, 4.5, 64
LEARNING_RATE = 0.01


@dataclass(frozen=True)
class Outcome:
    """One run: the ranks at its end and on the way, and the share of the targets' energy that is missed."""

    recipe: str
    planted: tuple[int, ...]
    seed: int
    ranks: tuple[float, ...]
    error: float
    path: tuple[tuple[float, ...], ...]


def planted_map(rank: int, generator: torch.Generator) -> Tensor:
    """A (WIDTH, WIDTH) map of that rank and Frobenius norm 1, all its singular values equal."""
    left, right = (torch.linalg.qr(torch.randn(WIDTH, rank, generator=generator)).Q for _ in range(2))
    return left @ right.T / rank**0.5


def learn(recipe: str, planted: tuple[int, ...], seed: int, steps: int) -> Outcome:
    """Adam on fresh Gaussian inputs; ranks by the printed penalty, or by sampled ranks with the budget kept."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    targets = [planted_map(rank, generator) for rank in planted]
    interpolation = "linear" if recipe == "printed" else "sampled"
    layers = nn.ModuleList(_adapter(interpolation) for _ in planted)
    ranks = [layer.rank for layer in layers]
    factors = [p for layer in layers for p in (layer.lora_A, layer.lora_B)]
    groups = [{"params": factors}, {"params": ranks}] if recipe == "printed" else [{"params": factors}]
    optimizer = torch.optim.Adam(groups, lr=LEARNING_RATE, fused=True)
    rank_optimizer = RankOptimizer(layers) if recipe == "ours" else None
    gates, path = torch.ones(1, 1), []
    for step in range(steps):
        x = torch.randn(BATCH, WIDTH, generator=generator)
        loss = sum(
            (layer(x, gates) - x @ target.T).square().sum() for layer, target in zip(layers, targets, strict=True)
        )
        loss = loss / BATCH
        if rank_optimizer is None:
            loss = loss + rank_budget_loss(layers)
        else:
            set_rank_window(layers, rank_window(step / steps))
        optimizer.zero_grad()
        for rank in ranks:
            rank.grad = None
        loss.backward()
        optimizer.step()
        if rank_optimizer is not None:
            rank_optimizer.step()
        else:
            for rank in ranks:
                rank.data.clamp_(0, MAX_RANK)
        if step % (steps // 100 or 1) == 0:
            path.append(_values(ranks))
    return Outcome(recipe, planted, seed, _values(ranks), _missed(layers, targets, gates), tuple(path))


def _adapter(interpolation: str) -> RAMoELinear:
    linear = nn.Linear(WIDTH, WIDTH, bias=False)
    nn.init.zeros_(linear.weight)
    return RAMoELinear.from_linear(
        linear,
        num_experts=1,
        max_rank=MAX_RANK,
        init_rank=INIT_RANK,
        router=None,
        interpolation=interpolation,
    )


def _values(ranks: list[nn.Parameter]) -> tuple[float, ...]:
    return tuple(float(rank.detach()) for rank in ranks)


@torch.no_grad()
def _missed(layers: nn.ModuleList, targets: list[Tensor], gates: Tensor) -> float:
    """Sum over the maps of ||learned - planted||^2 over that of ||planted||^2, with the mean diagonal."""
    layers.eval()
    set_rank_window(layers, 1.0)
    maps = [layer(torch.eye(WIDTH), gates).T for layer in layers]
    missed = sum(float((got - want).square().sum()) for got, want in zip(maps, targets, strict=True))
    return missed / sum(float(want.square().sum()) for want in targets)


def plot(outcomes: list[Outcome], steps: int, file: Path) -> None:
    """Ranks over the steps, a panel for each planted set and recipe; dashed: the planted ranks."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(PLANTED), figsize=(10, 5), sharex=True, sharey=True, layout="constrained")
    titles = {"printed": "printed recipe", "ours": "our recipe"}
    for row, recipe in zip(axes, RECIPES, strict=True):
        for axis, planted in zip(row, PLANTED, strict=True):
            for outcome in outcomes:
                if (outcome.recipe, outcome.planted) != (recipe, planted):
                    continue
                for i, line in enumerate(zip(*outcome.path, strict=True)):
                    at = [steps * k / len(line) for k in range(len(line))]
                    axis.plot(at, line, color=f"C{i}", alpha=0.8, linewidth=1.2)
            for i, rank in enumerate(planted):
                axis.axhline(rank, color=f"C{i}", linestyle="--", linewidth=0.8)
            axis.set_title(f"{titles[recipe]}, planted {planted}", fontsize=9)
    for axis in axes[1]:
        axis.set_xlabel("step")
    for axis in axes[:, 0]:
        axis.set_ylabel("rank")
    figure.savefig(file, dpi=130)


def table(outcomes: list[Outcome]) -> str:
    """One line a run."""
    lines = ["planted        recipe   seed  recovered                 missed energy"]
    for o in outcomes:
        ranks = " ".join(f"{rank:4.1f}" for rank in o.ranks)
        lines.append(f"{o.planted!s:<14} {o.recipe:<8} {o.seed:>4}  {ranks:<24}  {o.error:.4f}")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench ranks", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--output", type=Path, default=Path("bench/results"), help="folder for ranks.json and ranks.png"
    )
    options = parser.parse_args(arguments)
    runs = [(recipe, planted, seed) for planted in PLANTED for recipe in RECIPES for seed in range(options.seeds)]
    with ProcessPoolExecutor(options.processes) as pool:
        outcomes = list(pool.map(learn, *zip(*runs, strict=True), [options.steps] * len(runs)))
    options.output.mkdir(parents=True, exist_ok=True)
    plot(outcomes, options.steps, options.output / "ranks.png")
    record = [{key: value for key, value in asdict(outcome).items() if key != "path"} for outcome in outcomes]
    (options.output / "ranks.json").write_text(json.dumps(record, indent=1) + "\n")
    print(table(outcomes))
