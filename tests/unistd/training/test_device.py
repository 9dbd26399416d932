"""A run whose device this machine lacks: measured and used on the CPU, said in one line; not trained."""

import numpy as np
import pytest
import torch
from support.refusal import assert_refused, run_command
from support.run_folder import words

from unistd.cli import main

pytestmark = pytest.mark.skipif(torch.accelerator.is_available(), reason="needs a machine without an accelerator")


@pytest.fixture(params=["cuda", "gpu", "mps"])
def elsewhere(run, request):
    """A run that was trained on another machine's accelerator."""
    run.config.write_text(run.config.read_text().replace("accelerator: cpu", f"accelerator: {request.param}"))
    return run


def lines(capsys, *arguments):
    assert main([str(word) for word in arguments]) == 0
    out, errors = capsys.readouterr()
    assert errors == ""
    return [line for line in out.splitlines() if "the CPU is used instead" in line]


def test_measured_and_used_on_the_cpu(elsewhere, tmp_path, capsys):
    before = elsewhere.metrics.read_bytes()
    assert len(lines(capsys, "evaluate", elsewhere.folder)) == 1
    assert elsewhere.metrics.read_bytes() == before
    assert len(lines(capsys, *words("predict", elsewhere, tmp_path))) == 1
    assert np.isfinite(np.load(tmp_path / "out.npy")).all()
    assert lines(capsys, "report", elsewhere.folder) == [], "always made on the CPU"


def test_not_trained(elsewhere):
    asked = ["train", "--config", elsewhere.config, f"run={elsewhere.folder}", "--resume"]
    assert_refused(run_command(*asked), "train.accelerator", "train.accelerator=auto")
