"""A checkpoint that is not what was written is one line that names the file and what is wrong, and changes nothing."""

import io
import math
import re
import shutil
import struct
import zipfile

import pytest
import torch
from rich.console import Console
from support.refusal import assert_refused, run_command
from support.run_folder import refusal_of
from support.tiny_run import STEPS, tiny_config

from unistd.cli import main
from unistd.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from unistd.training.run import Run, open_run
from unistd.training.settings import dump_config
from unistd.training.trainer import Trainer

FLIPS = 400  # places of a file in which a bit is turned over, spread evenly; all of its last bytes besides


@pytest.fixture
def run(finished_run, tmp_path):
    folder = shutil.copytree(finished_run, tmp_path / "copy")
    (tmp_path / "again.yaml").write_text(dump_config(tiny_config(folder)))
    return Run(folder)


@pytest.fixture(scope="module")
def whole(finished_run):
    return (finished_run / "checkpoint.pt").read_bytes()


def without_checksum(data):
    """The file as an earlier release wrote it."""
    end = data.rindex(b"PK\x05\x06")
    return data[: end + 20] + b"\0\0"


def damage(data, position, bit):
    return data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :]


def places(size):
    return sorted({*range(0, size, size // FLIPS), *range(size - 120, size)})


def test_one_flipped_bit_is_found_anywhere(tmp_path, whole):
    path = tmp_path / "checkpoint.pt"
    for number, position in enumerate(places(len(whole))):
        path.write_bytes(damage(whole, position, number % 8))
        with pytest.raises(CheckpointError, match=r"checkpoint\.pt: damaged checkpoint") as error:
            load_checkpoint(path)
        assert "\n" not in str(error.value)


def test_file_that_was_cut_short_or_continued_is_found(tmp_path, whole):
    path = tmp_path / "checkpoint.pt"
    sizes = [*range(0, len(whole), len(whole) // 50), *range(len(whole) - 120, len(whole), 7)]
    for data in [
        *(whole[:size] for size in sizes),
        whole + b"\0",
        whole + whole,
        whole[1:],
        whole[:-1000] + b"\0" * 1000,
    ]:
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"checkpoint\.pt: damaged checkpoint"):
            load_checkpoint(path)


def test_earlier_releases_have_no_checksum_and_no_options_of_layers(run, whole, capsys):
    run.checkpoint.write_bytes(without_checksum(whole))
    state = load_checkpoint(run.checkpoint)
    assert state["step"] == STEPS
    for key in ("log", "sources", "units"):
        del state[key]
    for key in [key for key in state["model"] if key.endswith("._extra_state")]:
        del state["model"][key]
    with run.checkpoint.open("wb") as file:
        torch.save(state, file)
    run.report.unlink()
    assert main(["train", "--config", str(run.folder.parent / "again.yaml"), "--resume"]) == 0
    assert run.report.exists()


def test_a_release_kept_the_scales_alone(run, whole):
    state = load_checkpoint(run.checkpoint)
    state["scales"] = dict.fromkeys(state.pop("units"), 100.0)
    save_checkpoint(run.checkpoint, state)
    assert {spec.scale for spec in open_run(run.folder)[2].tasks.values()} == {100.0}


def test_without_checksum_a_flipped_bit_changes_nothing_in_silence(tmp_path, whole):
    old = without_checksum(whole)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(old)
    expected = load_checkpoint(path)
    found = 0
    for number, position in enumerate(places(len(old))[::5]):
        path.write_bytes(damage(old, position, number % 8))
        try:
            state = load_checkpoint(path)
        except CheckpointError:
            found += 1
        else:  # a date, say, or the bytes between two members
            assert state.keys() == expected.keys()
            assert all(torch.equal(state["model"][name], value) for name, value in expected["model"].items())
    assert found > FLIPS // 10


def drop(*keys):
    def change(state):
        *parents, last = keys
        for key in parents:
            state = state[key]
        del state[last]

    return change


def put(value, *keys):
    def change(state):
        *parents, last = keys
        for key in parents:
            state = state[key]
        state[last] = value(state[last]) if callable(value) else value

    return change


def fill(number, at=0):
    def spoilt(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[at] = number
        return tensor

    return spoilt


QKV = "trunk.blocks.0.attention.qkv"
TRUNK = "trunk.blocks.0.norm1.weight"
MODEL = {
    "no step": (drop("step"), "'step'"),
    "step of text": (put("8", "step"), "'step'"),
    "step is true": (put(True, "step"), "'step'"),
    "step of 8.0": (put(8.0, "step"), "'step'"),
    "step below 0": (put(-1, "step"), "'step'"),
    "step beyond the end": (put(STEPS + 1, "step"), "'step'"),
    "step is a tensor": (put(torch.tensor(8), "step"), "'step'"),
    "no config": (drop("config"), "'config'"),
    "config is a list": (put([1], "config"), "'config'"),
    "config of another key": (put(1, "config", "color"), "color"),
    "config of a wrong type": (put("many", "config", "train", "epochs"), "train.epochs"),
    "config of another seed": (put(7, "config", "train", "seed"), "'train.seed'"),
    "config of other tasks": (put(["kth"], "config", "tasks"), "task"),
    "no model": (drop("model"), "'model'"),
    "model is none": (put(None, "model"), "'model'"),
    "model is a list": (put([], "model"), "'model'"),
    "no weight": (drop("model", TRUNK), TRUNK),
    "unknown weight": (lambda state: state["model"].update({"trunk.extra": torch.ones(2)}), "trunk.extra"),
    "weight is none": (put(None, "model", TRUNK), TRUNK),
    "weight is a number": (put(1.0, "model", TRUNK), TRUNK),
    "weight of another shape": (put(torch.ones(3), "model", TRUNK), TRUNK),
    "weight of one more dimension": (put(lambda t: t[None], "model", TRUNK), TRUNK),
    "weight without elements": (put(torch.ones(0), "model", TRUNK), TRUNK),
    "weight in float64": (put(lambda t: t.double(), "model", TRUNK), TRUNK),
    "weight in bfloat16": (put(lambda t: t.bfloat16(), "model", TRUNK), TRUNK),
    "weight of integers": (put(lambda t: t.long(), "model", TRUNK), TRUNK),
    "complex weight": (put(lambda t: t.to(torch.complex64), "model", TRUNK), TRUNK),
    "sparse weight": (put(lambda t: t.to_sparse(), "model", TRUNK), TRUNK),
    "weight on meta": (put(lambda t: t.to("meta"), "model", TRUNK), TRUNK),
    "nan in a weight": (put(fill(math.nan, 3), "model", TRUNK), "finite, found float32 (16,) with NaN or Inf in it"),
    "infinite weight": (put(fill(math.inf), "model", "decoders.kth.readout.bias"), "decoders.kth.readout.bias"),
    "minus infinity": (put(fill(-math.inf), "model", f"{QKV}.lora_A"), f"{QKV}.lora_A"),
    "nan rank": (put(fill(math.nan), "model", f"{QKV}.rank"), f"{QKV}.rank"),
    "rank above the largest": (put(fill(99.0), "model", f"{QKV}.rank"), f"{QKV}.rank"),
    "rank below 0": (put(fill(-3.0), "model", f"{QKV}.rank"), f"{QKV}.rank"),
    "frozen rank of 2.5": (put(fill(2.5), "model", f"{QKV}.rank"), f"{QKV}.rank"),
    "ranks not frozen": (put(torch.tensor(False), "model", f"{QKV}.rank_frozen"), f"{QKV}.rank_frozen"),
    "options of no layer": (put(torch.zeros(6, dtype=torch.int64), "model", f"{QKV}._extra_state"), "scaling is 0.0"),
    "options of another kind": (put(torch.zeros(6), "model", f"{QKV}._extra_state"), f"{QKV}._extra_state"),
    "options are text": (put("linear", "model", f"{QKV}._extra_state"), f"{QKV}._extra_state"),
    "frozen is a float": (put(torch.tensor(1.0), "model", f"{QKV}.rank_frozen"), f"{QKV}.rank_frozen"),
    "no optimizer": (drop("optimizer"), "'optimizer'"),
    "no random": (drop("random"), "'random'"),
    "no baselines": (drop("baselines"), "'baselines'"),
}  # fmt: skip
STATE = ("optimizer", "state", 0)
GROUP = ("optimizer", "param_groups", 0)
TRAINING = {
    "seconds of text": (put("1", "seconds"), "'seconds'"),
    "seconds below 0": (put(-1.0, "seconds"), "'seconds'"),
    "nan seconds": (put(math.nan, "seconds"), "'seconds'"),
    "unknown key": (lambda state: state.update(extra=1), "'extra'"),
    "baselines are none": (put(None, "baselines"), "'baselines'"),
    "no baseline of a task": (drop("baselines", "kth"), "'baselines.kth'"),
    "baseline of another task": (lambda state: state["baselines"].update(bair=1.0), "'baselines.bair'"),
    "baseline of 0": (put(0.0, "baselines", "kth"), "'baselines.kth'"),
    "nan baseline": (put(math.nan, "baselines", "kth"), "'baselines.kth'"),
    "baseline of text": (put("1", "baselines", "kth"), "'baselines.kth'"),
    "optimizer is none": (put(None, "optimizer"), "'optimizer'"),
    "no state": (drop("optimizer", "state"), "'optimizer.state'"),
    "no groups": (drop("optimizer", "param_groups"), "'optimizer.param_groups'"),
    "one group": (put(lambda groups: groups[:1], "optimizer", "param_groups"), "'optimizer.param_groups'"),
    "groups are a dict": (put({}, "optimizer", "param_groups"), "'optimizer.param_groups'"),
    "no moments of a weight": (drop(*STATE), "'optimizer.state.0'"),
    "moments of an unknown weight": (
        lambda state: state["optimizer"]["state"].update({999: state["optimizer"]["state"][0]}),
        "optimizer.state.999",
    ),
    "no first moment": (drop(*STATE, "exp_avg"), "'optimizer.state.0.exp_avg'"),
    "moment of another shape": (put(torch.ones(3), *STATE, "exp_avg"), "'optimizer.state.0.exp_avg'"),
    "moment in float64": (put(lambda t: t.double(), *STATE, "exp_avg_sq"), "'optimizer.state.0.exp_avg_sq'"),
    "nan moment": (put(fill(math.nan), *STATE, "exp_avg"), "'optimizer.state.0.exp_avg'"),
    "second moment below 0": (put(fill(-1.0), *STATE, "exp_avg_sq"), "'optimizer.state.0.exp_avg_sq'"),
    "a third moment": (
        lambda state: state["optimizer"]["state"][0].update(max_exp_avg_sq=torch.ones(1)),
        "optimizer.state.0.max_exp_avg_sq",
    ),
    "moments' step of 0": (put(torch.tensor(0.0), *STATE, "step"), "'optimizer.state.0.step'"),
    "moments' step of 2.5": (put(torch.tensor(2.5), *STATE, "step"), "'optimizer.state.0.step'"),
    "moments' step beyond the run's": (put(torch.tensor(9.0), *STATE, "step"), "'optimizer.state.0.step'"),
    "moments' step as int": (put(8, *STATE, "step"), "'optimizer.state.0.step'"),
    "no lr": (drop(*GROUP, "lr"), "'optimizer.param_groups.0.lr'"),
    "lr of another step": (put(0.01, *GROUP, "lr"), "'optimizer.param_groups.0.lr'"),
    "nan lr": (put(math.nan, *GROUP, "lr"), "'optimizer.param_groups.0.lr'"),
    "lr of text": (put("0.01", *GROUP, "lr"), "'optimizer.param_groups.0.lr'"),
    "other betas": (put((0.5, 0.5), *GROUP, "betas"), "'optimizer.param_groups.0.betas'"),
    "one beta": (put((0.9,), *GROUP, "betas"), "'optimizer.param_groups.0.betas'"),
    "other decay": (put(5.0, *GROUP, "weight_decay"), "'optimizer.param_groups.0.weight_decay'"),
    "amsgrad": (put(True, *GROUP, "amsgrad"), "'optimizer.param_groups.0.amsgrad'"),
    "fewer weights": (put(lambda p: p[:-1], *GROUP, "params"), "'optimizer.param_groups.0.params'"),
    "weights twice": (put(lambda p: [p[0], *p[:-1]], *GROUP, "params"), "'optimizer.param_groups.0.params"),
    "unknown option": (lambda state: state["optimizer"]["param_groups"][0].update(turbo=1), "param_groups.0.turbo"),
    "schedule is none": (put(None, "schedule"), "'schedule'"),
    "schedule at another step": (put(3, "schedule", "last_epoch"), "'schedule.last_epoch'"),
    "schedule's count": (put(3, "schedule", "_step_count"), "'schedule._step_count'"),
    "schedule of other rates": (put([1.0, 1.0], "schedule", "base_lrs"), "'schedule.base_lrs"),
    "schedule's last rates": (put([0.01], "schedule", "_last_lr"), "'schedule._last_lr'"),
    "no rates": (drop("schedule", "base_lrs"), "'schedule.base_lrs'"),
    "ranks are a list": (put([], "ranks"), "'ranks'"),
    "no mean of the ranks": (drop("ranks", "state", 1), "'ranks.state.1'"),
    "mean of another shape": (put(torch.ones(5), "ranks", "state", 0, "mean"), "'ranks.state.0.mean'"),
    "ranks' step": (put(3, "ranks", "state", 0, "step"), "'ranks.state.0.step'"),
    "ranks' mean square below 0": (put(torch.tensor(-1.0), "ranks", "state", 0, "mean_square"), "mean_square'"),
    "ranks' lr": (put(9.0, "ranks", "param_groups", 0, "lr"), "'ranks.param_groups.0.lr'"),
    "random is none": (put(None, "random"), "'random'"),
    "no random state": (drop("random", "cpu"), "'random.cpu'"),
    "short random state": (put(lambda t: t[:100], "random", "cpu"), "'random.cpu'"),
    "random state of floats": (put(lambda t: t.float(), "random", "cpu"), "'random.cpu'"),
    "random state of nothing": (put(None, "random", "cpu"), "'random.cpu'"),
    "random state of noise": (put(torch.full((5056,), 255, dtype=torch.uint8), "random", "cpu"), "'random.cpu'"),
    "random states of GPUs": (put("none", "random", "cuda"), "'random.cuda'"),
    "log of text": (put("0", "log"), "'log'"),
    "records below 0": (put(-1, "log", "records"), "'log'"),
    "losses of text": (put({"kth": ["1"]}, "log", "losses"), "'log'"),
    "skipped below 0": (put(-1, "log", "skipped"), "'log'"),
    "no count of skips": (drop("skips", "row"), "'skips.row'"),
    "more skips than steps": (put(9, "skips", "total"), "'skips.total'"),
    "ranks' skips": (put(torch.tensor(1.0), "ranks", "state", 0, "skipped"), "'ranks.state.0.skipped'"),
    "sources of other tasks": (drop("sources", "kth"), "'sources.kth'"),
    "units of other tasks": (drop("units", "kth"), "'units.kth'"),
    "scale of none": (put(0.0, "units", "kth", "scale"), "'units.kth.scale'"),
    "scale that is text": (put("255", "units", "kth", "scale"), "'units.kth.scale'"),
    "no unit": (drop("units", "kth", "unit"), "'units.kth.unit'"),
    "unit of two lines": (put("a\nb", "units", "kth", "unit"), "'units.kth.unit'"),
    "offset without end": (put(float("inf"), "units", "kth", "offset"), "'units.kth.offset'"),
    "missing that is a number": (put(1, "units", "kth", "missing"), "'units.kth.missing'"),
    "scale of others": (put(1.0, "units", "kth", "scale"), "'kth' was trained on values of scale 1.0,"),
    "offset of others": (put(1.0, "units", "kth", "offset"), "'kth' was trained on values of offset 1.0,"),
    "trained on files": (put("files", "sources", "kth"), "'kth'"),
    "trained on air": (put("air", "sources", "kth"), "'sources.kth'"),
}


@pytest.mark.parametrize("case", [*MODEL, *TRAINING])
def test_wrong_value_is_named_before_a_run_goes_on(run, capsys, case):
    change, culprit = (MODEL | TRAINING)[case]
    state = load_checkpoint(run.checkpoint)
    change(state)
    save_checkpoint(run.checkpoint, state)
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    line = refusal_of(capsys, "train", "--config", run.folder.parent / "again.yaml", "--resume")
    assert "checkpoint.pt: " in line
    assert culprit in line, line
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("case", MODEL)
def test_wrong_weights_are_named_before_they_are_used(run, capsys, case):
    change, culprit = MODEL[case]
    state = load_checkpoint(run.checkpoint)
    change(state)
    save_checkpoint(run.checkpoint, state)
    lines = {refusal_of(capsys, command, run.folder) for command in ("evaluate", "report")}
    lines.add(refusal_of(capsys, "predict", run.folder, "--task", "kth", "--input", "x.npy", "--output", "y.npy"))
    assert len(lines) == 1, lines
    line = lines.pop()
    assert "checkpoint.pt: " in line
    assert culprit in line, line


@pytest.mark.parametrize("value", [[], None, 1, "text", torch.ones(3), {}], ids=str)
def test_checkpoint_of_something_else(run, capsys, value):
    save_checkpoint(run.checkpoint, value)
    assert "checkpoint.pt: damaged checkpoint" in refusal_of(capsys, "evaluate", run.folder)


def test_nothing_is_loaded_before_all_is_known_good(run, monkeypatch):
    """The weights are right and the random state is not: no weight is loaded, and training's own stays as it was."""
    state = load_checkpoint(run.checkpoint)
    state["random"]["cpu"] = state["random"]["cpu"][:7]
    save_checkpoint(run.checkpoint, state)
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda *arguments, **options: pytest.fail("loaded"))
    monkeypatch.setattr(torch, "set_rng_state", lambda state: pytest.fail("loaded"))
    with pytest.raises(CheckpointError, match=r"'random\.cpu'"):
        Trainer(tiny_config(run.folder), run, Console(file=io.StringIO()), resume=True)


def test_rank_phase_of_the_printed_recipe_is_checked_too(tmp_path, capsys):
    config = tiny_config(tmp_path / "run", {"ranks.recipe": "printed"})
    (tmp_path / "run.yaml").write_text(dump_config(config))
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    Trainer(config, run, Console(file=io.StringIO())).fit()
    Trainer(config, run, Console(file=io.StringIO()), resume=True)
    state = load_checkpoint(run.checkpoint)
    state["ranks"]["state"][1]["exp_avg"] = torch.ones(7)
    save_checkpoint(run.checkpoint, state)
    line = refusal_of(capsys, "train", "--config", tmp_path / "run.yaml", "--resume")
    assert "'ranks.state.1.exp_avg': expected float32 (1, 2), finite, found float32 (7,)" in line


def repack(path, compression, change=lambda name, data: data):
    """The archive anew, its members changed or compressed, without a checksum."""
    with zipfile.ZipFile(path) as archive:
        members = [(info.filename, change(info.filename, archive.read(info))) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_checkpoint_is_not_unpacked(run, capsys, method):
    repack(run.checkpoint, method)
    assert "it is compressed, which torch.save never does" in refusal_of(capsys, "evaluate", run.folder)


def test_archive_that_unpacks_to_gigabytes(run):
    with zipfile.ZipFile(run.checkpoint, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        for number in range(100):
            archive.writestr(f"archive/data/{number}", b"\0" * (1 << 16))
    data = bytearray(run.checkpoint.read_bytes())
    for entry in re.finditer(rb"PK\x01\x02", bytes(data)):
        struct.pack_into("<I", data, entry.start() + 24, 1 << 25)  # of each member, unpacked
    run.checkpoint.write_bytes(data)
    assert_refused(run_command("evaluate", run.folder), "checkpoint.pt", "compressed")


def test_archive_that_declares_more_than_it_has(run, whole):
    """A stored member of four gigabytes in a small file."""
    old = bytearray(without_checksum(whole))
    entry = old.index(b"PK\x01\x02")
    struct.pack_into("<II", old, entry + 20, 0xFFFFFFF0, 0xFFFFFFF0)
    run.checkpoint.write_bytes(old)
    assert_refused(run_command("evaluate", run.folder), "checkpoint.pt", "damaged checkpoint")


def test_storage_that_the_file_does_not_hold(run):
    """A pickle may say of a record of 4 bytes that it holds a thousand numbers: none of them is read."""
    run.checkpoint.write_bytes(b"")
    with run.checkpoint.open("wb") as file:
        torch.save({"x": torch.arange(10.0)}, file)
    repack(run.checkpoint, zipfile.ZIP_STORED, lambda name, data: data.replace(b"K\n", b"M\xe8\x03"))
    assert_refused(run_command("evaluate", run.folder), "checkpoint.pt", "damaged checkpoint")


def test_small_tensor_that_is_expanded_to_terabytes(run):
    state = load_checkpoint(run.checkpoint)
    state["model"][TRUNK] = torch.ones(1).expand(1 << 40)
    save_checkpoint(run.checkpoint, state)
    assert_refused(run_command("evaluate", run.folder), "checkpoint.pt", TRUNK)


def test_code_in_a_checkpoint_is_not_run(run, tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "proof"), "w"))

    for state in ({"model": Evil()}, Evil()):
        with run.checkpoint.open("wb") as file:
            torch.save(state, file)
        assert "checkpoint.pt: damaged checkpoint" in refusal_of(capsys, "evaluate", run.folder)
        assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.seed", 1),
        ("optim.lr", 0.5),
        ("model.residual", False),
        ("ranks.recipe", "printed"),
        ("train.precision", "bf16-mixed"),
        ("data.train_samples", 5),
        ("model.trunk", {"width": 16, "depth": 2, "heads": 2, "mlp_ratio": 2.0}),
    ],
)
def test_config_that_disagrees_with_the_checkpoint(run, capsys, key, value):
    """Else the evaluation would use a seed, say, that the weights were not trained with."""
    run.config.write_text(dump_config(tiny_config(run.folder, {key: value})))
    for words in (["evaluate", run.folder], ["report", run.folder]):
        line = refusal_of(capsys, *words)
        assert "checkpoint.pt: config.yaml is not what it was trained with" in line
        assert f"'{key}" in line


def test_keys_on_which_no_number_depends_may_differ(run):
    run.config.write_text(
        dump_config(tiny_config(run.folder, {"data.workers": 1, "train.log_every": 7, "run": "moved"}))
    )
    assert open_run(run.folder)[1].data.workers == 1
    assert main(["evaluate", str(run.folder)]) == 0


def test_weights_that_are_not_finite_replace_no_checkpoint(run):
    trainer = Trainer(tiny_config(run.folder), run, Console(file=io.StringIO()), resume=True)
    before = run.checkpoint.read_bytes()
    with torch.no_grad():
        trainer.model.module.decoders["kth"].readout.bias.fill_(math.nan)
    with pytest.raises(RuntimeError, match=r"step 8: 'decoders\.kth\.readout\.bias' holds NaN or Inf"):
        trainer.save()
    assert run.checkpoint.read_bytes() == before
