"""Configs: defaults, files, overrides, and one-line errors that name the key and the nearest right one."""

import pytest
import yaml

from unistd.schema import describe_keys
from unistd.tasks import TASKS
from unistd.training import Config
from unistd.training.settings import CONFIGS, ConfigError, changed_keys, dump_config, load_config


def write(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def test_shipped_configs_are_valid_and_distinct():
    names = {path.stem for path in CONFIGS.glob("*.yaml")}
    assert names == {"demo", "paper", "real", "unistd"}
    with pytest.raises(ConfigError, match=r"nyc_taxi\.yaml: data\.root is null, expected the folder"):
        load_config("real")
    configs = {name: load_config(name) for name in names - {"real"}}
    assert len({config.run for config in configs.values()}) == 3
    assert all(config.tasks == list(TASKS) for config in configs.values())


def test_paper_config_is_the_printed_recipe():
    paper = load_config("paper")
    assert (paper.model.trunk, paper.model.pretrained) == ("ViT-B-16", "laion2b_s34b_b88k")
    assert (paper.model.qkv_experts, paper.model.proj_experts, paper.model.temporal_experts) == (6, 2, 2)
    assert (paper.model.init_rank, paper.model.max_rank, paper.ranks.penalty) == (4.5, 8, 1.0)
    assert (paper.optim.lr, paper.optim.weight_decay, paper.optim.loss) == (0.01, 0.05, "mse")
    assert (paper.train.epochs, paper.ranks.epochs, paper.train.batch_size) == (90, 10, 16)
    assert paper.ranks.recipe == "printed"
    assert not paper.model.residual


def test_dumped_config_reads_back_equal(tmp_path):
    config = load_config("demo", ["optim.clip=null", "train.seed=3"])
    assert load_config(write(tmp_path, dump_config(config))) == config


def test_overrides_reach_every_level(tmp_path):
    config = load_config(
        write(tmp_path, "optim: {lr: 0.5}"),
        ["tasks=[kth, enso]", "task_options.kth.height=32", "optim.lr=1e-3", "optim.clip=null", "model.trunk.depth=2"],
    )
    assert config.tasks == ["kth", "enso"]
    assert config.task_options["kth"].height == 32
    assert config.optim.lr == 1e-3
    assert config.optim.clip is None
    assert config.model.trunk.depth == 2


def test_overrides_keep_what_the_file_says_beside_them(tmp_path):
    config = load_config(write(tmp_path, "optim: {lr: 0.5, warmup: 0.2}"), ["optim.lr=0.25"])
    assert (config.optim.lr, config.optim.warmup) == (0.25, 0.2)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", "unknown key 'optim.lrr'; did you mean 'optim.lr'"),
        ("lr=1", "unknown key 'lr'; did you mean 'optim.lr'"),
        ("optimm.lr=1", "unknown key 'optimm'; did you mean 'optim'"),
        ("task_options.kth.hight=3", "unknown key 'task_options.kth.hight'; did you mean 'task_options.kth.height'"),
        ("model.trunk.dept=3", "unknown key 'model.trunk.dept'; did you mean 'model.trunk.depth'"),
        ("qqqqqq=3", "unknown key 'qqqqqq'; known here: data, "),
        ("optim.lr=fast", "key 'optim.lr': .*number.*, found 'fast'"),
        ("optim.lr=-1", "key 'optim.lr': .*greater than 0, found -1"),
        ("optim.lr=.inf", "key 'optim.lr': .*finite"),
        ("optim.loss=l1", "key 'optim.loss': .*'relative' or 'mse', found 'l1'"),
        ("train.epochs=1.5", "key 'train.epochs': .*integer.*, found 1.5"),
        ("tasks=kth", "key 'tasks': .*list, found 'kth'"),
        ("model.trunk.width=wide", "key 'model.trunk.width': .*integer.*, found 'wide'"),
        ("ranks.epochs=99", "ranks.epochs is 99, expected at most train.epochs = 90"),
        ("optim.lr", "override 'optim.lr': expected key.sub=value"),
        ("run.folder=3", "override 'run.folder=3': 'run' is a value"),
        ("optim.lr=[1", "override 'optim.lr=.*not YAML"),
    ],
)
def test_wrong_override_is_one_line(tmp_path, override, message):
    path = write(tmp_path, "run: there")
    with pytest.raises(ConfigError, match=message) as error:
        load_config(path, [override])
    assert "\n" not in str(error.value)


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match="no config 'dmo': not a file, and not one of demo, paper, real, unistd"):
        load_config("dmo")
    with pytest.raises(ConfigError, match=r"config\.yaml: not YAML"):
        load_config(write(tmp_path, "a: [1"))
    with pytest.raises(ConfigError, match=r"config\.yaml: a config is a mapping"):
        load_config(write(tmp_path, "- 1"))


def test_every_key_is_described_with_its_default():
    rows = {key: (kind, default, meaning) for key, kind, default, meaning in describe_keys(Config)}
    assert all(meaning for _, _, meaning in rows.values())
    assert rows["optim.lr"][:2] == ("float", "0.001")
    assert "task_options.TASK.height" in rows
    assert "model.trunk.depth" in rows
    dumped = yaml.safe_load(dump_config(load_config("paper")))
    described = {key for key in rows if "TASK" not in key and not key.startswith("model.trunk.")}
    assert described == set(leaves(dumped)), "a key without a description"


def leaves(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def test_changed_keys_names_what_differs():
    old = {"a": {"b": 1, "c": 2}, "d": 3}
    assert changed_keys(old, {"a": {"b": 1, "c": 4}, "d": 3, "e": 5}) == ["a.c", "e"]
    assert changed_keys(old, old) == []
