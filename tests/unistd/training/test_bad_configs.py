"""What somebody gets wrong in a config file or in the words of the command line: one line that names it."""

import os

import pytest
from support.bad_config import refused, written
from support.refusal import assert_refused, run_command
from support.special import NO_FILES, special

from unistd.cli import main
from unistd.training.settings import CONFIGS, dump_config, load_config
from unistd.training.yaml_text import MAX_BYTES, MAX_VALUES, dump_yaml, parse_yaml

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9)
)
FILES = {
    "empty": ("", "a config is a mapping", "found nothing"),
    "comment": ("# nothing\n", "a config is a mapping", "found nothing"),
    "list": ("- kth\n", "a config is a mapping", "found ['kth']"),
    "word": ("demo\n", "a config is a mapping", "found 'demo'"),
    "number": ("3\n", "a config is a mapping", "found 3"),
    "duplicate": ("run: x\nrun: y\n", "line 2", "'run'", "twice"),
    "duplicate-below": ("optim:\n  lr: 1\n  clip: 1\n  lr: 2\n", "line 4", "'optim.lr'", "twice"),
    "duplicate-section": ("optim: {lr: 1}\ntrain: {}\noptim: {clip: 1}\n", "line 3", "'optim'", "twice"),
    "duplicate-task": ("task_options:\n  kth: {patch: 4}\n  kth: {patch: 8}\n", "line 3", "'task_options.kth'"),
    "duplicate-flow": ("optim: {lr: 1, lr: 1}\n", "'optim.lr'", "twice"),
    "duplicate-quoted": ("run: x\n'run': y\n", "line 2", "'run'"),
    "tab": ("optim:\n\tlr: 1\n", "line 2", "'\\t'"),
    "two-documents": ("run: x\n---\nrun: y\n", "line 2", "another document"),
    "number-key": ("1: x\n", "line 1", "'1'", "as a key"),
    "bool-key": ("true: x\n", "'true'", "as a key"),
    "null-key": ("~: x\n", "'~'", "as a key"),
    "yes-key": ("yes: x\n", "'yes'", "as a key"),
    "list-key": ("? [a]\n: x\n", "line 1", "as a key"),
    "mapping-key": ("{a: 1}: x\n", "line 1", "as a key"),
    "empty-key": ("'': x\n", "line 1", "as a key"),
    "object": ("!!python/object/apply:os.system [ls]\n", "line 1", "tag", "os.system"),
    "object-value": ("run: !!python/name:os.system\n", "line 1", "tag", "os.system"),
    "int-tag": ("optim:\n  lr: !!float 3\n", "line 2", "tag", "float"),
    "binary": ("run: !!binary aGVsbG8=\n", "tag", "binary"),
    "own-tag": ("run: !mine x\n", "tag", "'!mine'"),
    "nul": (b"run: a\0b\n", "'\\x00'", "position 6"),
    "bell": (b"run: a\x07b\n", "'\\x07'"),
    "utf-16": ("run: x\n".encode("utf-16"), "UTF-8", "0xff"),
    "latin-1": ("run: é\n".encode("latin-1"), "UTF-8", "byte 5 is 0xe9"),
    "png": (b"\x89PNG\r\n\x1a\n\0\0", "UTF-8", "0x89"),
    "zip": (b"PK\x03\x04\x14\0\0\0", "'\\x03'"),
    "open-bracket": ("tasks: [kth\n", "not YAML", "line"),
    "open-quote": ("run: 'x\n", "not YAML", "line"),
    "bad-escape": ('run: "\\q"\n', "not YAML", "'q'"),
    "far-escape": ('run: "\\UFFFFFFFF"\n', "not YAML"),
    "bad-indent": ("optim:\n  lr: 1\n clip: 1\n", "not YAML", "line 3"),
    "undefined-alias": ("run: *nowhere\n", "'nowhere'"),
    "version": ("%YAML 9.9\n---\nrun: x\n", "version"),
    "laughs": (LAUGHS, f"{MAX_VALUES:,} values"),
    "merged-laughs": (
        LAUGHS.replace("[", "{<<: [").replace("]", "]}").replace("x", "{y: 1}"),
        f"{MAX_VALUES:,} values",
    ),
    "self": ("tasks: &t [*t]\n", "nested too deeply"),
    "self-mapping": ("optim: &o {lr: *o}\n", "nested too deeply"),
    "deep-list": ("tasks: " + "[" * 5000, "nested too deeply"),
    "deep-mapping": ("{a: " * 5000, "nested too deeply"),
    "many": ("tasks: [" + "kth, " * MAX_VALUES + "]", f"{MAX_VALUES:,} values"),
    "large": ("#" * (MAX_BYTES + 1), f"expected at most {MAX_BYTES}"),
    "long-number": ("train: {seed: " + "9" * 5000 + "}", "'train.seed'", "shorter number"),
    "long-word": ("train: {seed: " + "x" * 50_000 + "}", "'train.seed'", "integer"),
    "long-key": ("x" * 50_000 + ": 1\n", "not YAML", "line 1"),
    "long-alias": ("run: *" + "x" * 50_000, "xxx"),
    "merge-of-nothing": ("<<: 3\n", "<<"),
    "merge-as-value": ("run: <<\n", "'run'", "<<"),
    "nothing-after": ("optim:\n  lr:\n", "line 2", "'optim.lr'", "found nothing"),
    "section-of-comments": ("optim:\n  # lr: 1\ntrain: {}\n", "line 1", "'optim'", "found nothing"),
    "no-blank-after-colon": ("optim: {lr:1}\n", "'optim.lr:1'", "found nothing"),
    "yes": ("data: {cache: yes}\n", "'data.cache'", "found yes"),
    "norway": ("run: no\n", "'run'", "found no"),
    "off": ("model: {residual: off}\n", "'model.residual'", "found off"),
    "octal": ("train:\n  seed: 010\n", "line 2", "'train.seed'", "found 010"),
    "sexagesimal": ("train: {epochs: 1:30}\n", "'train.epochs'", "1:30"),
    "underscore": ("train: {epochs: 1_000}\n", "'train.epochs'", "1_000"),
    "binary-number": ("train: {seed: 0b11}\n", "'train.seed'", "0b11"),
    "date": ("run: 2026-11-22\n", "'run'", "2026-11-22"),
    "unknown-section": ("optin: {lr: 1}\n", "'optin'", "did you mean 'optim'"),
    "mixed-section": ("lr: 1\n", "'lr'", "did you mean 'optim.lr'"),
    "python": ("import os\nos.system('ls')\n", "a config is a mapping", "import os"),
    "json-nan": ('{"optim": {"lr": NaN}}', "'optim.lr'", "'NaN'"),
    "ini": ("[train]\nepochs = 3\n", "not YAML", "line 2"),
}


