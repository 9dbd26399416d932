"""Runs that are killed, at places of interest and at random moments, and go on: every file but times is as if they had
never been. Minutes; `make test-faults` runs it.
"""

import random
import signal
import time

import pytest
from support.killing import Kill, left, living, new_run, start

TRAINER, LOG = "unistd.training.trainer:Trainer", "unistd.training.log:RunLog"
PLACES = [
    Kill("unistd.commands:dump_config"),
    Kill("unistd.training.log:SummaryWriter"),
    Kill(f"{LOG}.baselines", after=True),
    Kill(f"{LOG}._write", 2, torn=True),
    Kill(f"{LOG}._write", 4, torn=True),
    Kill(f"{LOG}._show", 5),
    Kill(f"{LOG}.state_dict", 2),
    Kill(f"{TRAINER}._clip_gradients", 3),
    Kill(f"{TRAINER}._train_step", 6, after=True),
    Kill("unistd.training.ranks:freeze_ranks"),
    Kill("unistd.training.ranks:freeze_ranks", after=True),
    Kill("unistd.training.trainer:evaluate", 1),
    Kill("unistd.training.trainer:evaluate", 3, after=True),
    Kill("unistd.training.evaluate:repeat_last", 5),
    Kill("torch:save", 1, torn=True),
    Kill("torch:save", 4, torn=True),
    Kill("os:replace", 1, of="checkpoint.pt"),
    Kill("os:replace", 3, of="checkpoint.pt", after=True),
    Kill("os:replace", 1, of="best.safetensors"),
    Kill("os:replace", 2, of="best.safetensors", after=True),
    Kill("os:link", 2),
    Kill("os:replace", 2, of="step_0000", after=True),
    Kill("pathlib:Path.unlink", 1, of="step_0000"),
    Kill("os:replace", of="adapters.safetensors", after=True),
    Kill("os:replace", of="adapters.json"),
    Kill("unistd.training.results:evaluate"),
    Kill("unistd.training.evaluate:repeat_last", 15),
    Kill("os:replace", of="metrics.json"),
    Kill("os:replace", of="metrics.json", after=True),
    Kill("unistd.report.page:example", 2),
    Kill("os:replace", of="report.html"),
    Kill(f"{TRAINER}._clip_gradients", 2, signum=signal.SIGINT),
    Kill(f"{TRAINER}._train_step", 8, signum=signal.SIGTERM),
    Kill("unistd.training.evaluate:repeat_last", 2, signum=signal.SIGTERM),
    Kill("unistd.training.evaluate:repeat_last", 8, signum=signal.SIGHUP),
    Kill("torch:save", 2, signum=signal.SIGTERM),
    Kill("unistd.training.results:evaluate", signum=signal.SIGINT),
    Kill("unistd.report.page:example", 1, signum=signal.SIGTERM),
]
RANDOM_RUNS, RANDOM_KILLS = 4, 5


@pytest.fixture(scope="module", params=[0, 2], ids=["0 workers", "2 workers"])
def workers(request):
    return request.param


@pytest.fixture(scope="module")
def whole(workers, tmp_path_factory):
    """What a run leaves that nobody stops, and the seconds that it takes."""
    folder = new_run(tmp_path_factory.mktemp("whole") / "whole", {"data.workers": workers})
    outcome = start(folder).finish(120)
    assert outcome.status == 0, outcome
    return left(folder), outcome.seconds


def finish(folder):
    outcome = start(folder).finish(120)
    assert outcome.status == 0, outcome
    assert outcome.errors == ""
    return left(folder)


def assert_ended(outcome, signum):
    if signum == signal.SIGKILL:
        assert outcome.status == -signal.SIGKILL, outcome
        assert outcome.errors == ""
    else:
        assert outcome.status == 128 + signum, outcome
        assert outcome.errors.startswith("unistd: stopped"), outcome
        assert outcome.errors.count("\n") == 1, outcome


@pytest.mark.parametrize("kill", PLACES, ids=str)
def test_killed_at_a_place(kill, workers, whole, tmp_path):
    folder = new_run(tmp_path / "killed", {"data.workers": workers})
    killed = start(folder, kill)
    assert_ended(killed.finish(120), kill.signum)
    assert finish(folder) == whole[0]
    assert living(killed.pid) == []


@pytest.mark.parametrize("seed", range(RANDOM_RUNS))
def test_killed_again_and_again(seed, workers, whole, tmp_path):
    draw = random.Random(seed)
    folder = new_run(tmp_path / "killed", {"data.workers": workers})
    groups = []
    for _ in range(RANDOM_KILLS):
        running = start(folder)
        groups.append(running.pid)
        time.sleep(draw.uniform(0.2, 0.8) * whole[1])
        signum = draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        killed = running.send(signum, group=draw.random() < 0.5)
        outcome = running.finish(120)
        if killed and outcome.status != 0:  # else it was done before
            assert_ended(outcome, signum)
    assert finish(folder) == whole[0]
    assert [pid for group in groups for pid in living(group)] == []
