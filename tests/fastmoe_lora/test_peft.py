"""RA-MoE as a method of PEFT: made, trained, saved, loaded, switched, merged and refused as PEFT's own are."""

import copy
import io
import subprocess
import sys
from contextlib import redirect_stdout

import pytest
import torch
from support.lora import IDS, gpt2, llama, logits, with_peft, write_lora
from torch import nn

import fastmoe_lora
from fastmoe_lora import (
    RAMoEConfig,
    adapt,
    check_adapters,
    disable_adapters,
    fixed_gates,
    freeze_ranks,
    ramoe_layers,
    rank_report,
    save_lora,
    set_rank_window,
    unadapt,
)

import peft  # isort: skip

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::FutureWarning:transformers")
OPTIONS = {"num_experts": 3, "max_rank": 4, "init_rank": 2.5, "target_modules": ["q_proj", "v_proj"]}
CLOSE = {"atol": 2e-6, "rtol": 2e-5}


def make(awake: bool = True, model: nn.Module | None = None, **options) -> peft.PeftModel:
    made = peft.get_peft_model(llama() if model is None else model, RAMoEConfig(**{**OPTIONS, **options}))
    return wake(made) if awake else made


def wake(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for _, layer in ramoe_layers(model):
            layer.lora_B.normal_(std=0.5)
            layer.rank.uniform_(0.3, 3.8)
    return model.eval()


CONFIGS = {
    "default": {},
    "per sample": {"router": "sample", "top_k": 2, "scaling": 0.5},
    "all linear": {"target_modules": "all-linear"},
    "pattern": {"target_modules": r".*layers\.1\..*_proj", "options_pattern": {"q_proj": {"splits": 2}, "o_proj": {}}},
    "layers": {"layers_to_transform": [1], "layers_pattern": "layers", "exclude_modules": ["v_proj"]},
    "sampled": {"interpolation": "sampled", "dropout": 0.1},
    "task": {"task_type": "CAUSAL_LM"},
    "modules to save": {"modules_to_save": ["lm_head"]},
}


@pytest.mark.shows(
    "PEFT", "`get_peft_model`, `save_pretrained`, `from_pretrained`, `disable_adapter`, `modules_to_save`, `unload`"
)
@pytest.mark.parametrize("name", CONFIGS)
def test_saved_and_loaded_it_computes_the_same(name, tmp_path):
    base = logits(llama())
    fresh = make(awake=False, **CONFIGS[name])
    torch.testing.assert_close(logits(fresh.eval()), base, **CLOSE)
    model = wake(fresh)
    set_rank_window(model, 1.5)
    if "modules_to_save" in CONFIGS[name]:
        nn.init.normal_(model.base_model.model.lm_head.modules_to_save["default"].weight)
    expected = logits(model)
    assert (expected - base).abs().max() > 1e-4
    model.save_pretrained(tmp_path)
    loaded = with_peft(tmp_path)
    assert torch.equal(logits(loaded), expected)
    assert torch.equal(
        logits(peft.PeftModel.from_pretrained(llama(), tmp_path, low_cpu_mem_usage=True).eval()), expected
    )
    with model.disable_adapter():
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), expected)
    if "modules_to_save" not in CONFIGS[name]:  # which PEFT leaves in the model
        assert torch.equal(logits(model.unload()), base)


def test_only_adapters_learn_and_all_are_reached():
    model = make(modules_to_save=["lm_head"]).train()
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    kinds = {"lora_A", "lora_B", "rank", "router.weight"}
    inside = "base_model.model.model.layers.{}.self_attn.{}.ramoe_adapters.default.{}"
    names = {inside.format(layer, part, kind) for layer in (0, 1) for part in ("q_proj", "v_proj") for kind in kinds}
    assert learning == names | {"base_model.model.lm_head.modules_to_save.default.weight"}
    assert len(check_adapters(model, IDS)) == 4
    model(IDS, labels=IDS).loss.backward()
    assert all(model.get_parameter(name).grad is not None for name in learning)
    with redirect_stdout(io.StringIO()) as printed:
        model.print_trainable_parameters()
    assert f"trainable params: {sum(model.get_parameter(name).numel() for name in learning):,}" in printed.getvalue()


