"""One comparison of whole models: inference or a training step on one task, or on several at once."""

import argparse
from collections.abc import Callable

import torch
from torch import nn

from bench.harness import options
from bench.harness.collect import collect
from bench.harness.peak import peak_rise
from bench.harness.record import FAILED, MEASURED, UNAVAILABLE, WRONG, Entry, Group, Record
from bench.harness.timing import describe, interleaved
from bench.harness.unistd_model import (
    QUICK_TRUNK,
    Frames,
    ModelJudge,
    frames_of,
    loss_of,
    model_call,
    unistd_model,
    without_adapters,
)
from bench.peers.simvp import CONFIGS, SimVP
from fastmoe_lora import backends
from fastmoe_lora.backends import NAMES
from unistd import TASKS, TaskSpec, UniSTD
from unistd.training.config import OptimConfig
from unistd.training.optim import build_optimizer

PLAIN = "no-adapters"
SEPARATE = "-separate"
Call = Callable[[], object]


def run(name: str, arguments: list[str], training: bool) -> None:
    """Measures each task alone, then all of them mixed; saves after each group."""
    parser = options.parser(name, f"UniSTD's {'training step' if training else 'inference'} beside SimVP-gSTA.")
    options.dtypes_option(parser)
    parser.add_argument("--sizes", nargs="+", default=list(CONFIGS), choices=list(TASKS), help="tasks, in their sizes")
    parser.add_argument("--against", nargs="+", choices=[*NAMES, PLAIN, "simvp"], help="entrants (default: all)")
    parser.add_argument("--batch", type=int, default=4, help="samples of each task in a step")
    parser.add_argument("--trunk", default="ViT-B-16", help="as `unistd train` takes it")
    given = parser.parse_args(arguments)
    device, settings = options.settle(given)
    record = Record.begin(name, device, settings)
    given.seconds = given.seconds or (0.3 if given.quick else 10.0)
    specs = [_quick(TASKS[task].spec) if given.quick else TASKS[task].spec for task in given.sizes]
    groupings = [[spec] for spec in specs] + ([specs] if len(specs) > 1 else [])
    jobs = [
        lambda job=(tasks, dtype): [compare_models(*job, device, given, training)]
        for dtype in options.chosen_dtypes(given, device)[: None if given.dtype else 1]
        for tasks in groupings
    ]
    collect(record, given.output, jobs)


def compare_models(
    specs: list[TaskSpec], dtype: torch.dtype, device: torch.device, given: argparse.Namespace, training: bool
) -> Group:
    """All entrants on one task, or on a mixed batch of several; each backend's result is checked before it is timed."""
    trunk = QUICK_TRUNK if given.quick else given.trunk
    names = given.against or [*NAMES, PLAIN, "simvp"]
    model = unistd_model(specs, trunk, device).train(training)
    inputs, targets = frames_of(model.tasks, given.batch, device)
    tokens = given.batch * sum(spec.tokens for spec in specs)
    title = " + ".join(spec.title for spec in specs)
    shape = {"batch": given.batch, "tasks": len(specs), "tokens": tokens}
    group = Group(title, str(dtype).removeprefix("torch."), shape, items=given.batch * len(specs))
    ways = ("",) if len(specs) == 1 else ("", SEPARATE)
    judge = ModelJudge(model, dtype, device, training)
    calls: dict[str, Call] = {}
    # The reference is slow, and its place is known from the tasks alone.
    asked = [name for name in NAMES if name in names and (name != "reference" or len(specs) == 1 or given.against)]
    for backend in asked:
        for way in ways:
            entry = Entry(backend + way, unistd_title(backend, way, len(specs)), ours=True)
            group.entries.append(entry)
            if passes(entry, backend, judge):
                work = work_of(model, inputs, targets, separate=bool(way), training=training)
                calls[entry.name] = model_call(model, backend, work, device, dtype)
    if PLAIN in names:
        plain = without_adapters(model)
        group.entries.append(Entry(PLAIN, "the same trunk without adapters"))
        work = work_of(plain, inputs, targets, separate=False, training=training)
        calls[PLAIN] = model_call(plain, None, work, device, dtype)
    if "simvp" in names and len(specs) == 1:
        _enter_simvp(group, calls, specs[0], inputs, targets, dtype, training, given.quick)
    measure(group, calls, device, given.seconds)
    return group


def measure(group: Group, calls: dict[str, Call], device: torch.device, seconds: float, min_rounds: int = 5) -> None:
    """Times all calls in turn, then takes the peak memory of each."""
    samples, failures = interleaved(calls, device, seconds, min_rounds)
    for name, values in samples.items():
        group.entry(name).samples = values
    for name, reason in failures.items():
        group.entry(name).status, group.entry(name).reason = FAILED, reason
    for name in samples:
        try:
            group.entry(name).peak_mb = round(peak_rise(calls[name], device), 1)
        except OSError:  # no /proc: speed alone
            break


def passes(entry: Entry, backend: str, judge: ModelJudge) -> bool:
    """Whether the backend is there and right; else the entry says why not."""
    reason = backends()[backend]
    if reason is not True:
        entry.status, entry.reason = UNAVAILABLE, str(reason)
        return False
    try:
        entry.error, entry.allowed, wrong = judge.check(backend)
    except Exception as error:
        entry.status, entry.reason = FAILED, describe(error)
        return False
    if wrong:
        entry.status, entry.reason = WRONG, wrong
    return entry.status == MEASURED


def work_of(model: UniSTD, inputs: Frames, targets: Frames, separate: bool, training: bool) -> Call:
    """Inference, or a step of AdamW as the trainer takes it; ``separate``: a pass for each task in turn."""
    batches = [{task: frames} for task, frames in inputs.items()] if separate else [inputs]
    if not training:

        def infer() -> object:
            with torch.no_grad():
                return [model(batch) for batch in batches]

        return infer
    # A learning rate too small to change anything: all entrants share these weights.
    optimizer = build_optimizer(model, OptimConfig(lr=1e-12))

    def step() -> None:
        for batch in batches:
            loss_of(model(batch), {task: targets[task] for task in batch}).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _enter_simvp(
    group: Group,
    calls: dict[str, Call],
    spec: TaskSpec,
    inputs: Frames,
    targets: Frames,
    dtype: torch.dtype,
    training: bool,
    quick: bool,
) -> None:
    entry = Entry("simvp", "SimVP-gSTA (another model)", note="single-task model; all of it is trained")
    group.entries.append(entry)
    if spec.name not in CONFIGS or quick:
        entry.status = UNAVAILABLE
        entry.reason = "left out of --quick" if quick else f"no published settings for {spec.title} here"
        return
    frames, target = inputs[spec.name], targets[spec.name]
    model = SimVP(CONFIGS[spec.name]).to(frames.device).train(training)
    entry.title = f"SimVP-gSTA, {sum(p.numel() for p in model.parameters()) / 1e6:.3g} M (another model)"
    calls["simvp"] = model_call(model, None, _simvp_work(model, frames, target, training), frames.device, dtype)


def _simvp_work(model: nn.Module, frames: torch.Tensor, target: torch.Tensor, training: bool) -> Call:
    if not training:
        return torch.no_grad()(lambda: model(frames))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-12, fused=True)

    def step() -> None:
        loss_of({"": model(frames)}, {"": target}).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def unistd_title(backend: str, way: str, tasks: int) -> str:
    return f"UniSTD, {backend}" + (("" if tasks == 1 else ", one mixed pass") if not way else f", {tasks} passes")


def _quick(spec: TaskSpec) -> TaskSpec:
    return spec.replace(height=8 * spec.patch, width=8 * spec.patch)
