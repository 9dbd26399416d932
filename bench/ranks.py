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
RECIPES = ("printed", "adalora", "ours")
TITLES = {"printed": "printed recipe", "adalora": "AdaLoRA", "ours": "our recipe"}
ROUTED = (1, 2, 4, 4, 8, 8)  # planted, one for each of six experts that a learned router shares the inputs out to
WIDTH, MAX_RANK, INIT_RANK, BATCH = 32, 8, 4.5, 64
LEARNING_RATE = 0.01
KIND = 4.0  # length of the part of a routed input that says of which kind it is


@dataclass(frozen=True)
class Outcome:
    """One run: the ranks at its end and on the way, and the share of the targets' energy that is missed."""

    recipe: str
    planted: tuple[int, ...]
    seed: int
    ranks: tuple[float, ...]
    error: float
    path: tuple[tuple[float, ...], ...]
    routed: bool = False


def planted_map(rank: int, generator: torch.Generator) -> Tensor:
    """A (WIDTH, WIDTH) map of that rank and Frobenius norm 1, all its singular values equal."""
    left, right = (torch.linalg.qr(torch.randn(WIDTH, rank, generator=generator)).Q for _ in range(2))
    return left @ right.T / rank**0.5


def learn(recipe: str, planted: tuple[int, ...], seed: int, steps: int) -> Outcome:
    """Adam on fresh Gaussian inputs; ranks by the printed penalty, by AdaLoRA, or sampled with the budget kept."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    targets = [planted_map(rank, generator) for rank in planted]
    if recipe == "adalora":
        return learn_by_adalora(targets, planted, seed, steps, generator)
    layers = nn.ModuleList(_adapter("linear" if recipe == "printed" else "sampled") for _ in planted)
    course, gates, path = _Course(layers, recipe, steps), torch.ones(1, 1), []
    for step in range(steps):
        x = torch.randn(BATCH, WIDTH, generator=generator)
        loss = sum(
            (layer(x, gates) - x @ target.T).square().sum() for layer, target in zip(layers, targets, strict=True)
        )
        course.step(step, loss / BATCH)
        if step % (steps // 100 or 1) == 0:
            path.append(_values(course.ranks))
    maps = _maps(layers, [gates] * len(planted))
    return Outcome(recipe, planted, seed, _values(course.ranks), _missed(maps, targets), tuple(path))


def learn_routed(recipe: str, planted: tuple[int, ...], seed: int, steps: int) -> Outcome:
    """One layer of as many experts as planted maps: an input is of one of as many kinds, the map of its kind is to be
    applied to it, and a router, learned as well, sees which kind it is.

    A kind is a direction that its inputs have beside the Gaussian part, which the map leaves out. The ranks are those
    of the experts that serve each kind most; one that serves two kinds stands twice.
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    targets = [planted_map(rank, generator) for rank in planted]
    kinds = torch.linalg.qr(torch.randn(WIDTH, len(planted), generator=generator)).Q.T
    layer = _adapter("linear" if recipe == "printed" else "sampled", experts=len(planted), router="token")
    course, path, maps = _Course(nn.ModuleList([layer]), recipe, steps), [], torch.stack(targets)

    def draw(kind: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.randn(len(kind), WIDTH, generator=generator)
        x = x - (x @ kinds.T) @ kinds
        return x + KIND * kinds[kind], torch.einsum("boi,bi->bo", maps[kind], x)

    for step in range(steps):
        x, wanted = draw(torch.randint(len(planted), (BATCH,), generator=generator))
        course.step(step, (layer(x) - wanted).square().sum() / BATCH)
        if step % (steps // 100 or 1) == 0:
            path.append(_values(course.ranks))
    layer.eval()
    serving = layer.router_gates(kinds)[:, 0].argmax(-1).tolist()
    ranks = _values(course.ranks)
    with torch.no_grad():
        x, wanted = draw(torch.arange(len(planted)).repeat(BATCH))
        missed = float((layer(x) - wanted).square().sum() / wanted.square().sum())
    return Outcome(recipe, planted, seed, tuple(ranks[expert] for expert in serving), missed, tuple(path), routed=True)


class _Course:
    """Adam for factors and routers, and what a recipe does with the ranks."""

    def __init__(self, layers: nn.ModuleList, recipe: str, steps: int):
        self.layers, self.recipe, self.steps = layers, recipe, steps
        self.ranks = [layer.rank for layer in layers]
        learned = [p for n, p in layers.named_parameters() if n.split(".")[-1] in ("lora_A", "lora_B") or "router" in n]
        groups = [{"params": learned}, {"params": self.ranks}] if recipe == "printed" else [{"params": learned}]
        self.optimizer = torch.optim.Adam(groups, lr=LEARNING_RATE, fused=True)
        self.rank_optimizer = RankOptimizer(layers) if recipe == "ours" else None
        if self.rank_optimizer is not None:
            set_rank_window(layers, rank_window(0))

    def step(self, number: int, loss: Tensor) -> None:
        """Of the loss of a forward pass."""
        if self.rank_optimizer is None:
            loss = loss + rank_budget_loss(self.layers)
        self.optimizer.zero_grad()
        for rank in self.ranks:
            rank.grad = None
        loss.backward()
        self.optimizer.step()
        if self.rank_optimizer is not None:
            self.rank_optimizer.step()
            set_rank_window(self.layers, rank_window((number + 1) / self.steps))
        else:
            for rank in self.ranks:
                rank.data.clamp_(0, MAX_RANK)


def learn_by_adalora(
    targets: list[Tensor], planted: tuple[int, ...], seed: int, steps: int, generator: torch.Generator
) -> Outcome:
    """PEFT's AdaLoRA with its schedule: ranks start at MAX_RANK, the budget falls to INIT_RANK a layer from a tenth of
    the steps on to seven tenths, its factors are kept near orthogonal."""
    from unistd.model.torchvision_ops import define_missing_ops  # here: it needs all that UniSTD does

    define_missing_ops()  # peft imports transformers, which imports torchvision
    import peft

    class Maps(nn.Module):
        def __init__(self):
            super().__init__()
            self.maps = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in planted)
            for linear in self.maps:
                nn.init.zeros_(linear.weight)

        def forward(self, x: Tensor) -> _Loss:
            pairs = zip(self.maps, targets, strict=True)
            return _Loss(sum((linear(x) - x @ target.T).square().sum() for linear, target in pairs) / BATCH)

    config = peft.AdaLoraConfig(
        init_r=MAX_RANK,
        target_r=INIT_RANK,
        lora_alpha=MAX_RANK,
        tinit=steps // 10,
        tfinal=3 * steps // 10,
        deltaT=10,
        total_step=steps,
        target_modules=r"maps\.\d+",
    )
    model = peft.get_peft_model(Maps(), config)
    values = [p for name, p in model.named_parameters() if "lora_E" in name]
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE, fused=True)
    path = []
    for step in range(steps):
        model(torch.randn(BATCH, WIDTH, generator=generator)).loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
        if step % (steps // 100 or 1) == 0:
            path.append(_counts(values))
    with torch.no_grad():
        maps = [linear(torch.eye(WIDTH)).T for linear in model.base_model.model.maps]
    return Outcome("adalora", planted, seed, _counts(values), _missed(maps, targets), tuple(path))


@dataclass
class _Loss:
    loss: Tensor


def _counts(values: list[Tensor]) -> tuple[float, ...]:
    return tuple(float((value != 0).sum()) for value in values)


def _adapter(interpolation: str, experts: int = 1, router: str | None = None) -> RAMoELinear:
    linear = nn.Linear(WIDTH, WIDTH, bias=False)
    nn.init.zeros_(linear.weight)
    return RAMoELinear.from_linear(
        linear,
        num_experts=experts,
        max_rank=MAX_RANK,
        init_rank=INIT_RANK,
        router=router,
        interpolation=interpolation,
    )


def _values(ranks: list[nn.Parameter]) -> tuple[float, ...]:
    return tuple(float(value) for rank in ranks for value in rank.detach().flatten())


@torch.no_grad()
def _maps(layers: nn.ModuleList, gates: list[Tensor]) -> list[Tensor]:
    """What the layers do, with the mean diagonal: (WIDTH, WIDTH) each."""
    layers.eval()
    set_rank_window(layers, 1.0)
    return [layer(torch.eye(WIDTH), gate).T for layer, gate in zip(layers, gates, strict=True)]


def _missed(maps: list[Tensor], targets: list[Tensor]) -> float:
    """Sum over the maps of ||learned - planted||^2 over that of ||planted||^2."""
    missed = sum(float((got - want).square().sum()) for got, want in zip(maps, targets, strict=True))
    return missed / sum(float(want.square().sum()) for want in targets)


def plot(outcomes: list[Outcome], steps: int, file: Path) -> None:
    """Ranks over the steps, a panel for each planted set and recipe; dashed: the planted ranks."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        len(RECIPES), len(PLANTED), figsize=(10, 7), sharex=True, sharey=True, layout="constrained"
    )
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
            axis.set_title(f"{TITLES[recipe]}, planted {planted}", fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("step")
    for axis in axes[:, 0]:
        axis.set_ylabel("rank")
    figure.savefig(file, dpi=130)


def table(outcomes: list[Outcome]) -> str:
    """One line a run."""
    lines = ["planted                     recipe   seed  recovered                       missed energy"]
    for o in outcomes:
        ranks = " ".join(f"{rank:4.1f}" for rank in o.ranks)
        planted = f"{o.planted!s}{' routed' if o.routed else ''}"
        lines.append(f"{planted:<27} {o.recipe:<8} {o.seed:>4}  {ranks:<30}  {o.error:.4f}")
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
    routed = [(recipe, ROUTED, seed) for recipe in RECIPES if recipe != "adalora" for seed in range(options.seeds)]
    with ProcessPoolExecutor(options.processes) as pool:
        outcomes = list(pool.map(learn, *zip(*runs, strict=True), [options.steps] * len(runs)))
        outcomes += pool.map(learn_routed, *zip(*routed, strict=True), [options.steps] * len(routed))
    options.output.mkdir(parents=True, exist_ok=True)
    plot([outcome for outcome in outcomes if not outcome.routed], options.steps, options.output / "ranks.png")
    record = [{key: value for key, value in asdict(outcome).items() if key != "path"} for outcome in outcomes]
    (options.output / "ranks.json").write_text(json.dumps(record, indent=1) + "\n")
    print(table(outcomes))
