"""LoRA checkpoints that somebody damaged, edited or trained for another model or in another way, and wrong arguments:
refused in one line that names the file and the entry, tensor or module, before anything in the model is changed."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.lora import write_lora
from support.refusal import assert_refused, attempt
from support.sockets import make_socket
from torch import Tensor, nn

from fastmoe_lora import RAMoESelfAttention, adapt, adapters_from_lora, fixed_gates, ramoe_layers, save_lora

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")
NAN, INF = float("nan"), float("inf")
TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
A, B = "base_model.model.first.lora_A.weight", "base_model.model.inner.third.lora_B.weight"


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second, self.norm, self.inner = nn.Linear(8, 6), nn.Linear(6, 6), nn.LayerNorm(6), nn.Module()
        self.inner.third = nn.Linear(6, 4)
        self.embedding, self.attention = nn.Embedding(5, 6), nn.MultiheadAttention(6, 2)

    def forward(self, x):
        return self.inner.third(self.norm(self.second(self.first(x))))


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return write_lora(tmp_path_factory.mktemp("lora"), Net(), target_modules=["first", "third"], r=3)


@pytest.fixture
def folder(written, tmp_path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "copy"))


class Damage(NamedTuple):
    """`apply(folder)` is refused with a line that has all of `culprits` in it."""

    name: str
    apply: Callable[[Path], Any]
    culprits: tuple[str, ...]


def tensors(name: str, edit: Callable[[dict[str, Tensor]], Any], *culprits: str) -> Damage:
    def apply(folder: Path) -> None:
        content = load_file(folder / TENSORS)
        edit(content)
        save_file(content, folder / TENSORS)

    return Damage(f"tensors-{name}", apply, (TENSORS, *culprits))


def config(key: str, value: Any, *culprits: str, name: str = "") -> Damage:
    def apply(folder: Path) -> None:
        content = json.loads((folder / CONFIG).read_text("utf-8"))
        (folder / CONFIG).write_text(json.dumps(content | {key: value}), "utf-8")

    return Damage(f"config-{key}-{name or repr(value)[:30]}", apply, culprits or (CONFIG, key))


def written_as(file: str, name: str, content: Callable[[bytes], bytes], *culprits: str) -> Damage:
    def apply(folder: Path) -> None:
        (folder / file).write_bytes(content((folder / file).read_bytes()))

    return Damage(f"{file}-{name}", apply, (file, *culprits))


def without(key: str) -> Damage:
    def apply(folder: Path) -> None:
        content = json.loads((folder / CONFIG).read_text("utf-8"))
        del content[key]
        (folder / CONFIG).write_text(json.dumps(content), "utf-8")

    return Damage(f"config-without-{key}", apply, (CONFIG, key))


def put(content: dict[str, Tensor], key: str, value: float) -> None:
    content[key][1, 2] = value


def move(content: dict[str, Tensor], old: str, new: str) -> None:
    for key in list(content):
        if old in key:
            content[key.replace(old, new)] = content.pop(key)


def only(content: dict[str, Tensor], part: str) -> None:
    for key in [key for key in content if part not in key]:
        del content[key]


NOT = {
    "r": [0, -1, 2.0, "3", True, None, [3], 10**30, 4, 2],
    "lora_alpha": [NAN, INF, "8", None, True, [8], 1e300, 10**400],
    "rank_pattern": [[], "first", {"first": 0}, {"first": "3"}, {"first": 2}, {"(": 3}, {"(a+)+$": 3}, {"third": 5}],
    "alpha_pattern": [["first"], {"first": None}, {"first": "8"}, {"*": 8}, {"(x|x)*": 8}],
    "use_rslora": ["yes", 1, 0.5],
    "bias": ["all", "lora_only", 3, True],
    "init_lora_weights": ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "mica", 7, ["gaussian"]],
    "target_modules": [
        "first",
        [],
        ["first"],
        ["third"],
        ["first", "third", "second"],
        [3],
        7,
        None,
        "(",
        "(.*)*x",
        {},
    ],
    "exclude_modules": [["first"], "first", "(", 3, [None]],
    "layers_to_transform": [0, [1], "0", [0.5], {"0": 0}],
    "layers_pattern": [3, ["("], {"h": 0}],
    "modules_to_save": [["first"], 3, ["("], {"head": 1}],
    "peft_type": ["ADALORA", "LOHA", "lora", None, 3, ["LORA"]],
}
VARIANTS = {
    "use_dora": True,
    "use_qalora": True,
    "lora_bias": True,
    "layer_replication": [[0, 2]],
    "target_parameters": ["first.weight"],
    "trainable_token_indices": [1],
    "alora_invocation_tokens": [1, 2],
    "arrow_config": {"top_k": 2},
    "monteclora_config": {"num_samples": 3},
    "use_bdlora": {"nblocks": 2},
    "kasa_config": {"beta": 1},
    "megatron_config": {"tensor_model_parallel_size": 2},
    "an_option_of_later": 0.5,
}
DAMAGES = [
    *(config(key, value, CONFIG, name=f"{place}") for key, values in NOT.items() for place, value in enumerate(values)),
    *(config(key, value) for key, value in VARIANTS.items()),
    *map(without, ("peft_type", "r", "lora_alpha", "target_modules")),
    tensors("missing A", lambda t: t.pop(A), "'first.lora_A.weight' is missing"),
    tensors("missing module", lambda t: only(t, "first"), "'inner.third'", "no tensors"),
    tensors("none", dict.clear),
    tensors("module too many", lambda t: t.update({k.replace("first", "second"): v.clone() for k, v in t.items()})),
    tensors("no prefix", lambda t: move(t, "base_model.model.", ""), "first.lora_A.weight"),
    tensors("other prefix", lambda t: move(t, "base_model.model.", "base_model."), "base_model.first"),
    tensors("head", lambda t: t.update({"base_model.model.head.weight": torch.ones(2)}), "head.weight", "leave_out"),
    tensors("bias", lambda t: t.update({A.replace("weight", "bias"): torch.ones(3)}), "lora_A.bias"),
    tensors("dora", lambda t: t.update({A.replace("A.weight", "magnitude_vector"): torch.ones(6)}), "magnitude"),
    tensors("embedding", lambda t: move(t, "first.lora_A.weight", "first.lora_embedding_A"), "lora_embedding_A"),
    tensors("adapter name", lambda t: move(t, "lora_A.weight", "lora_A.default.weight"), "lora_A.default"),
    tensors("wide", lambda t: t.update({A: torch.ones(3, 9)}), "'first.lora_A.weight' has shape (3, 9)", "(3, 8)"),
    tensors("rank", lambda t: t.update({A: torch.ones(2, 8)}), "has shape (2, 8), expected (3, 8)"),
    tensors("flat", lambda t: t.update({B: torch.ones(12)}), "'inner.third.lora_B.weight' has shape (12,)"),
    tensors("empty", lambda t: t.update({B: torch.ones(4, 0)}), "(4, 0)"),
    tensors("whole numbers", lambda t: t.update({A: t[A].int()}), "'first.lora_A.weight' is of I32"),
    tensors("eight bits", lambda t: t.update({A: t[A].to(torch.float8_e4m3fn)}), "F8_E4M3"),
    *(
        tensors(f"{value} {key[-8:]}", lambda t, key=key, value=value: put(t, key, value), f"[1, 2] is {value}")
        for value in (NAN, INF, -INF)
        for key in (A, B)
    ),
    *(tensors(f"for {new}", lambda t, new=new: move(t, "first", new), new) for new in ("other", "first.0", "", "é")),
    written_as(TENSORS, "empty", lambda _: b""),
    written_as(TENSORS, "cut", lambda content: content[:-7]),
    written_as(TENSORS, "longer", lambda content: content + b"0"),
    written_as(TENSORS, "text", lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    written_as(TENSORS, "header", lambda content: b"\xff" * 8 + content[8:]),
    written_as(CONFIG, "empty", lambda _: b""),
    written_as(CONFIG, "cut", lambda content: content[:-9]),
    written_as(CONFIG, "list", lambda _: b"[]", "expected an object"),
    written_as(CONFIG, "null", lambda _: b"null"),
    written_as(CONFIG, "latin-1", lambda content: content + "ü".encode("latin-1")),
    written_as(CONFIG, "twice", lambda content: content.replace(b'"r": 3', b'"r": 4, "r": 3'), "'r' is there twice"),
    written_as(CONFIG, "NaN", lambda content: content.replace(b'"r": 3', b'"r": NaN')),
    written_as(CONFIG, "digits", lambda content: content.replace(b'"r": 3', b'"r": ' + b"3" * 9999)),
]


def assert_unchanged(model: nn.Module) -> None:
    fresh = Net()
    assert {name: type(module) for name, module in model.named_modules()} == {
        name: type(module) for name, module in fresh.named_modules()
    }
    assert all(parameter.requires_grad for parameter in model.parameters())
    state = fresh.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
@pytest.mark.filterwarnings("error")
def test_a_wrong_checkpoint_is_refused_and_changes_nothing(damage, folder, written):
    damage.apply(folder)
    model = Net()
    with pytest.raises(ValueError, match=r"\S") as refusal:
        adapters_from_lora(model, [written, folder])
    message = str(refusal.value)
    assert "\n" not in message, message
    assert len(message) < 1000
    assert str(folder) in message, message
    for culprit in damage.culprits:
        assert culprit in message, f"{culprit!r} is not in {message!r}"
    assert_unchanged(model)


MODELS = {
    "layer norm": ("norm", "'norm'", "is for a LayerNorm"),
    "embedding": ("embedding", "'embedding'", "is for a Embedding"),
    "part of attention": ("attention.out_proj", "'attention.out_proj'", "part of 'attention'"),
    "attention": ("attention", "'attention'", "MultiheadAttention"),
    "adapted": ("second", "'second'", "RAMoELinear"),
}


@pytest.mark.parametrize("name", MODELS)
def test_modules_that_lora_is_not_moved_to(name, folder):
    target, *culprits = MODELS[name]
    tensors("", lambda t: move(t, "first", target)).apply(folder)
    config("target_modules", [target, "third"]).apply(folder)
    model = adapt(Net(), {"second": {}}) if name == "adapted" else Net()
    with pytest.raises(ValueError, match=TENSORS) as refusal:
        adapters_from_lora(model, [folder])
    for culprit in culprits:
        assert culprit in str(refusal.value)
    assert len(list(ramoe_layers(model))) == (name == "adapted")


ARGUMENTS = {
    "no model": (TypeError, lambda p: adapters_from_lora(3, [p]), "model: got 3"),
    "a path": (TypeError, lambda p: adapters_from_lora(Net(), p), "paths: got"),
    "a string": (TypeError, lambda p: adapters_from_lora(Net(), str(p)), "paths: got"),
    "no paths": (ValueError, lambda p: adapters_from_lora(Net(), []), "paths: got none"),
    "none": (TypeError, lambda p: adapters_from_lora(Net(), [p, None]), "paths: got None"),
    "nowhere": (OSError, lambda p: adapters_from_lora(Net(), [p, p / "not"]), "not/adapter_config.json"),
    "experts": (ValueError, lambda p: adapters_from_lora(Net(), [p], num_experts=1), "options: num_experts"),
    "scaling": (ValueError, lambda p: adapters_from_lora(Net(), [p], scaling=1.0), "options: scaling"),
    "init_rank": (ValueError, lambda p: adapters_from_lora(Net(), [p], init_rank=1.0), "options: init_rank"),
    "as printed": (ValueError, lambda p: adapters_from_lora(Net(), [p], interpolation="as_printed"), "whole ranks off"),
    "small rank": (ValueError, lambda p: adapters_from_lora(Net(), [p], max_rank=2), "max_rank: got 2.*at least 3"),
    "no rank": (TypeError, lambda p: adapters_from_lora(Net(), [p], max_rank=4.0), "max_rank: got 4.0"),
    "splits": (ValueError, lambda p: adapters_from_lora(Net(), [p], splits=4), "model: 'first': splits: got 4"),
    "router": (ValueError, lambda p: adapters_from_lora(Net(), [p], router="tokens"), "router: got 'tokens'"),
    "unknown": (ValueError, lambda p: adapters_from_lora(Net(), [p], topk=1), "did you mean 'top_k'"),
    "leave_out text": (TypeError, lambda p: adapters_from_lora(Net(), [p], leave_out="head"), "leave_out: got 'head'"),
    "leave_out": (ValueError, lambda p: adapters_from_lora(Net(), [p], leave_out=["head*"]), "leave_out: 'head.'"),
    "leave_out half": (ValueError, lambda p: adapters_from_lora(Net(), [p], leave_out=["first.lora_A*"]), "is missing"),
    "meta": (ValueError, lambda p: adapters_from_lora(Net().to("meta"), [p]), "'first' is on the meta device"),
    "compiled": (ValueError, lambda p: adapters_from_lora(torch.compile(Net()), [p]), "."),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_wrong_arguments_of_adapters_from_lora(name, written):
    kind, call, culprit = ARGUMENTS[name]
    with pytest.raises(kind, match=culprit) as refusal:
        call(written)
    assert "\n" not in str(refusal.value)


def test_what_is_left_out_is_left_out(folder, written):
    tensors("", lambda t: t.update({"base_model.model.head.weight": torch.ones(2)})).apply(folder)
    config("modules_to_save", ["head"]).apply(folder)
    model = adapters_from_lora(Net(), [folder, written], leave_out=["head.*", "inner.third.*"])
    assert [name for name, _ in ramoe_layers(model)] == ["first"]


@pytest.mark.parametrize("name", ["first.base_layer.weight", "embedding.weight"])
def test_a_weight_beside_the_adapters_is_to_be_the_model_s(name, folder):
    own = Net().get_parameter(name.replace(".base_layer", "")).detach()
    tensors("", lambda t: t.update({f"base_model.model.{name}": own})).apply(folder)
    adapters_from_lora(Net(), [folder])
    for other in (own + 1e-3, own[:-1], own.double()):
        tensors("", lambda t, other=other: t.update({f"base_model.model.{name}": other.clone()})).apply(folder)
        with pytest.raises(ValueError, match=f"got 'base_model.model.{name}'"):
            adapters_from_lora(Net(), [folder])


def test_numbers_beyond_the_adapters_precision_are_refused(folder):
    tensors("", lambda t: t.update({key: value.half() for key, value in t.items()})).apply(folder)
    config("lora_alpha", 1e30).apply(folder)
    config("rank_pattern", {}).apply(folder)
    adapters_from_lora(Net().half(), [folder])  # one scaling: it is the layer's
    config("alpha_pattern", {"first": 1e-30}).apply(folder)
    tensors("", lambda t: t.update({A: t[A].double() * 1e300})).apply(folder)
    with pytest.raises(ValueError, match=r"paths: first: expert 0.* is -?inf, expected finite in torch.float32"):
        adapters_from_lora(Net(), [folder])


def _load(folder: Path) -> None:
    adapters_from_lora(Net(), [folder])


@pytest.mark.parametrize("kind", [os.mkdir, os.mkfifo, make_socket], ids=["folder", "pipe", "socket"])
@pytest.mark.parametrize("file", [TENSORS, CONFIG])
def test_what_is_no_file_is_refused(file, kind, folder):
    (folder / file).unlink()
    kind(folder / file)
    assert_refused(attempt(_load, folder), file)


def test_large_files_are_refused_in_little_memory(folder):
    whole = (folder / CONFIG).read_bytes()
    (folder / CONFIG).write_bytes(b"[" + b"[]," * 40_000_000)
    assert_refused(attempt(_load, folder), CONFIG)
    (folder / CONFIG).write_bytes(whole.replace(b'"r": 3', b'"r": 1000000000'))
    assert_refused(attempt(_load, folder), TENSORS, "has rank 1000000000")
    with (folder / TENSORS).open("ab") as file:
        file.truncate(96 * 10**9)
    assert_refused(attempt(_load, folder), TENSORS, "got 96000000000 bytes")


def test_a_checkpoint_of_pickle_is_named(folder):
    torch.save(load_file(folder / TENSORS), folder / "adapter_model.bin")
    (folder / TENSORS).unlink()
    with pytest.raises(ValueError, match=r"got adapter_model\.bin, expected adapter_model\.safetensors"):
        adapters_from_lora(Net(), [folder])


# Out of the model.


def adapted(**options) -> nn.Module:
    return adapt(Net(), {"first": {"num_experts": 2, **options}, "inner.third": {"num_experts": 2, **options}})


def spoiled(name: str, value: float) -> nn.Module:
    model = adapted()
    model.inner.third.get_parameter(name).data.view(-1)[1] = value
    return model


EXPORTS = {
    "no model": (TypeError, lambda: 3, {"expert": 0}, "model: got 3"),
    "no layers": (ValueError, Net, {"expert": 0}, "has no RAMoELinear"),
    "a layer": (ValueError, lambda: adapted().first, {"expert": 0}, "model: got an RA-MoE layer itself"),
    "router": (ValueError, adapted, {}, "gates: got none for layer 'first'.*router decides.*save_adapters"),
    "caller's": (ValueError, lambda: adapted(router=None), {}, "gates: got none for layer 'first'.*the caller's"),
    "one, caller's": (ValueError, lambda: adapted(router=None, num_experts=1), {}, "gates: got none"),
    "both": (ValueError, adapted, {"expert": 0, "gates": [1, 0]}, "expert: got one beside gates"),
    "expert": (ValueError, adapted, {"expert": 2}, "expert: got 2, expected 0 to 1"),
    "negative": (ValueError, adapted, {"expert": -1}, "expert: got -1"),
    "no expert": (TypeError, adapted, {"expert": 1.0}, "expert: got 1.0"),
    "true": (TypeError, adapted, {"expert": True}, "expert: got True"),
    "few gates": (ValueError, adapted, {"gates": [1.0]}, r"gates: got shape \(1,\), expected 2 numbers"),
    "gates of splits": (ValueError, adapted, {"gates": torch.ones(3, 2)}, r"got shape \(3, 2\)"),
    "nan": (ValueError, adapted, {"gates": [NAN, 1.0]}, r"gates\[0, 0\] is nan"),
    "text": (TypeError, adapted, {"gates": "01"}, "gates: got '01'"),
    "words": (TypeError, adapted, {"gates": ["a", "b"]}, "gates: got"),
    "ragged": (TypeError, adapted, {"gates": [[1], [2, 3]]}, "gates: got"),
    "truths": (TypeError, adapted, {"gates": [True, False]}, "gates: got torch.bool"),
    "a mapping": (TypeError, adapted, {"gates": {0: 1, 1: 0}}, "gates: got"),
    "huge": (TypeError, adapted, {"gates": [10**400, 0]}, "gates: got"),
    "none on": (ValueError, adapted, {"gates": [0, 0]}, "no expert has an active column"),
    "nan in A": (ValueError, lambda: spoiled("lora_A", NAN), {"expert": 0}, r"layer 'inner.third': lora_A\[.*nan"),
    "inf in B": (ValueError, lambda: spoiled("lora_B", INF), {"expert": 0}, r"layer 'inner.third': lora_B\[.*inf"),
    "rank": (ValueError, lambda: spoiled("rank", 9.0), {"expert": 0}, r"layer 'inner.third': rank\[0, 1\] is 9"),
    "meta": (ValueError, lambda: adapted().to("meta"), {"expert": 0}, "layer 'first': lora_A is on the meta device"),
    "attention": (ValueError, lambda: adapt(Net(), {"attention": {}}), {"expert": 0}, "'attention.qkv' is a part of"),
    "attention itself": (
        ValueError,
        lambda: RAMoESelfAttention.from_attention(nn.MultiheadAttention(4, 2)),
        {"expert": 0},
        "'qkv' is a part of",
    ),
}


@pytest.mark.parametrize("name", EXPORTS)
def test_what_is_no_lora_is_not_written(name, tmp_path):
    kind, build, options, culprit = EXPORTS[name]
    with pytest.raises(kind, match=culprit) as refusal:
        save_lora(build(), tmp_path / "out", **options)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", [None, 3, "", "a\0b", b"bytes"])
def test_wrong_paths_of_save_lora(path):
    with pytest.raises((TypeError, ValueError), match="path: got"):
        save_lora(adapted(), path, expert=0)


@pytest.mark.parametrize("gates", [[1.0], "ab", None, torch.ones(2, 2, 2), [NAN, 0.0]])
def test_wrong_fixed_gates_are_refused_before_the_context(gates):
    model = adapted()
    with pytest.raises((TypeError, ValueError), match="gates"), fixed_gates(model, gates):
        pytest.fail("the context was entered")
    assert not any(module._forward_pre_hooks for module in model.modules())
