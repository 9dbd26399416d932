"""One thread for the small models here, and a finished tiny run, trained once through the command line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from support.tiny_run import tiny_config

from unistd.cli import main
from unistd.training.settings import dump_config


@contextmanager
def one_thread() -> Iterator[None]:
    """Threads cost small models more than they give, and on a busy machine they wait for one another without end."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    file = folder.with_suffix(".yaml")
    file.write_text(dump_config(tiny_config(folder)))
    with one_thread():
        assert main(["train", "--config", str(file)]) == 0
    return folder
