import warnings

import pytest
import torch
from support.tiny import ADAPTER, SPECS, TRUNK, batch, relative_error, spec, tiny_model

from unistd import TASKS, AdapterConfig, TrunkConfig, UniSTD

ROUNDING = 1e-12  # float64 has 2e-16; a few hundred operations in another order


def test_shapes_of_all_ten_tasks():
    model = UniSTD(list(TASKS), TrunkConfig(width=32, depth=1, heads=2), adapter=ADAPTER, hidden=8)
    assert {name: task.spec for name, task in TASKS.items()} == model.tasks
    with torch.no_grad():
        forecast = model({name: torch.rand(1, *task.input_shape) for name, task in model.tasks.items()})
    assert {name: tuple(value.shape) for name, value in forecast.items()} == {
        name: (1, *task.target_shape) for name, task in model.tasks.items()
    }


@pytest.mark.parametrize("router", ["token", "sample"])
def test_a_mixed_batch_equals_the_separate_passes(router):
    model = tiny_model(adapter=AdapterConfig(qkv_experts=3, temporal_width=16, router=router, backend="packed"))
    frames = batch()
    mixed = model(frames)
    assert list(mixed) == list(frames)
    mixed_gradient = torch.autograd.grad(sum(value.square().sum() for value in mixed.values()), model.parameters())
    separate = {name: model(value, task=name) for name, value in frames.items()}
    gradient = torch.autograd.grad(sum(value.square().sum() for value in separate.values()), model.parameters())
    for name in frames:
        assert relative_error(mixed[name], separate[name]) < ROUNDING
    names = [name for name, _ in model.named_parameters()]
    largest = max(float(part.norm()) for part in gradient)
    for name, found, expected in zip(names, mixed_gradient, gradient, strict=True):
        assert float((found - expected).norm()) < ROUNDING * largest, name


@pytest.mark.parametrize("router", ["token", "sample"])
def test_samples_and_tasks_of_a_batch_do_not_see_each_other(router):
    model = tiny_model(adapter=AdapterConfig(qkv_experts=3, temporal_width=16, router=router, backend="packed"))
    frames = batch()
    before = model(frames)
    frames["city"][1] = torch.rand_like(frames["city"][1])  # shares a group with "sea"
    after = model(frames)
    others = [sample for sample in range(len(frames["city"])) if sample != 1]
    assert relative_error(after["sea"], before["sea"]) < ROUNDING
    assert relative_error(after["rain"], before["rain"]) < ROUNDING
    assert relative_error(after["city"][others], before["city"][others]) < ROUNDING
    assert relative_error(after["city"][1], before["city"][1]) > 1e-3


def test_what_learns():
    """A trunk without weights is trained whole; experts, routers, ranks and temporal modules always learn."""
    model = tiny_model()
    sum(value.square().sum() for value in model(batch()).values()).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_residual_starts_from_the_last_frame():
    model = tiny_model(awake=False, residual=True)
    frames = batch()
    for name, forecast in model(frames).items():
        assert torch.equal(forecast, frames[name][:, -1:].expand_as(forecast))


@pytest.mark.parametrize("interpolation", ["linear", "sampled"])
def test_checkpointing_changes_no_bit(interpolation):
    adapter = AdapterConfig(
        qkv_experts=3, temporal_width=16, dropout=0.2, interpolation=interpolation, backend="packed"
    )
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(3)
        model = tiny_model(adapter=adapter, checkpointing=checkpointing).train()
        sum(value.square().sum() for value in model(batch()).values()).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(plain, recomputed) for plain, recomputed in zip(*gradients, strict=True))


def test_autocast_in_bfloat16():
    """Weights, residual stream and gradients stay float32; the error is that of roundings to 8 bits.

    Along a path there are about 15 of them per block and 10 in encoder and decoder, each of at most 2^-9 of its value.
    """
    model = tiny_model().float()
    frames = {name: value.float() for name, value in batch().items()}
    with torch.no_grad():
        expected = model(frames)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(frames)
        loss = sum(value.square().sum() for value in found.values())
    loss.backward()
    for name in frames:
        assert relative_error(found[name].float(), expected[name]) < (2 * 15 + 10) * 2**-9
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


def test_compiles_without_graph_breaks():
    model = tiny_model().float()
    frames = batch()["sea"].float()
    expected = model(frames, task="sea")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = torch.compile(model, backend="aot_eager", fullgraph=True)(frames, task="sea")
    assert relative_error(found, expected) < 1e-6
    parameters = list(model.trunk.parameters())
    gradient = torch.autograd.grad(expected.sum(), parameters)
    compiled = torch.autograd.grad(found.sum(), parameters)
    largest = max(float(part.norm()) for part in gradient)
    assert all(float((a - b).norm()) < 1e-5 * largest for a, b in zip(compiled, gradient, strict=True))


