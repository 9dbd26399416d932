"""What the tests of the comparisons share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny work only waits for a second thread; `--threads` changes the count of the whole process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
