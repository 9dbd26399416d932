"""LoRA checkpoints of PEFT's as experts, and experts as LoRA checkpoints: the outputs are those of stock PEFT."""

import json

import pytest
import torch
from support.lora import IDS, gpt2, llama, logits, with_peft, write_lora
from torch import nn

from fastmoe_lora import (
    RAMoESelfAttention,
    adapt,
    adapters_from_lora,
    check_adapters,
    fixed_gates,
    freeze_ranks,
    load_adapters,
    ramoe_layers,
    rank_budget_loss,
    save_adapters,
    save_lora,
    set_rank_window,
    trainable_parameters,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::UserWarning:transformers")
CLOSE = {"atol": 2e-6, "rtol": 2e-5}  # float32, sums in another order
CHECKPOINTS = {
    "plain": {},
    "other modules": {"target_modules": ["k_proj", "o_proj", "down_proj"], "r": 2, "lora_alpha": 3},
    "ranks by layer": {
        "r": 3,
        "rank_pattern": {"layers.1.self_attn.q_proj": 6, "^model.layers.0.self_attn.v_proj": 1},
        "alpha_pattern": {"layers.0.self_attn.q_proj": 16, "v_proj": 5},
    },
    "rslora": {"use_rslora": True, "r": 5},
    "all linear": {"target_modules": "all-linear", "r": 2, "init_lora_weights": "gaussian"},
    "regular expression": {"target_modules": r".*layers\.\d+\.mlp\.(gate|up)_proj", "lora_alpha": -2},
    "some layers": {"layers_to_transform": [1], "layers_pattern": "layers", "target_modules": ["up_proj", "q_proj"]},
    "but some": {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["layers.0.self_attn.q_proj"]},
    "turned off": {"lora_alpha": 0},
}


def one_hot(place: int, count: int) -> list[float]:
    return [float(expert == place) for expert in range(count)]


@pytest.mark.shows("PEFT", "three LoRA checkpoints are three experts, each with PEFT's outputs where its gate is 1")
def test_three_checkpoints_become_three_experts_with_peft_s_outputs(tmp_path):
    chosen = ["plain", "other modules", "ranks by layer"]
    paths = [write_lora(tmp_path / str(place), **CHECKPOINTS[name]) for place, name in enumerate(chosen)]
    model = adapters_from_lora(llama(), paths)
    for place, path in enumerate(paths):
        expected = logits(with_peft(path))
        with fixed_gates(model, one_hot(place, 3)):
            torch.testing.assert_close(logits(model), expected, **CLOSE)
        assert (expected - logits(llama())).abs().max() > 1e-2
    with fixed_gates(model, [0.0, 0.0, 0.0]):
        torch.testing.assert_close(logits(model), logits(llama()), **CLOSE)
    layers = dict(ramoe_layers(model))
    assert layers["model.layers.1.self_attn.q_proj"].rank.tolist() == [[4, 0, 6]]
    assert layers["model.layers.0.self_attn.v_proj"].rank.tolist() == [[4, 0, 1]]
    assert layers["model.layers.0.mlp.down_proj"].rank.tolist() == [[0, 2, 0]]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_is_an_expert_and_comes_out_as_one(name, tmp_path):
    path = write_lora(tmp_path / "in", **CHECKPOINTS[name])
    expected = logits(with_peft(path))
    model = adapters_from_lora(llama(), [path, write_lora(tmp_path / "other")])
    with fixed_gates(model, [1, 0]):
        torch.testing.assert_close(logits(model), expected, **CLOSE)
    if name == "turned off":
        with pytest.raises(ValueError, match="model: no expert has an active column"):
            save_lora(adapters_from_lora(llama(), [path], max_rank=8), tmp_path / "out", gates=[0.0])
        return
    save_lora(model, tmp_path / "out", expert=0)
    torch.testing.assert_close(logits(with_peft(tmp_path / "out")), expected, **CLOSE)


@pytest.mark.shows("PEFT", "router and ranks are learned on top of LoRA checkpoints")
def test_router_and_ranks_are_learned_on_top(tmp_path):
    paths = [write_lora(tmp_path / "a"), write_lora(tmp_path / "b", **CHECKPOINTS["other modules"])]
    model = adapters_from_lora(llama(), paths, interpolation="sampled").train()
    assert rank_budget_loss(model).item() == pytest.approx(0.0, abs=1e-4)
    assert len(check_adapters(model, IDS)) == len(dict(ramoe_layers(model)))
    set_rank_window(model, 3.0)
    kinds = {name.rpartition(".")[2] for name, _ in trainable_parameters(model)}
    assert kinds == {"lora_A", "lora_B", "rank", "weight"}  # the last of routers
    optimizer = torch.optim.AdamW([parameter for _, parameter in trainable_parameters(model)], lr=0.01)
    before = {name: parameter.detach().clone() for name, parameter in trainable_parameters(model)}
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for _, layer in ramoe_layers(model):
                layer.rank.clamp_(0, layer.max_rank)
        losses.append(loss.item())
    assert min(losses[-3:]) < losses[0]
    moved = {
        name.rpartition(".")[2] for name, parameter in trainable_parameters(model) if (parameter != before[name]).any()
    }
    assert moved == kinds
    freeze_ranks(model)
    save_adapters(model, tmp_path / "saved")
    fresh = adapters_from_lora(llama(), paths, interpolation="sampled")
    load_adapters(fresh, tmp_path / "saved")
    assert torch.equal(logits(fresh), logits(model.eval()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_numbers_are_not_rounded_below_float32(dtype, tmp_path):
    path = write_lora(tmp_path / "lora")
    base = llama().to(dtype)
    model = adapters_from_lora(base, [path])
    _, layer = next(ramoe_layers(model))
    assert layer.weight.dtype == dtype
    assert layer.lora_A.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert logits(model).dtype == dtype
    assert (logits(model) - logits(with_peft(path)).to(dtype)).abs().max() < (1e-5 if dtype == torch.float64 else 0.05)
    own = write_lora(tmp_path / "own", llama().to(dtype))
    assert next(ramoe_layers(adapters_from_lora(llama().to(dtype), [own])))[1].weight.dtype == dtype


def test_splits_share_the_checkpoint(tmp_path):
    path = write_lora(tmp_path / "lora")
    model = adapters_from_lora(llama(), [path], splits=2, max_rank=6)
    expected = logits(with_peft(path))
    torch.testing.assert_close(logits(model), expected, **CLOSE)
    save_lora(model, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 8
    torch.testing.assert_close(logits(with_peft(tmp_path / "out")), expected, **CLOSE)


@pytest.mark.shows("PEFT", "LoRA checkpoints of GPT-2, whose linear layers are `Conv1D`, in and out")
@pytest.mark.parametrize("targets", [["c_attn"], ["c_attn", "c_proj", "lm_head"]])
def test_gpt_2(targets, tmp_path):
    path = write_lora(tmp_path / "in", gpt2(), target_modules=targets, fan_in_fan_out="lm_head" not in targets)
    expected = logits(with_peft(path, gpt2()))
    model = adapters_from_lora(gpt2(), [path, path])
    with fixed_gates(model, [1.0, 0.0]):
        torch.testing.assert_close(logits(model), expected, **CLOSE)
    save_lora(model, tmp_path / "out", gates=[0.25, 0.75])
    torch.testing.assert_close(logits(with_peft(tmp_path / "out", gpt2())), expected, **CLOSE)


# The other way round.


class Net(nn.Module):
    """A fused QKV projection, a module whose name ends as another's, and one that is left out."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj, self.inner = nn.Linear(8, 24), nn.Linear(24, 12), nn.Module()
        self.inner.proj = nn.Linear(12, 6, bias=False)

    def forward(self, x):
        return self.inner.proj(self.proj(self.qkv(x).tanh()).tanh())


def net(awake: bool = True, **options) -> Net:
    torch.manual_seed(2)
    options = {"num_experts": 3, "max_rank": 4, "init_rank": 2.0, **options}
    rules = {"qkv": {**options, "splits": 3}, "proj": {**options, "scaling": 0.7}}
    model = adapt(Net(), rules) if awake else Net()
    for _, layer in ramoe_layers(model):
        nn.init.normal_(layer.lora_B, std=0.3)
        with torch.no_grad():
            layer.rank.uniform_(0.2, 3.9)
    return model.eval()


GATES = {
    "one": [0.0, 1.0, 0.0],
    "mixture": [0.5, -0.2, 0.7],
    "most": [0.0, 0.4, 0.6],
}
RANKS = {
    "fractional": lambda model: None,
    "frozen": freeze_ranks,
    "window": lambda model: set_rank_window(model, 2.5),
    "uneven": lambda model: next(ramoe_layers(model))[1].rank.data.copy_(torch.eye(3) * 2.5),
}


KINDS = [(ranks, kind) for ranks in RANKS for kind in ("linear", "sampled")] + [("fractional", "as_printed")]


@pytest.mark.shows(
    "PEFT", "a fixed mixture of experts, of any ranks and splits, is a LoRA checkpoint that stock PEFT loads"
)
@pytest.mark.parametrize(("ranks", "interpolation"), KINDS)
@pytest.mark.parametrize("gates", GATES)
def test_a_fixed_mixture_is_a_lora_that_peft_loads(gates, ranks, interpolation, tmp_path):
    model = net(interpolation=interpolation)
    RANKS[ranks](model)
    x = torch.randn(5, 8)
    with fixed_gates(model, GATES[gates]):
        expected = model(x)
    save_lora(model, tmp_path, gates=GATES[gates])
    loaded = with_peft(tmp_path, net(awake=False))
    torch.testing.assert_close(loaded(x), expected, **CLOSE)
    assert sorted(name for name, module in loaded.named_modules() if hasattr(module, "lora_A")) == [
        "base_model.model.proj",
        "base_model.model.qkv",
    ]


def test_gates_of_each_split(tmp_path):
    model = adapt(Net(), {"qkv": {"num_experts": 2, "splits": 3}}).eval()
    nn.init.normal_(model.qkv.lora_B)
    gates = torch.tensor([[1.0, 0.0], [0.2, 0.8], [0.0, 0.0]])
    x = torch.randn(4, 8)
    with fixed_gates(model, gates):
        expected = model(x)
    save_lora(model, tmp_path, gates=gates)
    base = Net()
    base.load_state_dict({name: value for name, value in model.state_dict().items() if name in base.state_dict()})
    torch.testing.assert_close(with_peft(tmp_path, base)(x), expected, **CLOSE)


@pytest.mark.parametrize("router", ["token", "sample"])
def test_a_single_expert_needs_no_gates(router, tmp_path):
    model = net(num_experts=1, router=router)
    save_lora(model, tmp_path)
    x = torch.randn(5, 8)
    torch.testing.assert_close(with_peft(tmp_path, net(awake=False))(x), model(x), **CLOSE)


def test_fixed_gates_end_with_their_context_and_reach_parts_of_layers(tmp_path):
    attention = RAMoESelfAttention.from_attention(nn.MultiheadAttention(8, 2, batch_first=True), num_experts=2).eval()
    nn.init.normal_(attention.qkv.lora_B)
    x, y = torch.randn(2, 3, 8), torch.randn(2, 4, 8)
    before = attention(x, y, y)[0]
    with fixed_gates(attention, [1.0, 0.0]):
        first = attention(x, y, y)[0]
        with torch.no_grad():
            attention.qkv.lora_B[:, 1] += 1  # of the expert whose gate is 0
        assert torch.equal(first, attention(x, y, y)[0])
    with torch.no_grad():
        attention.qkv.lora_B[:, 1] -= 1
    torch.testing.assert_close(attention(x, y, y)[0], before, **CLOSE)
    assert not torch.equal(first, before)
