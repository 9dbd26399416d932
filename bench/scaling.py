"""How time and memory grow: with tokens, experts, rank, width, tasks and threads."""

import argparse
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from bench.harness import options
from bench.harness.collect import collect
from bench.harness.layer_comparison import compare_layers, enter
from bench.harness.model_comparison import PLAIN, SEPARATE, measure, passes, unistd_title, work_of
from bench.harness.problem import Problem
from bench.harness.record import Entry, Group, Record
from bench.harness.unistd_model import QUICK_TRUNK, ModelJudge, frames_of, model_call, unistd_model, without_adapters
from bench.memory import KEPT, kept, tally
from bench.peers import FLOOR
from fastmoe_lora import backends
from unistd import TASKS, TrunkConfig

BASE = Problem("layer", 3136, 768, 768)
AXES = {
    "tokens": (196, 784, 3136, 12544, 50176, 262144),
    "experts": (1, 4, 8, 16, 32),
    "rank": (1, 4, 8, 16, 32, 64),
    "width": (384, 768, 1536, 4096),
    "threads": (1, 2, 4, 8, 16, 32, 64, 128),  # as many as there are
    "tasks": (1, 2, 5, 10),
}
ENTRANTS = (FLOOR, "three-gemm", "packed", "cpu", "triton")
MIN_ROUNDS = 3
CHECK_TOKENS = 256
TASK_TRUNK = TrunkConfig(width=384, depth=4, heads=6)
TASK_SIDE, TASK_PATCH = 32, 4  # every task at one small size, so that their number is all that grows


def main(arguments: list[str]) -> None:
    parser = options.parser("scaling", __doc__)
    options.dtypes_option(parser)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES), help="default: all")
    parser.add_argument("--largest", type=int, help="leave out values of an axis beyond this one")
    given = parser.parse_args(arguments)
    device, settings = options.settle(given)
    given.seconds = given.seconds or (0.1 if given.quick else 1.0)
    record = Record.begin("scaling", device, settings)
    dtype = options.chosen_dtypes(given, device)[0]
    jobs = [
        partial(_groups, axis, value, dtype, device, given) for axis in given.axes for value in _values(axis, given)
    ]
    collect(record, given.output, jobs)


def _values(axis: str, given: argparse.Namespace) -> list[int]:
    limit = given.largest or (AXES[axis][1] if given.quick else AXES[axis][-1])
    if axis == "threads":
        limit = min(limit, len(os.sched_getaffinity(0)))
    return [value for value in AXES[axis] if value <= limit]


def _groups(
    axis: str, value: int, dtype: torch.dtype, device: torch.device, given: argparse.Namespace
) -> Iterator[Group]:
    """Forward and backward, and what the layer keeps between; for tasks a training step of a small UniSTD."""
    if axis == "tasks":
        yield tasks_group(value, QUICK_TRUNK if given.quick else TASK_TRUNK, dtype, device, given.seconds)
        return
    base = replace(BASE, M=196) if given.quick else BASE
    change = {"tokens": {"M": value}, "experts": {"E": value}, "rank": {"R": value}, "width": {"K": value, "N": value}}
    problem = replace(base, name=axis, **change.get(axis, {}))
    check_tokens = min(CHECK_TOKENS, problem.M)
    if axis == "threads":
        torch.set_num_threads(value)
    try:
        for gradients in (False, True) if axis in ("tokens", "threads") else (True,):
            group = compare_layers(
                problem,
                dtype,
                device=device,
                names=ENTRANTS,
                gradients=gradients,
                seconds=given.seconds,
                min_rounds=MIN_ROUNDS,
                check_tokens=check_tokens,
            )
            group.title = "forward and backward" if gradients else "forward"
            group.axis, group.value = axis, value
            yield group
    finally:
        torch.set_num_threads(given.threads)
    if axis != "threads":
        group = Group(KEPT, group.dtype, problem.shape, unit="MB", axis=axis, value=value)
        weights = problem.weights(dtype, device)
        yield tally(group, enter(weights, device, ENTRANTS, gradients=True, check_tokens=check_tokens), kept)


def tasks_group(count: int, trunk: TrunkConfig, dtype: torch.dtype, device: torch.device, seconds: float) -> Group:
    """A training step on the first ``count`` tasks, one sample each: one mixed pass, or a pass for each task."""
    specs = [TASKS[name].spec for name in list(TASKS)[:count]]
    specs = [spec.replace(height=TASK_SIDE, width=TASK_SIDE, patch=TASK_PATCH) for spec in specs]
    model = unistd_model(specs, trunk, device)
    plain = without_adapters(model)
    inputs, targets = frames_of(model.tasks, 1, device)
    shape = {"batch": 1, "tasks": count, "tokens": sum(spec.tokens for spec in specs)}
    group = Group("training step", str(dtype).removeprefix("torch."), shape, items=count, axis="tasks", value=count)
    fast = "triton" if device.type == "cuda" else "cpu"
    judge, calls = ModelJudge(model, dtype, device, gradients=True), {}
    for backend in ("packed", fast) if backends()[fast] is True else ("packed",):
        for way in ("", SEPARATE) if count > 1 else ("",):
            entry = Entry(backend + way, unistd_title(backend, way, count), ours=True)
            group.entries.append(entry)
            if passes(entry, backend, judge):
                work = work_of(model, inputs, targets, separate=bool(way), training=True)
                calls[entry.name] = model_call(model, backend, work, device, dtype)
    group.entries.append(Entry(PLAIN, "the same trunk without adapters, one mixed pass"))
    work = work_of(plain, inputs, targets, separate=False, training=True)
    calls[PLAIN] = model_call(plain, None, work, device, dtype)
    measure(group, calls, device, seconds, MIN_ROUNDS)
    return group
