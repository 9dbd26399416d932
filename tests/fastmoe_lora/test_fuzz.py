"""Random calls, right and wrong, of all that computes: the answer, or a refusal that names an argument.

`make fuzz` runs this for minutes with an instrumented build, so that a read out of bounds shows.
"""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from support.fuzz import Arguments, assert_close, damaged, fuzzed, laid_out, outcome
from support.operator import DIFFERENTIABLE
from torch import Tensor

from fastmoe_lora import backends, frozen_linear, ramoe_linear, self_attention
from fastmoe_lora.backends import packed
from fastmoe_lora.dropout import dropout

CALL = (
    *("x", "weight", "bias", "lora_A", "lora_B", "diag", "gates", "router_weight", "columns", "top_k", "scaling"),
    *("dropout", "seed"),
)
BACKWARD = (
    *("grad_y", "x", "weight", "lora_A", "lora_B", "diag", "gates", "router_weight", "columns", "low_rank"),
    *("scaling", "dropout", "seed"),
)
ENGINES = [name for name in ("cpu", "packed") if backends()[name] is True]
sizes = st.sampled_from([1, 2, 3, 7, 16, 19, 33, 64, 70])
few = st.integers(1, 4)


def numbers(generator: torch.Generator, *shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).bfloat16().to(dtype)


@st.composite
def calls(draw, operator: bool = False) -> dict:
    """Arguments of `ramoe_linear`; `operator`: in the form that the registered operators take."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from([torch.bfloat16, torch.float16, torch.float32]))
    adapter_dtype = draw(st.sampled_from([dtype, torch.float32]))
    precision = torch.float32
    s, e, r, k = draw(st.integers(1, 3)), draw(few), draw(st.sampled_from([1, 2, 3, 8, 17])), draw(sizes)
    n = s * draw(sizes)
    leading = draw(st.lists(st.sampled_from([0, 1, 1, 2, 3, 5, 50]), min_size=1, max_size=1 if operator else 3))
    ready = draw(st.booleans())
    arguments = Arguments(
        {
            "x": numbers(generator, *leading, k, dtype=dtype),
            "weight": numbers(generator, n, k, dtype=dtype, scale=k**-0.5),
            "bias": numbers(generator, n, dtype=dtype) if draw(st.booleans()) else None,
            "lora_A": numbers(generator, s, e, r, k, dtype=adapter_dtype, scale=k**-0.5),
            "lora_B": numbers(generator, s, e, n // s, r, dtype=adapter_dtype),
            "diag": torch.rand(s, e, r, generator=generator) if ready else torch.rand(s, e, generator=generator) * r,
            "gates": None,
            "router_weight": None,
            "columns": None,
            "top_k": draw(st.sampled_from([None, 1, e])),
            "scaling": draw(st.sampled_from([1.0, 0.5, -2.0, 0.0])),
            "dropout": draw(st.sampled_from([0.0, 0.0, 0.3])),
            "seed": torch.tensor(draw(st.integers(0, 2**62))),
        }
    )
    if draw(st.booleans()):
        arguments["router_weight"] = numbers(generator, s * e, k, dtype=adapter_dtype, scale=k**-0.5)
    else:
        shape = tuple(leading) if operator else tuple(draw(st.sampled_from([size, 1])) for size in leading)
        arguments["gates"] = torch.rand(*shape, s, e, generator=generator, dtype=precision)
    if draw(st.booleans()):
        width = draw(st.integers(1, e * r + 2))
        table = [torch.randperm(e * r, generator=generator)[:width] for _ in range(s)]
        off = [torch.rand(len(row), generator=generator) < 0.3 for row in table]
        rows = [torch.where(hidden, -1, row) for hidden, row in zip(off, table, strict=True)]
        arguments["columns"] = F.pad(torch.stack(rows), (0, width - len(rows[0])), value=-1).int()
    if operator:
        arguments["top_k"] = arguments["top_k"] or 0
    return arguments


@st.composite
def damaged_calls(draw, of: st.SearchStrategy[dict], most: int = 2, layouts: bool = False) -> dict:
    """Arguments of which up to `most` were replaced by something else; `layouts`: in any strides."""
    arguments = draw(of)
    for _ in range(draw(st.integers(0, most))):
        name = draw(st.sampled_from(sorted(arguments)))
        arguments[name] = draw(damaged(arguments[name]))
    for name, value in arguments.items():
        if layouts and isinstance(value, Tensor):
            arguments[name] = draw(laid_out(value))
    return arguments


def leaves(arguments: dict, names: Sequence[str]) -> dict:
    """Copies of which these, where they have gradients, are leaves that require them."""
    made = dict(arguments)
    for name in names:
        value = made.get(name)
        if isinstance(value, Tensor) and value.is_floating_point():
            made[name] = value.detach().requires_grad_()
    return made


def run(function, arguments: dict, trained: Sequence[str], *, positive: bool = False) -> list[Tensor]:
    """The output and the gradients of `trained`; `positive`: for a gradient of the output of absolute values."""
    own = leaves(arguments, trained)
    y = function(own)
    wanted = [own[name] for name in trained if isinstance(own.get(name), Tensor) and own[name].requires_grad]
    if not (wanted and y.requires_grad):
        return [y.detach()]
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.device, y.dtype)
    return [y.detach(), *torch.autograd.grad(y, wanted, grad.abs() if positive else grad)]


def doubled(arguments: dict) -> dict:
    """In float64, and with the numbers that an operator's schema makes of True and False."""
    kinds = {"scaling": float, "top_k": int}
    made = {n: kinds[n](value) if n in kinds and value is not None else value for n, value in arguments.items()}
    return {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in made.items()
    }


