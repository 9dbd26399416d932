import copy
import io
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fastmoe_lora import (
    RAMoELinear,
    RankOptimizer,
    freeze_ranks,
    project_ranks_,
    ramoe_layers,
    rank_budget_loss,
    rank_report,
    ranks_frozen,
    set_rank_window,
)


@pytest.fixture
def model():
    layers = nn.Sequential(
        RAMoELinear(8, 12, splits=3, backend="packed", dtype=torch.float64),
        RAMoELinear(12, 8, num_experts=4, max_rank=4, init_rank=2.25, backend="packed", dtype=torch.float64),
    )
    for _, layer in ramoe_layers(layers):
        nn.init.normal_(layer.lora_B)
    return layers


def ranks(model):
    return torch.cat([layer.rank.detach().flatten() for _, layer in ramoe_layers(model)])


def test_penalty_is_the_distance_from_the_initial_sum(model):
    assert rank_budget_loss(model).item() == 0
    model[0].rank.data += 0.5
    loss = rank_budget_loss(model)
    loss.backward()
    assert loss.item() == pytest.approx(9)
    assert (model[1].rank.grad == 1).all()
    assert rank_budget_loss(model, budget=150).item() == pytest.approx(150 - 81 - 9 - 9)


@pytest.mark.parametrize("budget", [None, 0, 7.5, 100, 160])
def test_projection_is_the_nearest_point_of_the_budget(model, budget):
    for _, layer in ramoe_layers(model):
        layer.rank.data = torch.rand_like(layer.rank) * 3 * layer.max_rank - layer.max_rank
    before = ranks(model)
    project_ranks_(model, budget)
    after = ranks(model)
    limits = torch.cat([torch.full((18,), 8.0), torch.full((4,), 4.0)]).double()
    assert after.sum().item() == pytest.approx(90 if budget is None else budget, abs=1e-9)
    assert (after >= 0).all()
    assert (after <= limits).all()
    # Optimality: ranks inside their range all moved by one shift; the others would have moved further.
    shift = before - after
    inside = (after > 1e-9) & (after < limits - 1e-9)
    if inside.any():
        common = shift[inside][0]
        torch.testing.assert_close(shift[inside], common.expand_as(shift[inside]))
        assert (shift[after <= 1e-9] <= common + 1e-9).all()
        assert (shift[after >= limits - 1e-9] >= common - 1e-9).all()


def test_projection_refuses_a_budget_out_of_range(model):
    with pytest.raises(ValueError, match="budget: got 161, expected 0 to 160"):
        project_ranks_(model, 161)


def test_freezing_rounds_by_largest_remainder_and_keeps_the_sum(model):
    model[0].rank.data = torch.full((3, 6), 2.0).double()
    model[1].rank.data = torch.tensor([[0.3, 1.6, 2.55, 3.55]]).double()
    freeze_ranks(model)
    assert model[1].rank.tolist() == [[0, 2, 3, 3]]  # of two equal remainders the earlier is rounded up
    assert ranks_frozen(model)
    assert not any(layer.rank.requires_grad for _, layer in ramoe_layers(model))
    assert model[0].columns.shape == (3, 16)  # 12 of 48 columns are on


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e6])
@pytest.mark.parametrize("budget", [0, 1, 22, 90, 159, 160])
def test_freezing_to_a_budget_gives_whole_ranks_in_range_wherever_they_were(model, budget, scale):
    for _ in range(5):
        for _, layer in ramoe_layers(model):
            layer.rank.data = 4 + scale * torch.randn_like(layer.rank)
        freeze_ranks(model, budget)
        assert ranks(model).sum().item() == budget
        for _, layer in ramoe_layers(model):
            assert ((layer.rank >= 0) & (layer.rank <= layer.max_rank) & (layer.rank == layer.rank.round())).all()


