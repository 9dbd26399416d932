"""What the CPU backend must show: every row beside what it is measured against, paired in one run, with its target."""

import copy
from collections.abc import Callable
from itertools import cycle, islice

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from bench.harness import options
from bench.harness.collect import collect
from bench.harness.machine import ROOT
from bench.harness.model_comparison import work_of
from bench.harness.problem import Problem, Weights, worst_error
from bench.harness.record import FLOORS, MEASURED, WRONG, Entry, Group, Record
from bench.harness.tables import target_table
from bench.harness.timing import interleaved
from bench.harness.unistd_model import Frames, ModelJudge, frames_of, model_call, unistd_model, without_adapters
from fastmoe_lora import FrozenLinear, RAMoELinear, ramoe_linear, self_attention
from fastmoe_lora._frozen_ranks import active_column_table
from unistd import TASKS, TaskSpec, TrunkConfig, UniSTD

Calls = dict[str, Callable[[], object]]
Check = Callable[[str], tuple[float, float, str]]  # backend -> as of `worst_error`
TITLES = {
    "linear": "F.linear, frozen, no adapters",
    "no-adapters": "the same trunk of nn.Linear without adapters",
    "cpu": "fastmoe_lora, cpu",
    "packed": "fastmoe_lora, packed (plain PyTorch)",
    "reference": "fastmoe_lora, reference (plain PyTorch)",
}
MIXED = ("taxibj", "traffic4cast", "moving_mnist")  # of the ViT-B step


def main(arguments: list[str]) -> None:
    given = options.parser("cpu_targets", "The CPU backend beside its targets.").parse_args(arguments)
    given.device = "cpu"  # whatever else is there
    device, settings = options.settle(given)
    record = Record.begin("cpu_targets", device, settings)
    seconds = given.seconds or (0.2 if given.quick else 12.0)

    def measured(
        title: str,
        dtype: str,
        shape: dict[str, int],
        calls: Calls,
        targets: dict[str, float],
        check: Check,
        cold: bool = False,
    ) -> list[Group]:
        entries = [Entry(name, TITLES[name], ours=name == "cpu") for name in calls]
        group = Group(title, dtype, shape, entries, targets=targets)
        for entry in (entry for entry in entries if entry.name not in FLOORS):
            entry.error, entry.allowed, wrong = check(entry.name)
            if wrong:
                entry.status, entry.reason = WRONG, wrong
        right = {entry.name: calls[entry.name] for entry in entries if entry.status == MEASURED}
        samples, _ = interleaved(right, device, seconds, cold=cold)
        for name, values in samples.items():
            group.entry(name).samples = values
        return [group]

    jobs = [
        *_layer_jobs(given.quick, measured),
        *_attention_jobs(given.quick, measured),
        *_step_jobs(given.quick, device, measured),
    ]
    collect(record, given.output, jobs)
    print("\n" + target_table(record.groups))


def _layer_jobs(quick: bool, measured: Callable) -> list[Callable]:
    def job(
        name: str, problem: Problem, dtype: torch.dtype, backward: bool, bound: float, rank: int | None = None
    ) -> Callable:
        kind = str(dtype).removeprefix("torch.")
        title = f"{name}, {'forward and backward' if backward else 'forward'}, {kind}, M={problem.M}"

        def run() -> list[Group]:
            weights = problem.weights(dtype)
            calls = layer_calls(weights, ["linear", "cpu"], backward, rank)
            check = layer_check(weights, calls, backward, rank)
            shape, bounds = problem.shape, {"linear": bound}
            return [
                *measured(title, kind, shape, calls, bounds, check),
                *measured(f"{title}, caches cold", kind, shape, calls, bounds, check, cold=True),
            ]

        return run

    if quick:
        tiny = Problem("tiny", 33, 64, 96, S=3, E=2)
        return [job("QKV", tiny, torch.bfloat16, True, 1.1), job("QKV", tiny, torch.float32, False, 1.1, rank=4)]
    qkv = [Problem("qkv", m, 768, 2304, S=3, E=6) for m in (784, 3136, 12544)]
    proj = Problem("proj", 3136, 768, 768, S=1, E=2)
    return [
        *(job("QKV", size, torch.bfloat16, False, 0.95) for size in qkv),
        *(job("QKV", size, torch.bfloat16, True, 1.10) for size in qkv),
        job("QKV", qkv[1], torch.float32, False, 1.15),
        job("QKV", qkv[1], torch.float32, True, 1.25),
        job("QKV, compacted at mean rank 4", qkv[1], torch.bfloat16, False, 0.88, rank=4),
        job("Proj, 2 experts", proj, torch.bfloat16, False, 0.90),
    ]


