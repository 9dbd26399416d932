"""What this machine cannot hold or has not is said before anything is made, and nothing that fits is refused."""

import re
from functools import partial

import pytest
import torch
from support.refusal import assert_refused, run_command

from unistd import AdapterConfig, TrunkConfig
from unistd.training import memory
from unistd.training.data import task_specs
from unistd.training.memory import count_parameters
from unistd.training.parts import freeze_parts
from unistd.training.processes import Processes
from unistd.training.run import build_model, model_sizes
from unistd.training.settings import load_config

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
    "a large frame": (
        ["task_options.kth={height: 4096, width: 4096, patch: 4}"],
        "train.batch_size 2",
        "tokens in a step",
    ),
    "a long sequence": (
        ["task_options.kth={frames_in: 1024, height: 2048, width: 2048, patch: 256}"],
        "task_options.kth",
        "frames_in 1024",
    ),
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
    found = counted.trunk + counted.adapters + sum(counted.outside.values())
    assert found == sum(parameter.numel() for parameter in model.parameters())
    for task, count in counted.outside.items():
        parts = (model.encoders[task], model.decoders[task])
        assert count == sum(p.numel() for part in parts for p in part.parameters())


@pytest.mark.parametrize(
    "overrides", [["train.freeze=[trunk,kth]"], ["train.freeze=[adapters]", "ranks.epochs=0", "train.only=[kth]"]]
)
def test_what_learns_is_counted(overrides):
    config = load_config("demo", overrides)
    model = build_model(config)
    freeze_parts(model, config)
    trained = count_parameters(config, task_specs(config), *model_sizes(config)).trained(config)
    found = trained.trunk + trained.adapters + sum(trained.outside.values())
    assert found == sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def least(config, monkeypatch, world=1):
    """GiB that the training of a config takes at the least, of each of `world` processes of a machine, and there."""
    monkeypatch.setattr(memory.Processes, "of_environment", lambda: Processes(0, world, 0, world))
    monkeypatch.setattr(memory, "_GIB", 1)  # which gives bytes
    monkeypatch.setattr(memory.os, "sysconf", lambda name: 1000)  # and a machine of a million of them
    with pytest.raises(ValueError, match=r"the whole at least") as refusal:
        memory.check_memory(config, task_specs(config), *model_sizes(config), training=True)
    needed, there = re.search(
        r"at least ([\d.,]+) GiB, expected at most the ([\d.,]+) GiB", str(refusal.value)
    ).groups()
    assert ("a share of 2 processes" in str(refusal.value)) == (world == 2)
    return float(needed.replace(",", "")), float(there.replace(",", ""))


def test_what_does_not_learn_takes_no_more_than_its_weights(monkeypatch):
    config = load_config("demo", ["train.accelerator=cpu"])
    counted = count_parameters(config, task_specs(config), *model_sizes(config))
    every, _ = least(config, monkeypatch)
    frozen, _ = least(load_config("demo", ["train.accelerator=cpu", "train.freeze=[trunk,kth]"]), monkeypatch)
    assert every - frozen == pytest.approx(12 * (counted.trunk + counted.outside["kth"]), abs=2)
    alone, _ = least(load_config("demo", ["train.accelerator=cpu", "train.only=[enso]"]), monkeypatch)
    assert alone < every - 12 * sum(count for task, count in counted.outside.items() if task != "enso")  # and its batch


def test_processes_of_a_machine_share_its_memory(monkeypatch):
    config = load_config("demo", ["train.accelerator=cpu"])
    counted = count_parameters(config, task_specs(config), *model_sizes(config))
    weights = 16 * (counted.trunk + counted.adapters + sum(counted.outside.values()))
    one, there = least(config, monkeypatch)
    two, half = least(config, monkeypatch, world=2)
    assert half == there / 2
    assert two - weights == pytest.approx((one - weights) / 2, abs=2)  # the whole model, half of a batch
    sharded = load_config("demo", ["train.accelerator=cpu", "train.strategy=fsdp"])
    assert least(sharded, monkeypatch, world=2)[0] == pytest.approx(two - weights / 2, abs=5)


def test_what_fits_is_not_refused(monkeypatch):
    for name in ("demo", "paper", "unistd"):
        config = load_config(name)
        trunk = config.model.trunk
        trunk = TrunkConfig(**trunk.model_dump()) if name == "demo" else TrunkConfig()
        for there in (16 << 30, 1 << 20):
            monkeypatch.setattr(memory, "machine_memory", lambda sharing=1, there=there: there)
            check = partial(memory.check_memory, config, task_specs(config), trunk, AdapterConfig(), training=True)
            if there > 1 << 30:
                check()
            else:
                with pytest.raises(
                    ValueError, match=r"takes about .* GiB, the whole at least .* GiB, expected at most"
                ):
                    check()
    assert memory.machine_memory() > 0
