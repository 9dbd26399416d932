"""UniSTD set up for measuring: a frozen trunk, adapters that act, one set of weights for all backends."""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.harness.problem import worst_error
from fastmoe_lora import FrozenLinear, RAMoELinear, ramoe_layers
from unistd import AdapterConfig, TaskSpec, TrunkConfig, UniSTD

QUICK_TRUNK = TrunkConfig(width=64, depth=2, heads=2)
Frames = dict[str, Tensor]


def unistd_model(tasks: list[str | TaskSpec], trunk: str | TrunkConfig, device: torch.device) -> UniSTD:
    """UniSTD with random weights whose trunk is frozen, as if it had been loaded, and whose experts are not zero."""
    torch.manual_seed(0)
    model = UniSTD(tasks, trunk, adapter=AdapterConfig(backend="reference"))
    model.trunk.requires_grad_(False)
    for name, module in model.trunk.named_modules():
        if name.endswith(".temporal"):
            module.requires_grad_(True)
            nn.init.normal_(module.up.weight, std=0.02)
    for _, layer in ramoe_layers(model):
        for parameter in (layer.lora_A, layer.lora_B, layer.rank, layer.router.weight):
            parameter.requires_grad_(True)
        nn.init.normal_(layer.lora_B, std=0.02)
    return model.to(device)


class _PlainLinear(nn.Linear):
    """What an adapted layer was before; the model asks how its router works, and for the backend of what follows."""

    router_kind = "token"
    backend = "packed"


def without_adapters(model: UniSTD) -> UniSTD:
    """A copy in which every layer of this package is the plain ``nn.Linear`` that it stands for: the floor."""
    model = copy.deepcopy(model)
    ours = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, RAMoELinear | FrozenLinear)]
    for name, layer in ours:
        plain = _PlainLinear(layer.in_features, layer.out_features, device="meta")
        plain.weight, plain.bias = layer.weight, layer.bias
        model.set_submodule(name, plain)
    return model


def use_backend(model: nn.Module, backend: str) -> None:
    for module in model.modules():
        if hasattr(module, "backend"):
            module.backend = backend


@contextmanager
def backend_of(model: nn.Module, backend: str) -> Iterator[None]:
    use_backend(model, backend)
    try:
        yield
    finally:
        use_backend(model, "reference")


def precision(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """Autocast for 16 bits, nothing for float32."""
    return torch.autocast(device.type, dtype) if dtype.itemsize == 2 else nullcontext()


def frames_of(specs: dict[str, TaskSpec], batch: int, device: torch.device) -> tuple[Frames, Frames]:
    """Random inputs (B, Tin, C, H, W) and targets (B, Tout, C, H, W) in [0, 1], by task."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.rand(batch, *shape, generator=generator).to(device)

    return (
        {name: draw(*spec.input_shape) for name, spec in specs.items()},
        {name: draw(*spec.target_shape) for name, spec in specs.items()},
    )


def loss_of(outputs: Frames, targets: Frames) -> Tensor:
    """Sum over the tasks of the mean squared error."""
    return sum(F.mse_loss(outputs[name].float(), targets[name]) for name in targets)


class ModelJudge:
    """Holds backends of the whole model to the layer's rule: output, and with ``gradients`` those of the adapters.

    One sample a task: the float64 model is slow.
    """

    def __init__(self, model: UniSTD, dtype: torch.dtype, device: torch.device, gradients: bool):
        self.model, self.dtype, self.device, self.gradients = model, dtype, device, gradients
        self.inputs, self.targets = frames_of(model.tasks, 1, device)
        exact = copy.deepcopy(model).double()
        self.exact = self._results(exact, nullcontext(), torch.float64)
        del exact
        self.plain = self._results(model, precision(device, dtype), torch.float32)

    def check(self, backend: str, model: UniSTD | None = None) -> tuple[float, float, str]:
        """`worst_error` of the backend in ``model``, another form of the judge's own (default: that itself)."""
        model = model or self.model
        with backend_of(model, backend):
            found = self._results(model, precision(self.device, self.dtype), torch.float32)
        return worst_error(found, self.exact, self.plain)

    def _results(self, model: UniSTD, context: AbstractContextManager, dtype: torch.dtype) -> dict[str, Tensor]:
        inputs = {name: value.to(dtype) for name, value in self.inputs.items()}
        with context, torch.set_grad_enabled(self.gradients):
            outputs = model(inputs)
            found = {"output": torch.cat([value.detach().flatten() for value in outputs.values()]).double()}
            if self.gradients:
                loss = sum(F.mse_loss(outputs[name].to(dtype), self.targets[name].to(dtype)) for name in self.targets)
                found |= adapter_gradients(model, loss)
        return found


def adapter_gradients(model: UniSTD, loss: Tensor) -> dict[str, Tensor]:
    """Gradients of every adapter operand, those of all layers laid end to end, in float64."""
    layers: list[RAMoELinear] = [layer for _, layer in ramoe_layers(model)]
    operands = {
        "lora_A": [layer.lora_A for layer in layers],
        "lora_B": [layer.lora_B for layer in layers],
        "rank": [layer.rank for layer in layers],
        "router_weight": [layer.router.weight for layer in layers],
    }
    flat = iter(torch.autograd.grad(loss, [p for group in operands.values() for p in group]))
    return {name: torch.cat([next(flat).flatten() for _ in group]).double() for name, group in operands.items()}


def model_call(
    model: UniSTD, backend: str | None, run: Callable[[], object], device: torch.device, dtype: torch.dtype
) -> Callable[[], object]:
    """``run`` under the dtype's autocast and with that backend (None: the model has none)."""

    def call() -> object:
        if backend is not None:
            use_backend(model, backend)
        with precision(device, dtype):
            return run()

    return call
