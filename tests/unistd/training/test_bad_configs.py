"""What somebody gets wrong in a config, an override or a word of the command line: one line that names it."""

import os
import socket
from functools import partial

import pytest
import torch
from support.refusal import assert_refused, run_command

from unistd import AdapterConfig, TrunkConfig
from unistd.cli import main
from unistd.training import memory
from unistd.training.data import task_specs
from unistd.training.memory import count_parameters
from unistd.training.run import build_model
from unistd.training.settings import CONFIGS, MAX_BYTES, ConfigError, dump_config, load_config
from unistd.training.yaml_text import MAX_VALUES, dump_yaml, parse_yaml


def refused(config, overrides, *culprits):
    """`load_config` refuses them in one line of a length that fits a screen, which has every one of `culprits`."""
    with pytest.raises(ConfigError) as error:
        load_config(config, overrides)
    line = str(error.value)
    assert "\n" not in line
    assert len(line) < 600, len(line)
    for culprit in culprits:
        assert culprit in line, f"{culprit!r} is not in {line!r}"


def written(folder, content):
    path = folder / "mine.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


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


OVERRIDES = {
    # words
    "optim.lr": ("expected key.sub=value",),
    "train": ("expected key.sub=value",),
    "=3": ("'=3'", "expected key.sub=value"),
    "=": ("expected key.sub=value",),
    "": ("override ''",),
    "train..epochs=3": ("'train..epochs=3'", "expected key.sub=value"),
    ".train.epochs=3": ("'.train.epochs=3'",),
    "train.epochs.=3": ("'train.epochs.=3'",),
    "train epochs=3": ("'train epochs=3'",),
    " train.epochs=3": ("' train.epochs=3'",),
    "train.epochs =3": ("'train.epochs =3'",),
    "train[epochs]=3": ("'train[epochs]=3'",),
    "train.epochs:3": ("'train.epochs:3'",),
    "train.epochs==3": ("train.epochs", "'=3'"),
    "train.epochs=": ("train.epochs", "found no value"),
    "train.epochs= ": ("train.epochs", "found no value"),
    "optim.clip=": ("optim.clip", "found no value"),
    "model.pretrained=": ("model.pretrained", "found no value"),
    "train.epochs.x=3": ("'epochs' is a value",),
    "run.folder=3": ("'run' is a value",),
    "tasks.0=kth": ("tasks.0",),
    "tasks.first=kth": ("tasks",),
    "train.epochs=3 # three": ("train.epochs", "comment"),
    "train.epochs=#3": ("train.epochs", "comment"),
    "run=a\nb": ("run", "one line"),
    "train.epochs=[3": ("train.epochs", "not YAML"),
    "train.epochs=!!int 3": ("train.epochs", "tag"),
    "optim={lr: 1, lr: 2}": ("'lr'", "twice"),
    "train.seed=" + "9" * 5000: ("train.seed", "shorter"),
    "train.seed=" + "x" * 50_000: ("train.seed", "characters"),
    "x" * 5000 + "=1": ("xxx", "unknown key"),
    "train." + "x" * 5000 + "=1": ("train.xxx", "unknown key"),
    "train.epochs=\udce9": ("train.epochs", "udce9"),
    "train.épochs=3": ("épochs", "did you mean 'train.epochs'"),
    # sections
    "train=3": ("'train'", "expected keys below it", "found 3"),
    "train=null": ("'train'", "expected keys below it", "found None"),
    "optim=[]": ("'optim'", "expected keys below it"),
    "data=demo": ("'data'", "expected keys below it", "'demo'"),
    "task_options=null": ("'task_options'", "expected keys below it"),
    "task_options=[kth]": ("'task_options'", "expected keys below it"),
    "task_options.kth=null": ("'task_options.kth'", "expected keys below it"),
    "task_options.kth=32": ("'task_options.kth'", "expected keys below it"),
    "model.trunk=null": ("'model.trunk'", "string or expected keys", "None"),
    "model.trunk=3": ("'model.trunk'", "found 3"),
    "model.trunk=[]": ("'model.trunk'",),
    "model.trunk=''": ("'model.trunk'",),
    "model.trunk=" + "x" * 300: ("'model.trunk'", "200"),
    # unknown keys
    "train.epoch=3": ("'train.epoch'", "did you mean 'train.epochs'"),
    "train.str=3": ("'train.str'",),
    "Train.epochs=3": ("'Train'", "did you mean 'train'"),
    "epochs=3": ("'epochs'", "epochs'"),
    "train.optim.lr=3": ("'train.optim'",),
    "model.trunk.str=3": ("'model.trunk.str'",),
    "model.trunk.widht=3": ("'model.trunk.widht'", "did you mean 'model.trunk.width'"),
    "model.trunk.depth.x=3": ("'depth' is a value",),
    "model.backend=cpu": ("'model.backend'",),
    "task_options.kth.channels=3": ("'task_options.kth.channels'",),
    "task_options.kth.scale=3": ("'task_options.kth.scale'",),
    # types
    "optim.lr=true": ("'optim.lr'", "number", "found True"),
    "optim.lr=yes": ("optim.lr", "found yes"),
    "optim.lr='0.1'": ("'optim.lr'", "number", "found '0.1'"),
    "optim.lr=0,1": ("'optim.lr'", "'0,1'"),
    "optim.lr=1e-3x": ("'optim.lr'", "'1e-3x'"),
    "optim.lr=[0.1]": ("'optim.lr'", "[0.1]"),
    "optim.lr={a: 1}": ("'optim.lr'", "{'a': 1}"),
    "optim.lr=null": ("'optim.lr'", "None"),
    "optim.lr=.nan": ("'optim.lr'", "finite", "nan"),
    "optim.lr=.inf": ("'optim.lr'", "finite", "inf"),
    "optim.lr=-.inf": ("'optim.lr'", "finite"),
    "optim.lr=nan": ("'optim.lr'", "'nan'"),
    "optim.lr=1e999": ("'optim.lr'", "finite"),
    "optim.lr=1e-999": ("'optim.lr'", "greater than 0"),
    "optim.clip=true": ("'optim.clip'", "True"),
    "optim.clip=0": ("'optim.clip'", "greater than 0"),
    "train.seed=yes": ("train.seed", "found yes"),
    "train.seed=true": ("'train.seed'", "integer", "True"),
    "train.seed=1.0": ("'train.seed'", "integer", "1.0"),
    "train.seed='1'": ("'train.seed'", "integer", "'1'"),
    "train.seed=0o17": ("'train.seed'", "'0o17'"),
    "train.seed=1e3": ("'train.seed'", "integer", "1000.0"),
    "train.seed=2026-11-22": ("train.seed", "2026-11-22"),
    "train.seed=12:30:45": ("train.seed", "12:30:45"),
    "train.epochs=3.0": ("'train.epochs'", "integer", "3.0"),
    'train.epochs="3"': ("'train.epochs'", "integer", "'3'"),
    "train.epochs=three": ("'train.epochs'", "integer", "'three'"),
    "train.epochs=[1, 2]": ("'train.epochs'", "integer"),
    "train.epochs=010": ("train.epochs", "010"),
    "train.threads=false": ("'train.threads'", "integer", "False"),
    "data.cache=1": ("'data.cache'", "true or false", "found 1"),
    "data.cache=on": ("data.cache", "found on"),
    "data.cache='true'": ("'data.cache'", "true or false", "'true'"),
    "data.cache=null": ("'data.cache'", "true or false", "None"),
    "data.cache=maybe": ("'data.cache'", "'maybe'"),
    "data.workers=null": ("'data.workers'", "integer"),
    "model.residual=0": ("'model.residual'", "true or false"),
    "model.max_rank=4.0": ("'model.max_rank'", "integer"),
    "model.init_rank=true": ("'model.init_rank'", "number"),
    "model.pretrained=true": ("'model.pretrained'", "string", "True"),
    "model.pretrained=3": ("'model.pretrained'", "string", "3"),
    "ranks.window=null": ("'ranks.window'", "number"),
    "optim.loss=MSE": ("'optim.loss'", "'relative' or 'mse'", "'MSE'"),
    "optim.loss=null": ("'optim.loss'", "None"),
    "optim.loss=[mse]": ("'optim.loss'",),
    "ranks.recipe=paper": ("'ranks.recipe'", "'sampled' or 'printed'"),
    "train.precision=32": ("'train.precision'", "found 32"),
    "train.precision=fp16": ("'train.precision'", "'fp16'"),
    "train.precision=16-mixed": ("'train.precision'", "'16-mixed'"),
    "train.accelerator=tpu": ("'train.accelerator'", "'tpu'"),
    "train.accelerator=nonsense": ("'train.accelerator'", "'nonsense'"),
    "train.accelerator=cuda:0": ("'train.accelerator'", "'cuda:0'"),
    "train.accelerator=null": ("'train.accelerator'", "None"),
    # paths
    "run=''": ("'run'", "found ''"),
    "run='  '": ("'run'", "found '  '"),
    "run=' x'": ("'run'", "found ' x'"),
    "run='x '": ("'run'", "found 'x '"),
    "run=null": ("'run'", "string", "None"),
    "run=~": ("'run'", "string", "None"),
    "run=3": ("'run'", "string", "found 3"),
    "run=true": ("'run'", "string", "True"),
    "run=no": ("run", "found no"),
    "run=[a]": ("'run'", "string"),
    'run="a\\0b"': ("'run'", "NUL"),
    'run="a\\ud800"': ("'run'", "ud800"),
    "run=" + "x" * 2000: ("'run'", "1000 characters"),
    "run=~nobody-of-that-name/x": ("'run'", "home folder"),
    "data.root=''": ("'data.root'", "found ''"),
    "data.root=' '": ("'data.root'", "found ' '"),
    "data.root=true": ("'data.root'", "string"),
    'data.root="a\\0b"': ("'data.root'", "NUL"),
    "model.pretrained=''": ("'model.pretrained'", "found ''"),
    # tasks
    "tasks=kth": ("'tasks'", "list", "'kth'"),
    "tasks=null": ("'tasks'", "list", "None"),
    "tasks=[]": ("'tasks'", "at least 1"),
    "tasks={kth: 1}": ("'tasks'", "list"),
    "tasks=3": ("'tasks'", "list"),
    "tasks=kth,enso": ("'tasks'", "list", "'kth,enso'"),
    "tasks=[kth, kth]": ("'tasks'", "'kth' twice"),
    "tasks=[kth, enso, kth]": ("'tasks'", "'kth' twice"),
    "tasks=[kht]": ("'tasks'", "unknown task 'kht', did you mean 'kth'"),
    "tasks=[KTH]": ("'tasks'", "unknown task 'KTH'"),
    "tasks=['kth ']": ("'tasks'", "unknown task 'kth '", "did you mean 'kth'"),
    "tasks=['']": ("'tasks'", "unknown task ''"),
    "tasks=[3]": ("'tasks.0'", "string", "found 3"),
    "tasks=[kth, null]": ("'tasks.1'", "string", "None"),
    "tasks=[kth, [enso]]": ("'tasks.1'", "string"),
    "tasks=[no]": ("tasks", "found no"),
    "tasks=[" + "x" * 5000 + "]": ("'tasks'", "unknown task 'xxx"),
    "task_options.kht.height=32": ("task_options.kht", "unknown task 'kht', did you mean 'kth'"),
    "task_options.kth.height=33": ("task_options.kth", "height is 33", "multiple of patch"),
    "task_options.kth.width=33": ("task_options.kth", "width is 33"),
    "task_options.kth.patch=5": ("task_options.kth", "patch 5"),
    "task_options.kth.patch=64": ("task_options.kth", "height is 32"),
    "task_options.kth.height=true": ("'task_options.kth.height'", "integer"),
    "task_options.kth.height='32'": ("'task_options.kth.height'", "integer"),
    "task_options.kth.height=32.0": ("'task_options.kth.height'", "integer"),
    "task_options.kth.frames_in=-1": ("'task_options.kth.frames_in'", "found -1"),
    # ranges, and numbers beyond all use
    "train.epochs=0": ("'train.epochs'", "greater than or equal to 1", "found 0"),
    "train.epochs=-3": ("'train.epochs'", "found -3"),
    "train.epochs=1000000000000": ("'train.epochs'", "less than or equal to"),
    "train.epoch_samples=1000000000000": ("'train.epoch_samples'", "less than or equal to"),
    "train.batch_size=1000000000000": ("'train.batch_size'", "less than or equal to"),
    "train.batch_size=0": ("'train.batch_size'", "found 0"),
    "train.threads=0": ("'train.threads'", "found 0"),
    "train.threads=100000": ("'train.threads'", "found 100000"),
    "train.seed=-1": ("'train.seed'", "found -1"),
    f"train.seed={2**80}": ("'train.seed'", "less than", str(2**80)),
    "train.seed=" + "9" * 400: ("'train.seed'", "less than"),
    "train.tasks_per_step=-1": ("'train.tasks_per_step'", "found -1"),
    "train.tasks_per_step=11": ("train.tasks_per_step is 11", "there are 10 tasks"),
    "train.log_every=0": ("'train.log_every'", "found 0"),
    "train.checkpoint_every=0": ("'train.checkpoint_every'", "found 0"),
    "train.epochs=3": ("ranks.epochs is 4, expected at most train.epochs = 3",),
    "ranks.epochs=11": ("ranks.epochs is 11, expected at most train.epochs = 10",),
    "ranks.epochs=-1": ("'ranks.epochs'", "found -1"),
    "ranks.window=0.5": ("'ranks.window'", "found 0.5"),
    "ranks.window_share=0": ("'ranks.window_share'", "found 0"),
    "ranks.window_share=1.5": ("'ranks.window_share'", "found 1.5"),
    "ranks.lr=-1": ("'ranks.lr'", "found -1"),
    "ranks.penalty=1e300": ("'ranks.penalty'", "1e+300"),
    "optim.lr=1e300": ("'optim.lr'", "1e+300"),
    "optim.lr=0": ("'optim.lr'", "found 0"),
    "optim.weight_decay=-0.1": ("'optim.weight_decay'", "found -0.1"),
    "optim.warmup=1.01": ("'optim.warmup'", "found 1.01"),
    "optim.final_lr=2": ("'optim.final_lr'", "found 2"),
    "data.train_samples=0": ("'data.train_samples'", "found 0"),
    "data.train_samples=1000000000000": ("'data.train_samples'", "less than or equal to"),
    "data.val_samples=-1": ("'data.val_samples'", "found -1"),
    "data.test_samples=0": ("'data.test_samples'", "found 0"),
    "data.workers=-1": ("'data.workers'", "found -1"),
    "data.workers=1000000": ("'data.workers'", "found 1000000"),
    "model.max_rank=0": ("'model.max_rank'", "found 0"),
    "model.max_rank=1000000000": ("'model.max_rank'", "found 1000000000"),
    "model.max_rank=4": ("model.init_rank is 4.5, expected at most model.max_rank = 4",),
    "model.init_rank=9": ("model.init_rank is 9.0, expected at most model.max_rank = 8",),
    "model.init_rank=-1": ("'model.init_rank'", "found -1"),
    "model.qkv_experts=0": ("'model.qkv_experts'", "found 0"),
    "model.qkv_experts=1000000": ("'model.qkv_experts'", "found 1000000"),
    "model.temporal_width=1000000000": ("'model.temporal_width'", "found 1000000000"),
    "model.hidden=1000000000": ("'model.hidden'", "found 1000000000"),
    "model.hidden=0": ("'model.hidden'", "found 0"),
    "model.trunk.depth=1000000": ("'model.trunk.depth'", "found 1000000"),
    "model.trunk.depth=0": ("'model.trunk.depth'", "found 0"),
    "model.trunk.depth=4.0": ("'model.trunk.depth'", "integer", "4.0"),
    "model.trunk.depth=true": ("'model.trunk.depth'", "integer", "True"),
    "model.trunk.width=1000000000": ("'model.trunk.width'", "found 1000000000"),
    "model.trunk.width=130": ("'model.trunk'", "width", "multiple of heads=4", "130"),
    "model.trunk.heads=3": ("'model.trunk'", "width", "multiple of heads=3"),
    "model.trunk.heads=1000000": ("'model.trunk.heads'", "found 1000000"),
    "model.trunk.mlp_ratio=.inf": ("'model.trunk.mlp_ratio'", "finite"),
    "model.trunk.mlp_ratio=1e9": ("'model.trunk.mlp_ratio'", "1000000000.0"),
    "model.trunk.mlp_ratio=0": ("'model.trunk.mlp_ratio'", "found 0"),
    "model.trunk.mlp_ratio=0.001": ("'model.trunk'", "mlp_ratio", "0.001"),
    "task_options.kth.height=1000000000": ("'task_options.kth.height'", "found 1000000000"),
    "task_options.kth.frames_out=10000000": ("'task_options.kth.frames_out'", "found 10000000"),
    "task_options.kth.patch=1000000": ("'task_options.kth.patch'", "found 1000000"),
}


