"""Configs that somebody got wrong, and the one line that says so."""

from pathlib import Path

import pytest

from unistd.training.settings import ConfigError, load_config


def refused(config: str | Path, overrides: list[str], *culprits: str) -> None:
    """`load_config` refuses them in one line of a length that fits a screen, which has every one of `culprits`."""
    with pytest.raises(ConfigError) as error:
        load_config(config, overrides)
    line = str(error.value)
    assert "\n" not in line
    assert len(line) < 600, len(line)
    for culprit in culprits:
        assert culprit in line, f"{culprit!r} is not in {line!r}"


def written(folder: Path, content: str | bytes) -> Path:
    """A config file of that content."""
    path = folder / "mine.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path
