import copy

import pytest
import torch
from support.tiny import batch, relative_error, tiny_model

from fastmoe_lora import freeze_ranks, ranks_frozen

ROUNDING = 1e-12  # float64 has 2e-16; a few hundred operations in another order


def set_ranks(model, ranks):
    """Ranks of all experts of all layers: one number, or one that a function of (layer index, shape) gives."""
    with torch.no_grad():
        for index, layer in enumerate(model.ramoe_layers().values()):
            layer.rank.copy_(ranks(index, layer.rank.shape) if callable(ranks) else torch.tensor(ranks))


def forecast(model):
    torch.manual_seed(11)
    with torch.no_grad():
        return torch.cat([value.flatten() for value in model(batch()).values()])


@pytest.mark.parametrize("rank", [1.5, 2.0, 3.0])
def test_the_output_is_a_continuous_function_of_the_ranks(rank):
    """Also where a rank passes a whole number and another column of A and B takes over."""
    model = tiny_model()
    set_ranks(model, rank)
    here = forecast(model)
    for direction in (-1, 1):
        changes = []
        for step in (1e-1, 1e-3, 1e-5):
            set_ranks(model, rank + direction * step)
            changes.append(relative_error(forecast(model), here))
        assert changes[0] > 1e-4
        # to first order the change is proportional to the step; a factor of 2 is left for the rest
        assert changes[1] < 2e-2 * changes[0]
        assert changes[2] < 2e-2 * changes[1]


def random_ranks(index, shape):
    generator = torch.Generator().manual_seed(index)
    return 4 * torch.rand(shape, generator=generator)


def test_freezing_changes_the_output_by_the_rounding_of_the_ranks_alone():
    model = tiny_model()
    set_ranks(model, random_ranks)
    frozen = copy.deepcopy(model)
    freeze_ranks(frozen)
    assert ranks_frozen(frozen)
    assert not ranks_frozen(model)
    assert relative_error(forecast(frozen), forecast(model)) > 1e-4
    whole = [layer.rank for layer in frozen.ramoe_layers().values()]
    set_ranks(model, lambda index, shape: whole[index])
    assert relative_error(forecast(frozen), forecast(model)) < ROUNDING


def test_compaction_changes_nothing_in_output_and_gradient():
    model = tiny_model()
    set_ranks(model, lambda index, shape: torch.full(shape, float(index % 2)))  # rank 0 and 1: most columns are off
    compact = copy.deepcopy(model)
    freeze_ranks(compact)
    assert any(layer.columns is not None for layer in compact.ramoe_layers().values())
    gradients = []
    for each in (model, compact):
        torch.manual_seed(11)
        sum(value.square().sum() for value in each(batch()).values()).backward()
        gradients.append({name: p.grad for name, p in each.named_parameters() if not name.endswith(".rank")})
    assert relative_error(forecast(compact), forecast(model)) < ROUNDING
    full, found = gradients
    largest = max(float(gradient.norm()) for gradient in full.values())
    off = 0
    for name, gradient in found.items():
        if name.rpartition(".")[2] not in ("lora_A", "lora_B"):
            assert float((gradient - full[name]).norm()) < ROUNDING * largest, name
        else:  # columns that are on; those that are off get no gradient
            off += int((gradient == 0).sum())
            assert float((gradient - full[name])[gradient != 0].norm()) < ROUNDING * largest, name
    assert off > 0


@pytest.mark.parametrize("stage", ["fresh", "learning", "frozen"])
def test_state_dict_at_every_stage_of_the_ranks(stage):
    model = tiny_model()
    if stage != "fresh":
        set_ranks(model, random_ranks)
    if stage == "frozen":
        freeze_ranks(model)
    other = tiny_model()
    other.load_state_dict(model.state_dict())
    assert ranks_frozen(other) == (stage == "frozen")
    assert torch.equal(forecast(other), forecast(model))