@pytest.mark.shows("PEFT", "`freeze_ranks` and `rank_report` of PEFT's models")
def test_the_ranks_live_their_life_in_a_model_of_peft_s(tmp_path):
    model = make()
    freeze_ranks(model, budget=24)
    expected = logits(model)
    assert sum(sum(row.ranks) for row in rank_report(model)) == 24
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(llama(), tmp_path, is_trainable=True).eval()
    assert torch.equal(logits(loaded), expected)
    loaded.set_adapter("default")
    assert not any(layer.rank.requires_grad for _, layer in ramoe_layers(loaded))
    assert all(layer.ranks_whole and layer.lora_A.requires_grad for _, layer in ramoe_layers(loaded))


@pytest.mark.shows("PEFT", "`add_adapter`, `load_adapter`, `set_adapter`, `delete_adapter`: one is active")
def test_several_adapters_are_kept_and_one_is_active(tmp_path):
    model = make()
    first = logits(model)
    model.add_adapter("other", RAMoEConfig(**{**OPTIONS, "num_experts": 2, "target_modules": ["q_proj", "up_proj"]}))
    assert torch.equal(logits(model), first)
    for name, layer in ramoe_layers(model):
        if name.endswith("other"):
            nn.init.normal_(layer.lora_B)
    model.set_adapter("other")
    second = logits(model.eval())
    assert not torch.equal(second, first)
    assert all("other" in name for name, parameter in model.named_parameters() if parameter.requires_grad)
    with pytest.raises(ValueError, match=r"adapter_name: got .*expected a single one"):
        model.base_model.set_adapter(["default", "other"])
    model.save_pretrained(tmp_path)
    loaded = with_peft(tmp_path)
    loaded.load_adapter(tmp_path / "other", "other")
    assert torch.equal(logits(loaded), first)
    loaded.set_adapter("other")
    assert torch.equal(logits(loaded), second)
    with pytest.raises(ValueError, match="has 2 adapters of PEFT's"):
        save_lora(loaded, tmp_path / "lora", gates=[1.0, 0.0])
    loaded.delete_adapter("other")
    loaded.set_adapter("default")
    assert torch.equal(logits(loaded), first)


@pytest.mark.shows(
    "PEFT", "`merge_adapter`, `unmerge_adapter`, `merge_and_unload` of a single expert; a router's are refused by name"
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("splits", [1, 2])
def test_a_single_expert_can_be_merged_and_taken_out_again(splits, dtype):
    base = llama().to(dtype)
    weights = copy.deepcopy(base.state_dict())
    model = make(model=base, num_experts=1, splits=splits)
    expected, plain = logits(model), logits(llama().to(dtype))
    model.merge_adapter()
    tolerance = CLOSE if dtype == torch.float32 else {"atol": 0.05, "rtol": 0.05}
    torch.testing.assert_close(logits(model), expected, **tolerance)
    with model.disable_adapter():
        assert torch.equal(logits(model), plain)
    torch.testing.assert_close(logits(model), expected, **tolerance)
    model.unmerge_adapter()
    assert torch.equal(logits(model), expected)
    merged = model.merge_and_unload(safe_merge=True)
    assert not any("ramoe" in name for name, _ in merged.named_modules())
    torch.testing.assert_close(logits(merged), expected, **tolerance)
    assert merged.state_dict().keys() == weights.keys()


def test_gpt_2(tmp_path):
    model = make(model=gpt2(), target_modules=["c_attn"], num_experts=1, options_pattern={"c_attn": {"splits": 3}})
    expected = logits(model)
    assert (expected - logits(gpt2())).abs().max() > 1e-3
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(gpt2()))
    model.save_pretrained(tmp_path / "peft")
    assert torch.equal(logits(with_peft(tmp_path / "peft", gpt2())), expected)
    save_lora(model, tmp_path / "lora")
    torch.testing.assert_close(logits(with_peft(tmp_path / "lora", gpt2())), expected, **CLOSE)
    model(IDS, labels=IDS).loss.backward()
    torch.testing.assert_close(logits(model.merge_and_unload()), expected, **CLOSE)


