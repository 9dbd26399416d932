"""Splits of several widths: each is what a layer of its own computes."""

import pytest
import torch
from torch import nn

from fastmoe_lora import RAMoELinear, backends, freeze_ranks, load_adapters, save_adapters

WIDTHS = (24, 8, 8, 16)
BACKENDS = [name for name, works in backends().items() if works is True and name != "triton"]
FEW = {"num_experts": 3, "max_rank": 4, "init_rank": 2.5}


def layers(**options) -> tuple[RAMoELinear, list[RAMoELinear]]:
    """A layer with all splits, and one for each, with the same numbers."""
    torch.manual_seed(0)
    whole = RAMoELinear(12, sum(WIDTHS), splits=WIDTHS, **FEW, **options)
    nn.init.normal_(whole.lora_B)
    nn.init.uniform_(whole.rank, 0, 4)
    apart, rows, units = [], 0, 0
    for split, (width, count) in enumerate(zip(WIDTHS, whole.units, strict=True)):
        one = RAMoELinear(12, width, **FEW, **options)
        with torch.no_grad():
            one.weight.copy_(whole.weight[rows : rows + width])
            one.bias.copy_(whole.bias[rows : rows + width])
            one.lora_A.copy_(whole.lora_A[split, None])
            one.lora_B.copy_(whole.lora_B[units : units + count].transpose(0, 1).flatten(1, 2)[None])
            one.rank.copy_(whole.rank[split, None])
            if one.router is not None:
                one.router.weight.copy_(whole.router.weight.unflatten(0, (len(WIDTHS), -1))[split])
        apart.append(one)
        rows, units = rows + width, units + count
    return whole, apart


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("router", ["token", "sample", None])
@pytest.mark.parametrize("frozen", [False, True], ids=["ranks learn", "ranks frozen"])
def test_each_split_is_a_layer_of_its_own(backend, router, frozen):
    whole, apart = layers(router=router, backend=backend, top_k=2 if router else None)
    if frozen:
        with torch.no_grad():
            for layer in (whole, *apart):
                layer.rank.round_()
                freeze_ranks(layer)
    x = torch.randn(2, 5, 12)
    gates = None if router else torch.rand(2, 5, len(WIDTHS), 3)
    grad = torch.randn(2, 5, sum(WIDTHS))
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    y = whole(inputs[0], gates)
    split = (None,) * len(WIDTHS) if router else gates.split(1, -2)
    expected = torch.cat([one(inputs[1], g) for one, g in zip(apart, split, strict=True)], -1)
    torch.testing.assert_close(y, expected)
    y.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-4, atol=1e-5)
    for name in ("weight", "bias", "lora_A", "rank"):
        found = getattr(whole, name).grad
        if not (frozen and name == "rank"):
            torch.testing.assert_close(
                found, torch.cat([getattr(one, name).grad for one in apart]), rtol=1e-4, atol=1e-4
            )
    units = torch.cat([one.lora_B.grad.unflatten(2, (-1, 8)).squeeze(0).transpose(0, 1) for one in apart])
    torch.testing.assert_close(whole.lora_B.grad, units, rtol=1e-4, atol=1e-4)
    for part in ((0, 1), (1, 3), (2, 4), (0, 4)):
        first, last = (sum(WIDTHS[:end]) for end in part)
        own = None if router else gates[..., slice(*part), :]
        torch.testing.assert_close(whole(x, own, part=part), y[..., first:last])


def test_gates_of_another_number_of_splits_are_refused():
    whole, _ = layers(router=None)
    whole(torch.randn(5, 12), torch.ones(5, 1, 3))  # one for all
    for wrong in (7, 3, 5):
        with pytest.raises(ValueError, match=rf"gates: got shape \(5, {wrong}, 3\), expected .*\(\.\.\., 4, 3\)"):
            whole(torch.randn(5, 12), torch.ones(5, wrong, 3))


@pytest.mark.parametrize(
    "splits",
    [(), (8, 8), (24, 16, 16), (0, 56), (56.0,), (-8, 64), "56", (True, 55), None, 3, 0, (28, 28, "0")],
    ids=str,
)
def test_widths_that_cannot_be_are_refused_by_name(splits):
    with pytest.raises((TypeError, ValueError), match=r"^splits: got "):
        RAMoELinear(12, 56, splits=splits)


def test_equal_widths_are_splits_as_ever():
    layer = RAMoELinear(12, 24, splits=[8, 8, 8])
    layer.load_state_dict(RAMoELinear(12, 24, splits=3).state_dict())
    assert layer.lora_B.shape == (3, 6, 8, 8)


def test_widths_are_part_of_the_state_and_of_the_adapter_file(tmp_path):
    whole, _ = layers()
    save_adapters(whole, tmp_path, also=())
    like = RAMoELinear(12, sum(WIDTHS), splits=WIDTHS, **FEW)
    load_adapters(like, tmp_path)
    assert torch.equal(like.lora_B, whole.lora_B)
    like.load_state_dict(whole.state_dict())
    other = RAMoELinear(12, sum(WIDTHS), splits=WIDTHS[::-1], **FEW)
    before = other.lora_B.clone()
    with pytest.raises(RuntimeError, match="the widths of the splits are"):
        other.load_state_dict(whole.state_dict())
    with pytest.raises(ValueError, match=r"adapters\.json: layer '' has widths = \[24, 8, 8, 16\], the model has \[16"):
        load_adapters(other, tmp_path)
    assert torch.equal(other.lora_B, before)
