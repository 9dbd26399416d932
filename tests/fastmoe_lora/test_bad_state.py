"""State dicts that no layer can have: reported as torch reports its errors, and the layer concerned stays as it was."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastmoe_lora import RAMoELinear, freeze_ranks, rank_report, ranks_frozen, set_rank_window

NAN, INF = float("nan"), float("inf")
State = dict[str, Tensor]


def make(frozen: bool = False, **options: Any) -> nn.Sequential:
    options = {"num_experts": 3, "init_rank": 2.0, "backend": "packed"} | options
    model = nn.Sequential(*(RAMoELinear(10, 12, **options) for _ in range(2)))
    for layer in model:
        nn.init.normal_(layer.lora_B)
        layer.rank.data += torch.tensor([[0.0, 1.0, -1.0]])
    if frozen:
        freeze_ranks(model)
    return model


def snapshot(module: nn.Module) -> dict[str, Any]:
    state = [*module.named_parameters(), *module.named_buffers()]
    state += [(key, value) for key, value in module.state_dict().items() if key.endswith("_extra_state")]
    return {
        name: (name.endswith("_extra_state") or id(t), t.requires_grad, t.detach().clone().numpy().tobytes())
        for name, t in state
    }


def put(state: State, prefix: str, key: str, index: tuple[int, ...], value: float) -> None:
    state[prefix + key] = state[prefix + key].clone()
    state[prefix + key][index] = value


def replace(state: State, prefix: str, key: str, change: Callable[[Tensor], Any]) -> None:
    state[prefix + key] = change(state[prefix + key])


def freeze(state: State, prefix: str, value: float) -> None:
    state[prefix + "rank_frozen"] = torch.tensor(True)
    put(state, prefix, "rank", (0, 0), value)


def faults() -> Iterator[tuple[str, Callable[[State, str], None], str]]:
    """(name, edit(state, prefix), what the message says after the prefix)."""
    for value in (NAN, INF, -INF, 99.0, 8.001, -3.0):
        edit = partial(put, key="rank", index=(0, 2), value=value)
        yield f"rank {value}", edit, f"rank[0, 2] is {torch.tensor(value).item()}, expected 0 to max_rank = 8"
    for value in (2.5, 0.001, NAN, 9.0):
        yield f"frozen {value}", partial(freeze, value=value), "rank[0, 0] is"
    for key in ("weight", "bias", "lora_A", "lora_B", "rank", "router.weight"):
        for dtype in (torch.int8, torch.int64, torch.bool, torch.complex64):
            change = partial(replace, key=key, change=lambda value, dtype=dtype: value.to(dtype))
            yield f"{key} {dtype}", change, f"{key} is of {dtype}, expected floating-point numbers"
        yield f"{key} shape", partial(replace, key=key, change=lambda value: value[..., :-1]), key
        yield f"{key} list", partial(replace, key=key, change=Tensor.tolist), key
    for dtype in (torch.float32, torch.int64):
        change = partial(replace, key="rank_frozen", change=lambda value, dtype=dtype: value.to(dtype))
        yield f"rank_frozen {dtype}", change, f"rank_frozen is of {dtype}, expected torch.bool"
    values = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0, 1.0], dtype=torch.float64)  # those of `make`
    others = {
        "router_kind": (0, {1: "'sample'", 2: "None", 3: "3.0", NAN: "nan"}),
        "top_k": (1, {2: "2", 0.5: "0.5", INF: "inf"}),
        "scaling": (2, {2: "2.0", NAN: "nan", -1: "-1.0"}),
        "dropout": (3, {0.25: "0.25", NAN: "nan"}),
        "rank_window": (5, {0: "0.0", -1: "-1.0", INF: "inf", NAN: "nan"}),
    }
    for key, (index, wrong) in others.items():
        for value, shown in wrong.items():
            bits = values.index_fill(0, torch.tensor(index), value).view(torch.int64)
            yield f"{key} {value}", partial(write, key="_extra_state", value=bits), f"{key} is {shown}, "
    nothings = {"float": values, "short": values.view(torch.int64)[:5], "text": "linear", "none": None, "dict": {}}
    for name, value in nothings.items():
        yield f"options {name}", partial(write, key="_extra_state", value=value), "_extra_state is "


def write(state: State, prefix: str, key: str, value: Any) -> None:
    state[prefix + key] = value


FAULTS = list(faults())


@pytest.mark.parametrize("assign", [False, True], ids=["copied", "assigned"])
@pytest.mark.parametrize("frozen", [False, True], ids=["learning", "frozen"])
@pytest.mark.parametrize(("edit", "message"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS])
def test_a_fault_is_reported_and_its_layer_stays_as_it_was(edit, message, frozen, assign):
    model, other = make(), make(frozen)
    for prefix, module, layer in (("", other[1], other[1]), ("1.", other, other[1])):
        state = dict((model[1] if prefix == "" else model).state_dict())
        edit(state, prefix)
        before = snapshot(layer)
        with pytest.raises(
            RuntimeError, match=r"^Error\(s\) in loading state_dict for (RAMoELinear|Sequential)"
        ) as error:
            module.load_state_dict(state, strict=False, assign=assign)
        assert f"{prefix}{message}" in str(error.value)
        assert snapshot(layer) == before


def test_the_other_layers_are_loaded_as_torch_does_it():
    model, other = make(), make()
    state = model.state_dict()
    state["1.rank"] = state["1.rank"] + 99
    with pytest.raises(RuntimeError, match=r"1\.rank\[0, 0\] is 101\.0"):
        other.load_state_dict(state)
    assert torch.equal(other[0].lora_A, model[0].lora_A)


def test_a_frozen_flag_is_judged_with_the_ranks_that_it_freezes():
    model = make()
    model[0].rank.data.fill_(2.5)
    with pytest.raises(RuntimeError, match=r"rank\[0, 0\] is 2\.5, expected a whole number"):
        model[0].load_state_dict({"rank_frozen": torch.tensor(True)}, strict=False)
    assert not model[0].ranks_whole
    model[0].load_state_dict({"rank_frozen": torch.tensor(True), "rank": torch.full((1, 3), 2.0)}, strict=False)
    assert model[0].ranks_whole
    assert not model[0].rank.requires_grad


@pytest.mark.parametrize("assign", [False, True])
def test_a_part_of_a_state_loads_and_one_number_in_a_list_counts_as_a_number(assign):
    model, frozen = make(), make(frozen=True)
    state = frozen.state_dict()
    state["0.rank_frozen"] = state["0.rank_frozen"][None]
    del state["1.lora_A"]
    missing = model.load_state_dict(state, strict=False, assign=assign).missing_keys
    assert missing == ["1.lora_A"]
    assert ranks_frozen(model)
    assert rank_report(model) == rank_report(frozen)


def test_a_layer_on_meta_takes_a_state_by_assignment():
    model, frozen = make().to("meta"), make(frozen=True)
    model.load_state_dict(frozen.state_dict(), assign=True)
    x = torch.randn(2, 10)
    assert torch.equal(model[0](x), frozen[0](x))
    bad = frozen.state_dict()
    bad["0.rank"] = bad["0.rank"] + 0.5
    with pytest.raises(RuntimeError, match=r"0\.rank\[0, 0\] is 2\.5, expected a whole number"):
        make().to("meta").load_state_dict(bad, assign=True)


OPTIONS = {
    "router_kind": ({"router": "sample"}, "'sample', the layer has 'token'"),
    "top_k": ({"top_k": 2}, "2, the layer has None"),
    "scaling": ({"scaling": 0.1}, "0.1, the layer has 1.0"),
    "dropout": ({"dropout": 0.25}, "0.25, the layer has 0.0"),
    "interpolation": ({"interpolation": "as_printed"}, "'as_printed', the layer has 'linear'"),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_that_changes_what_the_numbers_mean_is_refused_by_name(option):
    options, message = OPTIONS[option]
    state, model = make(**options).state_dict(), make()
    before = snapshot(model)
    with pytest.raises(RuntimeError, match=rf"0\.{option} is {message}"):
        model.load_state_dict(state)
    assert snapshot(model) == before
    make(**options).load_state_dict(state)


@pytest.mark.parametrize("cast", [torch.float16, torch.bfloat16, torch.float64])
def test_options_survive_a_cast_of_the_numbers(cast):
    options = {"scaling": 0.1, "dropout": 1 / 3, "top_k": 2}
    state = {
        key: value.to(cast) if value.is_floating_point() else value
        for key, value in make(**options).state_dict().items()
    }
    make(**options).load_state_dict(state)


@pytest.mark.parametrize("strict", [True, False])
def test_a_state_of_earlier_releases_has_no_options_and_loads(strict):
    model, other = make(), make(interpolation="sampled", top_k=2)
    set_rank_window(other, 2.0)
    state = {key: value for key, value in model.state_dict().items() if not key.endswith("_extra_state")}
    assert other.load_state_dict(state, strict=strict) == ([], [])
    assert torch.equal(other[1].lora_B, model[1].lora_B)
    assert other[0].rank_window == 2.0


def test_the_rank_window_is_loaded():
    model, other = make(interpolation="sampled"), make(interpolation="sampled")
    set_rank_window(model, 2.5)
    other.load_state_dict(model.state_dict())
    x = torch.randn(2, 10)
    assert torch.equal(other.eval()[0](x), model.eval()[0](x))
    assert [layer.rank_window for layer in other] == [2.5, 2.5]
