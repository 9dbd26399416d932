"""What the tests of the compiled kernels vary: the engine, and the number of threads."""

import pytest
import torch


@pytest.fixture(params=["amx", "dot", "float"])
def engine(request):
    was = torch.ops.fastmoe_lora_cpu.limit_engine(request.param)
    yield request.param
    torch.ops.fastmoe_lora_cpu.limit_engine(was)


@pytest.fixture(params=[1, 2, 5])
def threads(request):
    was = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(was)
