"""The last checkpoints and the best one are kept, are whole, and are the same however often a run was stopped."""

import errno
import io
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from support.refusal import assert_refused, run_command
from support.run_folder import refusal_of
from support.tiny_run import STEPS, tiny_config

from unistd.cli import main
from unistd.training import best as best_weights
from unistd.training.best import load_best, save_best
from unistd.training.checkpoint import CheckpointError, load_checkpoint
from unistd.training.log import read_log
from unistd.training.run import Run, read_run
from unistd.training.settings import dump_config
from unistd.training.stop import Stopped
from unistd.training.trainer import Trainer
from unistd.training.validations import Validations

LONG = {"train.epochs": 12, "ranks.epochs": 2}


class Stopping(Trainer):
    def _train_step(self, *arguments):
        super()._train_step(*arguments)
        if self.step in self.stops:
            self.stops.remove(self.step)
            signal.raise_signal(signal.SIGTERM)


def trained(folder, changes=None, stops=(), errors=None):
    """A run to its end, stopped on the way; errors: of its validations, in place of what it measures."""
    folder.mkdir(exist_ok=True)
    stops = list(stops)
    for attempt in range(20):
        running = Stopping(
            tiny_config(folder, changes), Run(folder), Console(file=io.StringIO(), width=200), attempt > 0
        )
        running.stops = stops
        if errors is not None:
            running.evaluate = lambda *rest, running=running: as_results(errors[running.step // 2 - 1])
        try:
            running.fit()
        except Stopped:
            continue
        return running
    raise AssertionError("it never ends")


def as_results(error):
    shares = {"taxibj": error - 0.5, "kth": error, "enso": error + 0.5}
    return {task: {"model": {"mse": 2 * share}, "repeat_last": {"mse": 2.0}} for task, share in shares.items()}


def files(run):
    return {str(path.relative_to(run.folder)) for path in [*run.folder.glob("*.*"), *run.earlier.glob("*")]} - {".lock"}


@pytest.mark.parametrize("keep", [1, 2, 3])
@pytest.mark.parametrize("stops", [(), (1, 5, 7), (2, 4, 6), (8,)], ids=str)
def test_as_many_are_kept_however_often_a_run_is_stopped(tmp_path, keep, stops):
    run = trained(tmp_path, {"train.keep": keep}, stops).run
    earlier = {f"checkpoints/step_{step:08d}.pt" for step in [4, 6][3 - keep :]}
    links = {"checkpoints/last", "checkpoints/best"}
    assert files(run) == {"checkpoint.pt", "best.safetensors", "log.jsonl"} | links | earlier
    assert [load_checkpoint(run.folder / name)["step"] for name in sorted(earlier)] == [4, 6][3 - keep :]
    assert load_checkpoint(run.earlier / "last")["step"] == STEPS
    assert load_checkpoint(run.checkpoint)["kept"] == [4, 6, 8][3 - keep :]


def test_the_best_is_that_of_the_validations(tmp_path):
    running = trained(tmp_path, LONG, stops=(3, 11, 16))
    shares = {}
    for record in read_log(running.run.log):
        if "val" in record:
            results = record["val"].values()
            shares[record["step"]] = sum(r["model"]["mse"] / r["repeat_last"]["mse"] for r in results) / len(results)
    step = min(shares, key=lambda step: shares[step])
    found = load_checkpoint(running.run.checkpoint)["validations"]
    assert (found["step"], found["last"]) == (step, 24)
    assert found["error"] == pytest.approx(shares[step])
    kept = load_best(running.run.best)
    assert kept["step"] == step
    with safe_open(running.run.earlier / "best", "pt") as file:
        assert set(file.keys()) == set(running.model.module.state_dict())


ERRORS = [5.0, 4.0, 3.0, 3.5, 3.0, 2.9, 2.95, 3.1, 2.9, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("stops", [(), (7, 12, 16), (18,), (2, 4, 6, 8, 10, 12, 14)], ids=str)
def test_early_stop_is_the_same_however_often_a_run_is_stopped(tmp_path, stops):
    running = trained(tmp_path, {**LONG, "train.patience": 3, "train.keep": 3}, stops, ERRORS)
    assert (running.step, running.complete) == (18, True)
    validations = load_checkpoint(running.run.checkpoint)["validations"]
    assert validations == {"last": 18, "step": 12, "error": 2.9, "waited": 3, "samples": 2}
    assert load_best(running.run.best)["step"] == 12
    assert running.ranks.frozen
    text = running.console.file.getvalue()
    assert "stopped early at step 18 of 24: 3 validations were no better than that after step 12" in text
    assert [load_checkpoint(path)["step"] for path in sorted(running.run.earlier.glob("step*"))] == [14, 16]


def test_a_run_that_stopped_early_goes_on_with_more_patience(tmp_path):
    trained(tmp_path, {**LONG, "train.patience": 1}, errors=ERRORS)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 8
    again = Trainer(
        tiny_config(tmp_path, {**LONG, "train.patience": 4}), Run(tmp_path), Console(file=io.StringIO()), True
    )
    again.evaluate = lambda *rest: as_results(ERRORS[again.step // 2 - 1])
    assert not again.complete
    again.fit()
    assert again.step == 24


def test_the_rank_phase_uses_up_no_patience():
    validations = Validations()
    results = [as_results(error) for error in (1.0, 2.0, 2.0, 2.0)]
    for step, result in enumerate(results, 1):
        better = validations.note(step, result, {}, 2, counts=step > 3)
        assert better == (step == 1)
    assert (validations.waited, validations.step) == (1, 1)
    assert validations.exhausted(1)
    assert not validations.exhausted(2)
    assert not validations.exhausted(None)
    assert validations.note(5, results[1], {}, 3, counts=True), "other samples are no measure of these"


def test_a_still_validation_is_measured_by_the_training_data():
    results = {"kth": {"model": {"mse": 3.0}, "repeat_last": {"mse": 0.0}}}
    validations = Validations()
    validations.note(1, results, {"kth": 2.0}, 1, counts=True)
    assert validations.error == 1.5


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path):
    path.write_bytes(b"")


DAMAGES = {"cut": cut, "flipped bit": flip, "empty": empty, "zeros": lambda path: path.write_bytes(bytes(9999))}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_training_goes_on_from_the_one_before_a_damaged_one(run, tmp_path, capsys, damage):
    metrics, best = run.metrics.read_bytes(), load_best(run.best)["model"]
    expected = load_checkpoint(run.checkpoint)
    os.unlink(run.report)
    damage(run.checkpoint)
    before = run.checkpoint.read_bytes()
    (tmp_path / "again.yaml").write_text(dump_config(tiny_config(run.folder)))
    line = refusal_of(capsys, "evaluate", run.folder)
    assert "checkpoint.pt: damaged checkpoint (" in line
    assert f"--checkpoint {run.earlier}/step_00000006.pt is the one before it" in line
    assert run.checkpoint.read_bytes() == before, "nothing is changed by looking"
    assert main(["train", "--config", str(tmp_path / "again.yaml"), "--resume"]) == 0
    errors = capsys.readouterr().err
    assert errors.startswith(f"unistd: warning: {run.checkpoint}: damaged checkpoint (")
    assert errors.endswith(f"the run goes on from the one before it, {run.earlier}/step_00000006.pt\n")
    assert errors.count("\n") == 1
    state = load_checkpoint(run.checkpoint)
    assert (state["step"], state["kept"]) == (8, [6, 8])
    assert all(torch.equal(state["model"][name], value) for name, value in expected["model"].items())
    assert run.metrics.read_bytes() == metrics
    assert all(torch.equal(load_best(run.best)["model"][name], value) for name, value in best.items())


def test_all_damaged_is_one_line(run, tmp_path, capsys):
    for path in (run.checkpoint, *run.earlier.glob("step*")):
        flip(path)
    (tmp_path / "again.yaml").write_text(dump_config(tiny_config(run.folder)))
    line = refusal_of(capsys, "train", "--config", tmp_path / "again.yaml", "--resume")
    assert f"{run.checkpoint}: damaged checkpoint" in line


def test_any_of_them_is_evaluated_used_and_exported(run, tmp_path, capsys):
    import numpy as np

    best = load_best(run.best)["step"]
    np.save(tmp_path / "in.npy", np.random.default_rng(0).random((3, 1, 16, 16), np.float32))
    words = ["--task", "kth", "--input", tmp_path / "in.npy", "--output"]
    for which, step in {
        "last": 8,
        "best": best,
        run.earlier / "step_00000006.pt": 6,
        run.earlier / "best": best,
    }.items():
        for command in (["evaluate"], ["report"], ["predict", *words, tmp_path / f"{step}.npy"]):
            arguments = [command[0], run.folder, *command[1:], "--checkpoint", which]
            assert main([str(word) for word in arguments]) == 0, arguments
        assert json.loads(run.metrics.read_text())["step"] == step
        model = read_run(run.folder, str(which)).model
        with torch.no_grad():
            expected = model(torch.from_numpy(np.load(tmp_path / "in.npy"))[None], task="kth")[0].numpy()
        np.testing.assert_allclose(np.load(tmp_path / f"{step}.npy"), expected, rtol=1e-5, atol=1e-6)
    assert main(["evaluate", str(run.folder), "--checkpoint", str(run.earlier / "step_00000006.pt")]) == 0
    capsys.readouterr()
    assert "results after step 6, the checkpoint is of step 8" in refusal_of(capsys, "report", run.folder)


WRONG = {
    "nowhere": (lambda run: run.folder / "nowhere.pt", "no checkpoint here"),
    "no weights": (lambda run: run.folder / "nowhere.safetensors", "no checkpoint here"),
    "a folder": (lambda run: run.folder, "expected a file"),
    "the adapters": (lambda run: run.adapters / "adapters.safetensors", "does not say what its weights are of"),
    "a text": (lambda run: run.config, "damaged checkpoint"),
    "": (lambda run: "", "expected a file"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_checkpoint_that_is_none_is_named(run, case):
    choose, words = WRONG[case]
    assert_refused(run_command("evaluate", run.folder, "--checkpoint", choose(run)), words)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_best_weights_are_named(run, capsys, damage):
    damage(run.best)
    line = refusal_of(capsys, "evaluate", run.folder, "--checkpoint", "best")
    assert f"{run.best}: damaged checkpoint (" in line


def test_one_flipped_bit_of_the_best_weights_is_found_anywhere(run, tmp_path):
    whole, path = run.best.read_bytes(), tmp_path / "best.safetensors"
    for position in range(0, len(whole), len(whole) // 150):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << position % 8]) + whole[position + 1 :])
        with pytest.raises(CheckpointError, match=r"best\.safetensors: damaged checkpoint") as error:
            load_best(path)
        assert "\n" not in str(error.value)


def test_best_weights_of_another_run_are_named(run, tmp_path, capsys):
    run.config.write_text(dump_config(tiny_config(run.folder, {"optim.lr": 0.5})))
    line = refusal_of(capsys, "evaluate", run.folder, "--checkpoint", "best")
    assert f"{run.best}: config.yaml is not what it was trained with" in line
    assert "'optim.lr'" in line


def test_wrong_best_weights_are_named(run, capsys):
    state = load_best(run.best)
    state["model"]["trunk.blocks.0.norm1.weight"] = torch.ones(7)
    save_best(run.best, state)
    line = refusal_of(capsys, "evaluate", run.folder, "--checkpoint", "best")
    assert f"{run.best}: damaged checkpoint, 'model.trunk.blocks.0.norm1.weight'" in line


def test_without_validation_there_is_no_best(tmp_path, capsys):
    run = trained(tmp_path, {"data.val_samples": 0}).run
    run.config.write_text(dump_config(tiny_config(tmp_path, {"data.val_samples": 0})))
    assert not run.best.exists()
    assert "no best checkpoint: the run has had no validation" in refusal_of(
        capsys, "evaluate", tmp_path, "--checkpoint", "best"
    )


def test_a_run_of_an_earlier_release_goes_on(tmp_path):
    """Whose checkpoint says nothing of others, nor of validations."""
    from unistd.training.checkpoint import save_checkpoint

    trained(tmp_path / "a", {"train.epochs": 4})
    run = Run(tmp_path / "b")
    run.folder.mkdir()
    stopped = Stopping(tiny_config(run.folder), run, Console(file=io.StringIO()))
    stopped.stops = [3]
    with pytest.raises(Stopped):
        stopped.fit()
    state = load_checkpoint(run.checkpoint)
    for key in ("kept", "validations"):
        del state[key]
    save_checkpoint(run.checkpoint, state)
    for path in [*run.earlier.iterdir(), run.best]:
        path.unlink(missing_ok=True)
    run.earlier.rmdir()
    again = Trainer(tiny_config(run.folder), run, Console(file=io.StringIO()), resume=True)
    again.fit()
    states = [load_checkpoint(tmp_path / name / "checkpoint.pt") for name in "ab"]
    assert all(torch.equal(states[0]["model"][name], value) for name, value in states[1]["model"].items())
    assert states[1]["kept"] == [6, 8]


@pytest.mark.parametrize("place", ["best", "link"])
def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path, capsys, monkeypatch, place):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    calls = []

    def no_space(original):
        def call(*arguments, **options):
            calls.append(arguments)
            if len(calls) >= 2:
                raise full
            return original(*arguments, **options)

        return call

    file = tmp_path / "run.yaml"
    file.write_text(dump_config(tiny_config(tmp_path / "run")))
    with monkeypatch.context() as patch:
        if place == "best":
            patch.setattr(best_weights, "save", no_space(best_weights.save))
        else:
            patch.setattr(os, "link", no_space(os.link))
            patch.setattr("shutil.copyfile", lambda *arguments: (_ for _ in ()).throw(full))
        line = refusal_of(capsys, "train", "--config", file)
    name = "best.safetensors" if place == "best" else "checkpoints/step_00000004.pt"
    assert f"cannot be written: No space left on device: '{tmp_path}/run/{name}'" in line
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"] == {"best": 2, "link": 4}[place]
    assert not list(Path(tmp_path / "run").rglob("*.tmp"))
    assert main(["train", "--config", str(file), "--resume"]) == 0


def test_patience_without_validation_is_refused(tmp_path):
    asked = ["train", "--config", "demo", f"run={tmp_path}/x", "train.patience=3", "data.val_samples=0"]
    assert_refused(run_command(*asked), "train.patience is 3, but data.val_samples is 0")
