"""The loop: it learns, it mixes, and says what it does."""

import io

import pytest
import torch
from rich.console import Console
from support.tiny_run import STEPS, tiny_config
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from fastmoe_lora import check_adapters
from unistd.model import block
from unistd.training import trainer as training
from unistd.training.checkpoint import load_checkpoint
from unistd.training.data import split_datasets
from unistd.training.errors import TrainingError
from unistd.training.evaluate import held_out, tasks_beaten
from unistd.training.log import read_log
from unistd.training.progress import sparkline
from unistd.training.run import Run
from unistd.training.trainer import Trainer


def trainer(folder, changes=None, console=None):
    return Trainer(tiny_config(folder, changes), Run(folder), console or Console(file=io.StringIO()))


def test_training_learns_a_few_samples_of_every_task(tmp_path):
    learning = trainer(
        tmp_path, {"train.epochs": 40, "ranks.epochs": 5, "data.train_samples": 2, "data.val_samples": 0}
    )
    datasets = split_datasets(learning.config, "train")
    learning.fit()
    results = learning.evaluate(datasets)
    assert tasks_beaten(results) == ["taxibj", "kth", "enso"]
    assert all(result["model"]["mse"] < 0.8 * result["repeat_last"]["mse"] for result in results.values()), results


def test_records_show_losses_ranks_and_speed(tmp_path):
    running = trainer(tmp_path)
    running.fit()
    records = read_log(running.run.log)
    steps = [record for record in records if "losses" in record]
    assert [record["step"] for record in steps] == list(range(1, STEPS + 1))
    assert all(set(record["losses"]) == {"taxibj", "kth", "enso"} for record in steps)
    assert [record["step"] for record in records if "val" in record] == [2, 4, 6, 8]
    assert records[0] == {"step": 0, "baselines": running.baselines}
    assert steps[0]["window"] == 3
    assert steps[3]["window"] == 1
    assert all(record["samples_per_second"] > 0 for record in steps)
    assert all(0 <= record["waiting"] < 1 for record in steps)
    assert [record["rank_sum"] for record in steps] == pytest.approx([25.0] * STEPS, rel=1e-5)  # 10 experts of 2.5
    assert any(running.run.tensorboard.iterdir())


def test_few_tasks_a_step_reach_all_tasks(tmp_path):
    running = trainer(tmp_path, {"train.tasks_per_step": 1, "ranks.epochs": 1, "train.epochs": 1})
    running.fit()
    seen = [set(record["losses"]) for record in read_log(running.run.log) if "losses" in record]
    assert all(len(tasks) == 1 for tasks in seen)
    assert set.union(*seen) == {"taxibj", "kth", "enso"}


@pytest.mark.parametrize("loss", ["mse", "relative"])
def test_objective_weighs_tasks_as_asked(tmp_path, loss):
    running = trainer(tmp_path, {"optim.loss": loss})
    backward, objectives = running.fabric.backward, []
    running.fabric.backward = lambda loss: (objectives.append(loss.item()), backward(loss))
    batch = next(iter(running.loader))
    errors = running.objective.backward([batch], lambda: 0.0)
    errors = errors.means(errors.sums.tolist())
    weights = {task: 1.0 if loss == "mse" else 1 / running.baselines[task] for task in errors}
    assert objectives == [pytest.approx(sum(errors[task] * weights[task] for task in errors) / 3)]
    forecasts = running.model({task: inputs for task, (inputs, _) in batch.items()})
    expected = {task: F.mse_loss(forecasts[task], targets).item() for task, (_, targets) in batch.items()}
    assert errors == pytest.approx(expected, rel=1e-2)  # other ranks were drawn


def test_repeating_the_last_frame_is_where_a_residual_model_starts(tmp_path):
    running = trainer(tmp_path)
    results = running.evaluate(held_out(running.config, "test"))
    for result in results.values():
        assert result["model"] == pytest.approx(result["repeat_last"], rel=1e-6)


def test_an_adapter_that_the_model_passes_by_stops_training_before_the_first_step(tmp_path, monkeypatch):
    def forward(self, x, layout):
        return F.linear(x, self.qkv.weight[: x.shape[-1]])

    running = trainer(tmp_path)
    monkeypatch.setattr(block.Attention, "forward", forward)
    named = "'trunk.blocks.0.attention.qkv', 'trunk.blocks.0.attention.proj'"
    with pytest.raises(TrainingError, match=f"^model: 2 of 3 adapters were never reached: {named}: UniSTD reads"):
        running.fit()
    assert not running.run.log.exists()
    assert not running.run.checkpoint.exists()


@pytest.mark.parametrize("recipe", ["sampled", "printed"])
def test_the_check_of_the_adapters_changes_no_number_of_the_run(tmp_path, monkeypatch, recipe):
    states, calls = [], []
    for check in (lambda *arguments: calls.append(check_adapters(*arguments)), lambda *arguments: None):
        monkeypatch.setattr(training, "check_adapters", check)
        folder = tmp_path / str(len(states))
        folder.mkdir()
        running = trainer(folder, {"ranks.recipe": recipe, "train.epochs": 2, "ranks.epochs": 1})
        running.fit()
        states.append(load_checkpoint(running.run.checkpoint))
    assert [len(names) for names in calls] == [3]
    for part in ("model", "optimizer", "random"):
        left, right = (tree_leaves(state[part]) for state in states)
        assert len(left) == len(right)
        for mine, other in zip(left, right, strict=True):
            assert torch.equal(mine, other) if isinstance(mine, torch.Tensor) else mine == other


def test_data_that_never_change_are_an_error(tmp_path, monkeypatch):
    from unistd.training import data

    def still(spec, split, root, length, seed, task):
        frames = torch.zeros(spec.frames_in, spec.channels, spec.height, spec.width)
        return [(frames, torch.zeros(spec.target_shape))] * length

    monkeypatch.setattr(data, "build_dataset", still)
    with pytest.raises(TrainingError, match=r"task 'taxibj': the error of repeating the last frame is 0\.0"):
        trainer(tmp_path)


def test_progress_shows_what_a_person_needs(tmp_path):
    out = io.StringIO()
    trainer(tmp_path, console=Console(file=out, force_terminal=True, width=110)).fit()
    for piece in ("epoch 4/4", "ranks frozen", "8/8", "samples/s", "left", "taxibj", "kth", "enso", "of repeat-last"):
        assert piece in out.getvalue(), piece


def test_without_a_terminal_one_line_an_epoch(tmp_path):
    out = io.StringIO()
    trainer(tmp_path, console=Console(file=out, width=160)).fit()
    lines = out.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("epoch 1/4 · ranks learning")
    assert "step 8/8" in lines[3]


def test_sparkline_follows_the_values():
    assert sparkline([1.0, 0.1, 0.01]) == "█▅▁"
    assert sparkline([]) == ""
    assert len(sparkline([0.5, 0.5])) == 2


def test_threads_are_as_asked(tmp_path):
    trainer(tmp_path, {"train.threads": 2})
    assert torch.get_num_threads() == 2
    trainer(tmp_path)
    assert torch.get_num_threads() == 2, "null leaves them alone"
