"""Weight files of a trunk that are damaged, hostile or another model's: one line with the file, nothing unpacked."""

import dataclasses
import json
import os
import pickle
import struct
import zipfile
from functools import partial

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file
from support.refusal import assert_refused, attempt
from support.special import NO_FILES, special

from unistd import TrunkConfig
from unistd.model.sources import load_trunk
from unistd.model.weights import read_weights

CONFIG = TrunkConfig(8, 2, 2, mlp_ratio=2.0)
FIRST = "blocks.0.attn.qkv.weight"


def timm_state():
    """Weights by timm's names, of the smallest trunk."""
    state = {"norm.weight": torch.ones(8), "norm.bias": torch.zeros(8)}
    for block in ("blocks.0.", "blocks.1."):
        for name, shape in (("attn.qkv", (24, 8)), ("attn.proj", (8, 8)), ("mlp.fc1", (16, 8)), ("mlp.fc2", (8, 16))):
            state |= {f"{block}{name}.weight": torch.randn(shape), f"{block}{name}.bias": torch.randn(shape[:1])}
        for norm in ("norm1", "norm2"):
            state |= {f"{block}{norm}.weight": torch.ones(8), f"{block}{norm}.bias": torch.zeros(8)}
    return state


def refused(pretrained, *culprits, trunk=CONFIG):
    with pytest.raises((ValueError, OSError)) as error:
        load_trunk(trunk, str(pretrained))
    line = str(error.value)
    assert "\n" not in line
    assert len(line) < 900
    for culprit in culprits:
        assert culprit in line, f"{culprit!r} is not in {line!r}"


def test_the_state_that_is_changed_below_is_right(tmp_path):
    torch.save(timm_state(), tmp_path / "w.pt")
    save_file(timm_state(), tmp_path / "w.safetensors")
    for name in ("w.pt", "w.safetensors"):
        assert torch.isfinite(read_weights(tmp_path / name, CONFIG)["blocks.1.mlp.fc2.weight"]).all()


def _without(*keys):
    return lambda state: {key: value for key, value in state.items() if key not in keys}


def _with(**values):
    return lambda state: state | {key.replace("__", "."): value for key, value in values.items()}


def _first(change):
    return lambda state: state | {FIRST: change(state[FIRST])}


def _one(value):
    def change(weight):
        weight = weight.clone()
        weight[3, 5] = value
        return weight

    return change


OURS = "'blocks.0.attention.qkv.weight'"
STATES = {
    "int32": (_first(lambda w: w.int()), OURS, "torch.int32"),
    "int8": (_first(lambda w: w.to(torch.int8)), OURS, "torch.int8"),
    "bool": (_first(lambda w: w > 0), OURS, "torch.bool"),
    "complex": (_first(lambda w: w.to(torch.complex64)), OURS, "torch.complex64"),
    "float8": (_first(lambda w: w.to(torch.float8_e4m3fn)), OURS, "torch.float8_e4m3fn"),
    "sparse": (_first(lambda w: w.to_sparse()), OURS, "torch.sparse_coo"),
    "meta": (_first(lambda w: w.to("meta")), OURS, "meta"),
    "nan": (_first(_one(float("nan"))), OURS, "NaN or infinite"),
    "inf": (_first(_one(float("inf"))), OURS, "NaN or infinite"),
    "beyond float32": (_first(lambda w: w.double() * 1e300), OURS, "NaN or infinite"),
    "nan in a bias": (_with(norm__bias=torch.full((8,), float("nan"))), "'norm_out.bias'", "NaN"),
    "transposed": (_first(lambda w: w.t()), OURS, "(8, 24)", "(24, 8)"),
    "3-D": (_first(lambda w: w[None]), OURS, "(1, 24, 8)"),
    "0-D": (_first(lambda w: w.sum()), OURS, "()"),
    "empty": (_first(lambda w: w[:0]), OURS, "(0, 8)"),
    "expanded to terabytes": (_first(lambda w: w[:1, :1].expand(1 << 20, 1 << 20)), OURS, "(1048576, 1048576)"),
    "no weight": (_without(FIRST), OURS),
    "no norm": (_without("norm.weight", "norm.bias"), "'norm_out.weight'"),
    "half a norm": (_without("norm.bias"), "'norm_out.bias'"),
    "no block": (lambda state: {k: v for k, v in state.items() if not k.startswith("blocks.1")}, "found 1 blocks"),
    "a block more": (_with(blocks__2__norm1__weight=torch.ones(8)), "found 3 blocks, expected 2"),
    "a block far off": (_with(blocks__99999999999__norm1__weight=torch.ones(8)), "'blocks.99999999999"),
    "a word for a block": (_with(blocks__x__norm1__weight=torch.ones(8)), "'blocks.x.norm1.weight'"),
    "a zero in front": (_with(blocks__00__norm1__weight=torch.ones(8)), "'blocks.00.norm1.weight'"),
    "a negative block": (_with(**{"blocks__-1__norm1__weight": torch.ones(8)}), "'blocks.-1.norm1.weight'"),
    "another digit": (_with(**{"blocks.\u00b2.norm1.weight": torch.ones(8)}), "'blocks.\u00b2.norm1.weight'"),
    "a long name": (_with(**{"blocks.0." + "x" * 5000: torch.ones(8)}), "'blocks.0.xxx"),
    "an adapter beside": (_with(blocks__0__attn__qkv__lora_A=torch.ones(8)), "'blocks.0.attn.qkv.lora_A'"),
    "another part": (_with(blocks__0__attn__q_norm__weight=torch.ones(4)), "'blocks.0.attn.q_norm.weight'"),
    "a scale too long": (_with(blocks__0__ls1__gamma=torch.ones(9)), "LayerScale", "(9,)", "(8,)"),
    "a scale of NaN": (_with(blocks__0__ls1__gamma=torch.full((8,), float("nan"))), "LayerScale", "NaN"),
    "a scale of whole numbers": (_with(blocks__0__ls2__gamma=torch.ones(8, dtype=torch.int64)), "LayerScale"),
    "nothing": (lambda state: {}, "no Vision Transformer"),
    "no tensors": (lambda state: dict.fromkeys(state, 1.0), "no Vision Transformer"),
    "a list": (lambda state: list(state.values()), "expected a state dict, found list"),
    "a tensor": (lambda state: state[FIRST], "expected a state dict, found Tensor"),
    "none": (lambda state: None, "expected a state dict, found NoneType"),
    "an optimiser": (lambda state: {"state": {}, "param_groups": []}, "no Vision Transformer"),
}