def test_a_router_s_experts_are_not_merged_and_come_out_as_a_fixed_mixture(tmp_path):
    model = make()
    before = logits(model)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match=r"merge: 'model.layers.0.self_attn.q_proj' has 3 experts.*save_lora"):
            merge()
    assert torch.equal(logits(model), before)
    with fixed_gates(model, [0.2, 0.5, 0.3]):
        expected = logits(model)
    save_lora(model, tmp_path, gates=[0.2, 0.5, 0.3])
    stock = with_peft(tmp_path)
    torch.testing.assert_close(logits(stock), expected, **CLOSE)
    torch.testing.assert_close(logits(stock.merge_and_unload()), expected, **CLOSE)


def test_what_is_peft_s_is_left_to_peft():
    model = make()
    with pytest.raises(ValueError, match=r"model: '.*layers.0.self_attn.q_proj' is a layer of PEFT's.*unload\(\)"):
        unadapt(model)
    with pytest.raises(ValueError, match=r"matches no nn\.Linear"):
        adapt(model, {"*base_layer": {}})
    with disable_adapters(model):
        torch.testing.assert_close(logits(model), logits(llama()), **CLOSE)


@pytest.mark.filterwarnings("ignore:.*mismatched.*:UserWarning")
def test_fused_paths_are_off_while_it_is_there():
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).eval()
    fused, x = encoder.activation_relu_or_gelu, torch.randn(2, 3, 8)
    model = make(model=encoder, target_modules=["linear1", "linear2"])
    inference = model(x)
    torch.testing.assert_close(inference, model.train()(x), **CLOSE)
    assert not torch.allclose(inference, nn.TransformerEncoderLayer.forward(model.unload().eval(), x))
    assert encoder.activation_relu_or_gelu == fused


def test_a_copy_is_on_its_own():
    model = make()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if name.endswith("base_layer.weight"):
                parameter.zero_()
    assert not torch.equal(logits(twin), logits(model))
    layers = dict(ramoe_layers(twin))
    assert all(layer.weight is not dict(ramoe_layers(model))[name].weight for name, layer in layers.items())
    assert all(not layer.weight.any() for layer in layers.values())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(6, 6), nn.Linear(6, 6, bias=False), nn.LayerNorm(6)
        self.attention = nn.MultiheadAttention(6, 2)
        self.same = self.first

    def forward(self, x):
        return self.same(self.norm(self.second(self.first(x))))


