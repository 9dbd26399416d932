"""Attention with adapters beside torch's own: every way to call it."""

import itertools
import warnings

import pytest
import torch
from torch import nn

from fastmoe_lora import RAMoECrossAttention, RAMoELinear, RAMoESelfAttention, adapt, freeze_ranks, ramoe_layers
from fastmoe_lora.attention import attention_class

WIDTH, HEADS, BATCH, ROWS, TOKENS = 8, 2, 3, 5, 7
DROPPED = 0.4
OPTIONS = {"num_experts": 2, "max_rank": 4, "init_rank": 2.5}
# Which of query, key and value are one tensor, and (kdim, vdim).
CALLS = {
    "self": ("xxx", (None, None)),
    "memory": ("xmm", (None, None)),
    "position": ("xxy", (None, None)),
    "three": ("xmn", (None, None)),
    "kdim": ("xkv", (6, 4)),
}
WIDTHS = {"k": 6, "v": 4}
NO_MASK, BOOL, FLOAT = "none", "bool", "float"


def own(dtype=torch.float64, **settings) -> nn.MultiheadAttention:
    """torch's, with biases that are not 0."""
    attention = nn.MultiheadAttention(WIDTH, HEADS, dtype=dtype, **settings)
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.5)
    return attention


def inputs(call: str, batch_first: bool, batched: bool = True, dtype=torch.float64) -> list[torch.Tensor]:
    made: dict[str, torch.Tensor] = {}
    for name in call:
        rows, width = ROWS if name in "xy" or call == "xxx" else TOKENS, WIDTHS.get(name, WIDTH)
        shape = (BATCH, rows, width) if batch_first else (rows, BATCH, width)
        made.setdefault(name, torch.randn(shape if batched else (rows, width), dtype=dtype))
    return [made[name] for name in call]


def masks(attn: str, padding: str, rows: int, tokens: int, batched: bool, dtype=torch.float64) -> dict:
    """Keyword arguments; every row has a token left that it sees."""
    arguments = {}
    if attn != NO_MASK:
        kind, dims = attn.split("-")
        shape = (rows, tokens) if dims == "2" else ((BATCH if batched else 1) * HEADS, rows, tokens)
        hidden = torch.rand(shape) < 0.4
        hidden[..., 0] = False
        arguments["attn_mask"] = hidden if kind == BOOL else torch.randn(shape, dtype=dtype)
    if padding != NO_MASK:
        shape = (BATCH, tokens) if batched else (tokens,)
        hidden = torch.rand(shape) < 0.4
        hidden[..., 0] = False
        arguments["key_padding_mask"] = hidden if padding == BOOL else torch.randn(shape, dtype=dtype)
    return arguments


def outcome(attention: nn.Module, tensors: list[torch.Tensor], **arguments):
    """Output, weights and the gradients of the inputs, dropout drawn from the same seed."""
    leaves = {id(t): t.detach().clone().requires_grad_(True) for t in tensors}
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's: masks of two kinds
        out, weights = attention(*(leaves[id(t)] for t in tensors), **arguments)
    out.square().sum().backward()
    return out.detach(), weights, [leaf.grad for leaf in leaves.values()]


def assert_alike(mine: nn.Module, theirs: nn.Module, tensors: list[torch.Tensor], **arguments) -> None:
    got, wanted = (outcome(module, tensors, **arguments) for module in (mine, theirs))
    torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-12)


MASKS = list(itertools.product((NO_MASK, "bool-2", "bool-3", "float-2", "float-3"), (NO_MASK, BOOL, FLOAT)))


# batched, batch_first, bias, dropout
VARIANTS = [(True, True, True, 0.0), (True, False, False, DROPPED), (False, True, False, DROPPED)]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("attn", "padding"), MASKS)
def test_computes_what_torch_does(call, attn, padding):
    """Output, weights and gradients of the inputs, with fresh adapters, that add nothing."""
    which, (kdim, vdim) = CALLS[call]
    for batched, batch_first, bias, dropout in VARIANTS:
        theirs = own(batch_first=batch_first, bias=bias, dropout=dropout, kdim=kdim, vdim=vdim)
        mine = attention_class(theirs).from_attention(theirs, **OPTIONS)
        tensors = inputs(which, batch_first, batched)
        axis = 1 if batched and batch_first else 0
        arguments = masks(attn, padding, tensors[0].shape[axis], tensors[1].shape[axis], batched)
        for need_weights in (False, True):
            assert_alike(
                mine, theirs, tensors, need_weights=need_weights, average_attn_weights=batch_first, **arguments
            )
    assert_alike(mine.eval(), theirs.eval(), tensors, **arguments)