@pytest.mark.parametrize("override", OVERRIDES, ids=[f"{word[:40]!r}" for word in OVERRIDES])
def test_override(override):
    refused("demo", [override], *OVERRIDES[override])


SEVERAL = {
    "a section over its key": (["data.workers=1", "data={cache: true}"], "'data={cache: true}'", "'data.workers=1'"),
    "the trunk over its size": (["model.trunk.depth=1", "model.trunk=ViT-B-16"], "'model.trunk.depth=1'"),
    "the first that is wrong": (["train.seed=3", "train.sead=3", "nothing"], "'nothing'"),
    "options of a task left out": (["tasks=[enso]", "task_options.kth.height=64"], "task_options.kth", "(enso)"),
    "all options of it": (["tasks=[enso]", "task_options={kth: {height: 64}}"], "task_options.kth", "(enso)"),
    "a name before its options": (["tasks=[kht]", "task_options.kht.height=32"], "unknown task 'kht'", "'kth'"),
    "a name before a wrong option": (["tasks=[kht]", "task_options.kht.hight=32"], "unknown task 'kht'", "'kth'"),
    "a name before all else": (["tasks=[kht]", "train.epochs=x"], "unknown task 'kht'"),
    "more tasks in a step than there are": (["tasks=[kth]", "train.tasks_per_step=2"], "train.tasks_per_step is 2"),
    "a section below a value": (["model.trunk=ViT-B-16", "model.trunk.depth=3"], "'trunk' is a value"),
}


