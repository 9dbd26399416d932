"""Wrong arguments of the layer's API: each is refused in one line that names it, and nothing is changed.

The operators' own arguments (tensors of a call) have tests of their own.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import fastmoe_lora
from fastmoe_lora import (
    RAMoEConv1D,
    RAMoECrossAttention,
    RAMoELinear,
    RAMoESelfAttention,
    RankOptimizer,
    adapt,
    adapters_from_lora,
    check_adapters,
    disable_adapters,
    fixed_gates,
    freeze_ranks,
    load_adapters,
    merge,
    project_ranks_,
    ramoe_layers,
    rank_budget_loss,
    rank_diagonal,
    rank_report,
    rank_window,
    ranks_frozen,
    save_adapters,
    save_lora,
    set_rank_window,
    trainable_parameters,
    unadapt,
    unmerge,
)

NAN, INF = float("nan"), float("inf")
NO_WHOLE = [2.5, 2.0, NAN, INF, "8", b"8", True, None, [3], {}, 1j, torch.tensor(2), np.float32(2), np.True_]
NO_SIZE = [*NO_WHOLE, 0, -1, 2**31, 10**30, 10**5000]
NO_NUMBER = [NAN, INF, -INF, "1", True, None, [1.0], 1j, torch.tensor(1.0), 10**400, -(10**5000), np.float64("nan")]
NO_BOOL = [1, 0, 0.0, "True", None, [], torch.tensor(True)]
NO_NAME = ["Token", "", 3, True, b"token", ["token"], torch.ones(2, 1), "tok\nen"]
NO_MODEL = [None, 3, "model", nn.Linear, {}, [nn.Linear(2, 2)], torch.ones(2)]
NO_PATH = [None, 3, 2.5, b"folder", ["folder"], "", "fol\0der"]


class Case(NamedTuple):
    """After `prepare(model)`, `call(model)` is refused with a line that has `culprit` in it."""

    name: str
    call: Callable[[nn.Sequential], Any]
    culprit: str
    prepare: Callable[[nn.Sequential], Any] = id


def build() -> nn.Sequential:
    """Two RA-MoE layers with 6 * 8 ranks at most, a plain layer and an attention module."""
    return nn.Sequential(
        RAMoELinear.from_linear(nn.Linear(8, 12), num_experts=3, splits=1, init_rank=2.5),
        RAMoELinear(12, 8, num_experts=3, init_rank=2.5),
        nn.Linear(8, 8),
        nn.MultiheadAttention(8, 2),
    )


def snapshot(model: nn.Module) -> dict[str, Any]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {
        "modules": [(name, id(module), module.training) for name, module in model.named_modules()],
        "tensors": {name: (id(t), t.requires_grad, t.detach().clone().numpy().tobytes()) for name, t in tensors},
        "windows": [layer.rank_window for _, layer in ramoe_layers(model)],
    }


def text(value: Any) -> str:
    shown = "a huge number" if isinstance(value, int) and abs(value) > 2**64 else repr(value)
    return re.sub(r"\s+", " ", shown).replace("\0", "\\0")[:40]


def each(name: str, call: Callable[[nn.Sequential, Any], Any], argument: str, values: list[Any]) -> Iterator[Case]:
    """A case for each of the values of one argument."""
    for value in values:
        yield Case(f"{name}-{argument}-{text(value)}", partial(call, value=value), f"{argument}: ")


def constructor() -> Iterator[Case]:
    def layer(model, value, name):
        return RAMoELinear(**{"in_features": 8, "out_features": 12, name: value})

    wrong = dict.fromkeys(("num_experts", "max_rank", "splits"), NO_SIZE)
    wrong |= {name: [value for value in NO_SIZE if value != 0] for name in ("in_features", "out_features")}
    wrong |= dict.fromkeys(("init_rank", "scaling", "dropout"), NO_NUMBER)
    wrong["init_rank"] = [*NO_NUMBER, -0.5, 8.5, 99]
    wrong["scaling"] = [*NO_NUMBER, 1e39]
    wrong["dropout"] = [*NO_NUMBER, 1.0, -0.1, 2]
    wrong["splits"] = [*NO_SIZE, 5, 24]
    wrong["top_k"] = [value for value in NO_SIZE if value is not None] + [7, torch.ones(2, 1).long()]
    wrong["bias"] = NO_BOOL
    wrong["router"] = NO_NAME
    wrong["interpolation"] = wrong["backend"] = [*NO_NAME, None]
    wrong["device"] = ["nowhere", "cuda:99", 2.5, ["cpu"], True, "cpu:x"]
    wrong["dtype"] = [torch.int8, torch.bool, torch.complex64, "float32", float, 32, torch.float8_e4m3fn, np.float32]
    for name, values in wrong.items():
        yield from each("RAMoELinear", partial(layer, name=name), name, values)
    huge = partial(RAMoELinear, 2**31 - 1, 2**31 - 1)
    yield Case("RAMoELinear-huge weight", lambda model: huge(), "in_features")
    huge_ranks = partial(RAMoELinear, 8, 12, max_rank=2**20, num_experts=2**20)
    yield Case("RAMoELinear-huge ranks", lambda model: huge_ranks(), "max_rank")


def bad_linears() -> dict[str, Callable[[], Any]]:
    def with_weight(weight):
        linear = nn.Linear(8, 12)
        linear.weight = nn.Parameter(weight, requires_grad=False)
        return linear

    def with_bias(bias):
        linear = nn.Linear(8, 12)
        linear.bias = nn.Parameter(bias, requires_grad=False)
        return linear

    return {
        "conv": lambda: nn.Conv2d(8, 12, 1),
        "class": lambda: nn.Linear,
        "none": lambda: None,
        "tensor": lambda: torch.ones(12, 8),
        "bilinear": lambda: nn.Bilinear(2, 3, 4),
        "adapted": lambda: RAMoELinear(8, 12),
        "lazy": lambda: nn.LazyLinear(12),
        "int8": lambda: with_weight(torch.ones(12, 8, dtype=torch.int8)),
        "complex": lambda: with_weight(torch.ones(12, 8, dtype=torch.complex64)),
        "transposed": lambda: with_weight(torch.ones(8, 12)),
        "3-d": lambda: with_weight(torch.ones(1, 12, 8)),
        "bias of 11": lambda: with_bias(torch.ones(11)),
        "bias of int32": lambda: with_bias(torch.ones(12, dtype=torch.int32)),
        "weight_norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 12)),
        "pruned": lambda: prune.l1_unstructured(nn.Linear(8, 12), "weight", 0.5),
    }


def bad_attentions() -> dict[str, Callable[[], Any]]:
    return {
        "linear": lambda: nn.Linear(8, 8),
        "none": lambda: None,
        "class": lambda: nn.MultiheadAttention,
        "kdim": lambda: nn.MultiheadAttention(8, 2, kdim=4),
        "add_bias_kv": lambda: nn.MultiheadAttention(8, 2, add_bias_kv=True),
        "add_zero_attn": lambda: nn.MultiheadAttention(8, 2, add_zero_attn=True),
    }


OPTIONS = [
    ("num_expert", 3, "did you mean 'num_experts'"),
    ("in_features", 8, "in_features"),
    ("bias", False, "bias"),
    ("rank", 8, "'rank'"),
    ("splits", 5, "splits: got 5"),
    ("top_k", 1.5, "top_k: got 1.5"),
    ("top_k", torch.ones(2, 1).long(), "top_k: got a tensor (2, 1) of torch.int64"),
    ("max_rank", "8", "max_rank: got '8'"),
    ("dtype", torch.int8, "dtype: got torch.int8"),
    ("scaling", NAN, "scaling: got nan"),
]


def from_module() -> Iterator[Case]:
    for name, make in bad_linears().items():
        yield Case(f"from_linear-{name}", lambda model, make=make: RAMoELinear.from_linear(make()), "linear: ")
        yield Case(f"RAMoEConv1D-{name}", lambda model, make=make: RAMoEConv1D.from_linear(make()), "linear: ")
    for name, make in bad_attentions().items():
        yield Case(
            f"from_attention-{name}", lambda model, make=make: RAMoESelfAttention.from_attention(make()), "attention: "
        )
    for option, value, culprit in OPTIONS:
        options = {option: value}
        yield Case(f"from_linear-{option}", lambda model, o=options: RAMoELinear.from_linear(model[2], **o), culprit)
        yield Case(
            f"from_attention-{option}",
            lambda model, o=options: RAMoESelfAttention.from_attention(model[3], **o),
            culprit,
        )


def attention() -> Iterator[Case]:
    def module(model, value, name):
        right = {"qkv": RAMoELinear(8, 24, splits=3), "proj": RAMoELinear(8, 8), "num_heads": 2, "batch_first": True}
        return RAMoESelfAttention(**{**right, name: value})

    layers = [None, nn.Linear(8, 24), RAMoELinear, RAMoELinear(8, 16), RAMoELinear(16, 24)]
    yield from each("RAMoESelfAttention", partial(module, name="qkv"), "qkv", layers)
    yield from each(
        "RAMoESelfAttention", partial(module, name="proj"), "proj", [None, nn.Linear(8, 8), RAMoELinear(8, 9)]
    )
    yield from each("RAMoESelfAttention", partial(module, name="num_heads"), "num_heads", [*NO_SIZE, 3, 16])
    yield from each("RAMoESelfAttention", partial(module, name="batch_first"), "batch_first", NO_BOOL)

    yield from each("RAMoESelfAttention", partial(module, name="dropout"), "dropout", [*NO_NUMBER, -0.1, 1.5])
    no_router = [RAMoELinear(8, 24, splits=3, router=None)]
    yield from each("RAMoESelfAttention", partial(module, name="qkv"), "qkv", no_router)

    def cross(model, value, name):
        layers = {"q": RAMoELinear(8, 8), "k": RAMoELinear(6, 8), "v": RAMoELinear(4, 8), "proj": RAMoELinear(8, 8)}
        return RAMoECrossAttention(**{**layers, "num_heads": 2, "batch_first": True, name: value})

    for name in ("q", "k", "v", "proj"):
        layers = [None, nn.Linear(8, 8), RAMoELinear(8, 12), RAMoELinear(8, 8, router=None)]
        yield from each("RAMoECrossAttention", partial(cross, name=name), name, layers)
    yield from each("RAMoECrossAttention", partial(cross, name="num_heads"), "num_heads", [*NO_SIZE, 3, 16])

    def call(model, value, name="query"):
        x = torch.randn(2, 5, 8)
        arguments = {"query": x, "key": x, "value": x, "need_weights": False}
        arguments |= dict.fromkeys(("query", "key", "value"), value) if name == "query" else {name: value}
        return module(model, True, "batch_first")(**arguments)

    yield from each("attention", call, "query", [None, 3, torch.ones(8), torch.ones(5, 9), torch.ones(1, 1, 5, 8)])
    yield from each(
        "attention", partial(call, name="attn_mask"), "attn_mask", [1, "causal", torch.ones(5, 5, dtype=int)]
    )
    yield from each("attention", partial(call, name="key"), "key", [torch.ones(2, 5, 9), torch.ones(5, 8), None])
    yield from each("attention", partial(call, name="key_padding_mask"), "key_padding_mask", [torch.ones(5, 2).bool()])


def of_layer() -> Iterator[Case]:
    right = torch.ones(1, 3)
    ranks = [None, 2, [[1, 2, 3]], right[0], right.T, torch.ones(()), right.bool(), right.to(torch.complex64)]
    ranks += [right * value for value in (NAN, INF, -INF, 99, 9, -1, -3, 2.5, 7.999)]
    ranks += [torch.tensor([[1.0, 2.0, NAN]]), torch.tensor([[1, 2, 9]]), right.to("meta")]
    yield from each("fix_ranks_", lambda model, value: model[0].fix_ranks_(value), "whole", ranks)
    inputs = [None, 3, "x", torch.ones(2, 8, dtype=int), torch.ones(2, 9), torch.ones(()), torch.ones(2, 8).bool()]
    inputs += [torch.ones(2, 8, device="meta"), torch.ones(8, 2)]
    yield from each("router_gates", lambda model, value: model[0].router_gates(value), "x", inputs)
    sample = RAMoELinear(8, 12, router="sample")
    yield from each("router_gates", lambda model, value: sample.router_gates(value), "x", [*inputs, torch.ones(8)])
    yield Case(
        "router_gates-none", lambda model: RAMoELinear(8, 12, router=None).router_gates(right), "router: got None"
    )


def of_model() -> Iterator[Case]:
    functions = {
        "ramoe_layers": ramoe_layers,
        "trainable_parameters": trainable_parameters,
        "ranks_frozen": ranks_frozen,
        "rank_report": rank_report,
        "rank_budget_loss": rank_budget_loss,
        "project_ranks_": project_ranks_,
        "freeze_ranks": freeze_ranks,
        "set_rank_window": lambda model: set_rank_window(model, 2.0),
        "RankOptimizer": RankOptimizer,
        "save_adapters": lambda model: save_adapters(model, "/nowhere/adapters", also=()),
        "load_adapters": lambda model: load_adapters(model, "/nowhere/adapters"),
        "adapt": lambda model: adapt(model, {"*": {}}),
        "check_adapters": lambda model: check_adapters(model, torch.ones(2, 2)),
        "unadapt": unadapt,
        "merge": merge,
        "unmerge": unmerge,
        "disable_adapters": lambda model: disable_adapters(model).__enter__(),
    }
    for name, function in functions.items():
        yield from each(name, lambda model, value, function=function: function(value), "model", NO_MODEL)
        if name not in ("ramoe_layers", "trainable_parameters", "load_adapters", "adapt"):
            yield Case(
                f"{name}-no layer", lambda model, function=function: function(nn.Linear(2, 2)), "model: Linear has no"
            )
    for name in ("save_adapters", "load_adapters"):
        yield from each(
            name, lambda model, value, name=name: getattr(fastmoe_lora, name)(model, value), "path", NO_PATH
        )


def of_mixtures() -> Iterator[Case]:
    experts = [value for value in NO_WHOLE if value is not None] + [-1, 3, 10**30]
    gates = [
        "ab",
        {},
        1.0,
        True,
        [NAN],
        [1.0, "a"],
        [True] * 99,
        torch.ones(99),
        torch.ones(3, dtype=torch.bool),
        [[1]],
    ]
    functions = {"merge": merge, "save_lora": partial(save_lora, path="/nowhere/lora")}
    for name, function in functions.items():
        yield from each(name, lambda model, value, f=function: f(model, expert=value), "expert", experts)
        yield from each(name, lambda model, value, f=function: f(model, gates=value), "gates", gates)
    yield from each("fixed_gates", lambda model, value: fixed_gates(model, value).__enter__(), "gates", [*gates, None])
    yield from each("unadapt", lambda model, value: unadapt(model, merged=value), "merged", NO_BOOL)
    paths = [None, 3, "folder", [], [3], [""], {}]
    yield from each("adapters_from_lora", lambda model, value: adapters_from_lora(model, value), "paths", paths)


def of_ranks() -> Iterator[Case]:
    budgets = [value for value in NO_NUMBER if value is not None] + [-1, -0.01, 48.5, 1e9]
    yield from each("rank_budget_loss", lambda model, value: rank_budget_loss(model, value), "budget", budgets)
    yield from each("project_ranks_", lambda model, value: project_ranks_(model, value), "budget", budgets)
    yield from each("RankOptimizer", lambda model, value: RankOptimizer(model, budget=value), "budget", budgets)
    whole = [value for value in NO_WHOLE if value is not None] + [-1, 49, 10**30, 10**5000]
    yield from each("freeze_ranks", lambda model, value: freeze_ranks(model, value), "budget", whole)
    windows = [*NO_NUMBER, 0, -1, 0.5, 0.999]
    yield from each("set_rank_window", lambda model, value: set_rank_window(model, value), "window", windows)
    rates = [*NO_NUMBER, -0.1]
    yield from each("RankOptimizer", lambda model, value: RankOptimizer(model, lr=value), "lr", rates)
    pairs = [None, 0.9, (0.9,), (0.9, 0.9, 0.9), (NAN, 0.9), (0.9, 1.0), (-0.1, 0.9), ("0.9", 0.9), (True, 0.9), "ab"]
    yield from each("RankOptimizer", lambda model, value: RankOptimizer(model, betas=value), "betas", pairs)
    closures = [3, "step", [step]]
    yield from each("RankOptimizer.step", lambda model, value: RankOptimizer(model).step(value), "closure", closures)
    wrong = {"progress": [*NO_NUMBER, -0.1, 1.1], "start": windows, "share": [*NO_NUMBER, 0, -1, 1.5]}
    for name, values in wrong.items():
        yield from each(
            "rank_window", lambda model, value, name=name: rank_window(**{"progress": 0.5, name: value}), name, values
        )
    ranks = torch.ones(2, 3)
    wrong = {
        "rank": [None, 2.0, [1.0], torch.ones(2, dtype=int), torch.ones(2).bool(), torch.ones(2).to(torch.complex64)],
        "max_rank": NO_SIZE,
        "window": [*NO_NUMBER, 0, -1],
        "interpolation": [*NO_NAME, None],
    }
    for name, values in wrong.items():
        yield from each(
            "rank_diagonal",
            lambda model, value, name=name: rank_diagonal(**{"rank": ranks, "max_rank": 8, name: value}),
            name,
            values,
        )


def broken_ranks() -> Iterator[Case]:
    """Ranks that are wrong in the model: the message names the layer and the element."""
    functions = {
        "project_ranks_": project_ranks_,
        "project_ranks_ to 20": lambda model: project_ranks_(model, 20),
        "freeze_ranks": freeze_ranks,
        "freeze_ranks to 20": lambda model: freeze_ranks(model, 20),
        "RankOptimizer.step": step,
        "save_adapters": lambda model: save_adapters(model, "/nowhere/adapters", also=()),
    }
    faults = dict.fromkeys(functions, (NAN, INF, -INF))
    for name in ("freeze_ranks", "save_adapters"):
        faults[name] += (99.0, 8.5, -3.0, -0.5)
    for name, values in faults.items():
        for value in values:
            culprit = f"layer '1': rank[0, 2] is {value}, expected"
            yield Case(f"{name}-{value}", functions[name], culprit, partial(set_rank, value=value))
    meta = {name: functions[name] for name in functions if name != "RankOptimizer.step"} | {"rank_report": rank_report}
    for name, function in meta.items():
        yield Case(f"{name}-meta", lambda model, f=function: f(RAMoELinear(8, 8, device="meta")), "on the meta device")
    fix = RAMoELinear(8, 8, device="meta").fix_ranks_
    yield Case("fix_ranks_-meta layer", lambda model: fix(torch.ones(1, 6)), "whole: got ranks for a layer on the meta")
    for value in (NAN, INF):
        prepare = partial(set_gradient, value=value)
        yield Case(f"RankOptimizer.step-gradient {value}", step, f"layer '0': rank.grad[0, 1] is {value}", prepare)


def set_rank(model: nn.Sequential, value: float) -> None:
    set_gradient(model)
    model[1].rank.data[0, 2] = value


def set_gradient(model: nn.Sequential, value: float = 1.0) -> None:
    for layer in model[:2]:
        layer.rank.grad = torch.ones_like(layer.rank)
    model[0].rank.grad[0, 1] = value


def step(model: nn.Sequential) -> None:
    RankOptimizer(model).step()


def rules() -> Iterator[Case]:
    no_rules = [None, 3, "2", ["2"], {"2"}, {}, {2: {}}, {"2": None}, {"2": 3}, {"2": "splits"}, {"2": {3: 1}}]
    no_rules += [{"2": [("splits", 1)]}, {None: {}}, {"9": {}}, {"2": {}, "*": {}, "3": {}}]
    yield from each("adapt", lambda model, value: adapt(model, value), "rules", no_rules)
    for option, value, culprit in OPTIONS:
        for name in ("2", "3"):  # the layer itself, and after another that was right
            adapted = {"2": {}, name: {option: value}}
            yield Case(f"adapt-{name}-{option}", lambda model, r=adapted: adapt(model, r), culprit)
            yield Case(f"adapt-{name}-{option}-named", lambda model, r=adapted: adapt(model, r), f"rules: {name!r}: ")
    yield Case(
        "adapt-one of all", lambda model: adapt(model, {"*": {"max_rank": 8, "splits": 8, "top_k": 9}}), "rules: '2'"
    )


GROUPS = (constructor, from_module, attention, of_layer, of_model, of_mixtures, of_ranks, broken_ranks, rules)
CASES = [case for group in GROUPS for case in group()]


@pytest.mark.parametrize("case", CASES, ids=[re.sub(r" at 0x[0-9a-f]+", "", case.name) for case in CASES])
def test_refused_by_name_with_nothing_changed(case):
    model = build()
    case.prepare(model)
    before = snapshot(model)
    with pytest.raises((ValueError, TypeError)) as refusal:
        case.call(model)
    message = str(refusal.value)
    assert case.culprit in message
    assert "\n" not in message
    assert len(message) < 500
    assert re.search(r"got|expected|is nan|has no|matches no|decides nothing", message)
    assert snapshot(model) == before


def test_every_public_name_is_tried():
    operators = {"FrozenLinear", "frozen_linear", "ramoe_linear", "self_attention"}
    without_arguments = {"backends", "__version__"}
    tried = {word for case in CASES for word in re.findall(r"\w+", case.name)}
    assert set(fastmoe_lora.__all__) - operators - without_arguments <= tried
