"""Runs the interpreted_*.py files beside this one, each in a process of its own, both at once.

TRITON_INTERPRET has to be set before triton is first imported, which in this process other tests may have done.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = ("interpreted_operator.py", "interpreted_plans.py", "interpreted_concurrency.py")


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """File name -> (its running pytest, where that writes)."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "FASTMOE_LORA_BACKEND": "", "OMP_NUM_THREADS": "1"}
    folder = tmp_path_factory.mktemp("interpreter")
    running = {}
    for name in FILES:
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", str(HERE / name)]
        output = folder / f"{name}.txt"
        with output.open("w") as file:
            process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, cwd=HERE.parents[2])
        running[name] = process, output
    yield running
    for process, _ in running.values():
        process.kill()
        process.wait()


@pytest.mark.parametrize("name", FILES)
def test_in_the_interpreter(name, processes):
    process, output = processes[name]
    assert process.wait() == 0, output.read_text()[-6000:]
