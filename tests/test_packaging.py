"""What is installed is whole: the wheel works away from the sources, and the version stands in one place."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import fastmoe_lora
from unistd.cli import main

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("fastmoe_lora", "unistd", "kernels")
NOT_SOURCES = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info")
README_LAYER = re.search(r"## The layer\n+```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL).group(1)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with an sdist and a wheel, built in a copy of the sources where torch is not found: none is compiled."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    source.mkdir()
    for name in PARTS:
        shutil.copytree(ROOT / name, source / name, ignore=NOT_SOURCES)
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, source)
    (folder / "torch.py").write_text("raise ImportError('no torch')")
    _run(["setup.py", "-q", "sdist", "-d", folder, "bdist_wheel", "-d", folder], source, folder)
    return folder


def _run(arguments, folder, path):
    command = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert command.returncode == 0, command.stdout + command.stderr
    return command.stdout


def _sources(*parts):
    files = (path for part in parts for path in (ROOT / part).rglob("*") if path.is_file())
    ignored = ("__pycache__", ".so")
    return {path.relative_to(ROOT).as_posix() for path in files if not any(word in str(path) for word in ignored)}


def test_the_sdist_has_every_source(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    described = {
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "CITATION.cff",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "pyproject.toml",
    }
    assert (_sources(*PARTS) | described) - names == set()


def test_the_wheel_has_what_runs(built):
    with zipfile.ZipFile(next(built.glob("*.whl"))) as archive:
        names = set(archive.namelist())
    needed = {name for name in _sources("fastmoe_lora", "unistd") if not name.endswith("README.md")}
    needed -= {"fastmoe_lora/WORKS_WITH.md", "unistd/PLAN.md"}  # pages of the repository
    assert needed - names == set()
    assert {f"fastmoe_lora/{name}" for name in _sources("kernels/triton")} - names == set()
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_wheel_runs_the_readme_and_the_command(built, tmp_path):
    with zipfile.ZipFile(next(built.glob("*.whl"))) as archive:
        archive.extractall(tmp_path / "site")
    (tmp_path / "layer.py").write_text(README_LAYER + "\nimport fastmoe_lora\nprint(fastmoe_lora.__file__)\n")
    assert str(tmp_path / "site") in _run(["layer.py"], tmp_path, tmp_path / "site")
    command = "import sys, unistd; from unistd.cli import main; print(unistd.__file__); sys.exit(main(['tasks']))"
    output = _run(["-c", command], tmp_path, tmp_path / "site")
    assert str(tmp_path / "site") in output
    assert "moving_mnist" in output


def test_the_version_is_one(built, capsys):
    version = fastmoe_lora.__version__
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"unistd {version}\n"
    assert next(built.glob("*.whl")).name.startswith(f"fastmoe_lora-{version}-")
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_hook_runs_the_pinned_linter():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    pinned = re.search(r"^ruff==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE).group(1)
    assert [hook["rev"] for hook in hooks] == [f"v{pinned}"]


def test_the_public_ci_runs_targets_that_there_are():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    commands = [step["run"] for step in workflow["jobs"]["test"]["steps"] if "run" in step]
    targets = [command.split()[1] for command in commands if command.startswith("make ")]
    assert targets == ["lint", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