class Reads(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(4, 12)

    def forward(self, x):
        return nn.functional.linear(x, self.qkv.weight)


def hooked() -> nn.Module:
    model = Net()
    model.second.register_forward_hook(lambda *_: None)
    return model


WRONG_MODELS = {
    "no linear": (Net, ["norm"], "target_modules: 'norm': linear: got a LayerNorm"),
    "two names": (Net, ["first", "same"], "target_modules: 'same' is 'first' by another name"),
    "attention": (Net, ["out_proj"], "'attention.out_proj' is a part of nn.MultiheadAttention"),
    "hooks": (hooked, ["second"], "target_modules: 'second': linear: it has hooks"),
    "passed by": (Reads, ["qkv"], "reads its weight"),
    "none": (Net, ["third"], "third"),
}


@pytest.mark.parametrize("name", WRONG_MODELS)
def test_what_cannot_be_adapted_is_refused_and_left_as_it_was(name):
    build, targets, culprit = WRONG_MODELS[name]
    model = build()
    before, state = dict(model.named_modules()), copy.deepcopy(model.state_dict())
    learns = [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(ValueError, match=culprit):
        peft.get_peft_model(model, RAMoEConfig(target_modules=targets, num_experts=2))
    assert dict(model.named_modules()) == before
    assert [parameter.requires_grad for parameter in model.parameters()] == learns
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


WRONG_OPTIONS = {
    "num_experts": ({"num_experts": 0}, "num_experts"),
    "max_rank": ({"max_rank": 2.5}, "max_rank"),
    "init_rank": ({"init_rank": 9}, "init_rank"),
    "router": ({"router": "tokens"}, "router"),
    "no router": ({"router": None}, "router: got None"),
    "top_k": ({"top_k": 7}, "top_k"),
    "scaling": ({"scaling": float("nan")}, "scaling"),
    "interpolation": ({"interpolation": "cubic"}, "interpolation"),
    "dropout": ({"dropout": 1.0}, "dropout"),
    "backend": ({"backend": "gpu"}, "backend"),
    "pattern of what": ({"options_pattern": {"qkv": 3}}, "options_pattern: 'qkv'"),
    "pattern's option": ({"options_pattern": {"qkv": {"split": 3}}}, "did you mean 'splits'"),
    "pattern's value": ({"options_pattern": {"qkv": {"splits": 0}}}, "options_pattern: 'qkv': splits"),
    "no pattern": ({"options_pattern": {"(": {}}}, r"options_pattern: '\('"),
    "layers": ({"layers_pattern": "h"}, "layers_pattern"),
}


@pytest.mark.parametrize("name", WRONG_OPTIONS)
def test_wrong_options_are_refused_when_the_config_is_made(name):
    options, culprit = WRONG_OPTIONS[name]
    with pytest.raises((ValueError, TypeError), match=culprit) as refusal:
        RAMoEConfig(target_modules=["q_proj"], **options)
    assert "\n" not in str(refusal.value)


def test_wrong_options_of_one_layer_are_refused_by_its_name():
    with pytest.raises(ValueError, match=r"target_modules: 'model.layers.0.self_attn.q_proj': splits: got 3"):
        make(splits=3)


def test_a_damaged_checkpoint_is_refused_by_the_name_of_the_tensor(tmp_path):
    from safetensors.torch import load_file, save_file

    make().save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    whole, key = load_file(file), "base_model.model.model.layers.1.self_attn.v_proj.ramoe_adapters.lora_A"
    nan = whole[key].clone()
    nan[0, 1, 2, 3] = float("nan")
    other = {name: value for name, value in whole.items() if name != key}
    cases = {
        "is missing": other,
        "is not of this model": whole | {key.replace("v_proj", "k_proj"): nan},
        "has shape": whole | {key: nan[:, :2].contiguous()},
        "is nan": whole | {key: nan},
    }
    for verdict, content in cases.items():
        save_file(content, file)
        with pytest.raises(ValueError, match=verdict):
            with_peft(tmp_path)


def test_options_in_a_file_that_this_release_does_not_know_are_refused(tmp_path):
    make().save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    text = file.read_text()
    file.write_text(text.replace('"num_experts": 3', '"num_experts": 3, "shared_experts": 2'))
    with pytest.raises(ValueError, match=r"adapter_config.json: 'shared_experts' is unknown"):
        with_peft(tmp_path)
    file.write_text(text.replace('"num_experts": 3', '"num_experts": 3, "shared_experts": null'))
    with_peft(tmp_path)


def test_stock_loras_load_beside_it(tmp_path):
    path = write_lora(tmp_path)
    assert "ramoe" not in repr(with_peft(path))
    assert peft.PeftType("RAMOE") is peft.PeftType.RAMOE
    assert copy.deepcopy(peft.PeftType.RAMOE) is peft.PeftType.RAMOE
    assert fastmoe_lora.RAMoEConfig is RAMoEConfig
    with pytest.raises(AttributeError, match="no attribute 'RAMoEConfigs'"):
        fastmoe_lora.RAMoEConfigs  # noqa: B018


WITHOUT = """
import sys
sys.modules["peft"] = None
import importlib.util
importlib.util.find_spec = lambda name, *_: None
from fastmoe_lora import RAMoEConfig
try:
    RAMoEConfig(num_experts=2)
except ImportError as error:
    print(error)
"""


def test_without_peft_the_name_is_there_and_says_what_is_missing():
    code = "import sys, fastmoe_lora; print([m for m in ('peft', 'safetensors', 'transformers') if m in sys.modules])"
    for program, answer in ((code, "[]"), (WITHOUT, "RAMoEConfig: PEFT is not installed, expected it")):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout.startswith(answer), done
