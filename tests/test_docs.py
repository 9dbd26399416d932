"""What the pages say is run: their Python, as it stands; their commands, parsed; variables and pictures, looked up."""

import re
import shlex
from pathlib import Path

import pytest

from unistd.commands import build_parser
from unistd.model.torchvision_ops import define_missing_ops
from unistd.training.settings import load_config

ROOT = Path(__file__).resolve().parents[1]
PAGES = {page.name: page.read_text() for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
COMMANDS = [
    (name, line)
    for name, text in PAGES.items()
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    for line in re.findall(r"^(?:torchrun .*?-m )?unistd (.*)$", block, re.MULTILINE)
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", [name for name, text in PAGES.items() if "```python" in text])
def test_python_of_a_page_runs(name, monkeypatch, tmp_path):
    """Its blocks one after another, as a reader would type them."""
    define_missing_ops()  # before transformers, which PEFT needs, imports torchvision
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for block in re.findall(r"```python\n(.*?)```", PAGES[name], re.DOTALL):
        exec(compile(block, name, "exec"), namespace)


@pytest.mark.parametrize(("name", "line"), COMMANDS, ids=[line[:60] for _, line in COMMANDS])
def test_command_is_understood(name, line):
    words = shlex.split(line, comments=True)
    given = build_parser().parse_args(words)
    if given.command == "train" and not str(given.config).endswith(".yaml"):
        load_config(given.config, [word for word in words if re.match(r"[a-z_.0-9]+=", word) and ".yaml" not in word])


def test_every_variable_that_is_read_is_explained():
    code = [path.read_text() for folder in ("fastmoe_lora", "unistd", "kernels") for path in (ROOT / folder).rglob("*")
            if path.suffix in (".py", ".cpp", ".h")]  # fmt: skip
    read = set(re.findall(r'"((?:FASTMOE_LORA|UNISTD)_[A-Z_]+)"', "".join(code)))
    read |= set(re.findall(r'(?:environ|getenv)(?:\.get|\.setdefault|\.pop)?[\[(]"([A-Z_]+)"', "".join(code)))
    explained = set(re.findall(r"`([A-Z][A-Z_]+)`", PAGES["environment.md"]))
    assert read <= explained, read - explained


@pytest.mark.parametrize("picture", re.findall(r"!\[.*?\]\((.*?)\)", PAGES["README.md"]))
def test_picture_exists(picture):
    assert (ROOT / picture).stat().st_size > 0