def test_task_gates_are_the_mean_of_the_routers():
    model = tiny_model().train()
    frames = batch()["rain"]
    gates = model.task_gates(frames, "rain")
    assert list(gates) == list(model.ramoe_layers())
    assert {tuple(value.shape) for value in gates.values()} == {(3, 3), (1, 2)}
    for value in gates.values():
        torch.testing.assert_close(value.sum(-1), torch.ones(value.shape[0]))
    first = model.trunk.blocks[0]
    tokens = model.encoders["rain"](frames)[0] + model.positions_rain
    expected = first.attention.qkv.router_gates(first.norm1(model.trunk.norm_in(tokens))).mean(dim=(0, 1))
    torch.testing.assert_close(gates["trunk.blocks.0.attention.qkv"], expected.float())
    assert model.training
    assert not any(layer._forward_pre_hooks for layer in model.ramoe_layers().values())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(batch()["sea"], task="sae"), r"unknown task 'sae', did you mean 'sea'\?"),
        (lambda m: m(batch()["sea"]), r"task: expected the name of a task beside a tensor, one of sea, rain, city"),
        (lambda m: m(batch(), task="sea"), r"task: expected none beside a dict of frames, found 'sea'"),
        (lambda m: m({}), r"frames: expected at least one task, found an empty dict"),
        (
            lambda m: m(batch()["sea"][:, :2], task="sea"),
            r"frames of task 'sea': expected shape \(B, 3, 2, 8, 8\), found \(2, 2, 2, 8, 8\)",
        ),
        (
            lambda m: m(batch()["sea"][0], task="sea"),
            r"frames of task 'sea': expected shape \(B, 3, 2, 8, 8\), found \(3, 2, 8, 8\)",
        ),
        (lambda m: UniSTD(["taxibj", "taxibi"], TRUNK), r"unknown task 'taxibi', did you mean 'taxibj'\?"),
        (lambda m: UniSTD(["kth", "kth"], TRUNK), r"tasks: expected each task once, found kth, kth"),
        (lambda m: UniSTD([], TRUNK), r"tasks: expected a list of at least one task, found \[\]"),
        (lambda m: UniSTD("kth", TRUNK), r"tasks: expected a list of at least one task, found 'kth'"),
        (lambda m: TrunkConfig(width=100, heads=12), r"TrunkConfig.width: expected a multiple of heads=12, found 100"),
        (lambda m: TrunkConfig(width=30, heads=3), r"TrunkConfig.width: expected a multiple of 4, found 30"),
        (lambda m: TrunkConfig(depth=0), r"TrunkConfig.depth: expected at least 1, found 0"),
        (lambda m: TrunkConfig(mlp_ratio=0), r"TrunkConfig.mlp_ratio: expected a positive number, found 0"),
        (
            lambda m: TrunkConfig(activation="relu"),
            r"TrunkConfig.activation: expected one of gelu, gelu_tanh, quick_gelu, found 'relu'",
        ),
        (lambda m: AdapterConfig(router="task"), r"AdapterConfig.router: expected 'token' or 'sample', found 'task'"),
    ],
)
def test_bad_input_is_one_line(call, message):
    model = tiny_model()
    with pytest.raises(ValueError, match=f"^{message}$"):
        call(model)


def test_state_dict_goes_into_an_equal_model():
    model, other = tiny_model(), tiny_model()
    frames = batch()
    other.load_state_dict(model.state_dict())
    for name, forecast in other(frames).items():
        assert torch.equal(forecast, model(frames)[name])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"tasks": SPECS[:2]}, r"its tasks are sea, rain, this model's sea, rain, city"),
        ({"trunk": TrunkConfig(32, 1, 2, 2.0, input_norm=True)}, r"it has no 'trunk.blocks.1.norm1.weight'"),
        ({"trunk": TrunkConfig(32, 3, 2, 2.0, input_norm=True)}, r"this model has no 'trunk.blocks.2.norm1.weight'"),
        (
            {"adapter": AdapterConfig(qkv_experts=4, temporal_width=16, max_rank=4, init_rank=2.5)},
            r"its 'trunk.blocks.0.attention.qkv.lora_A' is \(3, 4, 4, 32\), this model's \(3, 3, 4, 32\)",
        ),
        (
            {"tasks": (spec("sea", 1, 8, 8, 3, 2, 2), *SPECS[1:])},
            r"its 'encoders.sea.stages.0.0.weight' is \(8, 1, 3, 3\), this model's \(8, 2, 3, 3\)",
        ),
    ],
)
def test_state_dict_of_another_architecture_is_one_line_and_changes_nothing(other, message):
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=f"^state_dict of another architecture: {message}$"):
        model.load_state_dict(tiny_model(**other).state_dict())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
