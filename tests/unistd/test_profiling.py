"""unistd train --profile: phases that add up, arithmetic that is the plan's, a trace, and a run that stays as it is."""

import io
import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console
from support.many_processes import SHARED, processes_of
from support.processes import together
from support.run_folder import refusal_of
from support.tiny_run import tiny_config

from unistd.cli import main
from unistd.plan.step import Rehearsal
from unistd.profiling import PHASES, TIMED, profile_steps
from unistd.training import trainer as training
from unistd.training.compiling import compile_parts
from unistd.training.processes import ALONE
from unistd.training.run import Run
from unistd.training.settings import dump_config
from unistd.training.trainer import Trainer


@pytest.fixture
def run(finished_run, tmp_path):
    """A finished run of one's own."""
    return Run(shutil.copytree(finished_run, tmp_path / "copy"))


LONG = {"train.epochs": 10}  # of two steps


def profiled(folder, changes=None, processes=ALONE):
    folder.mkdir(exist_ok=True)
    config = tiny_config(folder, LONG | (changes or {}))
    run = Run(folder)
    return profile_steps(Trainer(config, run, Console(file=io.StringIO()), processes=processes), run.profile)


def scopes_in(trace):
    events = json.loads(trace.read_text())["traceEvents"]
    return {event["name"] for event in events if event.get("cat") == "user_annotation"}


@pytest.mark.parametrize(
    "changes",
    [{}, {"train.tasks_per_step": 1}, {"model.checkpointing": True, "train.precision": "bf16-mixed"}],
    ids=["mixed", "one task a step", "checkpointing"],
)
def test_phases_add_up_and_the_arithmetic_is_the_plans(tmp_path, changes):
    found = profiled(tmp_path, changes)
    assert found.steps == TIMED
    assert set(found.phases) == set(PHASES)
    assert all(seconds > 0 for seconds in found.phases.values())
    assert 0.5 * found.seconds < sum(found.phases.values()) <= found.seconds
    assert scopes_in(found.trace) >= set(PHASES)
    config = tiny_config(tmp_path, LONG | changes)
    if not config.train.tasks_per_step:
        planned = Rehearsal(config, on_cpu=True).step(config.tasks, config.train.batch_size)
        assert sum(found.flops.values()) == pytest.approx(planned.flops, rel=0.01)
        assert found.samples == 6
        assert found.tokens == 2 * (4 + 4 + 8)
    assert found.flops["backward"] > found.flops["trunk"] > 0
    assert found.utilisation == pytest.approx(sum(found.flops.values()) / found.seconds / found.peak)
    assert 0 < found.utilisation < 1


def test_a_compiled_model_is_profiled_as_it_is_compiled(tmp_path, monkeypatch):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    monkeypatch.setattr(training, "compile_parts", partial(compile_parts, backend=backend))
    torch.compiler.reset()
    found = profiled(tmp_path, {"train.compile": "default"})
    assert graphs
    assert scopes_in(found.trace) >= set(PHASES)
    assert min(found.flops[phase] for phase in ("encode", "trunk", "decode", "backward")) > 0


def test_the_command_prints_and_leaves_a_run_as_it_is(run, tmp_path, capsys):
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    file = tmp_path / "again.yaml"
    file.write_text(dump_config(tiny_config(run.folder)))
    assert main(["train", "--config", str(file), "--profile"]) == 0
    out = capsys.readouterr().out
    for piece in (*PHASES, "other", "samples/s", "tokens/s", "MFU", f"trace: {run.profile}"):
        assert piece in out, piece
    after = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file() and path != run.profile}
    assert after == before


def test_too_short_a_run_is_refused(tmp_path, capsys):
    file = tmp_path / "short.yaml"
    file.write_text(dump_config(tiny_config(tmp_path / "run", {"train.epochs": 2})))
    line = refusal_of(capsys, "train", "--config", file, "--profile")
    assert "--profile: the run has 4 steps, expected at least 6" in line


def in_two(rank: int, folder: str) -> None:
    processes = processes_of(rank)
    for strategy in ("ddp", "fsdp"):
        found = profiled(Path(folder) / strategy, SHARED | {"train.strategy": strategy}, processes)
        assert found.samples == SHARED["train.batch_size"] * SHARED["train.accumulate"] * SHARED["train.tasks_per_step"]
        processes.gather(None)
        assert scopes_in(found.trace) >= set(PHASES)


def test_each_of_two_processes_is_profiled(tmp_path):
    together(in_two, tmp_path)