@pytest.mark.parametrize("padding", [NO_MASK, BOOL, FLOAT])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("kind", [BOOL, FLOAT])
def test_a_causal_mask_with_the_hint_that_it_is_one(padding, need_weights, kind):
    theirs = own(batch_first=True)
    mine = RAMoESelfAttention.from_attention(theirs, **OPTIONS)
    hidden = torch.ones(ROWS, ROWS).triu(1).bool()
    causal = hidden if kind == BOOL else torch.zeros(ROWS, ROWS).double().masked_fill(hidden, float("-inf"))
    arguments = masks(NO_MASK, padding, ROWS, ROWS, True) | {"attn_mask": causal, "is_causal": True}
    assert_alike(mine, theirs, inputs("xxx", True), need_weights=need_weights, **arguments)
    with pytest.raises(ValueError, match=r"^attn_mask: got None with is_causal=True"):
        mine(*inputs("xxx", True), is_causal=True)


@pytest.mark.parametrize("need_weights", [True, False])
def test_a_row_that_sees_nothing_is_what_it_is_in_torch(need_weights):
    theirs = own(batch_first=True)
    mine = RAMoESelfAttention.from_attention(theirs, **OPTIONS)
    x = inputs("xxx", True)
    arguments = {"key_padding_mask": torch.ones(BATCH, ROWS).bool(), "need_weights": need_weights}
    torch.testing.assert_close(mine(*x, **arguments), theirs(*x, **arguments), equal_nan=True, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "options", [{}, {"router": "sample"}, {"splits": 1}, {"splits": 6}, {"interpolation": "as_printed"}]
)
@pytest.mark.parametrize("frozen", [False, True], ids=["learning", "frozen"])
@pytest.mark.parametrize("call", ["xmm", "xxy", "xmn"])
def test_a_part_of_the_fused_projection_is_what_the_whole_has_there(options, frozen, call):
    """Adapters that do something; keys and values are computed alone where they come from elsewhere."""
    model = adapt(nn.ModuleDict({"attn": own(batch_first=True)}), {"attn": OPTIONS | options})
    for _, layer in ramoe_layers(model):
        nn.init.normal_(layer.lora_B)
        nn.init.uniform_(layer.rank, 0, 4)
    if frozen:
        freeze_ranks(model)
    qkv, proj = model["attn"].qkv, model["attn"].proj
    query, key, value = inputs(call, True)
    plain = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, dtype=torch.float64).requires_grad_(False)
    plain.in_proj_weight.copy_(torch.eye(WIDTH).repeat(3, 1))
    plain.out_proj.weight.copy_(torch.eye(WIDTH))
    nn.init.zeros_(plain.in_proj_bias)
    parts = [qkv(x).chunk(3, -1)[i] for i, x in enumerate((query, key, value))]
    torch.testing.assert_close(model["attn"](query, key, value)[0], proj(plain(*parts)[0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("frozen", [False, True], ids=["learning", "frozen"])
@pytest.mark.parametrize("part", [(0, 1), (1, 3), (2, 3)], ids=str)
def test_a_part_of_the_splits_and_its_gradients_on_the_backend_of_this_machine(part, frozen, dtype):
    layer = RAMoELinear(32, 96, splits=3, num_experts=3, dtype=dtype).freeze_base_()
    nn.init.normal_(layer.lora_B)
    if frozen:
        layer.fix_ranks_(torch.tensor([[0, 3, 8], [1, 1, 1], [5, 0, 2]]))
    x, columns = torch.randn(2, 7, 32, dtype=dtype), slice(32 * part[0], 32 * part[1])
    learning = (layer.lora_A, layer.lora_B, layer.router.weight)
    outputs = [layer(x, part=part), layer(x)[..., columns]]
    gradients = [torch.autograd.grad(y.float().square().sum(), learning) for y in outputs]
    near = {"rtol": 0.05, "atol": 0.5} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-3}
    torch.testing.assert_close(*outputs, **near)
    torch.testing.assert_close(*gradients, **near)


@pytest.mark.parametrize("part", [(0, 4), (1, 1), (2, 1), (-1, 1), 1, [0, 1], (0, 1, 2), (0.0, 1), (True, 2), "01"])
def test_a_part_that_no_layer_has_is_named(part):
    layer = RAMoELinear(8, 24, splits=3, router="sample")
    with pytest.raises((ValueError, TypeError), match=r"^part: got"):
        layer(torch.ones(2, 5, 8), part=part)


@pytest.mark.parametrize("call", CALLS)
def test_every_adapter_learns(call):
    which, (kdim, vdim) = CALLS[call]
    model = nn.ModuleDict({"attn": own(batch_first=True, kdim=kdim, vdim=vdim)})
    adapt(model, {"attn": OPTIONS})
    model["attn"](*inputs(which, True))[0].square().sum().backward()
    for name, layer in ramoe_layers(model):
        assert layer.lora_B.grad.flatten(1).norm(dim=1).gt(0).all(), name
        assert layer.weight.grad is None
        assert layer.bias.grad is None
    kind = RAMoESelfAttention if kdim is vdim is None else RAMoECrossAttention
    assert type(model["attn"]) is kind


class OtherForward(nn.MultiheadAttention):
    def forward(self, query):
        return super().forward(query, query, query)


REFUSED = {
    "bias_kv": (lambda: own(add_bias_kv=True), {}, "add_bias_kv"),
    "zero_attn": (lambda: own(add_zero_attn=True), {}, "add_zero_attn"),
    "subclass": (lambda: OtherForward(WIDTH, HEADS), {}, "whose forward is its own"),
    "computed": (
        lambda: nn.utils.parametrizations.weight_norm(own(), "in_proj_weight"), {}, "its in_proj_weight is computed"
    ),
    "computed k": (
        lambda: nn.utils.parametrizations.weight_norm(own(kdim=6), "k_proj_weight"), {}, "its k_proj_weight is computed"
    ),
    "no router": (own, {"router": None}, "router=None"),
    "no router for three": (lambda: own(kdim=6), {"router": None}, "router=None"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_cannot_do_is_refused_by_adapt(name):
    make, options, culprit = REFUSED[name]
    model = nn.ModuleDict({"attn": make()})
    before = dict(model.named_modules())
    with pytest.raises(ValueError, match=rf"^rules: 'attn': .*{culprit}") as refusal:
        adapt(model, {"attn": options})
    assert "\n" not in str(refusal.value)
    assert dict(model.named_modules()) == before
    assert all(parameter.requires_grad for parameter in model.parameters())


BAD_CALLS = {
    "query: got 3": {"query": 3},
    "query: got a tensor (8,)": {"query": torch.ones(8)},
    "query: got shape (3, 5, 9)": {"query": torch.ones(3, 5, 9)},
    "key: got None": {"key": None},
    "key: got shape (3, 5, 9)": {"key": torch.ones(3, 5, 9)},
    "key: got shape (5, 8)": {"key": torch.ones(5, 8)},
    "key: got a batch of 2": {"key": torch.ones(2, 5, 8)},
    "value: got shape (3, 6, 8)": {"value": torch.ones(3, 6, 8)},
    "attn_mask: got 'causal'": {"attn_mask": "causal"},
    "attn_mask: got a tensor (5, 5) of torch.int64": {"attn_mask": torch.ones(5, 5).long()},
    "attn_mask: got shape (5, 4)": {"attn_mask": torch.ones(5, 4)},
    "attn_mask: got shape (3, 5, 5)": {"attn_mask": torch.ones(3, 5, 5)},
    "attn_mask: got shape (3, 2, 5, 5)": {"attn_mask": torch.ones(3, 2, 5, 5)},
    "attn_mask: got a tensor on meta": {"attn_mask": torch.ones(5, 5, device="meta")},
    "key_padding_mask: got shape (5,)": {"key_padding_mask": torch.ones(5).bool()},
    "key_padding_mask: got shape (5, 3)": {"key_padding_mask": torch.ones(5, 3).bool()},
    "key_padding_mask: got a tensor (3, 5) of torch.int64": {"key_padding_mask": torch.ones(3, 5).long()},
}


@pytest.mark.parametrize("line", BAD_CALLS)
def test_a_wrong_call_is_refused_by_name(line):
    attention = RAMoESelfAttention.from_attention(own(torch.float32, batch_first=True), **OPTIONS)
    x = torch.ones(3, 5, 8)
    with pytest.raises((ValueError, TypeError)) as refusal:
        attention(**{"query": x, "key": x, "value": x} | BAD_CALLS[line])
    assert str(refusal.value).startswith(line)
    assert "\n" not in str(refusal.value)


def test_autocast_and_lower_precision_take_masks_of_float32():
    theirs = own(torch.float32, batch_first=True)
    mine = RAMoESelfAttention.from_attention(theirs, **OPTIONS)
    x = inputs("xxx", True, dtype=torch.float32)
    arguments = masks("float-2", FLOAT, ROWS, ROWS, True, torch.float32)
    for need_weights in (True, False):
        with torch.autocast("cpu", torch.bfloat16):
            got, wanted = (module(*x, need_weights=need_weights, **arguments)[0] for module in (mine, theirs))
        torch.testing.assert_close(got.float(), wanted.float(), rtol=0.05, atol=0.05)
    mine, theirs, x = mine.bfloat16(), theirs.bfloat16(), [x[0].bfloat16()] * 3
    arguments = {name: mask.bfloat16() for name, mask in arguments.items()}
    torch.testing.assert_close(mine(*x, **arguments)[0], theirs(*x, **arguments)[0], rtol=0.05, atol=0.05)


def test_has_the_attributes_that_others_read():
    for theirs in (own(dropout=0.1), own(kdim=6, bias=False, batch_first=True)):
        mine = attention_class(theirs).from_attention(theirs, **OPTIONS)
        for name in ("embed_dim", "kdim", "vdim", "head_dim", "num_heads", "batch_first", "dropout", "add_zero_attn"):
            assert getattr(mine, name) == getattr(theirs, name), name
        for name in ("in_proj_weight", "bias_k", "bias_v"):
            assert getattr(mine, name) is getattr(theirs, name), name
        assert mine.out_proj.weight is theirs.out_proj.weight
        assert (mine.in_proj_bias is None) == (theirs.in_proj_bias is None)
