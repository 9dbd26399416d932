"""Indices of slow files are kept in a folder of the test."""

import pytest


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("UNISTD_CACHE", str(tmp_path_factory.mktemp("cache")))
