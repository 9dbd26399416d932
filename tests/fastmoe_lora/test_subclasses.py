"""Tensor subclasses as inputs and weights: what they mean counts, or they are refused by name."""

import warnings

import pytest
import torch
import torch.distributed as dist
from support.small_layer import BACKENDS, small_layer
from torch import Tensor, nn

from fastmoe_lora import FrozenLinear


class Named(Tensor):
    """A subclass that carries nothing but its type, as torchvision's and fastai's images."""


class Doubled(Tensor):
    """A weight that counts twice in F.linear, and says so by __torch_function__ alone."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is nn.functional.linear:
            x, weight, bias = (*args, *(kwargs or {}).values())
            return nn.functional.linear(x, 2 * weight.as_subclass(Tensor), bias)
        return super().__torch_function__(function, types, args, kwargs or {})


class Held(Tensor):
    """A weight that holds its numbers as another tensor, as quantised ones do, and knows ATen's operations alone."""

    @staticmethod
    def __new__(cls, inner):
        held = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)
        held.inner = inner
        return held

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function.namespace != "aten":
            raise NotImplementedError(f"{function} of a Held tensor")
        open_, kwargs = (lambda value: value.inner if isinstance(value, Held) else value), kwargs or {}
        result = function(*map(open_, args), **kwargs)
        if function is torch.ops.aten.detach.default:
            return Held(result)
        return result


@pytest.mark.shows("Tensor subclasses", "inputs keep their type")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("frozen_linear", [False, True], ids=["RAMoELinear", "FrozenLinear"])
def test_inputs_keep_their_type(backend, frozen_linear):
    layer = FrozenLinear.from_linear(nn.Linear(8, 12)) if frozen_linear else small_layer(backend=backend)
    x = torch.randn(4, 8)
    y = layer(x.as_subclass(Named))
    assert type(y) is Named
    torch.testing.assert_close(y.as_subclass(Tensor), layer(x))


@pytest.mark.shows(
    "Tensor subclasses", "a weight that defines `F.linear` or ATen's operations anew is asked for the base product"
)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", [Doubled, Held])
def test_a_weight_that_means_something_else_is_asked(kind, backend):
    plain, layer, x = small_layer(backend=backend), small_layer(backend=backend), torch.randn(4, 8)
    layer.load_state_dict(plain.state_dict())
    weight = plain.weight.detach()
    layer.weight = nn.Parameter(
        Held(weight) if kind is Held else weight.clone().as_subclass(Doubled), requires_grad=False
    )
    wanted = plain(x) + (x @ weight.T if kind is Doubled else 0)
    torch.testing.assert_close(layer(x).as_subclass(Tensor), wanted)
    linear = nn.Linear(8, 12, bias=False)
    linear.weight = layer.weight
    torch.testing.assert_close(
        FrozenLinear.from_linear(linear)(x).as_subclass(Tensor), x @ weight.T * (2 if kind is Doubled else 1)
    )


@pytest.mark.shows("Tensor subclasses", "FakeTensor")
def test_fake_tensors_have_the_shapes():
    from torch._subclasses.fake_tensor import FakeTensorMode

    layer, linear = small_layer(), FrozenLinear.from_linear(nn.Linear(8, 12))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        x = mode.from_tensor(torch.randn(4, 8))
        for module in (layer, linear):
            y = module(x)
            assert (type(y).__name__, y.shape) == ("FakeTensor", (4, 12))


@pytest.mark.shows("Tensor subclasses", "nested and sparse tensors are refused by name")
@pytest.mark.parametrize("backend", BACKENDS)
def test_kinds_of_tensors_that_nothing_is_computed_with_are_named(backend):
    layer = small_layer(backend=backend)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for x in (torch.nested.nested_tensor([torch.randn(2, 8)]), torch.randn(4, 8).to_sparse()):
            with pytest.raises(TypeError, match=r"^x: got a"):
                layer(x)


@pytest.fixture
def mesh():
    """Of this process alone, without any communication."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    yield dist.device_mesh.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.shows("Tensor subclasses", "a DTensor is refused by name (`FrozenLinear` takes it)")
@pytest.mark.parametrize("backend", BACKENDS)
def test_distributed_tensors_are_named(backend, mesh):
    from torch.distributed.tensor import DTensor, Replicate

    def laid_out(tensor: Tensor) -> DTensor:
        return DTensor.from_local(tensor.detach(), mesh, [Replicate()], run_check=False)

    layer, x = small_layer(backend=backend), torch.randn(4, 8)
    with pytest.raises(TypeError, match=r"^x: got a DTensor, expected a plain tensor"):
        layer(laid_out(x))
    for name in ("weight", "bias", "lora_A", "lora_B", "rank"):
        layer = small_layer(backend=backend)
        setattr(layer, name, nn.Parameter(laid_out(getattr(layer, name))))
        with pytest.raises(TypeError, match=f"^{name}: got a DTensor, expected a plain tensor"):
            layer(x)
    linear = FrozenLinear.from_linear(nn.Linear(8, 12))
    wanted = linear(x)
    linear.weight, linear.bias = (nn.Parameter(laid_out(p), requires_grad=False) for p in (linear.weight, linear.bias))
    torch.testing.assert_close(linear(laid_out(x)).to_local(), wanted)
