"""A finished tiny run, trained once through the command line."""

from pathlib import Path

import pytest
from support.tiny_run import tiny_config

from unistd.cli import main
from unistd.training.settings import dump_config


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    file = folder.with_suffix(".yaml")
    file.write_text(dump_config(tiny_config(folder)))
    assert main(["train", "--config", str(file)]) == 0
    return folder
