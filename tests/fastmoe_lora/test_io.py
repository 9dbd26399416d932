import json

import pytest
import torch
from torch import nn

from fastmoe_lora import RAMoELinear, freeze_ranks, load_adapters, rank_report, save_adapters


def make(**options) -> nn.Sequential:
    torch.manual_seed(7)  # the same frozen weights each time
    return nn.Sequential(
        *(RAMoELinear.from_linear(nn.Linear(8, 8), num_experts=3, backend="packed", **options) for _ in range(2))
    )


@pytest.mark.parametrize("stage", ["learning", "frozen"])
def test_adapters_round_trip(tmp_path, stage):
    model, other = make(), make()
    for layer in model:
        nn.init.normal_(layer.lora_B)
        layer.rank.data.uniform_(0, 3)
    if stage == "frozen":
        freeze_ranks(model)
    save_adapters(model, tmp_path / "adapters")
    load_adapters(other, tmp_path / "adapters")
    x = torch.randn(4, 8)
    assert torch.equal(other(x), model(x))
    assert rank_report(other) == rank_report(model)
    assert sorted(file.name for file in (tmp_path / "adapters").iterdir()) == ["adapters.json", "adapters.safetensors"]
    assert (tmp_path / "adapters" / "adapters.safetensors").stat().st_size < sum(
        p.numel() * 4 for layer in model for p in (layer.lora_A, layer.lora_B, layer.rank, layer.router.weight)
    ) + 2000  # the adapters alone


def truncate(folder):
    file = folder / "adapters.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def break_json(folder):
    (folder / "adapters.json").write_text("{")


def rename_layer(folder):
    config = json.loads((folder / "adapters.json").read_text())
    config["layers"]["9"] = config["layers"].pop("1")
    (folder / "adapters.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "adapters.safetensors: not a whole safetensors file"),
        (break_json, "adapters.json: not a description of adapters"),
        (rename_layer, "layer '1' is in the model but not the file"),
    ],
)
def test_damaged_files_are_named_and_change_nothing(tmp_path, damage, message):
    model = make()
    nn.init.normal_(model[0].lora_B)
    save_adapters(model, tmp_path)
    damage(tmp_path)
    other = make()
    with pytest.raises(ValueError, match=message):
        load_adapters(other, tmp_path)
    assert (other[0].lora_B == 0).all()


def test_another_architecture_is_named(tmp_path):
    save_adapters(make(max_rank=16), tmp_path)
    with pytest.raises(ValueError, match="layer '0' has max_rank = 16, the model has 8"):
        load_adapters(make(), tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_adapters(make(), tmp_path / "nowhere")
