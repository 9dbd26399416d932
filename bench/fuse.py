"""What fusing brings: queries, keys and values of one input fused, beside three layers of their own."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.harness import options
from bench.harness.collect import collect
from bench.harness.problem import worst_error
from bench.harness.record import MEASURED, WRONG, Entry, Group, Record
from bench.harness.timing import interleaved
from fastmoe_lora import FrozenLinear, adapt, ramoe_layers

ADAPTERS = {"num_experts": 6, "max_rank": 8, "init_rank": 4.5}
NAMES = ["query", "key", "value"]


class Shape(NamedTuple):
    """M tokens of K features, and the widths of queries, keys and values."""

    title: str
    tokens: int
    features: int
    widths: tuple[int, int, int]


SHAPES = [
    Shape("ViT-B, 16 images", 3152, 768, (768, 768, 768)),
    Shape("ViT-B, 1 image", 197, 768, (768, 768, 768)),
    Shape("grouped heads, 4 to 1", 1024, 2048, (2048, 512, 512)),
    Shape("grouped heads, 1 token", 1, 2048, (2048, 512, 512)),
]
QUICK = [Shape("tiny", 24, 32, (32, 32, 32)), Shape("tiny, grouped heads", 24, 32, (32, 8, 8))]


class Projections(nn.Module):
    """As attention of other people calls them."""

    def __init__(self, shape: Shape):
        super().__init__()
        for name, width in zip(NAMES, shape.widths, strict=True):
            self.add_module(name, nn.Linear(shape.features, width))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.query(x), self.key(x), self.value(x)


def main(arguments: list[str]) -> None:
    parser = options.parser("fuse", __doc__)
    options.dtypes_option(parser)
    given = parser.parse_args(arguments)
    device, settings = options.settle(given)
    seconds = given.seconds or (0.2 if given.quick else 10.0)
    record = Record.begin("fuse", device, settings)
    dtype = options.chosen_dtypes(given, device)[0]
    jobs = [
        lambda shape=shape, gradients=gradients: [measured(shape, gradients, dtype, device, seconds)]
        for shape in (QUICK if given.quick else SHAPES)
        for gradients in (False, True)
    ]
    collect(record, given.output, jobs)


def measured(shape: Shape, gradients: bool, dtype: torch.dtype, device: torch.device, seconds: float) -> Group:
    models = built(shape, device)
    exact = results(models["apart"].double(), shape, device, torch.float64)
    for model in models.values():
        model.to(dtype)
    plain = results(models["apart"], shape, device, dtype)
    direction = "forward and backward" if gradients else "forward"
    sizes = {"M": shape.tokens, "K": shape.features, **dict(zip("qkv", shape.widths, strict=True))}
    group = Group(f"{shape.title}: {direction}", str(dtype).removeprefix("torch."), sizes)
    group.entries = [
        Entry("fused", "fused", ours=True),
        Entry("apart", "three calls", ours=True),
        Entry("linear", "three frozen linear layers, no adapters"),
    ]
    fused = group.entry("fused")
    fused.error, fused.allowed, wrong = worst_error(results(models["fused"], shape, device, dtype), exact, plain)
    if wrong:
        fused.status, fused.reason = WRONG, wrong
    calls = {
        entry.name: call(models[entry.name], shape, gradients, device, dtype)
        for entry in group.entries
        if entry.status == MEASURED
    }
    samples, _ = interleaved(calls, device, seconds)
    for name, values in samples.items():
        group.entry(name).samples = values
    return group


def built(shape: Shape, device: torch.device) -> dict[str, nn.Module]:
    """The entrants, with the same weights and, but for the last, the same adapters."""
    torch.manual_seed(0)
    plain = Projections(shape).to(device)
    models = {name: Projections(shape).to(device) for name in ("fused", "apart", "linear")}
    for model in models.values():
        model.load_state_dict(plain.state_dict())
    adapt(models["fused"], {"": {"fuse": NAMES, **ADAPTERS}})
    adapt(models["apart"], dict.fromkeys(NAMES, ADAPTERS))
    for name in NAMES:
        setattr(models["linear"], name, FrozenLinear.from_linear(getattr(models["linear"], name)))
    (_, whole), *_ = ramoe_layers(models["fused"])
    nn.init.normal_(whole.lora_B, std=0.02)
    first = 0
    with torch.no_grad():
        for split, (name, units) in enumerate(zip(NAMES, whole.units, strict=True)):
            own = getattr(models["apart"], name)
            own.lora_A.copy_(whole.lora_A[split, None])
            own.lora_B.copy_(whole.lora_B[first : first + units].transpose(0, 1).flatten(1, 2)[None])
            own.router.weight.copy_(whole.router.weight.unflatten(0, (len(NAMES), -1))[split])
            first += units
    return models


def results(model: nn.Module, shape: Shape, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Outputs and the gradient of the input, for a few tokens."""
    generator = torch.Generator().manual_seed(1)
    tokens = min(shape.tokens, 64)
    x = torch.randn(tokens, shape.features, generator=generator).to(device, dtype).requires_grad_()
    outputs = model(x)
    grads = [torch.randn(tokens, width, generator=generator).to(device, dtype) for width in shape.widths]
    (grad,) = torch.autograd.grad(outputs, x, grads)
    return {**dict(zip(NAMES, outputs, strict=True)), "x.grad": grad}


def call(
    model: nn.Module, shape: Shape, gradients: bool, device: torch.device, dtype: torch.dtype
) -> Callable[[], object]:
    """What is timed: with ``gradients`` those of the input and of all that learns."""
    x = torch.randn(shape.tokens, shape.features, device=device, dtype=dtype)
    if not gradients:
        return torch.no_grad()(lambda: model(x))
    x.requires_grad_()
    grads = [torch.randn(shape.tokens, width, device=device, dtype=dtype) for width in shape.widths]
    learning = [x, *(parameter for parameter in model.parameters() if parameter.requires_grad)]
    return lambda: torch.autograd.grad(model(x), learning, grads)
