"""What a module carries survives being adapted, and `unadapt` gives the model back as it was."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastmoe_lora import (
    FrozenLinear,
    RAMoELinear,
    RAMoESelfAttention,
    adapt,
    check_adapters,
    disable_adapters,
    ramoe_layers,
    unadapt,
)

FEW = {"num_experts": 2}


class Block(nn.Module):
    """All kinds: a plain layer, one under two names, tied weights, attention, an encoder layer with a fused path."""

    def __init__(self):
        super().__init__()
        self.embed, self.fc, self.norm = nn.Embedding(6, 4), nn.Linear(4, 4), nn.BatchNorm1d(5)
        self.again = self.fc
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight
        self.attn = nn.MultiheadAttention(4, 2, batch_first=True)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 1)

    def forward(self, tokens):
        x = self.again(self.norm(self.fc(self.embed(tokens))))
        x = x + self.attn(x, x, x, need_weights=False)[0]
        return self.head(self.encoder(x))


RULES = {"fc": FEW, "head": FEW, "attn": FEW, "encoder.*.linear?": FEW}


def state(model: nn.Module) -> dict:
    """All that `unadapt` is to give back."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    modules = list(model.named_modules(remove_duplicate=False))
    return {
        "names": [(name, type(module), module.training) for name, module in modules],
        "same": {name: [other for other, twin in modules if twin is module] for name, module in modules},
        "tensors": [(name, id(t), t.requires_grad, t.detach().numpy().tobytes()) for name, t in tensors],
        "keys": list(model.state_dict()),
        "attributes": [sorted(vars(module)) for _, module in modules],
        "hooks": [list(module._forward_hooks.values()) for _, module in modules],
        "switches": (model.encoder.use_nested_tensor, model.encoder.layers[0].activation_relu_or_gelu),
    }


def block() -> Block:
    model = Block().eval()
    model.fc.train()
    model.norm.bias.requires_grad_(False)
    model.fc.weight.requires_grad_(False)
    model.fc.register_forward_hook(lambda module, inputs, output: output + 1)
    model.fc.note = "kept"
    return model


def change(model: nn.Module) -> None:
    for _, layer in ramoe_layers(model):
        nn.init.normal_(layer.lora_B)


@pytest.mark.shows("What a module carries", "`unadapt` gives the original modules back, bit for bit")
@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("steps", [1, 2])
def test_unadapt_gives_the_model_back(held, steps):
    model, tokens = block(), torch.randint(6, (2, 5))
    before, output = state(model), model(tokens)
    modules = dict(model.named_modules(remove_duplicate=False)) if held else None
    if steps == 1:
        adapt(model, RULES)
    else:
        for pattern, options in RULES.items():
            adapt(model, {pattern: options})
    assert check_adapters(model, tokens) == [name for name, _ in ramoe_layers(model)]
    torch.testing.assert_close(model(tokens), output)
    change(model)
    assert not torch.allclose(model(tokens), output)
    assert unadapt(model) is model
    assert state(model) == before
    assert torch.equal(model(tokens), output)
    if held:  # by others: then these are the very modules
        assert dict(model.named_modules(remove_duplicate=False)) == modules
    adapt(model, RULES)


@pytest.mark.parametrize("change", [lambda model: model, nn.Module.double, copy.deepcopy])
@pytest.mark.parametrize("bias", [True, False])
def test_attention_to_other_keys_comes_back_whole(bias, change):
    attention = nn.MultiheadAttention(4, 2, kdim=6, vdim=3, bias=bias)
    inputs = torch.randn(5, 4), torch.randn(7, 6), torch.randn(7, 3)
    output, names = attention(*inputs)[0], [name for name, _ in attention.named_parameters()]
    model = change(adapt(nn.ModuleDict({"attn": attention}), {"attn": FEW}))
    found = unadapt(model)["attn"]
    assert [name for name, _ in found.named_parameters()] == names
    dtype = found.out_proj.weight.dtype
    assert {parameter.dtype for parameter in found.parameters()} == {dtype}
    torch.testing.assert_close(found(*(x.to(dtype) for x in inputs))[0].float(), output, rtol=1e-5, atol=1e-6)
    assert all(parameter.requires_grad for parameter in found.parameters())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_unadapted_apart_from_the_model(copied):
    model, tokens = block(), torch.randint(6, (2, 5))
    model.fc._forward_hooks.clear()
    output, keys = model(tokens), list(model.state_dict())
    adapt(model, RULES)
    other = copied(model)
    change(other)
    unadapt(other)
    assert list(other.state_dict()) == keys
    assert torch.equal(other(tokens), output)
    assert not {id(p) for p in other.parameters()} & {id(p) for p in model.parameters()}
    assert other.head.weight is other.embed.weight
    assert len(dict(ramoe_layers(model))) == 6
    unadapt(model)


