"""Runs the interpreted_*.py files beside this one, each in a process of its own.

TRITON_INTERPRET has to be set before triton is first imported, which in this process other tests may have done.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize("name", ["interpreted_operator.py", "interpreted_plans.py"])
def test_in_the_interpreter(name):
    environment = os.environ | {"TRITON_INTERPRET": "1", "FASTMOE_LORA_BACKEND": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", str(HERE / name)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=HERE.parents[2])
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