def layer_calls(weights: Weights, names: list[str], backward: bool, rank: int | None = None) -> Calls:
    """The layer, and the frozen linear layer alone; ``rank``: compacted, at ranks of that mean spread about it."""
    ranks, columns = weights.rank, None
    if rank is not None:
        spread = islice(cycle((rank - 2, rank + 2, rank - 1, rank + 1)), ranks.numel())
        ranks = torch.tensor(list(spread), dtype=ranks.dtype).view_as(ranks)
        columns = active_column_table(ranks, weights.lora_A.shape[2])
    leaves = {name: getattr(weights, name).detach() for name in ("x", "lora_A", "lora_B", "router_weight")}
    leaves["rank"] = ranks.detach()
    trained = [leaf.requires_grad_(backward) for name, leaf in leaves.items() if name != "rank" or rank is None]

    def adapted(backend: str) -> object:
        y = ramoe_linear(
            leaves["x"],
            weights.weight,
            weights.bias,
            leaves["lora_A"],
            leaves["lora_B"],
            leaves["rank"],
            router_weight=leaves["router_weight"],
            columns=columns,
            backend=backend,
        )
        return torch.autograd.grad(y, trained, weights.grad) if backward else y

    def linear() -> object:
        y = F.linear(leaves["x"], weights.weight, weights.bias)
        return torch.autograd.grad(y, leaves["x"], weights.grad) if backward else y

    return {name: linear if name == "linear" else lambda name=name: adapted(name) for name in names}


def layer_check(weights: Weights, calls: Calls, backward: bool, rank: int | None) -> Check:
    """Holds y, or the gradients, to the reference backend in float64, as every comparison does."""

    def results(call: Callable[[], object]) -> dict[str, Tensor]:
        found = call()
        return {str(i): value.detach() for i, value in enumerate(found if backward else (found,))}

    exact, plain = (
        results(layer_calls(given, ["reference"], backward, rank)["reference"]) for given in (weights.double(), weights)
    )
    return lambda name: worst_error(results(calls[name]), exact, plain)


def _attention_jobs(quick: bool, measured: Callable) -> list[Callable]:
    """Self-attention of four samples, the heads of ViT-B: no slower than PyTorch's."""

    def job(tokens: int) -> Callable:
        def run() -> list[Group]:
            generator = torch.Generator().manual_seed(0)
            qkv = torch.randn(4, tokens, 3 * 768, generator=generator).bfloat16()
            grad = torch.randn(4, tokens, 768, generator=generator).bfloat16()

            def both_passes(backend: str, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
                leaf = qkv.to(dtype).requires_grad_()
                y = self_attention(leaf, 12, backend=backend)
                return {"y": y.detach(), "qkv": torch.autograd.grad(y, leaf, grad.to(dtype))[0]}

            exact, plain = both_passes("packed", torch.float64), both_passes("packed")
            calls = {name: lambda name=name: both_passes(name) for name in ("packed", "cpu")}
            title = f"self-attention, forward and backward, bfloat16, {tokens} tokens"
            shape = {"samples": 4, "heads": 12, "tokens": tokens, "width": 768}
            return measured(
                title,
                "bfloat16",
                shape,
                calls,
                {"packed": 1.0},
                lambda name: worst_error(both_passes(name), exact, plain),
            )

        return run

    return [job(tokens) for tokens in ((20,) if quick else (64, 160, 640))]


def _step_jobs(quick: bool, device: torch.device, measured: Callable) -> list[Callable]:
    bounds = {"packed": 1 / 1.3, "reference": 1 / 3, "no-adapters": 1.0}

    def job(title: str, specs: list[TaskSpec], trunk: str | TrunkConfig, batch: int) -> Callable:
        def run() -> list[Group]:
            tokens = batch * sum(spec.tokens for spec in specs)
            shape = {"batch": batch, "tasks": len(specs), "tokens": tokens}
            calls, check = step_calls(specs, trunk, batch, device)
            return measured(f"training step, {title}", "bfloat16", shape, calls, bounds, check)

        return run

    demo = yaml.safe_load((ROOT / "unistd/configs/demo.yaml").read_text())
    specs = [TASKS[name].spec.replace(**changes) for name, changes in demo["task_options"].items()]
    demo_job = job("demo model", specs, TrunkConfig(**demo["model"]["trunk"]), demo["train"]["batch_size"])
    if quick:
        return [demo_job]
    return [demo_job, job("ViT-B", [TASKS[name].spec for name in MIXED], "ViT-B-16", 4)]


def step_calls(
    specs: list[TaskSpec], trunk: str | TrunkConfig, batch: int, device: torch.device
) -> tuple[Calls, Check]:
    """A step of AdamW under bfloat16 autocast: with everything compiled, in plain PyTorch, and without adapters."""
    plain = unistd_model(specs, trunk, device).train()
    inputs, targets = frames_of(plain.tasks, batch, device)
    models = {"cpu": with_frozen_linears(plain), "packed": plain, "reference": plain}
    calls = {name: _step(model, name, inputs, targets, device) for name, model in models.items()}
    judge = ModelJudge(plain, torch.bfloat16, device, gradients=True)
    calls = {"no-adapters": _step(without_adapters(plain), None, inputs, targets, device)} | calls
    return calls, lambda name: judge.check(name, models[name])


def with_frozen_linears(model: UniSTD) -> UniSTD:
    """A copy whose trunk is as if it had been loaded: its frozen layers without adapters are `FrozenLinear`."""
    model = copy.deepcopy(model)
    for name, layer in list(model.trunk.named_modules()):
        frozen = isinstance(layer, torch.nn.Linear) and not isinstance(layer, RAMoELinear | FrozenLinear)
        if frozen and not layer.weight.requires_grad:
            model.trunk.set_submodule(name, FrozenLinear.from_linear(layer))
    return model


def _step(model: UniSTD, backend: str | None, inputs: Frames, targets: Frames, device: torch.device) -> Callable:
    work = work_of(model, inputs, targets, separate=False, training=True)
    return model_call(model, backend, work, device, torch.bfloat16)
