"""Merged layers compute with one weight; unmerged they are what they were."""

import copy
import pickle

import pytest
import torch
from torch import nn

from fastmoe_lora import (
    RAMoELinear,
    adapt,
    check_adapters,
    disable_adapters,
    fixed_gates,
    freeze_ranks,
    load_adapters,
    merge,
    project_ranks_,
    ramoe_layers,
    save_adapters,
    set_rank_window,
    trainable_parameters,
    unadapt,
    unmerge,
)

GATES = [0.25, -0.5, 1.0]


def build(dtype=torch.float32, splits=2, **options) -> nn.Sequential:
    options = {"num_experts": 3, "max_rank": 4, "init_rank": 2.5, "splits": splits, **options}
    model = nn.Sequential(nn.Linear(12, 8), nn.GELU(), nn.Linear(8, 6, bias=False)).to(dtype)
    adapt(model, {"*": options})
    for _, layer in ramoe_layers(model):
        nn.init.normal_(layer.lora_B)
    return model.eval()


def one(**options) -> nn.Sequential:
    return build(num_experts=1, **options)


X = torch.randn(5, 7, 12)


def state(model: nn.Module) -> list:
    return [(name, p.requires_grad, p.clone()) for name, p in model.named_parameters()]


def assert_same(found: list, expected: list) -> None:
    assert [entry[:2] for entry in found] == [entry[:2] for entry in expected]
    assert all(torch.equal(a[2], b[2]) for a, b in zip(found, expected, strict=True))


@pytest.mark.shows("merge", "one expert: outputs within rounding, one weight; `unmerge` gives the bits back")
@pytest.mark.parametrize("router", ["token", "sample"])
@pytest.mark.parametrize("frozen", [True, False])
@torch.no_grad()
def test_one_expert_merges_and_comes_back(router, frozen):
    model = one(router=router)
    if frozen:
        freeze_ranks(model)
    before, output = state(model), model(X)
    assert merge(model) is model
    torch.testing.assert_close(model(X), output)
    assert unmerge(model) is model
    assert_same(state(model), before)
    assert torch.equal(model(X), output)


