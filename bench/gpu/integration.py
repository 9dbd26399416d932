"""What a user builds around the operator, for `bench.gpu.check`: repeatable bits, streams, graphs, compilation, AMP."""

import os
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from bench.gpu.correctness import DTYPE, QKV, compare, errors, paper_case, place, prepare, run, share
from bench.gpu.log import DEVICE, Log

__all__ = ["integration", "prepare"]

LONG = 2**31  # elements that 32 bits cannot count
TOKENS = (64, 1000, 4099)  # that have plans of their own


def layer_and_input(tokens: int = 512):
    from fastmoe_lora import RAMoELinear

    torch.manual_seed(0)
    width, options = QKV["in_features"], {"splits": QKV["splits"], "device": DEVICE, "dtype": DTYPE}
    layer = RAMoELinear(width, QKV["out_features"], backend="triton", **options)
    with torch.no_grad():
        layer.lora_B.normal_(std=0.1)
    layer.weight.requires_grad_(False)
    layer.bias.requires_grad_(False)
    return layer, torch.randn(tokens, width, device=DEVICE, dtype=DTYPE, requires_grad=True)


def step(layer, x: Tensor) -> list[Tensor]:
    """Output and gradients."""
    y = layer(x)
    leaves = [x, *(p for p in layer.parameters() if p.requires_grad)]
    return [y.detach(), *torch.autograd.grad(y, leaves, torch.ones_like(y))]


def same(first: list[Tensor], second: list[Tensor]) -> dict:
    different = [i for i, (a, b) in enumerate(zip(first, second, strict=True)) if not torch.equal(a, b)]
    return {"ok": not different} | ({"different": different} if different else {})


def repeatable() -> dict:
    """Twenty calls, same bits, at a size with many tasks per program."""
    arguments = place(paper_case(16384).arguments(DTYPE))
    first = run(arguments, "triton")
    for _ in range(20):
        again = run(arguments, "triton")
        wrong = [name for name in first if not torch.equal(first[name], again[name])]
        if wrong:
            return {"ok": False, "different": wrong}
    return {}


def streams() -> dict:
    """Two streams at once, each with programs that wait: same bits as alone, and no hang."""
    layer, x = layer_and_input(8192)
    alone = step(layer, x)
    torch.cuda.synchronize()
    side = [torch.cuda.Stream() for _ in range(2)]
    results = []
    for _ in range(5):
        for stream in side:
            with torch.cuda.stream(stream):
                results.append(step(layer, x))
    torch.cuda.synchronize()
    return {"ok": all(same(alone, result)["ok"] for result in results)}


def graph() -> dict:
    """Capture of forward and backward, replays on new input, a replay beside eager calls on another stream."""
    layer, x = layer_and_input(4096)
    step(layer, x)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step(layer, x)
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        outputs = step(layer, x)
    for seed in range(3):
        with torch.no_grad():
            x.copy_(torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)))
        want = step(layer, x)
        torch.cuda.synchronize()
        with torch.cuda.stream(side):
            beside = step(layer, x)
        captured.replay()
        torch.cuda.synchronize()
        if not (same(want, outputs)["ok"] and same(want, beside)["ok"]):
            return {"ok": False, "replay": seed}
    return {}


def compiled() -> dict:
    """torch.compile(fullgraph=True), forward and backward, same bits as eager."""
    layer, x = layer_and_input()
    want = step(layer, x)
    return same(want, step(torch.compile(layer, fullgraph=True), x))


def autocast() -> dict:
    """float32 layer under bfloat16 autocast: right by the rule of 16 bits."""
    from fastmoe_lora import ramoe_linear

    case = paper_case(700)

    def outputs(backend: str, dtype: torch.dtype, enabled: bool) -> dict[str, Tensor]:
        arguments = place(case.arguments(dtype))
        with torch.autocast(DEVICE.type, DTYPE, enabled=enabled):
            y = ramoe_linear(**arguments, backend=backend)
        leaves = {n: arguments[n] for n in ("x", "lora_A", "lora_B", "diag", "router_weight")}
        return {"y": y} | dict(zip(leaves, torch.autograd.grad(y.sum(), list(leaves.values())), strict=True))

    exact = outputs("reference", torch.float64, False)
    return errors(outputs("triton", torch.float32, True), outputs("reference", torch.float32, True), exact, 16)


def opcheck() -> dict:
    """torch.library.opcheck of the operator and, through its gradient, of the other one."""
    from fastmoe_lora.ops import ramoe_forward

    layer, x = layer_and_input(64)
    operands = x, layer.weight, layer.bias, layer.lora_A, layer.lora_B, layer.rank, None, layer.router.weight, None
    return {"result": str(torch.library.opcheck(ramoe_forward, (*operands, 0, 1.0, 0.0, None, "triton")))}


def long_rows() -> dict:
    """M x N beyond 2^31 elements: 64-bit addresses, first and last rows against a short call."""
    from fastmoe_lora import ramoe_linear

    tokens = LONG // QKV["out_features"] + 1000
    arguments = place(paper_case(256).arguments(DTYPE))
    short = {name: value.detach() if torch.is_tensor(value) else value for name, value in arguments.items()}
    ends = ramoe_linear(**short, backend="triton")
    x = torch.zeros(tokens, QKV["in_features"], device=DEVICE, dtype=DTYPE)
    x[:128], x[-128:] = short["x"][:128], short["x"][128:]
    y = ramoe_linear(**(short | {"x": x}), backend="triton")
    close = [
        (a.float() - b.float()).norm() <= 1e-2 * b.float().norm()
        for a, b in ((y[:128], ends[:128]), (y[-128:], ends[128:]))
    ]
    return {"ok": all(bool(value) for value in close)}


def self_check() -> dict:
    """backend="auto" tries its plans, finds nothing wrong, and gives the bits of "triton"."""
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        os.environ["FASTMOE_LORA_CACHE_DIR"] = folder  # or it would know from an earlier run
        for tokens in TOKENS:
            arguments = place(paper_case(tokens).arguments(DTYPE))
            outcome = same(*(list(run(arguments, backend).values()) for backend in ("auto", "triton")))
            if not outcome["ok"]:
                return outcome
        verdicts = len(list(Path(folder).rglob("*.json")))
    return {"ok": verdicts >= 2, "verdicts": verdicts}


ITEMS = {
    "same bits twenty times": repeatable,
    "two streams at once": streams,
    "CUDA graph": graph,
    "torch.compile(fullgraph=True)": compiled,
    "autocast": autocast,
    "opcheck": opcheck,
    "more than 2^31 elements": long_rows,
    "auto, plans on trial": self_check,
    "one M after another": lambda: {"ok": all(compare(paper_case(m), DTYPE)["ok"] for m in (1, 255, 513, 2049))},
}


def integration(log: Log, shard: int, shards: int) -> None:
    for name, function in share(list(ITEMS.items()), shard, shards):
        log.item(name, function, 80)  # torch's own compiler is slow when it is cold
