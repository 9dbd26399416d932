"""What a run that starts from another one does to the tasks learned there: measured, recorded, reported, printed."""

import json

import pytest
from support.run_folder import refusal_of
from support.tiny_run import TINY, tiny_config

from unistd.cli import main
from unistd.training.settings import dump_config


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A complete run of taxibj and kth."""
    folder = tmp_path_factory.mktemp("forgetting") / "learned"
    assert train(folder, ["taxibj", "kth"], {}) == 0
    return folder


def train(folder, tasks, changes, *words):
    options = {task: TINY["task_options"][task] for task in tasks}
    config = folder.parent / f"{folder.name}.yaml"
    config.write_text(dump_config(tiny_config(folder, {"tasks": tasks, "task_options": options} | changes)))
    return main(["train", "--config", str(config), *words])


def results(folder):
    record = json.loads((folder / "metrics.json").read_text())
    return record, {task: result["model"] for task, result in record["tasks"].items()}


def test_errors_before_are_those_of_the_other_run_beside_those_now(tmp_path, learned, capsys):
    changes = {"train.init_from": str(learned), "ranks.epochs": 0}
    assert train(tmp_path / "next", ["kth", "enso", "taxibj"], changes) == 0
    record, now = results(tmp_path / "next")
    _, then = results(learned)
    assert record["before"].keys() == {"kth", "taxibj"}
    for task, values in record["before"].items():
        assert values == pytest.approx(then[task], rel=1e-5)
    grown = {task: now[task]["mse"] / then[task]["mse"] - 1 for task in ("kth", "taxibj")}
    each = ", ".join(f"{task} {share:+.1%}" for task, share in grown.items())
    assert f"before the first step: {each}; mean {sum(grown.values()) / 2:+.1%}\n" in capsys.readouterr().out
    page = (tmp_path / "next/report.html").read_text()
    assert "What was learned before" in page
    assert main(["evaluate", str(tmp_path / "next"), "--checkpoint", "best"]) == 0
    assert results(tmp_path / "next")[0]["before"] == record["before"]
    assert "What was learned before" not in (learned / "report.html").read_text()
    assert "before" not in results(learned)[0]


def test_an_eleventh_task_alone_costs_the_others_nothing_where_the_rest_is_frozen(tmp_path, learned, capsys):
    changes = {"train.init_from": str(learned), "ranks.epochs": 0}
    changes |= {"train.only": ["enso"], "train.freeze": ["trunk", "adapters"]}
    assert train(tmp_path / "next", ["taxibj", "kth", "enso"], changes) == 0
    assert "taxibj +0.0%, kth +0.0%; mean +0.0%" in capsys.readouterr().out
    record, now = results(tmp_path / "next")
    assert record["before"] == {task: now[task] for task in ("taxibj", "kth")}


def test_other_samples_are_not_compared_and_damage_is_named(tmp_path, learned, capsys):
    changes = {"train.init_from": str(learned), "ranks.epochs": 0}
    folder = tmp_path / "next"
    assert train(folder, ["taxibj", "enso"], changes) == 0
    config, before = folder / "config.yaml", folder / "before.json"
    config.write_text(config.read_text().replace("test_samples: 3", "test_samples: 2"))
    assert main(["evaluate", str(folder)]) == 0
    assert "before" not in results(folder)[0]
    for text, said in (("{", "not JSON"), ('{"tasks": {"taxibj": {}}, "samples": {"taxibj": 3}}', "'tasks.taxibj'")):
        before.write_text(text)
        line = refusal_of(capsys, "evaluate", folder)
        assert f"{before}: damaged" in line
        assert said in line
