"""The form of the results."""

import json

import pytest
import torch

from bench.harness.record import FAILED, WRONG, Entry, Group, Record, load
from bench.harness.timing import Quantiles


def example() -> Record:
    record = Record.begin("layer", torch.device("cpu"), {"device": "cpu"})
    group = Group("qkv", "bfloat16", {"M": 4, "K": 8, "N": 8})
    group.entries = [
        Entry("linear", "floor", samples=[1.0, 2.0, 4.0]),
        Entry("packed", "ours", ours=True, samples=[2.0, 4.0, 8.0], error=1e-3, allowed=2e-3),
        Entry("compile", "compiled", status=FAILED, reason="no compiler"),
    ]
    record.groups = [group]
    return record


def test_a_record_survives_the_file(tmp_path):
    record = example()
    file = record.save(tmp_path)
    assert file.name == "layer.json"
    assert load(file) == record
    assert [path.name for path in tmp_path.iterdir()] == ["layer.json"]


def test_the_file_says_where_and_on_what(tmp_path):
    tree = json.loads(example().save(tmp_path).read_text())
    assert tree["schema"] == 1
    assert tree["versions"]["torch"] == torch.__version__
    assert {"cpu", "cores", "threads", "memory_gb", "instructions", "system"} <= tree["machine"].keys()
    assert tree["commit"]
    assert tree["created"].endswith("+00:00")
    group = tree["groups"][0]
    assert group["dtype"] == "bfloat16"
    assert group["shape"] == {"M": 4, "K": 8, "N": 8}
    entry = group["entries"][1]
    assert (entry["median"], entry["p20"], entry["p80"]) == pytest.approx((4.0, 2.8, 6.4))
    assert "median" not in group["entries"][2]


def test_results_of_a_gpu_have_a_file_of_their_own(tmp_path):
    record = example()
    record.settings["device"] = "cuda:0"
    assert record.save(tmp_path).name == "layer-cuda.json"


def test_ratios_are_paired_and_only_between_measured_entries():
    group = example().groups[0]
    assert group.floor == "linear"
    assert group.ratio("packed", "linear") == Quantiles(2.0, 2.0, 2.0)
    assert group.ratio("compile", "linear") is None
    assert group.ratio("nobody", "linear") is None
    group.entry("packed").status = WRONG
    assert group.ratio("packed", "linear") is None


def damaged(change) -> dict:
    tree = {
        "schema": 1,
        "comparison": "layer",
        "settings": {},
        "groups": [{"title": "a", "dtype": "float32", "shape": {}, "entries": [{"name": "x", "title": "x"}]}],
    }
    change(tree)
    return tree


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(schema=7), "schema is 7, expected 1"),
        (lambda t: t.update(color=7), "unknown key 'color'"),
        (lambda t: t["groups"][0].pop("dtype"), r"groups\[0\]: .*dtype"),
        (lambda t: t["groups"][0]["entries"][0].update(status="good"), r"entries\[0\].status: found 'good'"),
        (
            lambda t: t["groups"][0]["entries"][0].update(status="wrong", samples=[1.0]),
            r"entries\[0\].samples: found 1, expected none",
        ),
    ],
)
def test_a_damaged_file_is_named_with_the_key(tmp_path, change, message):
    file = tmp_path / "layer.json"
    file.write_text(json.dumps(damaged(change)))
    with pytest.raises(ValueError, match=message) as error:
        load(file)
    assert str(file) in str(error.value)


def test_what_is_not_json_is_named(tmp_path):
    file = tmp_path / "layer.json"
    file.write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        load(file)