@pytest.mark.shows("merge", "a fixed mixture, or one of several experts")
@pytest.mark.parametrize("interpolation", ["linear", "sampled", "as_printed"])
@pytest.mark.parametrize("gates", [GATES, torch.randn(2, 3), [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
@torch.no_grad()
def test_a_fixed_mixture_merges(gates, interpolation):
    model = build(torch.float64, interpolation=interpolation)
    set_rank_window(model, 2.0)
    with fixed_gates(model, gates):
        output = model(X.double())
    torch.testing.assert_close(merge(model, gates=gates)(X.double()), output, rtol=1e-6, atol=1e-6)
    with fixed_gates(model, gates):  # the same
        model(X.double())
    unmerge(model)
    merge(model, expert=2)
    with pytest.raises(ValueError, match="gates: layer '0' is merged with others"), fixed_gates(model, GATES):
        model(X.double())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_sum_is_rounded_once(dtype):
    model = one(dtype=dtype)
    layer = model[0]
    layer.rank.data.fill_(4)
    A, B, weight = (tensor.detach().float() for tensor in (layer.lora_A, layer.lora_B, layer.weight))
    added = torch.cat([B[split, 0] @ A[split, 0] for split in range(2)])
    with torch.autocast("cpu", torch.bfloat16):
        merge(model)
    assert layer.merged.weight.dtype == dtype
    assert torch.equal(layer.merged.weight, (weight + added).to(dtype))
    assert not torch.equal(layer.merged.weight, layer.weight + added.to(dtype))


def test_attention_merges_and_is_called_with_other_keys():
    attention, x, other = nn.MultiheadAttention(6, 2), torch.randn(5, 3, 6), torch.randn(4, 3, 6)
    model = adapt(nn.ModuleDict({"attn": attention}), {"attn": {"num_experts": 1}}).eval()
    for _, layer in ramoe_layers(model):
        nn.init.normal_(layer.lora_B)
    for call in ((x, x, x), (x, other, other), (x, x, other[:1].expand_as(x)), (x, other, other + 1)):
        with torch.no_grad():
            output = model["attn"](*call)[0]
            merge(model)
            torch.testing.assert_close(model["attn"](*call)[0], output)
            plain = unadapt(copy.deepcopy(model), merged=True)["attn"]
            assert type(plain) is nn.MultiheadAttention
            torch.testing.assert_close(plain(*call)[0], output)
            unmerge(model)


@torch.no_grad()
def test_a_plain_model_of_what_was_merged_or_of_what_was_adapted():
    model = one()
    weight, output = model[0].weight.clone(), model(X)
    merge(model)
    plain = unadapt(copy.deepcopy(model), merged=True)
    assert [type(module) for module in plain] == [nn.Linear, nn.GELU, nn.Linear]
    torch.testing.assert_close(plain(X), output)
    assert all(parameter.requires_grad for parameter in plain.parameters())
    assert torch.equal(unadapt(model)[0].weight, weight)
    model = one()
    merge(model[0])
    with pytest.raises(ValueError, match="model: layer '2' is not merged, expected merge"):
        unadapt(model, merged=True)
    assert isinstance(model[0], RAMoELinear)


def test_a_tied_weight_is_not_touched():
    model = nn.ModuleDict({"embed": nn.Embedding(9, 4), "head": nn.Linear(4, 9, bias=False)})
    model["head"].weight = model["embed"].weight
    adapt(model, {"head": {"num_experts": 1}}).eval()
    nn.init.normal_(model["head"].lora_B)
    before = model["embed"].weight.clone()
    unadapt(merge(model), merged=True)
    assert torch.equal(model["embed"].weight, before)
    assert not torch.equal(model["head"].weight, before)


@pytest.mark.parametrize("router", ["token", "sample", None])
def test_gates_that_depend_on_the_input_are_refused_by_name_with_what_to_do(router):
    model = build(router=router)
    by = "its router decides by the input" if router else "its gates are the caller's"
    with pytest.raises(ValueError, match=rf"gates: got none for layer '0', expected expert=\.\.\. or .*: {by}, which"):
        merge(model)
    assert all(layer.merged is None for _, layer in ramoe_layers(model))


WRONG = {
    "expert": (lambda m: merge(m, expert=3), "expert: got 3"),
    "both": (lambda m: merge(m, expert=1, gates=GATES), "expert: got one beside gates"),
    "gates": (lambda m: merge(m, gates=[1.0, 0.0]), r"gates: got shape \(2,\), expected 3 numbers"),
    "NaN": (lambda m: merge(m, gates=[1.0, 0.0, float("nan")]), r"gates: gates\[.*\] is nan"),
    "numbers": (lambda m: (m[2].lora_B.data.fill_(float("inf")), merge(m, expert=0)), "layer '2': lora_B"),
    "beyond": (lambda m: merge(m.half(), gates=[1e6, 1e6, 1e6]), "layer '0': weight with experts.* in torch.float16"),
    "ranks": (lambda m: (m[2].rank.data.fill_(9), merge(m, expert=0)), "layer '2': rank"),
    "twice": (lambda m: (merge(m[2], expert=0), merge(m, expert=0)), "layer '2' is merged, expected unmerge"),
    "meta": (lambda m: merge(m.to("meta"), expert=0), "layer '0': lora_A is on the meta device"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_merged_is_named_and_nothing_is_changed(call, message):
    model = build()
    with pytest.raises(ValueError, match=message):
        call(model)
    assert model[0].merged is None
    with pytest.raises(ValueError, match="no layer is merged"):
        unmerge(model[0])


@pytest.mark.shows("merge", "training, loading and changed numbers are refused by name while merged")
def test_a_merged_layer_is_not_trained():
    model = merge(one())
    assert list(trainable_parameters(model)) == []
    x = X.clone().requires_grad_()
    model(x).sum().backward()  # of the input, in evaluation
    assert x.grad.abs().sum() > 0
    model.train()
    with torch.no_grad():
        model(X)
    with pytest.raises(ValueError, match=r"^layer '0' is merged, expected unmerge\(model\) before it is trained"):
        model(X)
    model.eval()[2].lora_B.requires_grad_(True)
    with pytest.raises(ValueError, match="layer '2' is merged"):
        model(X)
    with pytest.raises(ValueError, match="layer '0' is merged"):
        check_adapters(model, X)
    unmerge(model)
    assert len(list(trainable_parameters(model))) == 8
    assert check_adapters(model, X) == ["0", "2"]


CHANGES = {
    "weight": lambda m: m[2].weight.mul_(2),
    "lora_A": lambda m: m[2].lora_A.mul_(2),
    "reset": lambda m: m[2].reset_parameters(),
    "another weight": lambda m: setattr(m[2], "weight", nn.Parameter(m[2].weight * 2, requires_grad=False)),
    "frozen ranks": freeze_ranks,
    "moved ranks": lambda m: project_ranks_(m, 3.0),
    "window": lambda m: set_rank_window(m, 3.0),
    "scaling": lambda m: setattr(m[2], "scaling", 2.0),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@torch.no_grad()
def test_what_was_changed_meanwhile_is_noticed(change):
    model = merge(one())
    change(model)
    with pytest.raises(ValueError, match=r"^layer '\d' is merged, and has changed since"):
        model(X)
    output = unmerge(model)(X)
    torch.testing.assert_close(merge(model)(X), output)


@torch.no_grad()
def test_adapters_are_saved_as_they_are_and_not_loaded_into_merged_layers(tmp_path):
    model, other = one(), one()
    output, mine = model(X), other(X)
    keys = list(model.state_dict())
    merge(model), merge(other)
    assert list(model.state_dict()) == keys
    save_adapters(model, tmp_path)
    with pytest.raises(ValueError, match=r"^model: layer '0' is merged, expected unmerge\(model\) first"):
        load_adapters(other, tmp_path)
    for assign in (True, False):
        with pytest.raises(RuntimeError, match=r"0\.weight is merged: unmerge first"):
            other.load_state_dict(model.state_dict(), assign=assign)
    assert torch.equal(unmerge(other)(X), mine)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(X), output)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@torch.no_grad()
def test_copies_and_casts_stay_merged(copied):
    model = one()
    output = model(X)
    other = copied(merge(model))
    assert torch.equal(other(X), model(X))
    assert torch.equal(unmerge(other)(X), output)
    torch.testing.assert_close(model(X), output)
    torch.testing.assert_close(model.double()(X.double()).float(), output)
    assert torch.equal(unmerge(model).float()(X), output)


@torch.no_grad()
def test_without_adapters_a_merged_model_is_what_was_adapted():
    model = one()
    with disable_adapters(model):
        plain = model(X)
    with disable_adapters(merge(model)):
        assert torch.equal(model(X), plain)


@pytest.mark.shows("torch.compile", "a merged layer is one graph")
def test_a_merged_layer_compiles():
    model = merge(one())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(X), model(X))
        output = unmerge(model)(X)
        torch.testing.assert_close(compiled(X), output)


def test_merged_under_inference_mode_it_gives_gradients_of_its_inputs():
    model = one()
    with torch.inference_mode():
        merge(model)
    x = X.clone().requires_grad_()
    model(x).sum().backward()
    assert x.grad is not None