@pytest.mark.parametrize("name", FILES)
def test_file(name, tmp_path):
    content, *culprits = FILES[name]
    refused(written(tmp_path, content), [], str(tmp_path / "mine.yaml"), *culprits)


def test_options_of_a_shipped_config_go_with_their_task(tmp_path):
    for config in ("demo", CONFIGS / "demo.yaml"):
        assert set(load_config(config, ["tasks=[kth]"]).task_options) == {"kth"}
        both = load_config(config, ["tasks=[kth, enso]", "task_options.kth.height=64"])
        assert (both.task_options["kth"].height, set(both.task_options)) == (64, {"kth", "enso"})
    refused(written(tmp_path, (CONFIGS / "demo.yaml").read_bytes()), ["tasks=[kth]"], "task_options.", "(kth)")


def test_what_is_right_stays_right(tmp_path):
    mine = written(
        tmp_path,
        "\ufeffdefaults: &small {height: 32, width: 32}\n".replace("defaults: ", "task_options:\n  kth: ")
        + "  kitti: {<<: *small, width: 40}\noptim: {lr: 1e-3, weight_decay: .05, clip: null}\n"
        "tasks: [kth, kitti]\nrun: 'no'\ntrain: {seed: 0x10, accelerator: gpu}\n",
    )
    config = load_config(mine, ["data.root=~/x", "ranks.window=2", "optim.warmup=5.e-2", "task_options.kth.patch=4"])
    assert (config.optim.lr, config.optim.weight_decay, config.optim.clip) == (1e-3, 0.05, None)
    assert (config.task_options["kitti"].height, config.task_options["kitti"].width) == (32, 40)
    assert (config.run, config.train.seed, config.ranks.window) == ("no", 16, 2.0)
    assert config.data.root == os.path.expanduser("~/x")
    assert load_config(written(tmp_path, dump_config(config))) == config
    assert load_config("demo", ["optim={}", "optim.lr=1"]).optim.clip == 1.0
    assert load_config("demo", ["task_options={}", "task_options.kth.height=64"]).task_options["kth"].height == 64
    assert load_config("demo", ["run='a # b'"]).run == "a # b"


