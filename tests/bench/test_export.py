"""The recorded comparison of exported models with the models."""

import json
from pathlib import Path

from bench.export import MODELS, Outcome, table
from unistd.export import FORMATS, TOLERANCE

RECORDED = Path(__file__).parents[2] / "bench" / "results" / "export.json"


def test_recorded_files_are_of_all_models_and_right():
    outcomes = [Outcome(**one) for one in json.loads(RECORDED.read_text())["files"]]
    cases = {(model, ranks, kind) for model in MODELS for ranks in ("fractional", "frozen") for kind in FORMATS}
    assert {(o.model, o.ranks, o.format) for o in outcomes} == cases
    for outcome in outcomes:
        assert outcome.difference <= TOLERANCE * outcome.largest
        assert outcome.weights_mb <= outcome.file_mb


def test_table_has_a_line_per_file():
    lines = table([Outcome("ViT-B/16", "frozen", "onnx", 359.81, 361.25, 3.3e-06, 2.95, 20.0)]).splitlines()
    assert lines[1].split() == ["ViT-B/16", "frozen", "onnx", "359.81", "361.25", "MB", "3.3e-06", "2.95"]