def magnitudes(arguments: dict) -> dict:
    """In float64, and of their absolute values."""
    made = doubled(arguments)
    for name, value in made.items():
        if isinstance(value, float) or (isinstance(value, Tensor) and value.is_floating_point()):
            made[name] = abs(value)
    return made


def near_tie(arguments: dict) -> bool:
    """Whether a token's last chosen expert and the next are as close as one rounding of x: either choice is right.

    The router reads x after dropout, whose scaling is rounded to x's type.
    """
    operands = doubled(arguments)
    router, experts, top_k = operands["router_weight"], operands["lora_A"].shape[1], operands["top_k"]
    if router is None or not 0 < (top_k or 0) < experts or router.is_meta:
        return False
    x = dropout(operands["x"].flatten(0, -2), operands["dropout"], operands["seed"])
    size = (x.abs() @ router.abs().T).unflatten(-1, (-1, experts)).amax(-1)
    best = (x @ router.T).unflatten(-1, (-1, experts)).topk(top_k + 1, -1).values
    return bool((best[..., -2] - best[..., -1] <= torch.finfo(arguments["x"].dtype).eps * size).any())


@fuzzed(cases=500)
@given(damaged_calls(calls(), layouts=True), st.sets(st.sampled_from(DIFFERENTIABLE)).map(sorted))
def test_ramoe_linear(arguments: dict, trained: list[str]) -> None:

    def on(backend: str, given: dict = arguments, positive: bool = False):
        return lambda: run(lambda own: ramoe_linear(**own, backend=backend), given, trained, positive=positive)

    plain = outcome(on("reference"), CALL)
    exact = plain if isinstance(plain, str) else on("reference", doubled(arguments))()
    for backend in ENGINES:
        got = outcome(on(backend), CALL)
        assert isinstance(got, str) == isinstance(plain, str), f"{backend}: {got}, reference: {plain}"
        if not isinstance(plain, str) and not near_tie(arguments):
            assert_close(got, plain, exact, on("reference", magnitudes(arguments), positive=True)())


@fuzzed(cases=300)
@given(damaged_calls(calls(operator=True), most=1), st.sampled_from(ENGINES))
def test_forward_operators(arguments: dict, backend: str) -> None:
    plain = outcome(lambda: torch.ops.fastmoe_lora.ramoe_forward(*arguments.values(), "packed"), CALL)
    for got in (
        outcome(lambda: torch.ops.fastmoe_lora.ramoe_forward(*arguments.values(), backend), CALL),
        outcome(lambda: torch.ops.fastmoe_lora_cpu.forward(*arguments.values()), CALL) if "cpu" in ENGINES else plain,
    ):
        if not isinstance(got, str) and not isinstance(plain, str) and not near_tie(arguments):
            exact = packed.forward(*doubled(arguments).values())
            assert_close(list(got), list(plain), list(exact), list(packed.forward(*magnitudes(arguments).values())))