@pytest.mark.parametrize("case", STATES)
def test_another_state(case, tmp_path):
    change, *culprits = STATES[case]
    torch.save(change(timm_state()), tmp_path / "w.pt")
    refused(tmp_path / "w.pt", str(tmp_path / "w.pt"), *culprits)


@pytest.mark.parametrize("case", ["int32", "bool", "nan", "3-D", "no weight", "half a norm", "a block more", "float8"])
def test_another_state_in_safetensors(case, tmp_path):
    change, *culprits = STATES[case]
    save_file({key: value.contiguous() for key, value in change(timm_state()).items()}, tmp_path / "w.safetensors")
    refused(tmp_path / "w.safetensors", str(tmp_path / "w.safetensors"), *culprits)


@pytest.mark.parametrize("sizes", [{"width": 16}, {"depth": 3}, {"mlp_ratio": 4.0}, {"input_norm": True}])
def test_another_trunk(sizes, tmp_path):
    torch.save(timm_state(), tmp_path / "w.pt")
    trunk = dataclasses.replace(CONFIG, **sizes)
    refused(tmp_path / "w.pt", "'norm_in.weight'" if "input_norm" in sizes else "expected", trunk=trunk)


class Runs:
    """Unpickled as it wishes, it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def _deflated(path):
    torch.save(timm_state(), path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def _bomb(path):
    """A small file that unpacks to much."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("w/data.pkl", bytes(1 << 27))


def _declares(path):
    """A stored archive whose directory says that one member has four gigabytes."""
    torch.save(timm_state(), path)
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + 20 : at + 28] = struct.pack("<II", 0xFFFFFFF0, 0xFFFFFFF0)
    path.write_bytes(data)


def _pickled(path, data):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data.pkl", data)
        archive.writestr("w/version", b"3\n")
        archive.writestr("w/byteorder", b"little")


def _allocates(path):
    number = pickle.dumps(3 << 30, protocol=2)[2:-1]
    _pickled(path, b"\x80\x02cbuiltins\nbytearray\n" + number + b"\x85R.")


def _beyond(path):
    """A tensor whose shape reaches far beyond its storage."""
    tensor = torch.ones(2)
    torch.save({FIRST: tensor}, path)
    with zipfile.ZipFile(path) as archive:
        data = archive.read("w/data.pkl")
        storage = archive.read("w/data/0")
    changed = data.replace(b"K\x02\x85", b"J\xff\xff\xff\x7f\x85")
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in (("data.pkl", changed), ("byteorder", b"little"), ("data/0", storage), ("version", b"3\n")):
            archive.writestr(f"w/{name}", value)
    assert changed != data


def _flipped(path):
    torch.save(timm_state(), path)
    data = bytearray(path.read_bytes())
    data[data.index(timm_state()["norm.weight"].numpy().tobytes()) + 3] ^= 1
    path.write_bytes(data)


def _cut(path, share=0.5):
    torch.save(timm_state(), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def _code(path):
    torch.save({"a": Runs(str(path.parent / "ran"))}, path)


def _legacy(path):
    torch.save(timm_state(), path, _use_new_zipfile_serialization=False)


def _plain_pickle(path):
    path.write_bytes(pickle.dumps(Runs(str(path.parent / "ran"))))


def _other_archive(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "weights")


def _script(path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)


def _bytes(data, path):
    path.write_bytes(data)


def _header(header, path, length=None):
    text = json.dumps(header).encode() if isinstance(header, dict) else header
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text)


