"""A run that goes on longer than it was planned: said, exact under stops, and nothing else of it may change."""

import io

import pytest
import torch
from rich.console import Console
from support.run_folder import refusal_of
from support.stopping import Stopping
from support.tiny_run import tiny_config

from unistd.cli import main
from unistd.training.checkpoint import load_checkpoint
from unistd.training.log import read_log
from unistd.training.run import Run
from unistd.training.settings import dump_config
from unistd.training.stop import Stopped
from unistd.training.trainer import Trainer


def train(folder, epochs, stop_at=None, resume=False, **changes):
    folder.mkdir(exist_ok=True)
    config = tiny_config(folder, {"train.epochs": epochs, **changes})
    running = Stopping(config, Run(folder), Console(file=io.StringIO(), width=200), resume)
    running.stop_at = stop_at
    if stop_at is None:
        running.fit()
    else:
        with pytest.raises(Stopped):
            running.fit()
    (folder / "config.yaml").write_text(dump_config(config))
    return running


@pytest.mark.parametrize("ranks", [2, 4], ids=["ranks frozen before", "ranks frozen at the end"])
@pytest.mark.parametrize("stop_at", [9, 11, 12])
def test_a_longer_run_is_the_same_however_it_was_stopped(tmp_path, stop_at, ranks):
    phase = {"ranks.epochs": ranks}
    states = []
    for name, stop in (("whole", None), ("stopped", stop_at)):
        train(tmp_path / name, 4, **phase)
        longer = train(tmp_path / name, 7, stop, resume=True, **phase)
        assert "train.epochs 4 becomes 7: from step 8 the learning rate is " in longer.console.file.getvalue()
        if stop:
            longer = train(tmp_path / name, 7, resume=True, **phase)
            assert "becomes" not in longer.console.file.getvalue()
        states.append(load_checkpoint(longer.run.checkpoint))
    assert [state["step"] for state in states] == [14, 14]
    assert all(torch.equal(states[1]["model"][name], value) for name, value in states[0]["model"].items())
    logs = [
        [(r["step"], r.get("losses"), r.get("lr")) for r in read_log(tmp_path / n / "log.jsonl")]
        for n in ("whole", "stopped")
    ]
    assert logs[0] == logs[1]
    rates = {step: rate for step, losses, rate in logs[0] if losses}
    assert rates[9] > rates[8], "the new schedule, which is not as far down"
    assert rates[14] < rates[9]


def test_a_checkpoint_at_the_former_end_goes_on_twice(tmp_path):
    """Stopped before the first step of the longer run, whose ranks are frozen where it would go on to learn them."""
    train(tmp_path, 4, **{"ranks.epochs": 4})
    config = tiny_config(tmp_path, {"train.epochs": 6, "ranks.epochs": 4})
    Trainer(config, Run(tmp_path), Console(file=io.StringIO()), resume=True).save()
    assert train(tmp_path, 6, resume=True, **{"ranks.epochs": 4}).step == 12


def test_the_command_says_so_and_refuses_what_would_change_the_ranks(run, tmp_path, capsys):
    words = ["train", "--config", run.config, f"run={run.folder}", "--resume", "train.epochs=6"]
    line = refusal_of(capsys, *words, "ranks.epochs=3")
    assert "cannot be resumed, the config differs from the run's in 'ranks.epochs': 3, the run's is 2" in line
    assert "'train.epochs': 3, the run's is 4" in refusal_of(capsys, *words[:-1], "train.epochs=3")
    assert main([str(word) for word in words]) == 0
    assert "train.epochs 4 becomes 6" in capsys.readouterr().out
    assert load_checkpoint(run.checkpoint)["step"] == 12
    assert main(["evaluate", str(run.folder), "--checkpoint", "best"]) == 0
