"""Every test: fixed seed, and uninitialised memory filled with NaN so that an unwritten output shows."""

import signal
import sys

import pytest
import torch

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, by what tests start as well


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_compilations():
    """What one test compiled does not count towards the next one's limit of compilations of a function."""
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


@pytest.fixture(autouse=True, scope="session")
def _poison_uninitialised_memory():
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
