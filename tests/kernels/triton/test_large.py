"""Tensors of more than 2^31 elements: the last rows, where 32-bit offsets would not do.

The compiled kernels run in the emulator, of each launch only the programs that do the last tiles. Memory that nobody
touches takes none.
"""

import numpy as np
import pytest
import torch
from support.triton_backend import emulated_backend

from fastmoe_lora.backends import _flags, _plan, reference, triton

pytest.importorskip("triton")

SIZE = 2176  # of x's rows and y's: 17 * 128
BLOCKS = 7809  # of 128 rows; one more than a multiple of 16, so that the last one is in a group of its own
ROWS = 77  # of the last block
TOKENS = (BLOCKS - 1) * 128 + ROWS
DEVICE = torch.device("cpu")


@pytest.fixture
def large(monkeypatch):
    """(x, grad_y); all rows but the last block's are 0."""
    assert TOKENS * SIZE > 2**31
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    x, grad_y = (torch.from_numpy(np.zeros((TOKENS, SIZE), np.uint16)).view(torch.bfloat16) for _ in range(2))
    x[-ROWS:], grad_y[-ROWS:] = torch.randn(2, ROWS, SIZE)
    yield x, grad_y
    _flags.flags(1, DEVICE).zero_()


def only_last_row_block(plan: _plan.Plan) -> None:
    """Counters as if all producers but the last row block's were claimed."""
    _flags.flags(_plan.flag_count(plan, TOKENS), DEVICE)[0] = BLOCKS - 1


def near(got: torch.Tensor, exact: torch.Tensor) -> bool:
    return (got.double() - exact).norm() < 0.01 * exact.norm()  # bfloat16; a wrong row would be off by about 1


def test_rows_beyond_two_to_the_31_elements(large, monkeypatch):
    x, grad_y = large
    gpu = emulated_backend(monkeypatch, multiprocessors=10**6, last=2)  # a program for each task
    scale = SIZE**-0.5
    values = torch.randn(SIZE, SIZE) * scale, torch.randn(1, 2, 8, SIZE) * scale, torch.randn(1, 2, SIZE, 8)
    weight, lora_a, lora_b = (value.bfloat16() for value in values)
    diag, gates = torch.tensor([[2.5, 6.25]]), torch.from_numpy(np.zeros((TOKENS, 1, 2), np.float32))
    gates[-ROWS:] = torch.rand(ROWS, 1, 2)
    geometry = triton.geometry_of(weight, lora_a, diag, None, None, 0, 0.0, x)
    forward, grad_input, grad_weight = (_plan.choose(kind, "sm_90", geometry, TOKENS) for kind in _plan.KINDS)
    assert (forward.bm, forward.group, grad_input.bm, grad_input.group) == (128, 16, 128, 16)

    last = [x[-ROWS:], weight, None, lora_a, lora_b, diag, gates[-ROWS:]]
    exact = [value if value is None else value.double().requires_grad_() for value in last]
    exact_y = reference.linear(*exact, None, None, 0, 1.0, 0.0, None)
    (exact_dx,) = torch.autograd.grad(exact_y, exact[:1], grad_y[-ROWS:].double())

    with gpu:
        only_last_row_block(forward)
        y, low_rank, _ = triton.run_forward(
            geometry, forward, x, weight, None, lora_a, lora_b, diag, gates, None, None, 0, 1.0, 0.0, None
        )
    assert near(y[-ROWS:, -forward.bn :], exact_y.detach()[:, -forward.bn :])

    with gpu:
        only_last_row_block(grad_input)
        operands = grad_y, x, weight, lora_a, lora_b, diag, gates, None, None, low_rank, 1.0, 0.0, None
        dx = triton.run_backward(geometry, grad_input, grad_weight, *operands, [True] + [False] * 7)[0]
    assert near(dx[-ROWS:, -grad_input.bn :], exact_dx[:, -grad_input.bn :])

    # The last tile of dA and the last part of the tokens; what it contracts with, ds, is any (M, T).
    ds = torch.from_numpy(np.zeros((TOKENS, geometry.padded), np.uint16)).view(torch.bfloat16)
    ds[-ROWS:] = torch.randn(ROWS, geometry.padded)
    parts = -(-TOKENS // (4 * grad_weight.bk))
    partial = torch.from_numpy(np.zeros((parts, SIZE, geometry.padded), np.float32))
    with gpu:
        triton._grad_weight_launcher(geometry, grad_weight)(
            _plan.grad_weight_tiles(geometry, grad_weight, True, False) * parts, None, x, grad_y, None, ds, ds, partial,
            None, TOKENS, parts, 0, 1.0,
        )  # fmt: skip
    exact_part = x[-ROWS:].double().T @ ds[-ROWS:].double()
    assert near(partial[-1, -grad_weight.bn :], exact_part[-grad_weight.bn :])
