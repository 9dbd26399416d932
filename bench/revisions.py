"""This work tree beside another revision of itself: both built, checked, and timed in turn, round by round."""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from bench.harness import options
from bench.harness.machine import ROOT
from bench.harness.problem import Problem
from bench.harness.progress import print_group
from bench.harness.record import MEASURED, Entry, Group, Record
from fastmoe_lora import backends

BASE, HEAD = "base", "head"
MIN_ROUNDS = 5
SETTLE_SECONDS = 0.02  # OpenMP threads spin for a while after their work; those of the other process must be asleep


def main(arguments: list[str]) -> None:
    parser = options.parser("revisions", __doc__)
    options.dtypes_option(parser)
    parser.add_argument("--base", required=True, metavar="REV", help="the revision to compare with")
    parser.add_argument("--sizes", nargs="+", help="as in `python -m bench layer` (default: qkv qkv-1-image proj)")
    parser.add_argument("--backend", help="default: the fastest that works here")
    parser.set_defaults(output=None)
    given = parser.parse_args(arguments)
    device, settings = options.settle(given)
    fastest = "triton" if device.type == "cuda" else "cpu"
    backend = given.backend or (fastest if backends()[fastest] is True else "packed")
    record = Record.begin("revisions", device, settings)
    seconds = given.seconds or (0.5 if given.quick else 5.0)
    with revision(given.base) as (site, base):
        print(f"base {base}, head {record.commit}, backend {backend}")
        workers = {BASE: Worker([site, ROOT]), HEAD: Worker([ROOT])}
        for problem in options.chosen_sizes(given, ["qkv", "qkv-1-image", "proj"]):
            for dtype in options.chosen_dtypes(given, device):
                for gradients in (False, True):
                    group = measure(problem, dtype, device, backend, gradients, workers, seconds)
                    record.groups.append(group)
                    print_group(group)
                    print(verdict(group), flush=True)
        for worker in workers.values():
            worker.close()
    if given.output:
        print(f"wrote {record.save(given.output)}")


@contextmanager
def revision(name: str) -> Iterator[tuple[Path, str]]:
    """(folder of the installed packages, hash) of a revision: a worktree of its own, built as a user would build it."""
    git = ["git", "-C", str(ROOT)]
    found = subprocess.run([*git, "rev-parse", "--verify", f"{name}^{{commit}}"], capture_output=True, text=True)
    if found.returncode:
        sys.exit(f"--base {name}: no such revision in {ROOT}")
    with tempfile.TemporaryDirectory(prefix="fastmoe_lora-") as folder:
        tree, site = Path(folder, "tree"), Path(folder, "site")
        subprocess.run([*git, "worktree", "add", "--quiet", "--detach", str(tree), name], check=True)
        try:
            install = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(site), str(tree)]
            subprocess.run([sys.executable, "-m", "pip", *install], check=True)
            yield site, found.stdout.strip()[:12]
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(tree)], check=False)


def measure(
    problem: Problem,
    dtype: torch.dtype,
    device: torch.device,
    backend: str,
    gradients: bool,
    workers: dict[str, "Worker"],
    seconds: float,
) -> Group:
    """One size in both revisions; the order within a round is random."""
    what = "forward and backward" if gradients else "forward"
    group = Group(f"{problem.name}, {what}", str(dtype).removeprefix("torch."), problem.shape)
    job = {
        "shape": problem.shape,
        "dtype": group.dtype,
        "device": str(device),
        "backend": backend,
        "gradients": gradients,
        "threads": torch.get_num_threads(),
    }
    group.entries = [Entry(name, f"{backend}, {name}", ours=True) for name in (BASE, HEAD)]
    for name, worker in workers.items():
        reply = worker.ask(job)
        entry = group.entry(name)
        entry.status, entry.reason = reply["status"], reply["reason"]
        entry.error, entry.allowed = reply["error"], reply["allowed"]
    running = [name for name in workers if group.entry(name).status == MEASURED]
    shuffle, end = random.Random(0).shuffle, time.perf_counter() + seconds
    while running and (len(group.entry(running[0]).samples) < MIN_ROUNDS or time.perf_counter() < end):
        shuffle(running)
        for name in running:
            time.sleep(SETTLE_SECONDS)
            group.entry(name).samples.append(workers[name].ask("round")["ms"])
    return group


def verdict(group: Group) -> str:
    """Head over base in words; no speed-up unless both are right."""
    ratio = group.ratio(HEAD, BASE)
    if ratio is None:
        return "  no comparison: one of the two did not run or is wrong"
    if ratio.p20 <= 1 <= ratio.p80:
        return (
            f"  head takes {ratio.median:.3f} of base's time ({ratio.p20:.3f} to {ratio.p80:.3f}): no clear difference"
        )
    return f"  head takes {ratio.median:.3f} of base's time ({ratio.p20:.3f} to {ratio.p80:.3f})"


class Worker:
    """A Python process that has one revision's packages in front of its path and answers one line for each line."""

    def __init__(self, path: list[Path]):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
        command = [sys.executable, "-P", "-W", "ignore", "-m", "bench.harness.revision_worker"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=path[0]
        )

    def ask(self, question: object) -> dict:
        """Raises RuntimeError if the process has died."""
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise RuntimeError(f"a worker ended with status {self.process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()