@fuzzed(cases=300)
@given(calls(operator=True), st.sampled_from(ENGINES), st.data())
def test_backward_operators(arguments: dict, backend: str, data) -> None:
    y, low_rank, gates = packed.forward(*arguments.values())
    arguments["gates"] = arguments["gates"] if arguments["router_weight"] is None else gates
    operands = {"grad_y": torch.randn(y.shape).to(y.dtype), **arguments, "low_rank": low_rank}
    operands = data.draw(damaged_calls(st.just(Arguments({name: operands[name] for name in BACKWARD})), most=1))
    needs = data.draw(st.lists(st.booleans(), min_size=8, max_size=8))
    needs[1] = needs[2] = False
    needs[6], needs[7] = needs[6] and gates.numel() == 0, needs[7] and gates.numel() > 0

    def gradients(backend: str):
        return lambda: torch.ops.fastmoe_lora.ramoe_backward(*operands.values(), needs, backend)

    plain, got = outcome(gradients("packed"), BACKWARD), outcome(gradients(backend), BACKWARD)
    if "cpu" in ENGINES:
        outcome(lambda: torch.ops.fastmoe_lora_cpu.backward(*operands.values(), needs[0], *needs[3:]), (*BACKWARD, "x"))
    if not isinstance(got, str) and not isinstance(plain, str):
        exact, sizes = (
            [
                gradient if need else torch.empty(0)
                for gradient, need in zip(packed.backward(*given.values(), needs), needs, strict=True)
            ]
            for given in (doubled(operands), magnitudes(operands))
        )
        assert_close(got, plain, exact, sizes)


@st.composite
def linear_calls(draw) -> dict:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from([torch.bfloat16, torch.float16, torch.float32]))
    leading = draw(st.lists(st.sampled_from([0, 1, 2, 5, 50]), max_size=3))
    n, k = draw(sizes | st.just(0)), draw(sizes | st.just(0))
    return Arguments(
        {
            "x": numbers(generator, *leading, k, dtype=dtype),
            "weight": numbers(generator, n, k, dtype=dtype),
            "bias": numbers(generator, n, dtype=dtype) if draw(st.booleans()) else None,
        }
    )


@fuzzed(cases=400)
@given(damaged_calls(linear_calls(), layouts=True))
def test_frozen_linear(arguments: dict) -> None:
    got = outcome(lambda: run(lambda own: frozen_linear(**own), arguments, ("x",)), tuple(arguments))
    if "cpu" in ENGINES and all(isinstance(value, Tensor | None) for value in arguments.values()):
        outcome(lambda: torch.ops.fastmoe_lora_cpu.linear(*arguments.values()), tuple(arguments))
        if arguments["x"] is not None and arguments["weight"] is not None:
            operands = arguments["x"], arguments["weight"]
            outcome(lambda: torch.ops.fastmoe_lora_cpu.linear_backward(*operands), ("grad_y", "weight"))
    if not isinstance(got, str) and all(t is None or t.is_floating_point() for t in arguments.values()):
        plain, exact, sizes = (
            run(lambda own: F.linear(own["x"], own["weight"], own["bias"]), given, ("x",), positive=positive)
            for given, positive in ((arguments, False), (doubled(arguments), False), (magnitudes(arguments), True))
        )
        assert_close(got, plain, exact, sizes)


@st.composite
def attention_calls(draw) -> dict:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    batch, tokens, heads, depth = (draw(st.sampled_from(values)) for values in ([1, 3], [1, 5, 40], [1, 2], [1, 8, 33]))
    dtype = draw(st.sampled_from([torch.bfloat16, torch.float32]))
    return Arguments({
        "qkv": numbers(generator, batch, tokens, 3 * heads * depth, dtype=dtype),
        "num_heads": heads,
        "mask": torch.rand(1, tokens, tokens, generator=generator) < 0.9 if draw(st.booleans()) else None,
    })  # fmt: skip


@fuzzed(cases=200)
@given(damaged_calls(attention_calls(), most=1))
def test_self_attention(arguments: dict) -> None:
    def plainly(own: dict) -> Tensor:
        qkv, heads = own["qkv"], own["num_heads"]
        q, k, v = qkv.unflatten(2, (3, heads, qkv.shape[2] // (3 * heads))).permute(2, 0, 3, 1, 4).unbind(0)
        return F.scaled_dot_product_attention(q, k, v, own["mask"]).transpose(1, 2).flatten(2)

    got = outcome(lambda: run(lambda own: self_attention(**own), arguments, ("qkv",)), tuple(arguments))
    if not isinstance(got, str):
        plain, exact = (run(plainly, given, ("qkv",)) for given in (arguments, doubled(arguments)))
        assert_close(got, plain, exact, run(plainly, magnitudes(arguments), ("qkv",), positive=True))


def test_what_the_type_cannot_hold_is_to_be_no_number():
    infinite, number = torch.tensor([torch.inf]).half(), torch.ones(1).half()
    exact, plain = torch.tensor([1e20]).double(), torch.tensor([torch.nan]).half()
    assert_close([infinite], [plain], [exact], [exact])
    with pytest.raises(AssertionError):
        assert_close([number], [plain], [exact], [exact])
