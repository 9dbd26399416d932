"""The other end of `bench.revisions`: one backend of whichever fastmoe_lora stands first on the path."""

import json
import os
import sys
from collections.abc import Callable

import torch

from bench.harness.layer_comparison import Entrant, enter
from bench.harness.problem import Problem
from bench.harness.record import MEASURED
from bench.harness.timing import sample, warm_up


def serve() -> None:
    """A line is a job to prepare, or "round": take one sample. Answers go to what was standard output at the start."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever else prints must not stand between the answers
    call, calls, device = None, 1, torch.device("cpu")
    for line in sys.stdin:
        question = json.loads(line)
        if question == "round":
            call()  # wakes the threads and brings back what the other process has put out of the caches
            answers.write(json.dumps({"ms": sample(call, device, calls)}) + "\n")
            continue
        device = torch.device(question["device"])
        torch.set_num_threads(question["threads"])
        call, answer = _prepare(question, device)
        calls = warm_up(call, device) if call else 1
        answers.write(json.dumps(answer) + "\n")


def _prepare(job: dict, device: torch.device) -> tuple[Callable[[], object] | None, dict]:
    problem = Problem("", **job["shape"])
    weights = problem.weights(getattr(torch, job["dtype"]), device)
    (entrant,) = enter(weights, device, [job["backend"]], gradients=job["gradients"])
    entry = entrant.entry if isinstance(entrant, Entrant) else entrant
    answer = {"status": entry.status, "reason": entry.reason, "error": entry.error, "allowed": entry.allowed}
    if entry.status != MEASURED:
        return None, answer
    return entrant.call(job["gradients"]), answer


if __name__ == "__main__":
    serve()
