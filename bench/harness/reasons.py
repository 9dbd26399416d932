"""Why a peer can win, in plain words: what the tables say beside each size at which it does."""

_TIME = {
    "three-gemm": "it calls the same library products with no argument checks and no operator dispatch in between",
    "compile": "Inductor fuses gates, diagonal and casts into one loop and runs no Python between the products",
    "compile-max-autotune": "it has tuned its products for this one shape and runs no Python between them",
    "compile-freezing": (
        "its weights are constants, packed when it compiles, for this one number of tokens; it cannot train, and it"
        " compiles again for another shape"
    ),
    "concat-k": "it is one product, and x is taken to lie in the wide buffer already: the copy there is not counted",
    "peft-lora": "with so little work the fixed cost of a call decides",
    "peft-xlora": "with so little work the fixed cost of a call decides",
    "hydralora": "with so little work the fixed cost of a call decides",
    "mixlora": "with so little work the fixed cost of a call decides",
    "unsloth": "it has no gates and no router: less work",
    "lorafusion": "it has no gates and no router: less work",
    "scattermoe": "its grouped products suit this shape better than ours",
    "simvp": "it is another model, convolutional and with far less arithmetic a sample; it does one task",
}
_RECOMPUTES = "its partitioner recomputes the gating in the backward pass instead of keeping what it needs"
_MEMORY = {
    "compile": _RECOMPUTES,
    "compile-max-autotune": _RECOMPUTES,
    "peft-lora": "it learns no ranks and so keeps nothing for their gradient",
    "peft-xlora": "it learns no ranks and so keeps nothing for their gradient",
    "hydralora": "it works on one expert at a time and learns no ranks",
    "mixlora": "it works on one expert at a time and learns no ranks",
    "three-gemm": "autograd frees what it keeps piece by piece, our one operator at its end",
}


_SAME_ARITHMETIC = "in float32 its products and ours run at the same rate, which packing the weight does not raise"


def reason(peer: str, unit: str, dtype: str) -> str:
    """The reason, for times (unit "ms") or memory ("MB")."""
    if unit == "ms" and dtype == "float32" and peer in ("three-gemm", "compile", "compile-max-autotune"):
        return _SAME_ARITHMETIC
    known = (_MEMORY if unit == "MB" else _TIME).get(peer)
    return known or "the reason is not known yet: profile it before relying on this size"