def _cut_safetensors(path):
    save_file(timm_state(), path)
    path.write_bytes(path.read_bytes()[:-100])


DECLARED = {FIRST: {"dtype": "F32", "shape": [1 << 20, 1 << 20], "data_offsets": [0, 1 << 42]}}
FILES = {
    "deflated.pt": (_deflated, "compressed"),
    "bomb.pt": (_bomb, "compressed"),
    "declares.pt": (_declares, "declare"),
    "allocates.pt": (_allocates, "bytearray"),
    "w.pt": (_beyond, "cannot be read as weights"),
    "flipped.pt": (_flipped, "CRC"),
    "cut.pt": (_cut, "zip"),
    "head.pth": (partial(_cut, share=0.01), "zip"),
    "code.pt": (_code, "cannot be read as weights"),
    "pickle.bin": (_plain_pickle, "zip"),
    "legacy.pth": (_legacy, "zip"),
    "other.pt": (_other_archive, "cannot be read as weights"),
    "script.pt": (_script, "cannot be read as weights"),
    "empty.pt": (partial(_bytes, b""), "zip"),
    "text.pt": (partial(_bytes, b"weights\n" * 99), "zip"),
    "zeros.bin": (partial(_bytes, bytes(5000)), "zip"),
    "empty.safetensors": (partial(_bytes, b""), "cannot be read as weights"),
    "text.safetensors": (partial(_bytes, b"weights\n" * 99), "cannot be read as weights"),
    "zeros.safetensors": (partial(_bytes, bytes(5000)), "cannot be read as weights"),
    "cut.safetensors": (_cut_safetensors, "cannot be read as weights"),
    "long-header.safetensors": (partial(_header, {}, length=1 << 62), "cannot be read as weights"),
    "declares.safetensors": (partial(_header, DECLARED), "cannot be read as weights"),
    "no-json.safetensors": (partial(_header, b"{weights}"), "cannot be read as weights"),
    "no-dtype.safetensors": (partial(_header, {FIRST: {"shape": [1]}}), "cannot be read as weights"),
    "nothing.safetensors": (partial(_header, {}), "no Vision Transformer"),
}


@pytest.mark.parametrize("name", FILES)
def test_damaged_or_hostile(name, tmp_path):
    write, *culprits = FILES[name]
    path = tmp_path / name
    write(path)
    assert_refused(attempt(read_weights, path, CONFIG), str(path), *culprits)
    assert os.listdir(tmp_path) == [name], "code of the file was run"


@pytest.mark.parametrize("what", ["nothing", *NO_FILES])
def test_something_else_than_a_file(what, tmp_path):
    path = tmp_path / "w.pt"
    special(what, path)
    found = {"nothing": "no such file", "a link to itself": "a link to nothing"}.get(what, what)
    assert_refused(attempt(load_trunk, CONFIG, str(path)), "pretrained: ", str(path), found)


@pytest.mark.parametrize("tag", ["nowhere", "/dev/zero", "a/b.ckpt", "https://somewhere/x", "x" * 900])
@pytest.mark.parametrize("trunk", [CONFIG, "ViT-B-32", "timm/vit_base_patch16_224"], ids=["sizes", "open_clip", "timm"])
def test_a_tag_that_is_none(tag, trunk):
    refused(tag, "pretrained: ", tag[:30], "expected a file", trunk=trunk)


TRUNKS = [
    "hf-hub:timm/ViT-B-16-SigLIP",
    "local-dir:/nowhere",
    "ViT-B/16",
    "vit-b-16",
    "ViT-B-16 ",
    "RN50",
    "../x",
    " ",
    "timm/",
    "timm/x",
    "timm/hf-hub:x",
    "timm/resnet18",
    "timm/swin_tiny_patch4_window7_224",
    "timm/vit_base_patch16_224.augreg_in21k",
]


@pytest.mark.parametrize("trunk", [*TRUNKS, "x" * 200], ids=[*TRUNKS, "long"])
def test_a_trunk_that_is_none(trunk):
    refused("openai", "trunk: ", trunk.removeprefix("timm/").strip()[:20], trunk=trunk)


@pytest.mark.parametrize(
    ("trunk", "tag"), [("ViT-B-16", "laion2b_s34b_b88k"), ("timm/vit_tiny_patch16_224", "augreg_in21k")]
)
def test_a_hub_that_is_not_there(trunk, tag, monkeypatch, tmp_path, capfd):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("it waits and asks again"))
    refused(
        tag, f"pretrained: weights {tag!r} of {trunk!r} could not be fetched (", "a local file works too", trunk=trunk
    )
    assert capfd.readouterr().err == ""
    assert not huggingface_hub.constants.HF_HUB_OFFLINE
