import shutil

import pytest

from unistd.training.run import Run


@pytest.fixture
def run(finished_run, tmp_path):
    """A finished run of one's own."""
    return Run(shutil.copytree(finished_run, tmp_path / "copy"))