def test_freezing_to_the_present_sum_projects_ranks_that_are_out_of_range(model):
    model[0].rank.data[0, :2] += torch.tensor([-6.0, 6.0]).double()
    freeze_ranks(model, 90)
    assert ranks(model).sum().item() == 90
    assert ranks(model).min() >= 0


@pytest.mark.parametrize("budget", [22, 140])
def test_freezing_to_a_budget(model, budget):
    freeze_ranks(model, budget=budget)
    assert ranks(model).sum().item() == budget


def test_freezing_changes_the_output_by_rounding_alone_and_compaction_not_at_all(model):
    for _, layer in ramoe_layers(model):
        layer.rank.data = (torch.rand_like(layer.rank) * layer.max_rank / 2).double()
    x = torch.randn(5, 8, dtype=torch.float64)
    rounded = copy.deepcopy(model)
    freeze_ranks(model)
    for (_, layer), (_, frozen) in zip(ramoe_layers(rounded), ramoe_layers(model), strict=True):
        layer.rank.data = frozen.rank.data.clone()
    assert model[0].columns is not None
    torch.testing.assert_close(model(x), rounded(x), rtol=1e-13, atol=1e-13)


def test_the_output_is_continuous_in_the_ranks(model):
    x = torch.randn(5, 8, dtype=torch.float64)
    for rank in (0.5, 2.0, 4.0, 7.999999):
        model[0].rank.data.fill_(rank)
        here = model(x)
        model[0].rank.data.fill_(rank + 1e-9)
        assert (model(x) - here).abs().max() < 1e-6


@pytest.mark.parametrize("stage", ["learning", "frozen"])
def test_state_dict_round_trips_at_each_stage(model, stage):
    fresh = copy.deepcopy(model)
    for _, layer in ramoe_layers(model):
        layer.rank.data = (torch.rand_like(layer.rank) * layer.max_rank / 2).double()
    if stage == "frozen":
        freeze_ranks(model)
    fresh.load_state_dict(model.state_dict())
    x = torch.randn(5, 8, dtype=torch.float64)
    assert torch.equal(fresh(x), model(x))
    assert ranks_frozen(fresh) == (stage == "frozen")
    assert rank_report(fresh) == rank_report(model)


def test_a_learning_state_thaws_a_frozen_model(model):
    learning = copy.deepcopy(model.state_dict())
    freeze_ranks(model)
    model.load_state_dict(learning)
    assert not ranks_frozen(model)
    assert model[0].rank.requires_grad


def test_rank_report_is_a_table(model):
    report = rank_report(model)
    assert [(row.layer, row.split) for row in report] == [("0", 0), ("0", 1), ("0", 2), ("1", 0)]
    assert "2.25 2.25 2.25 2.25" in str(report)


