import json
import threading
import warnings
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.parallel import DataParallel
from torch.optim.swa_utils import AveragedModel

from fastmoe_lora import (
    RAMoELinear,
    adapt,
    freeze_ranks,
    load_adapters,
    rank_report,
    save_adapters,
    set_rank_window,
    trainable_parameters,
)


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


OPTIONS = {
    "scaling": (1.0, 2.0),
    "top_k": (None, 2),
    "router": ("token", "sample"),
    "dropout": (0.0, 0.25),
    "interpolation": ("linear", "as_printed"),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_that_changes_what_the_numbers_mean_is_refused_by_name(tmp_path, option):
    mine, saved = OPTIONS[option]
    save_adapters(make(**{option: saved}), tmp_path)
    other = make(**{option: mine})
    nn.init.ones_(other[0].lora_B)
    key = "router_kind" if option == "router" else option
    with pytest.raises(ValueError, match=f"layer '0' has {key} = '?{saved}'?, the model has '?{mine}'?"):
        load_adapters(other, tmp_path)
    assert (other[0].lora_B == 1).all()
    load_adapters(make(**{option: saved}), tmp_path)


def test_the_interpolation_of_frozen_ranks_means_nothing(tmp_path):
    model, other = make(interpolation="sampled"), make()
    for layer in model:
        nn.init.normal_(layer.lora_B)
    freeze_ranks(model)
    save_adapters(model, tmp_path)
    load_adapters(other, tmp_path)
    x = torch.randn(4, 8)
    assert torch.equal(other(x), model(x))


def test_the_rank_window_is_loaded(tmp_path):
    model, other = make(), make()
    nn.init.normal_(model[0].lora_B)
    set_rank_window(model, 2.5)
    save_adapters(model, tmp_path)
    load_adapters(other, tmp_path)
    x = torch.randn(4, 8)
    assert torch.equal(other(x), model(x))
    assert [layer.rank_window for layer in other] == [2.5, 2.5]


class Wrapper(nn.Module):
    """Names its model as DistributedDataParallel and others do."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


def compiled_inside(model: nn.Sequential) -> nn.Sequential:
    return nn.Sequential(*(torch.compile(layer) for layer in model))


def wrapped_inside(model: nn.Sequential) -> nn.Sequential:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    return nn.Sequential(*(checkpoint_wrapper(layer) for layer in model))


WRAPS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain": lambda model: model,
    "compiled": torch.compile,
    "module": Wrapper,
    "averaged": AveragedModel,
    "data parallel": DataParallel,
    "compiled module": lambda model: torch.compile(Wrapper(model)),
    "module of compiled": lambda model: Wrapper(torch.compile(model)),
    "averaged module": lambda model: AveragedModel(Wrapper(model)),
    "compiled layers": compiled_inside,
    "checkpointed layers": wrapped_inside,
}


@pytest.mark.parametrize("loaded", WRAPS)
@pytest.mark.parametrize("saved", WRAPS)
def test_wrappers_leave_no_trace_in_a_file(tmp_path, saved, loaded):
    model, other = make(), make()
    for layer in model:
        nn.init.normal_(layer.lora_B)
    save_adapters(WRAPS[saved](model), tmp_path)
    assert list(json.loads((tmp_path / "adapters.json").read_text())["layers"]) == ["0", "1"]
    wrapped = WRAPS[loaded](other)
    load_adapters(wrapped, tmp_path)
    inside = [module for module in wrapped.modules() if isinstance(module, RAMoELinear)]
    assert all(torch.equal(a.lora_B, b.lora_B) for a, b in zip(model, inside, strict=True))


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module.", "module.module."]
)
def test_files_that_earlier_releases_wrote_of_wrapped_models_load(tmp_path, prefix):
    model, other = make(), make()
    nn.init.normal_(model[0].lora_B)
    save_adapters(model, tmp_path)
    config = json.loads((tmp_path / "adapters.json").read_text())
    config["layers"] = {prefix + name: layer for name, layer in config["layers"].items()}
    (tmp_path / "adapters.json").write_text(json.dumps(config))
    tensors = load_file(tmp_path / "adapters.safetensors")
    save_file({prefix + name: value for name, value in tensors.items()}, tmp_path / "adapters.safetensors")
    load_adapters(other, tmp_path)
    assert torch.equal(other[0].lora_B, model[0].lora_B)


def test_a_part_of_a_model_may_be_called_module(tmp_path):
    def build() -> nn.ModuleDict:
        return nn.ModuleDict({"module": make(), "head": nn.Linear(8, 2)}).requires_grad_(False)

    model, other = build(), build()
    nn.init.normal_(model["module"][0].lora_B)
    save_adapters(model, tmp_path)
    assert list(json.loads((tmp_path / "adapters.json").read_text())["layers"]) == ["module.0", "module.1"]
    load_adapters(Wrapper(other), tmp_path)
    assert torch.equal(other["module"][0].lora_B, model["module"][0].lora_B)


def with_head() -> nn.Sequential:
    torch.manual_seed(7)
    model = adapt(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)), {"0": {"num_experts": 2}})
    model[1].requires_grad_(True)
    model[2].requires_grad_(True)
    return model


def test_what_is_trained_beside_the_adapters_is_named_or_saved_on_request(tmp_path):
    model, x = with_head(), torch.randn(5, 8)
    for _, parameter in trainable_parameters(model):
        nn.init.uniform_(parameter, 0.0, 1.0)
    model(x)
    with pytest.warns(UserWarning, match=r"save_adapters: .*: 1\.weight, 1\.bias, 2\.weight and 1 more; also="):
        save_adapters(model, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_adapters(model, tmp_path, also=())
        load_adapters(with_head(), tmp_path)
        save_adapters(torch.compile(model), tmp_path, also=["1.*", "2.*"])
    other = with_head()
    load_adapters(Wrapper(other), tmp_path)
    assert torch.equal(other.eval()(x), model.eval()(x))
    assert other[1].num_batches_tracked == 1


@pytest.mark.parametrize(
    ("also", "error", "message"),
    [
        (["nowhere.*"], ValueError, "also: 'nowhere.\\*' matches no parameter or buffer"),
        (["*.lora_A"], ValueError, "also: '\\*.lora_A' matches no"),
        ([3], TypeError, "also: got 3, expected a pattern"),
        ("2.*", TypeError, "also: got '2.\\*', expected a list"),
        (3, TypeError, "also: got 3, expected a list"),
    ],
)
def test_what_cannot_be_saved_with_the_adapters_is_refused(tmp_path, also, error, message):
    with pytest.raises(error, match=message):
        save_adapters(with_head(), tmp_path / "new", also=also)
    assert not (tmp_path / "new").exists()


def test_a_head_of_another_shape_or_with_wrong_numbers_is_named_and_changes_nothing(tmp_path):
    model = with_head()
    save_adapters(model, tmp_path, also=["2.*"])
    other = with_head()
    other[2] = nn.Linear(8, 4)
    nn.init.ones_(other[0].lora_B)
    with pytest.raises(ValueError, match=r"adapters.safetensors: '2.weight' has shape \(3, 8\), expected \(4, 8\)"):
        load_adapters(other, tmp_path)
    assert (other[0].lora_B == 1).all()
    model[2].weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"model: 2.weight\[0, 0\] is nan, expected a finite number"):
        save_adapters(model, tmp_path, also=["2.*"])


def test_a_flattened_tensor_is_not_saved(tmp_path):
    model = make()
    model[1].lora_A.data = model[1].lora_A.data.flatten()  # as FSDP's first version keeps them
    with pytest.raises(
        ValueError, match=r"model: layer '1': lora_A has shape \(192,\), expected \(1, 3, 8, 8\): whole"
    ):
        save_adapters(model, tmp_path / "new")


def test_writers_of_one_folder_do_not_disturb_each_other(tmp_path):
    """As the processes of a data-parallel model, which all save."""
    model = nn.Sequential(RAMoELinear.from_linear(nn.Linear(4, 4)))
    failures = []

    def save() -> None:
        for _ in range(30):
            try:
                save_adapters(model, tmp_path)
            except OSError as error:
                failures.append(error)

    writers = [threading.Thread(target=save) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not failures
    assert sorted(file.name for file in tmp_path.iterdir()) == ["adapters.json", "adapters.safetensors"]
    load_adapters(model, tmp_path)
