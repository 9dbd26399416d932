"""Adapter files that somebody damaged, edited or made up: refused in one line that names the file and the tensor or
entry, before anything in the model is changed."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.refusal import assert_refused, attempt
from support.special import NO_FILES, special
from torch import Tensor, nn

from fastmoe_lora import RAMoELinear, freeze_ranks, load_adapters, save_adapters

NAN, INF = float("nan"), float("inf")
TENSORS, CONFIG = "adapters.safetensors", "adapters.json"


def make(frozen: bool = False) -> nn.Sequential:
    torch.manual_seed(7)
    model = nn.Sequential(*(RAMoELinear.from_linear(nn.Linear(10, 12), num_experts=3, init_rank=2.0) for _ in range(3)))
    for layer in model:
        nn.init.normal_(layer.lora_B)
        if frozen:
            layer.rank.data += torch.tensor([[0.0, 1.0, -1.0]])
    if frozen:
        freeze_ranks(model)
    return model


class Damage(NamedTuple):
    """`apply(folder)` is refused with a line that has all of `culprits` in it."""

    name: str
    apply: Callable[[Path], None]
    culprits: tuple[str, ...]


# What is done to the tensors, the description, the bytes and the files.


def tensors(name: str, edit: Callable[[dict[str, Tensor]], Any], *culprits: str) -> Damage:
    def apply(folder: Path) -> None:
        content = load_file(folder / TENSORS)
        edit(content)
        save_file(content, folder / TENSORS)  # as earlier releases wrote it: without a checksum

    return Damage(f"tensors-{name}", apply, (TENSORS, *culprits))


def config(name: str, edit: Callable[[dict[str, Any]], Any], *culprits: str) -> Damage:
    def apply(folder: Path) -> None:
        content = json.loads((folder / CONFIG).read_text("utf-8"))
        edit(content)
        (folder / CONFIG).write_text(json.dumps(content), "utf-8")

    return Damage(f"config-{name}", apply, (CONFIG, *culprits))


def written(file: str, name: str, content: Callable[[bytes], bytes], *culprits: str) -> Damage:
    def apply(folder: Path) -> None:
        (folder / file).write_bytes(content((folder / file).read_bytes()))

    return Damage(f"{file}-{name}", apply, (file, *culprits))


def at(content: dict[str, Tensor], name: str, index: tuple[int, ...], value: float) -> None:
    content[name][index] = value


def numbers() -> Iterator[Damage]:
    for value in (NAN, INF, -INF):
        for key, index in (
            ("lora_A", (0, 1, 2, 3)),
            ("lora_B", (0, 2, 11, 7)),
            ("router.weight", (2, 7)),
            ("rank", (0, 1)),
        ):
            edit = partial(at, name=f"2.{key}", index=index, value=value)
            yield tensors(f"{key} {value}", edit, f"layer '2': {key}{list(index)} is {value}, expected a finite number")
    for value in (99.0, 8.5, -3.0, -0.25):
        edit = partial(at, name="1.rank", index=(0, 2), value=value)
        yield tensors(f"rank {value}", edit, f"layer '1': rank[0, 2] is {value}, expected 0 to max_rank = 8")

    def frozen(content: dict[str, Tensor], value: float) -> None:
        content["1.rank_frozen"].fill_(True)
        content["1.rank"][0, 0] = value

    for value in (2.5, 0.001, 9.0, -1.0):
        yield tensors(
            f"frozen {value}", partial(frozen, value=value), "layer '1': rank[0, 0] is", "a whole number, 0 to"
        )


def kinds() -> Iterator[Damage]:
    for key in ("lora_A", "lora_B", "rank", "router.weight"):
        for dtype in (torch.int8, torch.int32, torch.int64, torch.bool, torch.float8_e4m3fn, torch.complex64):
            yield tensors(
                f"{key} {dtype}",
                lambda content, key=key, dtype=dtype: content.update({f"2.{key}": content[f"2.{key}"].to(dtype)}),
                f"'2.{key}' is of",
                "expected F16 or",
            )
        for name, reshape in {
            "flat": lambda value: value.flatten(),
            "0-d": lambda value: value.flatten()[0],
            "longer": lambda value: torch.cat([value, value], -1),
            "empty": lambda value: value[:0],
            "transposed": lambda value: value.transpose(-1, -2).contiguous(),
        }.items():
            yield tensors(
                f"{key} {name}",
                lambda content, key=key, reshape=reshape: content.update({f"2.{key}": reshape(content[f"2.{key}"])}),
                f"'2.{key}' has shape",
                "expected",
            )
    for dtype in (torch.float32, torch.uint8, torch.int64):
        yield tensors(
            f"rank_frozen {dtype}",
            lambda content, dtype=dtype: content.update({"0.rank_frozen": content["0.rank_frozen"].to(dtype)}),
            "'0.rank_frozen' is of",
            "expected BOOL",
        )
    for key in ("lora_A", "lora_B", "rank", "rank_frozen", "router.weight"):
        yield tensors(f"without {key}", lambda content, key=key: content.pop(f"1.{key}"), f"'1.{key}' is missing")
    for key in ("1.lora_C", "9.lora_A", "lora_A", "0.weight", "", "1.rank\n", "long" * 500):
        yield tensors(
            f"extra {key!r:.20}", lambda content, key=key: content.update({key: torch.ones(2)}), "is not of this model"
        )
    yield tensors("none", lambda content: content.clear(), "is missing (15 in all)")


def descriptions() -> Iterator[Damage]:
    for value in (2, 99):
        yield config(f"format {value}", lambda content, value=value: content.update(format=value), "of a later release")
    for value in (0, -1, True, 1.0, "1", None, [1], {}, 10**400):
        yield config(f"format {value!r:.20}", lambda content, value=value: content.update(format=value), "format is")
    for key in ("format", "layers"):
        yield config(f"without {key}", lambda content, key=key: content.pop(key), f"{key!r} is missing")
    yield config("unknown", lambda content: content.update(quantize="int8"), "'quantize' is unknown")
    for value in ([], ["0", "1", "2"], None, "layers", 3, True):
        yield config(f"layers {value!r}", lambda content, value=value: content.update(layers=value), "layers is")
    yield config("no layers", lambda content: content.update(layers={}), "layer '0' is in the model but not the file")
    for value in ([], None, "layer", 3, {}, [{}], {"nested": {"nonsense": [1, 2]}}):
        yield config(
            f"layer {value!r}", lambda content, value=value: content["layers"].update({"2": value}), "layer '2': "
        )
    wrong = {
        "in_features": [9, "8", 8.0, None, True, [8], -8, 10**30],
        "out_features": [11, "12", 12.5],
        "num_experts": [4, "3", 3.0, True],
        "max_rank": [16, "8", 8.0, None],
        "splits": [3, True, 1.0, "1"],
        "router_kind": ["sample", None, 1, "Token", ["token"]],
        "top_k": [2, 0, False, "None"],
        "scaling": [2.0, "1.0", True, None, 10**30, [1.0]],
        "dropout": [0.5, "0", None, False, -1, 10**30],
    }
    for key, values in wrong.items():
        for value in values:
            yield config(
                f"{key} {value!r:.20}",
                lambda content, key=key, value=value: content["layers"]["2"].update({key: value}),
                f"layer '2' has {key} = ",
                "the model has",
            )
        yield config(f"without {key}", lambda content, key=key: content["layers"]["2"].pop(key), f"{key!r} is missing")
    unread = {
        "interpolation": ["Linear", None, 0, ["linear"], "linear\n"],
        "rank_window": [0, -1.0, "1", None, True, [1.0], 1e999],
    }
    for key, values in unread.items():
        for value in values:
            edit = lambda content, key=key, value=value: content["layers"]["2"].update({key: value})  # noqa: E731
            found = "not a description" if value == 1e999 else f"layer '2' has {key} = "
            yield config(f"{key} {value!r:.20}", edit, found)
        yield config(f"without {key}", lambda content, key=key: content["layers"]["2"].pop(key), f"{key!r} is missing")
    for value in ("sampled", "as_printed"):
        edit = lambda content, value=value: content["layers"]["2"].update(interpolation=value)  # noqa: E731
        yield config(value, edit, f"layer '2' has interpolation = '{value}', the model has 'linear'")
    for value in (None, {}, "0.weight", [1], [None], ["0.weight", "0.weight"]):
        yield config(f"also {value!r}", lambda content, value=value: content.update(also=value), "also is")
    for name in ("nowhere", "", "0.lora_A", "0.weight\n", "x" * 10_000):
        yield config(f"also {name!r:.20}", lambda content, name=name: content.update(also=[name]), "also has")
    promised = config("also without numbers", lambda content: content.update(also=["0.weight"]))
    yield promised._replace(culprits=(TENSORS, "'0.weight' is missing"))
    wrapped = lambda content: content["layers"].update({"_orig_mod.1": content["layers"]["1"]})  # noqa: E731
    yield config("twice but for a wrapper", wrapped, "'1' is there twice but for the names of wrappers")
    yield config("option", lambda content: content["layers"]["2"].update(dora=True), "layer '2': 'dora' is unknown")
    long = {"x\ny" * 500: {}}
    yield config("another layer", lambda content: content["layers"].update(long), "is in the file but not the model")


def contents() -> Iterator[Damage]:
    not_json = "not a description of adapters"
    for content in (b"[]", b"{}", b"null", b'"{}"', b"3", b"true", b"1.5", b"[[[{}]]]"):
        culprit = "'format' is missing" if content == b"{}" else not_json
        yield written(CONFIG, f"whole {content!r}", lambda _, content=content: content, culprit)
    for name, content in {
        "empty": b"",
        "cut": b'{"format": 1, "layers": {',
        "binary": bytes(range(256)),
        "latin-1": '{"format": 1, "layers": {"é": {}}}'.encode("latin-1"),
        "utf-16": '{"format": 1}'.encode("utf-16"),
        "nan": b'{"format": NaN, "layers": {}}',
        "infinity": b'{"format": 1, "layers": {"0": Infinity}}',
        "duplicate keys": b'{"format": 1, "format": 1, "layers": {}}',
        "duplicate layers": b'{"format": 1, "layers": {"0": {}, "0": {}}}',
        "deep": b"[" * 100_000,
        "digits": b'{"format": ' + b"1" * 10_000 + b"}",
        "two": b"{} {}",
        "trailing comma": b'{"format": 1,}',
    }.items():
        yield written(CONFIG, name, lambda _, content=content: content, not_json)
    whole = "not a whole safetensors file"
    for name, change in {
        "empty": lambda content: b"",
        "seven bytes": lambda content: content[:7],
        "eight bytes": lambda content: content[:8],
        "half a header": lambda content: content[:100],
        "no numbers": lambda content: content[: 8 + int.from_bytes(content[:8], "little")],
        "half": lambda content: content[: len(content) // 2],
        "one byte less": lambda content: content[:-1],
        "one byte more": lambda content: content + b"\0",
        "zeros": lambda content: bytes(len(content)),
        "text": lambda content: b"hello, world" * 100,
        "pickle": lambda content: b"\x80\x04\x95" + content,
        "huge header": lambda content: (2**60).to_bytes(8, "little") + content[8:],
    }.items():
        yield written(TENSORS, name, change, whole)


def header(name: str, shape: list[int], size: int) -> Damage:
    """A small file whose header declares one of the tensors otherwise."""

    def apply(folder: Path) -> None:
        content = (folder / TENSORS).read_bytes()
        length = int.from_bytes(content[:8], "little")
        entries = json.loads(content[8 : 8 + length])
        entries["2.lora_A"].update(shape=shape, data_offsets=[0, size])
        text = json.dumps(entries).encode()
        (folder / TENSORS).write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])

    return Damage(f"header-{name}", apply, (TENSORS,))


HEADERS = [
    header("gigabytes", [1, 3, 2**20, 2**10], 3 * 2**32),
    header("overflow", [2**62, 2**62], 2**40),
    header("negative", [-1, 3, 8, 10], 960),
    header("no numbers", [1, 3, 8, 10], 0),
]

DAMAGES = [*numbers(), *kinds(), *descriptions(), *contents(), *HEADERS]


def snapshot(model: nn.Module) -> dict[str, Any]:
    state = [*model.named_parameters(), *model.named_buffers()]
    return {name: (id(t), t.requires_grad, t.detach().clone().numpy().tobytes()) for name, t in state}


@pytest.fixture(scope="module")
def model() -> nn.Sequential:
    """Another of the same architecture: no load of this module changes it."""
    other = make()
    for layer in other:
        nn.init.ones_(layer.lora_B)
    return other


def refusal(model: nn.Module, folder: Path, kind: type[Exception] = ValueError) -> str:
    before = snapshot(model)
    with pytest.raises(kind) as error:
        load_adapters(model, folder)
    assert snapshot(model) == before
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 1000
    return message


@pytest.mark.parametrize("damage", DAMAGES, ids=[damage.name for damage in DAMAGES])
def test_damage_is_named_and_changes_nothing(tmp_path, model, damage):
    save_adapters(make(), tmp_path)
    damage.apply(tmp_path)
    message = refusal(model, tmp_path)
    for culprit in damage.culprits:
        assert culprit in message


@pytest.mark.parametrize("frozen", [False, True])
def test_one_flipped_bit_is_found_wherever_it_is(tmp_path, frozen):
    """In the numbers by their checksum, in the rest by what it says; but for what only a reader of the header sees."""
    save_adapters(make(frozen), tmp_path)
    model, twin = make(), make(frozen)
    content = (tmp_path / TENSORS).read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    generator = torch.Generator().manual_seed(3)
    positions = torch.randint(8 * start, 8 * len(content), (60,), generator=generator).tolist()
    positions += torch.randint(0, 8 * start, (60,), generator=generator).tolist()
    for position in positions:
        flipped = bytearray(content)
        flipped[position // 8] ^= 1 << position % 8
        (tmp_path / TENSORS).write_bytes(flipped)
        message = outcome(model, tmp_path)
        if message is None:  # in the name of the checksum: nothing that says what the numbers are
            assert position < 8 * start
            for name, value in twin.state_dict().items():
                assert torch.equal(model.state_dict()[name], value)
        else:
            assert TENSORS in message
            assert "\n" not in message


def outcome(model: nn.Module, folder: Path) -> str | None:
    """The message of a load that is refused."""
    try:
        load_adapters(model, folder)
    except ValueError as error:
        return str(error)
    return None


def test_a_flipped_bit_in_the_numbers_is_named(tmp_path, model):
    save_adapters(make(), tmp_path)
    content = bytearray((tmp_path / TENSORS).read_bytes())
    content[-1] ^= 1
    (tmp_path / TENSORS).write_bytes(content)
    assert "not the numbers that were saved: their sha256 is" in refusal(model, tmp_path)


def test_files_of_earlier_releases_carry_no_checksum_and_load(tmp_path):
    saved, other = make(), make(frozen=True)
    save_adapters(saved, tmp_path)
    save_file(load_file(tmp_path / TENSORS), tmp_path / TENSORS)
    content = json.loads((tmp_path / CONFIG).read_text("utf-8"))
    for layer in content["layers"].values():
        layer["scaling"] = 1  # it was written as the caller had it
        for key in ("dropout", "interpolation", "rank_window"):  # and these not at all
            del layer[key]
    (tmp_path / CONFIG).write_text(json.dumps(content), "utf-8")
    load_adapters(other, tmp_path)
    x = torch.randn(2, 10)
    assert torch.equal(other[0](x), saved[0](x))


# What is there in place of a file.


def sparse(file: Path) -> None:
    with file.open("wb") as content:
        content.truncate(6 << 30)


def declared(file: Path) -> None:
    """6 GiB that the header declares and the file has, none of them on the disk."""
    text = json.dumps({"0.lora_A": {"dtype": "F32", "shape": [3 << 29], "data_offsets": [0, 6 << 30]}}).encode()
    with file.open("wb") as content:
        content.write(len(text).to_bytes(8, "little") + text)
        content.truncate(8 + len(text) + (6 << 30))


def nothing(file: Path) -> None:
    pass


def _load(folder: Path) -> None:
    load_adapters(make(), folder)


@pytest.mark.parametrize(
    "kind",
    [*(partial(special, kind) for kind in NO_FILES), sparse, declared, nothing],
    ids=[*NO_FILES, "sparse", "declared", "nothing"],
)
@pytest.mark.parametrize("file", [TENSORS, CONFIG])
def test_what_is_no_file_is_named_at_once(tmp_path, file, kind):
    save_adapters(make(), tmp_path)
    (tmp_path / file).unlink()
    kind(tmp_path / file)
    assert_refused(attempt(_load, tmp_path), file)


@pytest.mark.parametrize("content", [b'{"a": ' * 1_000_000, b"[" + b"[]," * 40_000_000, b'"' + b"x" * 20_000_000])
def test_a_large_description_is_refused_in_little_memory(tmp_path, content):
    save_adapters(make(), tmp_path)
    (tmp_path / CONFIG).write_bytes(content)
    assert_refused(attempt(_load, tmp_path), CONFIG)


NAMES = [
    "[0-9]*?",
    'it\'s "quoted"',
    "line\nbreak",
    "tab\t",
    "ünïcode ☃",
    " spaces ",
    "{x}",
    "$HOME",
    "%s",
    "-rf",
    "a\\b",
]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_of_a_folder_works_and_stays_on_one_line(tmp_path, name):
    saved, other = make(frozen=True), make()
    save_adapters(saved, tmp_path / name)
    load_adapters(other, tmp_path / name)
    assert torch.equal(other[1].lora_B, saved[1].lora_B)
    (tmp_path / name / CONFIG).write_text("{", "utf-8")
    assert CONFIG in refusal(other, tmp_path / name)
    (tmp_path / name / TENSORS).write_bytes(b"")
    save_adapters(saved, tmp_path / name)
    (tmp_path / name / TENSORS).write_bytes(b"")
    assert TENSORS in refusal(other, tmp_path / name)
    (tmp_path / name / TENSORS).unlink()
    assert TENSORS in refusal(other, tmp_path / name, FileNotFoundError)


def test_names_of_layers_are_written_as_utf_8_whatever_the_locale(tmp_path):
    def named() -> nn.ModuleDict:
        return nn.ModuleDict({"schicht_ü": RAMoELinear(8, 8), "层": RAMoELinear(8, 8)})

    model, other = named(), named()
    save_adapters(model, tmp_path, also=())
    (tmp_path / CONFIG).read_bytes().decode("utf-8")
    load_adapters(other, tmp_path)
    assert torch.equal(other["层"].lora_A, model["层"].lora_A)


def test_a_failure_in_the_last_layer_leaves_the_first(tmp_path, model):
    """The shape differs in what a description does not say."""
    save_adapters(make(), tmp_path)
    content = load_file(tmp_path / TENSORS)
    content["2.lora_B"] = content["2.lora_B"][:, :, :-1].contiguous()
    save_file(content, tmp_path / TENSORS)
    assert "'2.lora_B' has shape (1, 3, 11, 8), expected (1, 3, 12, 8)" in refusal(model, tmp_path)


def test_numbers_beyond_the_layers_precision_are_refused(tmp_path):
    saved = make()
    saved[1].lora_A.data[0, 0, 0, 0] = 1e10
    save_adapters(saved, tmp_path)
    message = refusal(make().to(torch.float16), tmp_path)
    assert "layer '1': lora_A[0, 0, 0, 0] is inf, expected a finite number in torch.float16" in message


def test_a_model_on_meta_cannot_be_loaded_or_saved(tmp_path):
    save_adapters(make(), tmp_path)
    meta = make().to("meta")
    with pytest.raises(ValueError, match="layer '0': lora_A is on the meta device"):
        load_adapters(meta, tmp_path)
    with pytest.raises(ValueError, match="layer '0': lora_A is on the meta device"):
        save_adapters(meta, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("key", ["lora_A", "lora_B", "rank", "router.weight"])
@pytest.mark.parametrize("value", [NAN, INF])
def test_what_could_not_be_loaded_is_not_saved(tmp_path, key, value):
    model = make()
    save_adapters(model, tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    model[2].get_parameter(key).data.flatten()[-1] = value
    with pytest.raises(ValueError, match=rf"model: layer '2': {key}\[.*\] is {value}, expected"):
        save_adapters(model, tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_save_that_fails_leaves_no_file_behind(tmp_path):
    (tmp_path / CONFIG).mkdir()
    with pytest.raises(OSError, match=CONFIG):
        save_adapters(make(), tmp_path)
    assert [file.name for file in tmp_path.iterdir() if file.name.endswith(".new")] == []


def test_adapters_that_share_storage_are_saved(tmp_path):
    model, other = make(), make()
    together = torch.randn(2, *model[0].lora_A.shape)
    model[0].lora_A.data, model[1].lora_A.data = together.unbind(0)
    save_adapters(model, tmp_path)
    load_adapters(other, tmp_path)
    assert torch.equal(other[1].lora_A, together[1])