def test_rank_optimizer_keeps_the_budget_and_favours_what_matters(model):
    optimizer = RankOptimizer(model, lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        for _, layer in ramoe_layers(model):
            layer.rank.grad = torch.zeros_like(layer.rank)
        model[0].rank.grad[0, 0] = -1.0  # this rank matters, no other does
        optimizer.step()
        assert ranks(model).sum().item() == pytest.approx(90)
    assert model[0].rank[0, 0] > 7
    assert ranks(model)[1:].max() < 4.5


def test_rank_optimizer_state_round_trips(model):
    twin = copy.deepcopy(model)
    first, second = RankOptimizer(model, lr=0.1), RankOptimizer(twin, lr=0.1)
    gradients = [[torch.randn_like(layer.rank) for _, layer in ramoe_layers(model)] for _ in range(4)]

    def step(net, optimizer, gradient):
        for (_, layer), grad in zip(ramoe_layers(net), gradient, strict=True):
            layer.rank.grad = grad.clone()
        optimizer.step()

    for gradient in gradients[:2]:
        step(model, first, gradient)
    twin.load_state_dict(model.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for gradient in gradients[2:]:
        step(model, first, gradient)
        step(twin, second, gradient)
    assert torch.equal(ranks(model), ranks(twin))


def test_rank_optimizer_skips_a_step_where_the_device_says_so(model):
    twin, start = copy.deepcopy(model), ranks(model).clone()
    first, second = RankOptimizer(model, lr=0.1), RankOptimizer(twin, lr=0.1)
    for found_inf in (1.0, 0.0, 1.0, 0.0, 0.0):
        gradients = [torch.randn_like(layer.rank) for _, layer in ramoe_layers(model)]
        for (_, mine), (_, other), gradient in zip(ramoe_layers(model), ramoe_layers(twin), gradients, strict=True):
            mine.rank.grad = torch.full_like(gradient, float("nan")) if found_inf else gradient
            other.rank.grad = gradient.clone()
        first.found_inf = torch.tensor(found_inf)
        first.step()
        if not found_inf:
            second.step()
        assert torch.equal(ranks(model), ranks(twin))
    assert not torch.equal(ranks(model), start)
    assert first.state[model[0].rank]["skipped"] == 2


def test_window_is_set_on_every_layer(model):
    set_rank_window(model, 2.5)
    assert [layer.rank_window for _, layer in ramoe_layers(model)] == [2.5, 2.5]
    with pytest.raises(ValueError, match="window: got 0"):
        set_rank_window(model, 0)


def test_a_model_without_adapters_is_named():
    with pytest.raises(ValueError, match="model: Linear has no RAMoELinear layer"):
        rank_budget_loss(nn.Linear(2, 2))


def test_projection_leaves_frozen_ranks_where_they_are(model):
    freeze_ranks(model[1])
    frozen = model[1].rank.detach().clone()
    model[0].rank.data += torch.rand_like(model[0].rank)
    project_ranks_(model)
    assert torch.equal(model[1].rank, frozen)
    assert ranks(model).sum().item() == pytest.approx(90)
    with pytest.raises(ValueError, match=r"budget: got 8, expected 9 \(frozen\) to 153"):
        project_ranks_(model, 8)
    freeze_ranks(model)
    whole = ranks(model).clone()
    project_ranks_(model)  # a training loop that goes on after the ranks are frozen
    assert torch.equal(ranks(model), whole)
    with pytest.raises(ValueError, match=r"budget: got 40, expected 90 \(frozen\) to 90"):
        project_ranks_(model, 40)


def test_rank_optimizer_leaves_frozen_ranks_where_they_are(model):
    freeze_ranks(model[1])
    frozen = model[1].rank.detach().clone()
    optimizer = RankOptimizer(model, lr=0.1)
    model[0].rank.grad = torch.randn_like(model[0].rank)
    optimizer.step()
    assert torch.equal(model[1].rank, frozen)
    assert ranks(model).sum().item() == pytest.approx(90)


def test_ranks_that_do_not_learn_are_not_frozen_for_that(model):
    model.requires_grad_(False)
    assert not ranks_frozen(model)
    assert "2.25" in str(rank_report(model))


@pytest.mark.parametrize("interpolation", ["linear", "sampled", "as_printed"])
@pytest.mark.parametrize("rank", [2, 8], ids=["compacted", "all columns on"])
def test_frozen_ranks_mean_the_same_whatever_the_window_and_the_interpolation(interpolation, rank):
    layer = RAMoELinear(8, 12, interpolation=interpolation, backend="packed", dtype=torch.float64)
    nn.init.normal_(layer.lora_B)
    layer.fix_ranks_(torch.full((1, 6), rank))
    expected = RAMoELinear(8, 12, backend="packed", dtype=torch.float64)
    expected.load_state_dict(layer.state_dict())
    set_rank_window(layer, 3.0)
    x = torch.randn(4, 8, dtype=torch.float64)
    assert torch.equal(layer(x), expected(x))


def test_a_layer_that_is_reset_learns_its_ranks_again(model):
    freeze_ranks(model)
    model[0].reset_parameters()
    assert model[0].rank.requires_grad
    assert model[0].columns is None
    assert not model[0].rank_frozen
    assert (model[0].rank == 4.5).all()


def test_budgets_of_other_kinds_of_number_are_taken(model):
    project_ranks_(model, np.float32(50))
    assert ranks(model).sum().item() == pytest.approx(50)
    freeze_ranks(model, np.int64(40))
    assert ranks(model).sum().item() == 40


OPTIMIZERS = {
    "AdamW": partial(torch.optim.AdamW, lr=0.1, weight_decay=0.1),
    "SGD": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1),
    "RMSprop": partial(torch.optim.RMSprop, lr=0.1, momentum=0.9),
}


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("thawed", [False, True], ids=["frozen", "asked for gradients again"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_running_optimizer_leaves_frozen_ranks_where_they_are(model, optimizer, thawed, set_to_none):
    stepper, x = OPTIMIZERS[optimizer](model.parameters()), torch.randn(5, 8, dtype=torch.float64)
    for step in range(6):
        model(x).square().mean().backward()
        if step == 2:
            project_ranks_(model)
            freeze_ranks(model)  # between backward and step: a gradient is there
            whole, table = ranks(model).clone(), model[0].columns
            if thawed:
                model.requires_grad_(True)
        before = model[0].lora_A.detach().clone()
        stepper.step()
        assert not torch.equal(model[0].lora_A, before)
        stepper.zero_grad(set_to_none=set_to_none)
        if step >= 2:
            assert torch.equal(ranks(model), whole)
            assert ranks_frozen(model)
    assert model[0].columns is table


@pytest.mark.parametrize("use_buffers", [False, True])
def test_a_running_average_goes_through_freezing(model, use_buffers):
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=use_buffers)
    x = torch.randn(5, 8, dtype=torch.float64)
    for step in range(4):
        for _, layer in ramoe_layers(model):
            nn.init.normal_(layer.lora_A)
            if step < 2:
                layer.rank.data = (torch.rand_like(layer.rank) * layer.max_rank / 2).double()
        if step == 2:
            freeze_ranks(model)
        average.update_parameters(model)
        reference = copy.deepcopy(average.module)
        for _, layer in ramoe_layers(reference):
            layer.backend = "reference"
        torch.testing.assert_close(average(x), reference(x))
        fresh = copy.deepcopy(average.module)
        fresh.load_state_dict(average.module.state_dict())  # its ranks are means: they still learn
        assert torch.equal(fresh(x), average(x))
        assert not ranks_frozen(fresh)
    freeze_ranks(average)
    assert ranks_frozen(average.module)
    model.load_state_dict(average.module.state_dict())
    torch.testing.assert_close(model(x), average(x))


def test_a_compiled_model_is_compiled_anew_when_its_ranks_are_frozen(model):
    compiled, x = torch.compile(model, backend="aot_eager"), torch.randn(5, 8, dtype=torch.float64)
    torch.testing.assert_close(compiled(x), model(x))
    for _, layer in ramoe_layers(model):
        layer.rank.data = (torch.rand_like(layer.rank) * layer.max_rank / 2).double()
    freeze_ranks(compiled)
    assert ranks_frozen(model)
    assert model[0].columns is not None
    torch.testing.assert_close(compiled(x), model(x))
    compiled(x).sum().backward()
    assert model[0].rank.grad is None


def test_copies_of_a_frozen_model_are_frozen(model):
    freeze_ranks(model, 30)
    stored = io.BytesIO()
    torch.save(model, stored)
    stored.seek(0)
    x = torch.randn(5, 8, dtype=torch.float64)
    for twin in (copy.deepcopy(model), torch.load(stored, weights_only=False)):
        assert ranks_frozen(twin)
        assert not twin[0].rank.requires_grad
        assert torch.equal(twin(x), model(x))


def test_the_table_of_active_columns_goes_where_the_layer_goes(model):
    freeze_ranks(model, 30)
    assert model.to("meta")(torch.empty(5, 8, dtype=torch.float64, device="meta")).shape == (5, 8)
    assert model[0].columns.is_meta