def test_what_became_of_parameters_and_modes_meanwhile_is_kept():
    model = adapt(nn.Sequential(nn.Linear(4, 4)), {"0": FEW})
    model.double().eval()
    model[0].weight = nn.Parameter(torch.eye(4).double())  # as where a sharded or an empty model is filled
    assert unadapt(model)[0].weight.dtype == torch.float64
    assert torch.equal(model[0].weight, torch.eye(4).double())
    assert not model[0].training


def test_layers_put_there_by_hand():
    layer = RAMoELinear(4, 6)
    linear = unadapt(nn.Sequential(layer))[0]
    assert type(linear) is nn.Linear
    assert linear.weight is layer.weight
    assert type(unadapt(layer)) is nn.Linear
    attention = RAMoESelfAttention.from_attention(nn.MultiheadAttention(4, 2))
    model = nn.Sequential(nn.Linear(2, 2), layer, attention)
    with pytest.raises(
        ValueError, match="model: '2' is a RAMoESelfAttention of yours, expected one put there by adapt"
    ):
        unadapt(model)
    assert model[1] is layer


@torch.no_grad()
@pytest.mark.parametrize("splits", [3, 6, 1])
def test_disabled_adapters_of_attention_called_with_other_keys(splits):
    attention, x, other = nn.MultiheadAttention(6, 2), torch.randn(5, 3, 6), torch.randn(4, 3, 6)
    calls = [(x, x, x), (x, other, other), (x, x, x + 1), (x, other, other + 1)]
    outputs = [attention(*call)[0] for call in calls]
    model = adapt(nn.ModuleDict({"attn": attention}), {"attn": {**FEW, "splits": splits}})
    change(model)
    with disable_adapters(model):
        for call, output in zip(calls, outputs, strict=True):
            torch.testing.assert_close(model["attn"](*call)[0], output)
    assert not torch.allclose(model["attn"](x, x, x)[0], outputs[0])


def test_a_wrong_input_is_refused_by_name_without_adapters_too():
    model = nn.Sequential(RAMoELinear(4, 4))
    for x in (None, torch.ones(2, 3), torch.ones(2, 4, dtype=torch.float64), torch.ones(2, 4, dtype=int)):
        with disable_adapters(model), pytest.raises((TypeError, ValueError), match=r"^(x|weight): got"):
            model(x)


@torch.no_grad()  # as PyTorch's own attention takes another path where something learns
def test_disabled_adapters_leave_what_the_layer_adapts():
    model, tokens = block(), torch.randint(6, (2, 5))
    output = model(tokens)
    adapt(model, {"fc": FEW, "head": FEW})
    change(model)
    changed = model(tokens)
    with disable_adapters(model):
        assert torch.equal(model(tokens), output)
        with disable_adapters(model):
            pass
        assert torch.equal(model(tokens), output)
    assert torch.equal(model(tokens), changed)
    with pytest.raises(KeyError), disable_adapters(model):
        raise KeyError
    assert torch.equal(model(tokens), changed)


HOOKS = {
    "forward": lambda m, f: m.register_forward_hook(lambda m, i, o: f(o)),
    "forward, keywords": lambda m, f: m.register_forward_hook(lambda m, i, k, o: f(o), with_kwargs=True),
    "forward, always": lambda m, f: m.register_forward_hook(lambda m, i, o: f(o), always_call=True),
    "before forward": lambda m, f: m.register_forward_pre_hook(lambda m, i: f(i)),
    "backward": lambda m, f: m.register_full_backward_hook(lambda m, i, o: f(i)),
    "before backward": lambda m, f: m.register_full_backward_pre_hook(lambda m, o: f(o)),
    "state dict": lambda m, f: m.register_state_dict_post_hook(lambda m, *a: f(None)),
    "before state dict": lambda m, f: m.register_state_dict_pre_hook(lambda m, p, k: f(None)),
    "load": lambda m, f: m.register_load_state_dict_post_hook(lambda m, k: f(None)),
    "before load": lambda m, f: m.register_load_state_dict_pre_hook(lambda m, *a: f(m)),
}


@pytest.mark.shows(
    "What a module carries",
    "hooks of all kinds go on after `adapt` and `unadapt`, and their handles remove them",
)
@pytest.mark.parametrize("register", HOOKS.values(), ids=HOOKS)
def test_hooks_are_called_and_can_be_removed_before_and_after(register):
    model, seen = nn.Sequential(nn.Linear(4, 4)), []
    handle = register(model[0], lambda value: seen.append(value))

    def calls() -> int:
        seen.clear()
        model(torch.randn(2, 4, requires_grad=True)).sum().backward()
        model.load_state_dict(model.state_dict())
        return len(seen)

    assert calls() == 1
    adapt(model, {"0": FEW})
    assert calls() == 1
    assert seen[0] is model[0] or not isinstance(seen[0], nn.Module)  # a hook that is handed its module has this one
    unadapt(model)
    assert calls() == 1
    adapt(model, {"0": FEW})
    handle.remove()
    assert calls() == 0
    unadapt(model)
    assert calls() == 0


