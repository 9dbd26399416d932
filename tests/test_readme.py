"""The README's Python is run as it stands; the files that it shows and the keys that it sets are there."""

import re
from pathlib import Path

import pytest

from unistd.model.torchvision_ops import define_missing_ops
from unistd.training.settings import load_config

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize("example", EXAMPLES, ids=["layer", "lora", "model"])
def test_example_runs(example, monkeypatch, tmp_path):
    define_missing_ops()  # before transformers, which PEFT needs, imports torchvision
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})


@pytest.mark.parametrize("picture", re.findall(r"!\[.*?\]\((.*?)\)", TEXT))
def test_picture_exists(picture):
    assert (ROOT / picture).stat().st_size > 0


@pytest.mark.parametrize("command", re.findall(r"^unistd train --config (.*?) *#", TEXT, re.MULTILINE))
def test_command_sets_keys_that_exist(command):
    config, *rest = command.split()
    load_config(config, [word for word in rest if "=" in word])
