"""Small layers whose adapters do something, and the backends of this machine's CPU."""

from fastmoe_lora import RAMoELinear, backends
from support.vit import disturbed

BACKENDS = ["auto", *(name for name, works in backends().items() if works is True and name != "triton")]
OPTIONS = {
    "token": {},
    "top-k": {"top_k": 2},
    "sample": {"router": "sample"},
    "frozen": {"init_rank": 2.0},
    "dropout": {"dropout": 0.5},
}


def small_layer(name: str = "token", backend: str = "auto") -> RAMoELinear:
    layer = RAMoELinear(
        8, 12, splits=3, num_experts=3, max_rank=4, backend=backend, **{"init_rank": 2.5, **OPTIONS[name]}
    )
    return disturbed(layer, frozen=name == "frozen")
