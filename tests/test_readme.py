"""The README's Python is run as it stands, and the files that it shows are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=["layer", "model"])
def test_example_runs(example):
    exec(compile(example, "README.md", "exec"), {})


@pytest.mark.parametrize("picture", re.findall(r"!\[.*?\]\((.*?)\)", TEXT))
def test_picture_exists(picture):
    assert (ROOT / picture).stat().st_size > 0
