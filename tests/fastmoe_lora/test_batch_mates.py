"""A sample's output and its gradient never depend on the other samples of its batch.

Among as many others of any content they are the same bit for bit. In a batch of another size the products have other
shapes, and may be summed in another order: then they agree within BOUND, relative to the largest number.
"""

import pytest
import torch
from torch import Tensor, nn

from fastmoe_lora import RAMoELinear, backends, freeze_ranks

BACKENDS = [name for name, works in backends().items() if works is True and name != "triton"]  # on the CPU
BOUND = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float64: 1e-13}
CASES = [(name, dtype) for name in BACKENDS for dtype in BOUND if (name, dtype) != ("cpu", torch.float64)]  # not there
SAMPLES, TOKENS, WIDTH = 5, 7, 40
ROUTERS = {"token": ("token", None), "token top 2": ("token", 2), "sample": ("sample", None), "gates": (None, None)}


def make(router: str, backend: str, stage: str, dtype: torch.dtype) -> RAMoELinear:
    torch.manual_seed(3)
    kind, top_k = ROUTERS[router]
    layer = RAMoELinear(
        WIDTH, 48, num_experts=4, splits=3, router=kind, top_k=top_k, backend=backend, dtype=dtype, init_rank=2.5
    )
    nn.init.normal_(layer.lora_B)
    if layer.router is not None:
        nn.init.normal_(layer.router.weight)
    if stage == "frozen":
        freeze_ranks(layer)
    return layer


def mates(x: Tensor, kind: str) -> Tensor:
    """``x`` with all samples but the third replaced."""
    others = {
        "random": torch.randn_like(x),
        "zero": torch.zeros_like(x),
        "huge": torch.full_like(x, 1e30),
        "infinite": torch.full_like(x, float("inf")),
        "nan": torch.full_like(x, float("nan")),
    }[kind]
    others[2] = x[2]
    return others


def run(layer: RAMoELinear, x: Tensor, gates: Tensor | None) -> tuple[Tensor, Tensor]:
    """Output and gradient of the third sample of a batch, or of the only one."""
    x = x.detach().requires_grad_()
    index = 2 if len(x) > 1 else 0
    y = layer(x, gates)[index]
    return y.detach(), torch.autograd.grad(y.square().sum(), x)[0][index]


def some_gates(layer: RAMoELinear, batch: int) -> Tensor | None:
    if layer.router_kind is not None:
        return None
    gates = torch.rand(1, TOKENS, layer.splits, layer.num_experts, generator=torch.Generator().manual_seed(2))
    return gates.expand(batch, -1, -1, -1).contiguous()


@pytest.mark.parametrize("stage", ["learning", "frozen"])
@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize(("backend", "dtype"), CASES, ids=lambda value: str(value).removeprefix("torch."))
def test_the_other_samples_of_a_batch_change_nothing(backend, router, stage, dtype):
    layer = make(router, backend, stage, dtype)
    x = torch.randn(SAMPLES, TOKENS, WIDTH, dtype=dtype)
    gates = some_gates(layer, SAMPLES)
    output, gradient = run(layer, x, gates)
    for kind in ("random", "zero", "huge", "infinite", "nan"):
        other_output, other_gradient = run(layer, mates(x, kind), gates)
        assert torch.equal(other_output, output), kind
        assert torch.equal(other_gradient, gradient), kind
    alone = run(layer, x[2:3], some_gates(layer, 1))
    for value, expected in zip(alone, (output, gradient), strict=True):
        bound = BOUND[dtype] * expected.abs().max().item()
        torch.testing.assert_close(value, expected, rtol=0, atol=bound)
