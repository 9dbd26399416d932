"""Plan search of `bench.gpu.check`: every candidate is compiled and checked in parallel, then timed alone."""

import json
from dataclasses import asdict, replace
from functools import cache, lru_cache, partial
from itertools import product

import torch
from torch import Tensor

from bench.gpu.correctness import DTYPE, errors, flattens, paper_case, place, poison, prepare, share
from bench.gpu.log import DEVICE, Log, rows_of

__all__ = ["candidates", "prepare", "search"]

TOKENS = (16384, 4096, 65536, 1024, 256)  # most wanted first
CHECKED_TOKENS = 700
PROBLEMS = {
    "qkv": {},
    "proj": {"out_features": 768, "splits": 1, "experts": 2},
    "compacted": {"experts": 6},  # of rank 4 each, see `Bench`
}


def plans(kind: str) -> list:
    """What could win on Hopper, see bench/NOTES.md; what spills or does not fit shared memory there is left out."""
    from fastmoe_lora.backends._plan import Plan

    if kind == "grad_weight":
        shapes = [(128, 64, 4, 3), (128, 64, 4, 4), (256, 64, 8, 3), (256, 64, 8, 4), (128, 128, 8, 3), (64, 64, 4, 4)]
        return [Plan("queue", 64, bn, bk, w, s, per_sm=p) for (bn, bk, w, s), p in product(shapes, (1, 2, 4))]
    # (bm, bn, bk, warps, stages, programs per SM)
    plain = [(128, 256, 64, 8, 3, 1), (128, 256, 64, 8, 4, 1)]
    flat = [(128, 256, 64, 8, 3, 1), (128, 128, 64, 8, 4, 1), (128, 128, 64, 4, 2, 2), (64, 256, 64, 8, 3, 1)]
    flat += [(64, 128, 64, 4, 3, 2), (64, 64, 64, 4, 3, 3)]
    if kind == "forward":
        plain += [(128, 128, 64, 4, 3, 2), (128, 256, 128, 8, 2, 1), (256, 128, 64, 8, 3, 1), (256, 128, 64, 8, 4, 1)]
        shapes = [(*shape, True) for shape in flat] + [(*shape, False) for shape in plain]
    else:
        plain += [(128, 128, 64, 8, 4, 1), (64, 256, 64, 8, 3, 1), (64, 128, 64, 4, 4, 2), (64, 64, 64, 4, 4, 2)]
        plain += [(128, 256, 128, 8, 2, 1), (128, 128, 128, 8, 3, 1)]
        shapes = [(*shape, False) for shape in plain]
    found = []
    for shape, tma in product(shapes, (True, False)):
        bm, bn, bk, warps, stages, per_sm, flatten = shape
        for group in (8, 32) if bm * bn == 128 * 256 else (8,):
            options = {"group": group, "per_sm": per_sm, "tma": tma, "flatten": flatten}
            plan = Plan("queue", bm, bn, bk, warps, stages, **options)
            found.append(plan)
            if kind == "forward" and warps == 8 and (tma or stages == 3):
                found.append(replace(plan, merge=True))
    found.append(Plan("two_launch", 128, 256, 64, 8, 3, group=16, tma=True, merge=kind == "forward"))
    if kind == "forward":
        shapes = [
            (64, 64, 64, 4, 3),
            (64, 128, 64, 4, 3),
            (64, 128, 64, 8, 3),
            (128, 64, 64, 4, 3),
            (128, 128, 64, 8, 3),
        ]
        found += [Plan("recompute", *shape) for shape in shapes]
    return found


def items() -> list[tuple[str, str, object]]:
    """(kind, problem, plan) that can run, each once."""
    from fastmoe_lora.backends import _plan

    found, can_flatten = {}, flattens()
    for name, kind in product(PROBLEMS, _plan.KINDS):
        geometry = geometry_of_problem(name)
        for plan in plans(kind):
            plan = replace(plan, flatten=plan.flatten and can_flatten)
            if _plan.runs(kind, plan, geometry):
                found[kind, name, _plan.fit(kind, plan, geometry)] = None
    return list(found)


@cache
def geometry_of_problem(name: str):
    return Bench(name, 8).geometry


