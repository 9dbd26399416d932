import pytest
import torch
from torch import nn

from fastmoe_lora import RAMoELinear, adapt, trainable_parameters


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.proj, self.mlp = nn.Linear(8, 24), nn.Linear(24, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.mlp(self.proj(self.qkv(x)))


def test_adapts_by_pattern_and_trains_the_adapters_alone():
    model = nn.Sequential(Block(), Block())
    x = torch.randn(3, 8)
    before = model(x)
    adapt(model, {"*.qkv": {"splits": 3}, "1.proj": {"num_experts": 2}})
    assert torch.equal(model(x), before)
    kinds = {name: type(module) for name, module in model.named_modules() if name.count(".") == 1}
    assert [name for name, kind in kinds.items() if kind is RAMoELinear] == ["0.qkv", "1.qkv", "1.proj"]
    assert model[1].proj.num_experts == 2
    names = [name for name, _ in trainable_parameters(model)]
    assert "0.qkv.lora_A" in names
    assert "1.proj.router.weight" in names
    assert not any(name.endswith((".bias", "mlp.weight", "qkv.weight")) for name in names)


def test_a_pattern_that_matches_nothing_is_named():
    with pytest.raises(ValueError, match=r"rules: '\*.query' matches no nn\.Linear of Block"):
        adapt(Block(), {"*.query": {}})


def test_routers_of_adapted_layers_are_not_adapted_again():
    model = adapt(nn.Sequential(nn.Linear(8, 8)), {"*": {}})
    with pytest.raises(ValueError, match="matches no nn"):
        adapt(model, {"*": {}})


def test_attention_that_never_calls_its_projection_is_refused():
    with pytest.raises(ValueError, match=r"'out_proj', which nn\.MultiheadAttention never calls"):
        adapt(nn.MultiheadAttention(8, 2), {"out_proj": {}})
