"""A run that starts from another's weights: what both have is taken, the rest fresh, what cannot fit refused."""

import io

import pytest
import torch
from rich.console import Console
from support.run_folder import refusal_of
from support.tiny_run import TINY, tiny_config

from fastmoe_lora import ranks_frozen
from unistd.cli import main
from unistd.training.run import Run, open_run
from unistd.training.settings import dump_config, load_config
from unistd.training.trainer import Trainer

NEW_TASK = {"height": 8, "width": 8, "patch": 4, "frames_in": 2, "frames_out": 2}
DEEP = {"width": 16, "depth": 2, "heads": 2, "mlp_ratio": 2.0}


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A complete run of taxibj and kth."""
    folder = tmp_path_factory.mktemp("start") / "learned"
    config = write(folder, {"tasks": ["taxibj", "kth"]})
    assert main(["train", "--config", str(config)]) == 0
    return folder


def write(folder, changes):
    folder.mkdir(exist_ok=True)
    options = {task: (TINY["task_options"] | {"bair": NEW_TASK})[task] for task in changes["tasks"]}
    changes = changes | {"task_options": options}
    path = folder.parent / f"{folder.name}.yaml"
    path.write_text(dump_config(tiny_config(folder, changes)))
    return path


def continued(folder, learned, **changes):
    keys = {"tasks": ["bair", "kth"], "ranks.epochs": 0, "train.init_from": str(learned)}
    return write(folder, keys | changes)


def test_what_both_have_is_taken_and_the_rest_is_fresh(tmp_path, learned, capsys):
    config = continued(tmp_path / "next", learned)
    shown = io.StringIO()
    trainer = Trainer(load_config(str(config), []), Run(tmp_path / "next"), Console(file=shown, width=300))
    assert f"from step 8 of {learned}: trunk, adapters, kth; fresh: bair" in shown.getvalue()
    ours, theirs = trainer.model.module.state_dict(), open_run(learned)[2].state_dict()
    for name, value in ours.items():
        if isinstance(value, torch.Tensor) and ".bair." not in name:
            assert torch.equal(value, theirs[name]), name
    assert ranks_frozen(trainer.model.module)
    assert any(".bair." in name for name in ours)
    assert main(["train", "--config", str(config)]) == 0
    assert "bair" in (tmp_path / "next/metrics.json").read_text()
    assert main(["evaluate", str(tmp_path / "next")]) == 0


def test_goes_on_when_the_first_run_is_gone(tmp_path, learned):
    first = tmp_path / "first"
    learned.rename(first)
    try:
        config = continued(tmp_path / "next", first)
        assert main(["train", "--config", str(config), "train.epochs=2"]) == 0
    finally:
        first.rename(learned)
    assert main(["train", "--config", str(config), "--resume", "train.epochs=3"]) == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ranks.epochs": 1}, "its ranks are frozen, but ranks.epochs is 1, expected 0"),
        ({"model.hidden": 8}, "'encoders.kth."),
        ({"model.temporal_width": 4}, "'trunk."),
        ({"model.qkv_experts": 3}, "'trunk."),
        ({"model.residual": False}, "its decoders were trained with model.residual True, expected False"),
        ({"model.trunk": DEEP}, "is not there, expected"),
        ({"train.init_from": "nowhere"}, "nowhere: not the folder of a run"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_does_not_fit_is_refused_by_name(tmp_path, learned, capsys, changes, said):
    config = continued(tmp_path / "next", learned, **changes)
    assert said in refusal_of(capsys, "train", "--config", config)
    assert not (tmp_path / "next/checkpoint.pt").exists()


def test_a_smaller_trunk_leaves_nothing_out_in_silence(tmp_path, capsys, learned):
    deep = write(tmp_path / "deep", {"tasks": ["kth"], "model.trunk": DEEP})
    assert main(["train", "--config", str(deep)]) == 0
    config = continued(tmp_path / "next", tmp_path / "deep")
    capsys.readouterr()
    assert "expected only parts that this config's model has" in refusal_of(capsys, "train", "--config", config)


def test_skips_that_another_run_learned_are_not_left_out_in_silence(tmp_path, capsys):
    skipping = write(tmp_path / "skipping", {"tasks": ["kth"], "model.skips": True})
    assert main(["train", "--config", str(skipping)]) == 0
    assert any("skip_frames" in name for name in open_run(tmp_path / "skipping")[2].state_dict())
    config = continued(tmp_path / "next", tmp_path / "skipping")
    capsys.readouterr()
    assert "has 'decoders.kth.skip_frames.weight'" in refusal_of(capsys, "train", "--config", config)