class Bench:
    """One problem at one M on the GPU: runs a kernel with a plan of our choice."""

    def __init__(self, problem: str, tokens: int):
        from fastmoe_lora._frozen_ranks import active_column_table
        from fastmoe_lora.backends._launch import geometry_of

        arguments = place(paper_case(tokens, **PROBLEMS[problem]).arguments(DTYPE))
        a = {name: value.detach() if torch.is_tensor(value) else value for name, value in arguments.items()}
        if problem == "compacted":
            a["diag"] = torch.full_like(a["diag"], 4.0)
            a["columns"] = active_column_table(a["diag"], 8)
        self.a = a
        self.operands = [a.get(name) for name in ("lora_A", "lora_B", "diag", "gates", "router_weight", "columns")]
        adapter, _, diag, _, router, columns = self.operands
        self.geometry = geometry_of(a["weight"], adapter, diag, router, columns, 0, 0.0)
        self.needs = [True, False, False, True, True, columns is None, False, True]

    def grad(self) -> Tensor:
        generator = torch.Generator(device=DEVICE).manual_seed(2)
        shape = (self.a["x"].shape[0], self.geometry.n)
        return torch.randn(shape, generator=generator, device=DEVICE).to(self.a["x"].dtype)

    def forward(self, plan) -> tuple[Tensor, ...]:
        from fastmoe_lora.backends import triton

        a = self.a
        return triton.run_forward(
            self.geometry, plan, a["x"], a["weight"], a["bias"], *self.operands, 0, 1.0, 0.0, None
        )

    def backward(self, input_plan, weight_plan, grad: Tensor, saved: tuple[Tensor, ...], needs=None):
        from fastmoe_lora.backends import triton

        adapter, b, diag, _, router, columns = self.operands
        operands = grad, self.a["x"], self.a["weight"], adapter, b, diag, saved[2], router, columns, saved[1]
        return triton.run_backward(
            self.geometry, input_plan, weight_plan, *operands, 1.0, 0.0, None, needs or self.needs
        )

    def expected(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """By the packed backend in `dtype`."""
        from fastmoe_lora.backends import packed

        cast = {n: v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v for n, v in self.a.items()}
        precision = torch.promote_types(dtype, torch.float32)
        adapter, b, _, _, router, columns = (
            cast.get(n) for n in ("lora_A", "lora_B", "diag", "gates", "router_weight", "columns")
        )
        diag = self.a["diag"].to(precision)
        operands = cast["x"], cast["weight"], cast["bias"], adapter, b, diag, None, router, columns
        y, low_rank, gates = packed.forward(*operands, 0, 1.0, 0.0, None)
        operands = self.grad().to(dtype), *operands[:2], adapter, b, diag, gates, router, columns, low_rank
        return self.named(y, packed.backward(*operands, 1.0, 0.0, None, self.needs))

    def named(self, y: Tensor, gradients: tuple) -> dict[str, Tensor]:
        names = ("x", "", "", "lora_A", "lora_B", "diag", "", "router_weight")
        wanted = {n: g for n, g, need in zip(names, gradients, self.needs, strict=True) if need}
        return {"y": y} | wanted


@lru_cache(maxsize=1)
def bench_and_grad(name: str, tokens: int) -> tuple[Bench, Tensor]:
    bench = Bench(name, tokens)
    return bench, bench.grad()


def default_plan(kind: str, bench: Bench, tokens: int):
    from fastmoe_lora.backends import _plan
    from fastmoe_lora.backends._launch import device_name

    return _plan.choose(kind, device_name(bench.a["x"].device), bench.geometry, tokens)


@cache
def expected(name: str) -> list[dict[str, Tensor]]:
    return [Bench(name, CHECKED_TOKENS).expected(dtype) for dtype in (DTYPE, torch.float64)]


def candidates(log: Log, shard: int, shards: int) -> None:
    """Compiles (into the cache that the search finds) and checks each candidate, at an M that fills no tile."""
    from fastmoe_lora.backends import _plan

    def check(kind: str, name: str, plan) -> dict:
        bench, grad = bench_and_grad(name, CHECKED_TOKENS)
        chosen = {other: default_plan(other, bench, CHECKED_TOKENS) for other in _plan.KINDS} | {kind: plan}
        saved = bench.forward(chosen["forward"])
        gradients = bench.backward(chosen["grad_input"], chosen["grad_weight"], grad, saved)
        found = errors(bench.named(saved[0], gradients), *expected(name), 16)
        return found | {"kind": kind, "problem": name, "plan": asdict(plan), "show": False}

    poison()
    for item in share(items(), shard, shards):
        kind, name, plan = item
        log.item(f"{kind} {name} {short(plan)}", partial(check, *item))


def short(plan) -> str:
    extra = "".join(f"+{name}" for name in ("tma", "merge", "flatten") if getattr(plan, name))
    return f"{plan.mode} {plan.bm}x{plan.bn}x{plan.bk} w{plan.warps} s{plan.stages} g{plan.group} p{plan.per_sm}{extra}"


def search(log: Log, shard: int, shards: int) -> None:
    """Times the candidates that were right, problem by problem and M by M; then writes the table."""
    from fastmoe_lora.backends import _plan

    right = {}
    for row in rows_of(log.folder, "candidates"):
        if row["ok"]:
            right.setdefault((row["kind"], row["problem"]), []).append(_plan.Plan(**row["plan"]))
    for tokens, name in product(TOKENS, PROBLEMS):
        for kind in _plan.KINDS:
            choices = right.get((kind, name), [])
            if tokens > 2048:
                choices = [plan for plan in choices if plan.mode != "recompute"]
            log.item(f"{kind} {name} M {tokens}", partial(_fastest, kind, name, tokens, choices))
        write_table(log)


def _fastest(kind: str, name: str, tokens: int, choices: list) -> dict:
    """Two rounds: all once, then the best few for longer."""
    from triton.testing import do_bench_cudagraph as measure  # the host takes longer to launch than the GPU to compute

    from fastmoe_lora.backends import _plan

    if not choices:
        return {"ok": False, "error": "no candidate was right"}
    bench, grad = bench_and_grad(name, tokens)
    forward_plan, input_plan, weight_plan = (default_plan(other, bench, tokens) for other in _plan.KINDS)
    saved = bench.forward(forward_plan)
    only_input = [True, *([False] * 7)]

    def call(plan):
        if kind == "forward":
            return lambda: bench.forward(plan)
        if kind == "grad_input":
            return lambda: bench.backward(plan, weight_plan, grad, saved, only_input)
        return lambda: bench.backward(input_plan, plan, grad, saved)

    times = {plan: measure(call(plan), rep=4, quantiles=[0.5]) for plan in choices}
    best = sorted(times, key=times.get)[:4]
    times |= {plan: measure(call(plan), rep=15, quantiles=[0.5]) for plan in best}
    winner = min(best, key=times.get)
    ranking = [{"plan": short(plan), "ms": round(times[plan], 4)} for plan in sorted(times, key=times.get)]
    found = {"ms": times[winner], "winner": short(winner), "plan": asdict(winner), "ranking": ranking}
    return found | {"kind": kind, "problem": name, "tokens": tokens}


def write_table(log: Log) -> None:
    """plans.json: the shipped table with the winners in front, smaller M first (the first row that serves is taken)."""
    from fastmoe_lora.backends import _plan
    from fastmoe_lora.backends._launch import device_name

    section = _plan.architecture(device_name(DEVICE))
    full = _plan.table()
    rows: dict[str, list[tuple[int, dict]]] = {kind: [] for kind in _plan.KINDS}
    for row in log.read():
        if not row["ok"]:
            continue
        geometry, tokens = geometry_of_problem(row["problem"]), row["tokens"]
        names = ("bits", "n", "k", "grouped", "dropout")
        key = {name: getattr(geometry, name) for name in names} | {"width": geometry.block}
        limit = {"m": tokens * 2} if tokens < max(TOKENS) else {}
        rows[row["kind"]].append((tokens, key | limit | row["plan"]))
    for kind, found in rows.items():
        full[section][kind] = [row for _, row in sorted(found, key=lambda pair: pair[0])] + full[section][kind]
    (log.folder / "plans.json").write_text(dump(full))


def dump(full: dict) -> str:
    """As committed: one row a line."""
    sections = []
    for section, kinds in full.items():
        parts = [
            f'  "{k}": [\n' + ",\n".join("   " + json.dumps(row) for row in rows) + "\n  ]" for k, rows in kinds.items()
        ]
        sections.append(f' "{section}": {{\n' + ",\n".join(parts) + "\n }")
    return "{\n" + ",\n".join(sections) + "\n}\n"