def test_the_later_override_of_a_key_counts():
    assert load_config("demo", ["train.epochs=50", "train.seed=3", "train.epochs=60"]).train.epochs == 60


@pytest.mark.parametrize("case", SEVERAL)
def test_several_overrides(case):
    overrides, *culprits = SEVERAL[case]
    refused("demo", overrides, *culprits)


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
    "folder": "a folder, not a file",
    "pipe": "a named pipe, not a file",
    "socket": "a socket, not a file",
    "dangling": "a link to nothing, not a file",
    "loop": "a link to nothing, not a file",
    "below-a-file": "not a file",
    "/dev/zero": "a device, not a file",
    "/dev/null": "a device, not a file",
    "": "not a file",
}


@pytest.mark.parametrize("place", PLACES)
def test_something_else_than_a_file(place, tmp_path):
    path = tmp_path / place if place and not place.startswith("/") else place
    if place == "folder":
        path.mkdir()
    elif place == "pipe":
        os.mkfifo(path)
    elif place == "socket":
        socket.socket(socket.AF_UNIX).bind(str(path))
    elif place == "dangling":
        path.symlink_to(tmp_path / "nowhere")
    elif place == "loop":
        path.symlink_to(path)
    elif place == "below-a-file":
        (tmp_path / "file").write_text("run: x")
        path = tmp_path / "file" / "x.yaml"
    outcome = run_command("train", "--config", path)
    assert_refused(outcome, f"no config {str(path)!r}: {PLACES[place]}, and not one of demo, paper, unistd")


