"""The packed copy of a frozen weight is never stale, and nothing is kept longer than it is needed."""

import copy
import gc
import io
import resource

import pytest
import torch
from support.operator import Case

from fastmoe_lora import FrozenLinear, ramoe_linear
from fastmoe_lora.backends import cpu


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _empty_cache():
    cpu.clear_cache()


def check(layer: FrozenLinear, x: torch.Tensor) -> None:
    """Output and gradient of the input are those of the weight as it is now."""
    x = x.detach().requires_grad_()
    weight, bias = layer.weight.double(), layer.bias.double()
    y = layer(x)
    torch.testing.assert_close(y.double(), x.double() @ weight.T + bias, rtol=0, atol=1e-4)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient.double(), weight.sum(0).expand_as(gradient), rtol=0, atol=1e-4)


def frozen() -> FrozenLinear:
    return FrozenLinear(40, 56).requires_grad_(False)


def in_place(layer):
    layer.weight.mul_(-1)
    return layer


def through_a_view(layer):
    layer.weight.view(-1)[3:].add_(1)
    return layer


def data_replaced(layer):
    layer.weight.data = torch.randn_like(layer.weight)
    return layer


def data_written(layer):
    layer.weight.data.copy_(torch.randn_like(layer.weight))
    return layer


def numpy_written(layer):
    layer.weight.numpy()[:] *= 2
    return layer


def loaded(layer):
    layer.load_state_dict({name: torch.randn_like(p) for name, p in layer.state_dict().items()})
    return layer


def assigned(layer):
    layer.load_state_dict({name: torch.randn_like(p) for name, p in layer.state_dict().items()}, assign=True)
    return layer.requires_grad_(False)


def copied(layer):
    twin = copy.deepcopy(layer)
    twin.weight.zero_()
    return twin


def pickled(layer):
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    layer.weight.zero_()
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def moved(layer):
    return layer.to("meta").to_empty(device="cpu").requires_grad_(False).apply(lambda m: m.reset_parameters())


def another_at_the_same_address(layer):
    address = layer.weight.data_ptr()
    for _ in range(100):
        del layer
        layer = frozen()
        if layer.weight.data_ptr() == address:
            break
    return layer


CHANGES = (
    in_place,
    through_a_view,
    data_replaced,
    data_written,
    numpy_written,
    loaded,
    assigned,
    copied,
    pickled,
    moved,
    another_at_the_same_address,
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@torch.no_grad()
def test_a_changed_weight_is_packed_anew(change):
    layer, x = frozen(), torch.randn(33, 40)
    with torch.enable_grad():
        check(layer, x)
        layer = change(layer) if change is moved else torch.no_grad()(change)(layer)
        check(layer, x)


def test_a_weight_is_packed_once_for_each_direction_and_forgotten_with_its_layer():
    layer, x = frozen(), torch.randn(5, 40, requires_grad=True)
    with torch.no_grad():
        layer(x)
    once = cpu.cached_bytes()
    assert once >= 40 * 56 * 4
    for _ in range(3):
        layer(x).sum().backward()
    assert once < cpu.cached_bytes() < 3 * once
    del layer
    gc.collect()
    assert cpu.cached_bytes() == 0


ODD = [(56, 40), (40, 56), (3, 301), (301, 3), (1, 7), (7, 1), (130, 130)]


@pytest.mark.parametrize("shape", ODD, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_a_row_or_a_column_written_past_the_version_counter_is_noticed(shape, dtype):
    layer = FrozenLinear(*shape[::-1], dtype=dtype).requires_grad_(False)
    x, weight = torch.randn(2, shape[1]).to(dtype), layer.weight
    for place in [(i, slice(None)) for i in range(shape[0])] + [(slice(None), i) for i in range(shape[1])]:
        layer(x)
        weight.data[place] += 1
        version = weight._version
        kept = layer(x)
        cpu.clear_cache()
        assert torch.equal(layer(x), kept), place
        assert weight._version == version


def test_the_memory_goes_with_the_weight():
    """Freed, resized or replaced: without another call of anything."""
    layer, x = frozen(), torch.randn(5, 40)
    for end in (
        lambda: setattr(layer.weight, "data", torch.zeros(56, 40)),
        lambda: layer.weight.untyped_storage().resize_(0),
        lambda: delattr(layer, "weight"),
    ):
        with torch.no_grad():
            layer(x)
        assert cpu.cached_bytes() > 0
        end()
        assert cpu.cached_bytes() == 0
        if hasattr(layer, "weight"):
            layer.weight.untyped_storage().resize_(56 * 40 * 4)


def test_memory_that_others_know_by_its_deleter_stays_theirs():
    layer, x = frozen(), torch.randn(5, 40)
    layer.weight.share_memory_()
    with torch.no_grad():
        y = layer(x)
        assert layer.weight.is_shared()
        assert torch.equal(layer(x), y)
    plain = frozen()
    with torch.no_grad():
        plain(x)
    plain.share_memory()
    assert plain.weight.is_shared()
    del layer, plain
    with torch.no_grad():
        frozen()(x)  # those go with the next that is packed
    assert cpu.cached_bytes() == 0


def test_trained_weights_are_not_kept():
    arguments = Case().arguments(torch.float32)
    ramoe_linear(**arguments, backend="cpu").sum().backward()
    assert cpu.cached_bytes() == 0


def test_without_the_cache_results_are_the_same_and_nothing_is_kept():
    layer, x = frozen(), torch.randn(5, 40)
    kept = layer(x)
    was = cpu.set_caching(False)
    try:
        assert was
        assert torch.equal(layer(x), kept)
        assert cpu.cached_bytes() == 0
    finally:
        cpu.set_caching(was)


def test_inference_mode_and_shared_storage():
    with torch.inference_mode():
        both = torch.randn(2, 56, 40)
        x = torch.randn(3, 40)
        for weight in both:  # two weights in one storage
            torch.testing.assert_close(cpu.linear(x, weight, None), x @ weight.T, rtol=0, atol=1e-4)
        both.mul_(2)
        torch.testing.assert_close(cpu.linear(x, both[0], None), x @ both[0].T, rtol=0, atol=1e-4)


def test_ten_thousand_calls_leak_nothing(one_thread):
    generator = torch.Generator().manual_seed(0)
    problems = [Case(tokens=m, in_features=24, out_features=36).arguments(torch.bfloat16) for m in range(1, 9)]
    for problem in problems:
        problem["weight"].requires_grad_(False)

    def some(calls: int) -> int:
        for _ in range(calls):
            problem = problems[int(torch.randint(8, (), generator=generator))]
            ramoe_linear(**problem, backend="cpu").sum().backward()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before = some(1000)  # every shape met, allocator and kernels warm
    assert some(9000) - before < 1024  # kilobytes; a leak of 128 bytes a call would show
