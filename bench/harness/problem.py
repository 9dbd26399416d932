"""The layer's work that entrants share: sizes, weights, the exact result, and what counts as the same result."""

from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
from torch import Tensor

from fastmoe_lora import rank_diagonal
from fastmoe_lora.backends import reference

GRADIENTS = ("x", "lora_A", "lora_B", "rank", "router_weight")


@dataclass(frozen=True)
class Problem:
    """Sizes of the layer: M tokens, K in_features, N out_features, S splits, E experts a split, R maximal rank."""

    name: str
    M: int
    K: int
    N: int
    S: int = 1
    E: int = 6
    R: int = 8

    def __post_init__(self):
        for key, value in self.shape.items():
            if value < 1:
                raise ValueError(f"{key}: got {value}, expected at least 1")
        if self.N % self.S:
            raise ValueError(f"S: got {self.S}, expected a divisor of N = {self.N}")

    @property
    def shape(self) -> dict[str, int]:
        return {key: getattr(self, key) for key in ("M", "K", "N", "S", "E", "R")}

    @property
    def adapter_share(self) -> float:
        """Arithmetic of the adapters, their router included, as a share of the frozen product's, forward."""
        base = self.K * self.N
        return self.S * self.E * (self.R * (self.K + self.N // self.S) + self.K) / base

    def weights(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> "Weights":
        """Random weights, the same numbers in every dtype: all are bfloat16 numbers."""
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int, scale: float = 1.0) -> Tensor:
            values = torch.randn(*shape, generator=generator) * scale
            return values.bfloat16().to(device, dtype)

        m, k, n, s, e, r = self.shape.values()
        # Half-whole ranks: the diagonal is 0, 1/2 or 1, exact in every dtype, so it may be folded into A.
        ranks = torch.randint(0, r, (s, e), generator=generator) + 0.5
        precision = torch.promote_types(dtype, torch.float32)
        return Weights(
            x=draw(m, k),
            weight=draw(n, k, scale=k**-0.5),
            bias=draw(n),
            lora_A=draw(s, e, r, k, scale=k**-0.5),
            lora_B=draw(s, e, n // s, r, scale=r**-0.5),
            rank=ranks.to(device, precision),
            router_weight=draw(s * e, k, scale=k**-0.5),
            grad=draw(m, n),
        )


@dataclass(frozen=True)
class Weights:
    """Operands as `fastmoe_lora.ramoe_linear` takes them, and the gradient of y, (M, N)."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    lora_A: Tensor
    lora_B: Tensor
    rank: Tensor
    router_weight: Tensor
    grad: Tensor

    def double(self) -> "Weights":
        return Weights(*(getattr(self, item.name).double() for item in fields(self)))

    def first_tokens(self, count: int) -> "Weights":
        return replace(self, x=self.x[:count], grad=self.grad[:count])

    @cached_property
    def folded(self) -> "Weights":
        """The same function with the rank diagonal multiplied into A: for those who do not learn ranks."""
        max_rank = self.lora_A.shape[2]
        diagonal = rank_diagonal(self.rank, max_rank)[..., None].to(self.lora_A.dtype)
        return replace(self, lora_A=self.lora_A * diagonal, rank=torch.full_like(self.rank, max_rank))

    @cached_property
    def gateless(self) -> "Weights":
        """The same with a zero router: every gate is 1/E, a plain LoRA of rank E*R, all that some peers can do."""
        return replace(self, router_weight=torch.zeros_like(self.router_weight))


def results(weights: Weights, gradients: bool) -> dict[str, Tensor]:
    """y, and its gradients if asked for, by the reference backend in the weights' dtype; by name, in float64."""
    leaves = {name: getattr(weights, name).detach().requires_grad_(gradients) for name in GRADIENTS}
    y = reference.linear(
        leaves["x"],
        weights.weight,
        weights.bias,
        leaves["lora_A"],
        leaves["lora_B"],
        leaves["rank"],
        None,
        leaves["router_weight"],
        None,
        0,
        1.0,
        0.0,
        None,
    )
    found = {"y": y.detach().double()}
    if gradients:
        for name, gradient in zip(leaves, torch.autograd.grad(y, list(leaves.values()), weights.grad), strict=True):
            found[name] = gradient.double()
    return found


def relative_error(found: Tensor, exact: Tensor) -> float:
    """||found - exact|| / ||exact||; without the division where exact is zero."""
    return float((found.double() - exact).norm() / (exact.norm() or 1.0))


def allowed_error(plain: Tensor, exact: Tensor, roundings: int) -> float:
    """What an honest implementation may err: 2·err(plain torch in that dtype) + 1e-6, for each rounding of the result.

    A loop over experts rounds the growing sum once an expert, where a single product rounds it once.
    """
    return 2 * roundings * relative_error(plain, exact) + 1e-6


def worst_error(
    found: dict[str, Tensor], exact: dict[str, Tensor], plain: dict[str, Tensor], roundings: int = 1
) -> tuple[float, float, str]:
    """(error, what it may be, "" or why it is wrong) of the quantity that comes closest to its bound; by name."""
    worst = (0.0, 1.0, "")
    for name, value in found.items():
        value = value.reshape(exact[name].shape)
        error = relative_error(value, exact[name]) if value.isfinite().all() else float("inf")
        allowed = allowed_error(plain[name], exact[name], roundings)
        if not error <= allowed:
            return error, allowed, f"{name}: relative error {error:.2e}, allowed {allowed:.2e}"
        if error / allowed >= worst[0] / worst[1]:
            worst = error, allowed, ""
    return worst


SIZES = {
    problem.name: problem
    for problem in (
        Problem("qkv", 3136, 768, 2304, S=3),  # ViT-B/16, 16 images of 196 tokens, fused Q, K and V
        Problem("qkv-1-image", 196, 768, 2304, S=3),
        Problem("proj", 3136, 768, 768, E=2),
        Problem("qkv-1024", 16384, 768, 2304, S=3),  # 16 images of 1,024 tokens
        Problem("llm", 4096, 4096, 4096, E=8, R=16),
        Problem("tiny", 48, 32, 48, S=3, E=3, R=4),
    )
}


def parse_size(text: str) -> Problem:
    """A name of `SIZES`, or "M=3136,K=768,N=2304,S=3,E=6,R=8" (S, E and R may be left out)."""
    if text in SIZES:
        return SIZES[text]
    try:
        sizes = {key: int(value) for key, value in (part.split("=") for part in text.split(","))}
        return Problem(text.replace(",", " "), **sizes)
    except (TypeError, ValueError) as error:
        known = ", ".join(SIZES)
        raise ValueError(
            f"size {text!r}: expected one of {known}, or M=..,K=..,N=..[,S=..,E=..,R=..]: {error}"
        ) from None
