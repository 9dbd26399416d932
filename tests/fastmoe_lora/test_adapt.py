import pytest
import torch
from torch import nn

from fastmoe_lora import RAMoELinear, adapt, freeze_ranks, trainable_parameters


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
    torch.testing.assert_close(model(x), before)  # by rounding alone: the base product may sum in another order
    kinds = {name: type(module) for name, module in model.named_modules() if name.count(".") == 1}
    assert [name for name, kind in kinds.items() if kind is RAMoELinear] == ["0.qkv", "1.qkv", "1.proj"]
    assert model[1].proj.num_experts == 2
    names = [name for name, _ in trainable_parameters(model)]
    assert "0.qkv.lora_A" in names
    assert "1.proj.router.weight" in names
    assert not any(name.endswith((".bias", "mlp.weight", "qkv.weight")) for name in names)


def test_a_module_of_several_names_is_replaced_under_all_of_them():
    shared = nn.Linear(8, 8)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    adapt(model, {"*": {"num_experts": 2}})
    assert isinstance(model[0], RAMoELinear)
    assert model[2] is model[0]


def test_a_second_call_leaves_the_adapters_of_the_first_learning():
    model = nn.Sequential(Block(), Block())
    adapt(model, {"0.qkv": {}})
    freeze_ranks(model)
    adapt(model, {"1.qkv": {}})
    learning = {name for name, _ in trainable_parameters(model)}
    names = ("lora_A", "lora_B", "router.weight")
    assert learning == {f"{block}.qkv.{name}" for block in (0, 1) for name in names} | {"1.qkv.rank"}


def test_a_rule_that_fails_on_a_late_layer_changes_nothing():
    model = nn.Sequential(Block(), Block())
    model[1].qkv = nn.Linear(8, 25)
    before = dict(model.named_modules())
    with pytest.raises(ValueError, match=r"rules: '1\.qkv': splits: got 3, expected a divisor of out_features = 25"):
        adapt(model, {"*.qkv": {"splits": 3}})
    assert dict(model.named_modules()) == before
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("pattern", ["*.query", "attn.out_proj", "proj.router"])
def test_a_pattern_that_matches_nothing_is_named(pattern):
    model = nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2), "proj": RAMoELinear(8, 8)})
    with pytest.raises(
        ValueError, match="matches no nn.Linear, nn.MultiheadAttention or Conv1D of ModuleDict".replace(".", r"\.")
    ):
        adapt(model, {pattern: {}})


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_attention_computes_what_it_did_and_then_learns(batch_first, masked):
    model = nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2, batch_first=batch_first)})
    x = torch.randn(3, 5, 8)
    mask = torch.ones(5 if batch_first else 3, 5 if batch_first else 3).triu(1).bool() if masked else None
    nn.init.normal_(model["attn"].in_proj_bias)
    before = model["attn"](x, x, x, need_weights=False, attn_mask=mask)[0]
    adapt(model, {"attn": {"num_experts": 2}})
    after, weights = model["attn"](x, x, x, need_weights=False, attn_mask=mask)
    assert weights is None
    torch.testing.assert_close(after, before)
    after.sum().backward()
    assert model["attn"].qkv.lora_B.grad.abs().sum() > 0
    assert model["attn"].qkv.lora_A.shape == (3, 2, 8, 8)
    assert model["attn"].qkv.weight.grad is None