WORDS = (
    """1e-3|no|010|1:30|1_0|2026-11-22|<<|=|true|~|null||é|a: b|x\ny|0x1|.5|1.| a|-|#|!x|*x|&x|[|'|"|1.5e3|.inf|0o7"""
)


def test_what_is_dumped_reads_back_equal():
    tree = {"words": WORDS.split("|"), "numbers": [0, -3, 1e-5, 1e16, 0.1, 2**70], "others": [True, None, {}, []]}
    tree |= {f"key {word}": word for word in WORDS.split("|")}
    assert parse_yaml(dump_yaml(tree)) == tree
    assert dump_yaml(tree).isascii()


PLACES = {
    "nowhere": "not a file",
    **{kind: f"{kind}, not a file" for kind in NO_FILES},
    "a link to itself": "a link to nothing, not a file",
    "below-a-file": "not a file",
    "/dev/zero": "a device, not a file",
    "/dev/null": "a device, not a file",
    "": "not a file",
}


@pytest.mark.parametrize("place", PLACES)
def test_something_else_than_a_file(place, tmp_path):
    path = tmp_path / place if place and not place.startswith("/") else place
    if place in NO_FILES:
        special(place, path)
    elif place == "below-a-file":
        (tmp_path / "file").write_text("run: x")
        path = tmp_path / "file" / "x.yaml"
    outcome = run_command("train", "--config", path)
    assert_refused(outcome, f"no config {str(path)!r}: {PLACES[place]}, and not one of demo, paper, real, unistd")


@pytest.mark.parametrize("name", ["laughs", "deep-list", "many", "large", "long-word", "self"])
def test_a_small_file_takes_little(name, tmp_path):
    outcome = run_command("train", "--config", written(tmp_path, FILES[name][0]))
    assert_refused(outcome, str(tmp_path / "mine.yaml"), *FILES[name][1:])


GRAMMAR = {
    "no command": ([], "COMMAND"),
    "unknown command": (["trian", "--config", "demo"], "trian"),
    "no config": (["train"], "--config"),
    "config without a name": (["train", "--config"], "--config"),
    "config twice": (["train", "--config", "demo", "--config", "paper"], "--config", "twice"),
    "abbreviated": (["train", "--conf", "demo"], "--config"),
    "abbreviated restart": (["train", "--config", "demo", "--rest"], "--rest"),
    "misspelt": (["train", "--config", "demo", "--restat"], "--restat"),
    "both": (["train", "--config", "demo", "--resume", "--restart"], "--restart", "--resume"),
    "resume with a value": (["train", "--config", "demo", "--resume=yes"], "--resume"),
    "override as an option": (["train", "--config", "demo", "--train.epochs=3"], "--train.epochs=3"),
    "short": (["train", "-c", "demo"], "--config"),
    "evaluate without a run": (["evaluate"], "RUN"),
    "evaluate two": (["evaluate", "a", "b"], "b"),
    "evaluate with an override": (["evaluate", "a", "train.epochs=3"], "train.epochs=3"),
    "predict twice a task": (["predict", "a", "--task", "b", "--task", "c", "--input", "d", "--output", "e"], "--task"),
    "predict without an input": (["predict", "a", "--task", "b", "--output", "c"], "--input"),
}


@pytest.mark.parametrize("case", GRAMMAR)
def test_grammar(case, capsys):
    words, *culprits = GRAMMAR[case]
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith("usage: unistd")
    for culprit in culprits:
        assert culprit in errors.splitlines()[-1]


def test_overrides_stand_anywhere(capsys):
    for words in (
        ["train", "train.epochs=0", "--config", "demo"],
        ["train", "--config", "demo", "train.epochs=0"],
        ["train", "train.seed=1", "--config", "demo", "train.epochs=0"],
        ["train", "--config=demo", "--resume", "train.epochs=0"],
        ["train", "--config", "demo", "--", "train.epochs=0"],
    ):
        assert main(words) == 1
        assert "key 'train.epochs'" in capsys.readouterr().err
