"""GPT-2, whose linear layers are transformers' ``Conv1D``: weights the other way round."""

import copy

import pytest
import torch
from torch import nn

from fastmoe_lora import (
    RAMoEConv1D,
    RAMoELinear,
    adapt,
    check_adapters,
    load_adapters,
    ramoe_layers,
    save_adapters,
    unadapt,
)
from unistd.model.torchvision_ops import define_missing_ops

define_missing_ops()
transformers = pytest.importorskip("transformers")
conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D

RULES = {
    "h.*.attn.c_attn": {"splits": 3, "num_experts": 2},
    "h.*.attn.c_proj": {"num_experts": 2},
    "h.*.mlp.c_*": {"num_experts": 2},
}
TOKENS = torch.arange(10).view(2, 5)


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50, n_positions=16)
    return transformers.GPT2Model(config).eval()


def moved(model: nn.Module) -> nn.Module:
    for _, layer in ramoe_layers(model):
        nn.init.normal_(layer.lora_B, generator=torch.Generator().manual_seed(1))
    return model


def test_an_adapted_model_computes_the_same_is_reached_and_learns():
    model = gpt2()
    expected = model(TOKENS).last_hidden_state
    adapt(model, RULES)
    assert [type(layer) for _, layer in ramoe_layers(model)] == [RAMoEConv1D] * 8
    torch.testing.assert_close(model(TOKENS).last_hidden_state, expected)
    assert len(check_adapters(model, TOKENS)) == 8
    model(TOKENS).last_hidden_state.square().mean().backward()
    assert all(layer.lora_B.grad.abs().sum() > 0 for _, layer in ramoe_layers(model))
    assert all(layer.weight.grad is None for _, layer in ramoe_layers(model))


def test_it_is_the_linear_layer_of_the_transposed_weight():
    conv = conv1d(24, 8)
    nn.init.normal_(conv.bias)
    layer = RAMoEConv1D.from_linear(conv, num_experts=2, splits=3)
    linear = nn.Linear(8, 24)
    linear.weight, linear.bias = nn.Parameter(conv.weight.detach().T.contiguous()), conv.bias
    twin = RAMoELinear.from_linear(linear, num_experts=2, splits=3)
    adapters = {name: value for name, value in layer.state_dict().items() if name != "weight"}
    twin.load_state_dict(adapters, strict=False)
    x = torch.randn(5, 8)
    assert torch.equal(moved(layer)(x), moved(twin)(x))
    assert (layer.nx, layer.nf) == (8, 24)
    assert not layer.weight.requires_grad
    assert not layer.bias.requires_grad


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("copied", [True, False])
def test_unadapt_gives_the_original_bits_back(held, copied):
    model = gpt2()
    model.h[0].attn.c_attn.register_forward_hook(lambda module, inputs, output: output * 2)
    holding = list(model.modules()) if held else []
    before = {name: value.clone() for name, value in model.state_dict().items()}
    output = model(TOKENS).last_hidden_state
    adapt(model, RULES)
    model = copy.deepcopy(model) if copied else model
    unadapt(moved(model))
    assert not list(ramoe_layers(model))
    assert type(model.h[1].mlp.c_fc) is conv1d
    if held and not copied:
        assert model.h[0].attn.c_attn in holding
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) and after[name].is_contiguous() for name, value in before.items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model(TOKENS).last_hidden_state, output)


@pytest.mark.shows("transformers", "checkpoints of GPT-2 load into one whose `Conv1D` layers are adapted")
def test_checkpoints_hold_weights_as_conv1d_does():
    plain, other = gpt2(), gpt2()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_(std=0.1)
    model = adapt(plain, RULES)
    missing, unexpected = model.load_state_dict(other.state_dict(), strict=False)
    assert not unexpected
    assert all("weight" not in name or "router" in name for name in missing)
    assert torch.equal(model.state_dict()["h.0.attn.c_proj.weight"], other.h[0].attn.c_proj.weight)  # a square one
    torch.testing.assert_close(model(TOKENS).last_hidden_state, other(TOKENS).last_hidden_state)
    again = adapt(gpt2(), RULES)
    again.load_state_dict(moved(model).state_dict())
    assert torch.equal(again(TOKENS).last_hidden_state, model(TOKENS).last_hidden_state)
    with torch.device("meta"):
        late = gpt2()
    adapt(late, RULES).load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(late(TOKENS).last_hidden_state, model(TOKENS).last_hidden_state)


def test_a_weight_of_another_shape_is_refused_by_name():
    model = adapt(gpt2(), RULES)
    state = model.state_dict()
    before = state["h.0.attn.c_attn.weight"].clone()
    state["h.0.attn.c_attn.weight"] = torch.zeros(48, 16)
    with pytest.raises(RuntimeError, match=r"size mismatch for h\.0\.attn\.c_attn\.weight"):
        model.load_state_dict(state)
    assert torch.equal(model.state_dict()["h.0.attn.c_attn.weight"], before)


def test_adapters_alone_are_saved_and_fit(tmp_path):
    model = moved(adapt(gpt2(), RULES))
    save_adapters(model, tmp_path)
    other = adapt(gpt2(), RULES)
    load_adapters(other, tmp_path)
    assert torch.equal(other(TOKENS).last_hidden_state, model(TOKENS).last_hidden_state)


def test_what_is_no_ordinary_conv1d_is_refused_by_name():
    class Doubling(conv1d):
        def forward(self, x):
            return 2 * super().forward(x)

    model = gpt2()
    model.h[1].mlp.c_fc.__class__ = Doubling
    with pytest.raises(ValueError, match=r"rules: 'h\.1\.mlp\.c_fc': it is a Doubling, .* expected Conv1D's"):
        adapt(model, RULES)
    assert not list(ramoe_layers(model))
    with pytest.raises(TypeError, match="linear: got a Linear, expected a Conv1D of transformers"):
        RAMoEConv1D.from_linear(nn.Linear(3, 4))
    conv = conv1d(4, 3)
    nn.utils.parametrizations.weight_norm(conv)
    with pytest.raises(ValueError, match="linear: its weight is computed"):
        RAMoEConv1D.from_linear(conv)