@pytest.mark.parametrize("name", ["laughs", "deep-list", "many", "large", "long-word", "self"])
def test_a_small_file_takes_little(name, tmp_path):
    outcome = run_command("train", "--config", written(tmp_path, FILES[name][0]))
    assert_refused(outcome, str(tmp_path / "mine.yaml"), *FILES[name][1:])


# what a key by itself may be, and this machine cannot hold; and devices that it has not
BEYOND_THIS_MACHINE = {
    "a wide trunk": (["model.trunk.width=16384", "model.trunk.depth=64"], "model.trunk (width 16384, depth 64"),
    "a deep trunk": (["model.trunk.width=8192", "model.trunk.depth=256"], "model.trunk (width 8192, depth 256"),
    "a wide mlp": (["model.trunk.width=16000", "model.trunk.mlp_ratio=64"], "model.trunk", "mlp_ratio 64"),
    "many experts": (
        ["model.qkv_experts=256", "model.max_rank=256", "model.trunk.width=8192"], "experts", "max_rank 256"
    ),
    "a wide decoder": (["model.hidden=4096", "task_options.kth.patch=16"], "model.hidden 4096"),
    "a large batch": (["train.batch_size=65536"], "train.batch_size 65536"),
    "a large frame": (["task_options.kth={height: 4096, width: 4096}"], "task_options.kth", "height 4096"),
    "a long sequence": (["task_options.kth={frames_in: 1024, width: 1024}"], "task_options.kth", "frames_in 1024"),
    "cuda": (["train.accelerator=cuda"], "train.accelerator 'cuda'"),
    "gpu": (["train.accelerator=gpu"], "train.accelerator 'gpu'"),
    "mps": (["train.accelerator=mps"], "train.accelerator 'mps'"),
    "a trunk that nobody knows": (["model.trunk=ViT-B16"], "trunk: ", "'ViT-B16'", "did you mean 'ViT-B-16'"),
    "a trunk of another kind": (["model.trunk=RN50"], "trunk: 'RN50'"),
    "weights that are not there": (["model.pretrained=/nowhere/w.pt"], "pretrained: no such file /nowhere/w.pt"),
    "a tag without a trunk": (["model.pretrained=laion2b"], "pretrained: ", "'laion2b'"),
    "weights that are a folder": (["model.pretrained=/tmp"], "pretrained: ", "'/tmp'"),
    "weights that never end": (["model.pretrained=/dev/zero"], "pretrained: ", "'/dev/zero'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BEYOND_THIS_MACHINE)
def test_beyond_this_machine(case, tmp_path):
    overrides, *culprits = BEYOND_THIS_MACHINE[case]
    if overrides[0].startswith("train.accelerator") and torch.accelerator.is_available():
        pytest.skip("needs a machine without an accelerator")
    outcome = run_command("train", "--config", "demo", f"run={tmp_path}/run", *overrides)
    assert_refused(outcome, *culprits)
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize(
    "overrides", [[], ["tasks=[kitti]", "model.trunk.depth=1"], ["model.qkv_experts=3", "model.hidden=8"]]
)
def test_parameters_are_counted_before_they_are_made(overrides):
    config = load_config("demo", overrides)
    model = build_model(config)
    adapter = AdapterConfig(config.model.qkv_experts, temporal_width=config.model.temporal_width)
    counted = count_parameters(config, task_specs(config), model.trunk_config, adapter)
    assert sum(counted) == sum(parameter.numel() for parameter in model.parameters())
    assert counted[2] == sum(p.numel() for part in (model.encoders, model.decoders) for p in part.parameters())


def test_what_fits_is_not_refused(monkeypatch):
    for name in ("demo", "paper", "unistd"):
        config = load_config(name)
        trunk = config.model.trunk
        trunk = TrunkConfig(**trunk.model_dump()) if name == "demo" else TrunkConfig()
        for there in (16 << 30, 1 << 20):
            monkeypatch.setattr(memory, "machine_memory", lambda there=there: there)
            check = partial(memory.check_memory, config, task_specs(config), trunk, AdapterConfig(), training=True)
            if there > 1 << 30:
                check()
            else:
                with pytest.raises(
                    ValueError, match=r"takes about .* GiB, the whole at least .* GiB, expected at most"
                ):
                    check()
    assert memory.machine_memory() > 0


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
    "tasks with a word": (["tasks", "kth"], "kth"),
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