@pytest.mark.shows("What a module carries", "tied weights, several names, modes and attributes survive `adapt`")
def test_ties_attributes_and_modes_survive():
    model = block()
    adapt(model, RULES)
    assert model.again is model.fc
    assert model.fc.note == "kept"
    assert model.fc.training
    assert not model.head.training
    assert model.head.weight is model.embed.weight


def test_a_module_of_two_names_is_one_module_whichever_name_is_given():
    model = block()
    adapt(model, {"again": FEW})
    assert model.fc is model.again
    assert isinstance(model.fc, RAMoELinear)
    with pytest.raises(ValueError, match="rules: 'again' is 'fc' by another name, expected the same options for both"):
        adapt(block(), {"fc": FEW, "again": {"num_experts": 3}})


class Scaled(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight * 0.5, self.bias)


class Subclass(nn.Linear):
    """Without a forward of its own."""


class Buffered(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("scale", torch.ones(1))


class OwnAttention(nn.MultiheadAttention):
    def forward(self, query, key, value, **options):
        return super().forward(query, key, value, **options)


def replaced() -> nn.Linear:
    linear = nn.Linear(4, 4)
    linear.forward = lambda x: x
    return linear


def compiled() -> nn.Linear:
    linear = nn.Linear(4, 4)
    linear.compile()
    return linear


def clashing() -> nn.Linear:
    linear = nn.Linear(4, 4)
    linear.rank = 3
    return linear


REFUSED = {
    "own forward": (lambda: Scaled(4, 4), "it is a Scaled, whose forward is its own"),
    "own forward below": (lambda: type("Below", (Scaled,), {})(4, 4), "it is a Below, whose forward is its own"),
    "attention's own forward": (lambda: OwnAttention(4, 2), "it is a OwnAttention, whose forward is its own"),
    "replaced forward": (replaced, "its forward has been replaced"),
    "compiled": (compiled, "adapt first, compile then"),
    "buffer": (lambda: Buffered(4, 4), "it has 'scale', expected weight and bias alone"),
    "attribute": (clashing, "it has an attribute 'rank'"),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), "its weight is a Tensor"),
    "spectral norm": (lambda: nn.utils.spectral_norm(nn.Linear(4, 4)), "its weight is a Tensor"),
}


@pytest.mark.shows(
    "What a module carries", "a forward of its own, buffers, parametrizations: refused by name, and nothing is changed"
)
@pytest.mark.parametrize(("make", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_would_be_lost_is_refused_by_name_and_nothing_is_changed(make, reason):
    model = nn.Sequential(nn.Linear(4, 4), make())
    before = dict(model.named_modules())
    with pytest.raises(ValueError, match=r"^rules: '1': .*" + reason):
        adapt(model, {"*": FEW})
    assert dict(model.named_modules()) == before
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_layer_alone_with_a_forward_of_its_own_is_refused_too():
    with pytest.raises(ValueError, match=r"linear: it is a Scaled, whose forward is its own, expected nn\.Linear's"):
        RAMoELinear.from_linear(Scaled(4, 4))


@pytest.mark.parametrize("kind", [Subclass, FrozenLinear, nn.modules.linear.NonDynamicallyQuantizableLinear])
def test_subclasses_that_compute_what_linear_does_are_adapted_and_come_back(kind):
    model = adapt(nn.Sequential(kind(4, 4)), {"0": FEW})
    assert type(unadapt(model)[0]) is kind


@pytest.mark.shows("torch.compile", "`adapt` of a compiled model says: adapt first, wrap then")
def test_a_compiled_model_is_to_be_adapted_first():
    wrapped = torch.compile(nn.Sequential(nn.Linear(4, 4)))
    for model in (wrapped, nn.Sequential(wrapped)):
        with pytest.raises(ValueError, match=r"^model: .* a OptimizedModule, .*: adapt first, wrap then$"):
            adapt(model, {"*": FEW})
    with pytest.raises(ValueError, match="unadapt what is inside of it"):
        unadapt(torch.compile(adapt(nn.Sequential(nn.Linear(4, 4)), {"0": FEW})))


@torch.no_grad()
@pytest.mark.shows("torch.compile", "`disable_adapters` around a compiled model")
def test_a_compiled_model_without_adapters():
    model = adapt(nn.Sequential(nn.Linear(4, 4)), {"0": FEW})
    change(model)
    compiled, x = torch.compile(model, fullgraph=True, backend="aot_eager"), torch.randn(3, 4)
    for _ in range(2):
        torch.testing.assert_close(compiled(x), model(x))
        with disable_adapters(compiled):
            torch.testing.assert_close(compiled(x), nn.functional.linear(x, model[0].weight, model[0].bias))
