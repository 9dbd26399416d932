"""The layer under PyTorch's data-parallel wrappers, on two processes of the CPU."""

from functools import partial

import pytest
import torch
import torch.distributed as dist
from support.processes import WORLD, together
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from fastmoe_lora import (
    RAMoELinear,
    RankOptimizer,
    adapt,
    check_adapters,
    disable_adapters,
    freeze_ranks,
    load_adapters,
    ramoe_layers,
    rank_report,
    ranks_frozen,
    save_adapters,
    unadapt,
)


def build() -> nn.Sequential:
    torch.manual_seed(5)
    linears = [nn.Linear(8, 8) for _ in range(2)]
    model = nn.Sequential(*(RAMoELinear.from_linear(linear, num_experts=3, backend="packed") for linear in linears))
    for layer in model:
        nn.init.normal_(layer.lora_B)
    return model


class Projections(nn.Module):
    """Queries, keys and values of grouped heads, fused."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.q(x) + torch.cat([self.k(x), self.v(x)], -1)


def build_fused() -> nn.Sequential:
    torch.manual_seed(5)
    model = nn.Sequential(Projections(), Projections())
    adapt(model, {"?": {"fuse": ["q", "k", "v"], "num_experts": 3, "backend": "packed"}})
    for _, layer in ramoe_layers(model):
        nn.init.normal_(layer.lora_B)
    return model


def sharded(model: nn.Sequential) -> nn.Module:
    for layer in model:
        fully_shard(layer)
    return fully_shard(model)


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model(x).square().mean().backward()
    found = {name.removeprefix("module."): p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: grad.full_tensor() if hasattr(grad, "full_tensor") else grad for name, grad in found.items()}


def worker(index: int, _: str) -> None:
    batches = torch.randn(WORLD, 6, 8, generator=torch.Generator().manual_seed(1))
    for make in (build, build_fused):
        whole = gradients(make(), batches)
        for wrap in (DistributedDataParallel, sharded):
            mine = gradients(wrap(make()), batches[index])
            assert mine.keys() == whole.keys()
            for name, grad in mine.items():
                torch.testing.assert_close(grad, whole[name], msg=lambda text, name=name: f"{name}: {text}")


def saving(index: int, folder: str) -> None:
    """Adapters out of a sharded model and into one, with the frozen weights of `build`."""
    for name, wrap in (("sharded", sharded), ("ddp", DistributedDataParallel)):
        save_adapters(wrap(build()), f"{folder}/{name}")
        dist.barrier()  # the first process writes
        blank = build()
        for layer in blank:
            nn.init.zeros_(layer.lora_B)
        into = wrap(blank)
        load_adapters(into, f"{folder}/{name}")
        x = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(into(x), build()(x))
        dist.barrier()


@pytest.mark.shows("DDP", "adapters are saved whole and loaded")
@pytest.mark.shows("FSDP2", "adapters are saved whole, by the first process, and loaded")
def test_adapters_of_sharded_and_wrapped_models_are_saved_whole(tmp_path):
    together(saving, tmp_path)
    for name in ("sharded", "ddp"):
        model = build()
        for layer in model:
            nn.init.zeros_(layer.lora_B)
        load_adapters(model, tmp_path / name)
        for layer, expected in zip(model, build(), strict=True):
            assert all(torch.equal(value, expected.state_dict()[key]) for key, value in layer.state_dict().items())


@pytest.mark.shows("DDP", "gradients are those of one process with all samples")
@pytest.mark.shows("FSDP2", "gradients are those of one process with all samples")
def test_ddp_and_fsdp2_average_the_gradients_of_their_parts(tmp_path):
    together(worker, tmp_path)


def learning(index: int, _: str) -> None:
    """Ranks that learn: the same in one process, in DDP and in FSDP2."""
    batches = torch.randn(WORLD, 6, 8, generator=torch.Generator().manual_seed(1))
    whole = None
    for wrap in (lambda model: model, DistributedDataParallel, sharded):
        model = wrap(build())
        optimizer = RankOptimizer(model, lr=0.1)
        for _ in range(3):
            model(batches if whole is None else batches[index]).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        ranks = torch.tensor([row.ranks for row in rank_report(model)])
        whole = ranks if whole is None else whole
        torch.testing.assert_close(ranks, whole, rtol=1e-4, atol=1e-4)
        assert not (ranks == 4.5).any()


@pytest.mark.shows("DDP", "`RankOptimizer` moves the ranks as in one process")
@pytest.mark.shows("FSDP2", "`RankOptimizer` moves the ranks as in one process")
def test_ranks_learn_alike_under_ddp_and_fsdp2(tmp_path):
    together(learning, tmp_path)


def freezing(index: int, _: str) -> None:
    """Ranks that are frozen in mid-training: the same in one process, in DDP and in FSDP2, and moved no more."""
    batches = torch.randn(WORLD, 6, 8, generator=torch.Generator().manual_seed(1))
    static = partial(DistributedDataParallel, static_graph=True)
    views = partial(DistributedDataParallel, gradient_as_bucket_view=True)
    unused = partial(DistributedDataParallel, find_unused_parameters=True)
    outputs, reports = [], []
    for wrap in (lambda model: model, DistributedDataParallel, static, views, unused, sharded):
        model = wrap(build())
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
        for step in range(6):
            if step == 3:
                freeze_ranks(model)
                frozen = rank_report(model)
            mine = batches if len(outputs) == 0 else batches[index]
            model(mine).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert ranks_frozen(model)
        assert [row.ranks for row in rank_report(model)] == [row.ranks for row in frozen]
        reports.append([row.ranks for row in frozen])
        outputs.append(model(batches).detach())
    for output, report in zip(outputs, reports, strict=True):
        assert report == reports[0]
        torch.testing.assert_close(output, outputs[0], rtol=1e-3, atol=1e-4)


@pytest.mark.shows(
    "DDP",
    "`freeze_ranks` in mid-training, with `static_graph`, `find_unused_parameters` and `gradient_as_bucket_view` too",
)
@pytest.mark.shows("FSDP2", "`freeze_ranks` in mid-training")
def test_ranks_freeze_in_mid_training_under_ddp_and_fsdp2(tmp_path):
    together(freezing, tmp_path)


def wrapped(index: int, _: str) -> None:
    """What adapts models and asks about them, tried on wrapped ones."""
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(index))
    for wrap in (DistributedDataParallel, sharded):
        plain, model = build(), wrap(build())
        prefix = "module." if wrap is DistributedDataParallel else ""
        assert check_adapters(model, x) == [f"{prefix}0", f"{prefix}1"]
        with disable_adapters(model), disable_adapters(plain):
            torch.testing.assert_close(model(x), plain(x))
        torch.testing.assert_close(model(x), plain(x))
        mine, expected = gradients(model, x), gradients(build(), x)  # the wrapper still works
        assert mine.keys() == expected.keys()
        for around, inside in ((model, ""), (nn.ModuleDict({"model": model}), "'model' is ")):
            with pytest.raises(ValueError, match=f"^model: {inside}.*, expected the plain module: unadapt what is in"):
                unadapt(around)
            adapting = wrap(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)))
            around = nn.ModuleDict({"model": adapting}) if inside else adapting
            with pytest.raises(ValueError, match=f"^model: {inside}.*: adapt first, wrap then$"):
                adapt(around, {"*": {}})
            assert not any(isinstance(module, RAMoELinear) for module in around.modules())


@pytest.mark.shows("DDP", "`check_adapters` and `disable_adapters`; `adapt` and `unadapt` say: adapt first, wrap then")
@pytest.mark.shows(
    "FSDP2", "`check_adapters` and `disable_adapters`; `adapt` and `unadapt` say: adapt first, wrap then"
)
def test_wrapped_models_are_asked_and_run_without_adapters_and_not_adapted(tmp_path):
    together(wrapped, tmp_path)
