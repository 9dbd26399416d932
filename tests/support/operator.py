"""Random arguments of the operator, and what counts as right (every backend is held to the same)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastmoe_lora import ramoe_linear
from fastmoe_lora._frozen_ranks import active_column_table

DIFFERENTIABLE = ("x", "weight", "bias", "lora_A", "lora_B", "diag", "gates", "router_weight")


@dataclass(frozen=True)
class Case:
    """One shape of the operator; prints as a readable test id."""

    tokens: int = 17
    in_features: int = 24
    out_features: int = 36
    splits: int = 3
    experts: int = 3
    max_rank: int = 8
    routed: bool = True
    bias: bool = True
    ready_diagonal: bool = False
    compacted: bool = False
    top_k: int | None = None
    dropout: float = 0.0
    scaling: float = 1.0

    def __str__(self) -> str:
        sizes = (
            f"M{self.tokens}-K{self.in_features}-N{self.out_features}-S{self.splits}-E{self.experts}-R{self.max_rank}"
        )
        flags = ("routed", "bias", "ready_diagonal", "compacted", "top_k", "dropout")
        return "-".join([sizes, *(name for name in flags if getattr(self, name))])

    def arguments(self, dtype: torch.dtype, adapter_dtype: torch.dtype | None = None, seed: int = 0) -> dict:
        """Keyword arguments of `ramoe_linear`, leaves that require gradients; the same numbers for every dtype."""
        generator = torch.Generator().manual_seed(seed)
        adapter_dtype = adapter_dtype or dtype

        def draw(*shape: int, dtype=dtype, scale=1.0) -> Tensor:
            # bfloat16 numbers, so that a change of dtype changes the arithmetic and not the problem
            values = torch.randn(*shape, generator=generator, dtype=torch.float64) * scale
            return values.bfloat16().to(dtype).requires_grad_()

        s, e, r, k, n = self.splits, self.experts, self.max_rank, self.in_features, self.out_features
        precision = torch.promote_types(dtype, torch.float32)
        ranks = torch.rand(s, e, generator=generator, dtype=torch.float64) * r
        if self.compacted:
            ranks = (ranks / 3).floor()
        diag = ranks.to(precision)
        if self.ready_diagonal:
            diag = torch.rand(s, e, r, generator=generator, dtype=torch.float64).to(precision)
        arguments = {
            "x": draw(self.tokens, k),
            "weight": draw(n, k, scale=k**-0.5),
            "bias": draw(n) if self.bias else None,
            "lora_A": draw(s, e, r, k, dtype=adapter_dtype, scale=k**-0.5),
            "lora_B": draw(s, e, n // s, r, dtype=adapter_dtype),
            "diag": diag.clone().requires_grad_(not self.compacted),
            "top_k": self.top_k,
            "scaling": self.scaling,
            "dropout": self.dropout,
            "seed": torch.tensor(987654321987654321) if self.dropout else None,
            "columns": active_column_table(ranks, r) if self.compacted else None,
        }
        if self.routed:
            arguments["router_weight"] = draw(s * e, k, dtype=adapter_dtype, scale=k**-0.5)
        else:
            gates = torch.rand(self.tokens, s, e, generator=generator, dtype=torch.float64)
            arguments["gates"] = gates.to(precision).requires_grad_()
        return arguments


# Odd on purpose: no tokens, one, no multiple of a tile; sizes no multiple of 16; 1 to 16 experts; R from 1 to 64.
CASES = (
    Case(),
    Case(tokens=0),
    Case(tokens=1, splits=1),
    Case(tokens=33, in_features=19, out_features=21, splits=1, experts=6),
    Case(tokens=130, in_features=70, out_features=34, splits=2, experts=6, bias=False),
    Case(experts=1, max_rank=1, splits=1),
    Case(experts=16, max_rank=5, splits=2, out_features=10),
    Case(experts=2, max_rank=64, splits=1),
    Case(ready_diagonal=True, scaling=0.5),
    Case(routed=False, splits=2),
    Case(routed=False, ready_diagonal=True, experts=5),
    Case(top_k=2, experts=5),
    Case(top_k=1, experts=4, splits=1),
    Case(dropout=0.3, scaling=2.0),
    Case(dropout=0.1, routed=False, splits=1),
    Case(compacted=True, experts=6),
    Case(compacted=True, experts=4, max_rank=16, routed=False, splits=1),
    Case(compacted=True, experts=6, top_k=2, dropout=0.2),
)


def run(arguments: dict, backend: str, grad_seed: int = 1) -> dict[str, Tensor]:
    """Output and gradients by name, all in float64."""
    y = ramoe_linear(**arguments, backend=backend)
    generator = torch.Generator().manual_seed(grad_seed)
    grad = torch.randn(y.shape, generator=generator, dtype=torch.float64).bfloat16().to(y.dtype)
    leaves = {name: arguments.get(name) for name in DIFFERENTIABLE}
    leaves = {name: leaf for name, leaf in leaves.items() if leaf is not None and leaf.requires_grad}
    gradients = torch.autograd.grad(y, list(leaves.values()), grad)
    assert all(g.dtype == leaf.dtype for g, leaf in zip(gradients, leaves.values(), strict=True))
    return {"y": y.detach().double()} | {name: g.double() for name, g in zip(leaves, gradients, strict=True)}


def assert_right(
    case: Case, backend: str, dtype: torch.dtype, adapter_dtype: torch.dtype | None = None, draws: int = 1
) -> None:
    """Output and every gradient against the reference in float64.

    float64: relative error < 1e-12, float32: < 1e-5; 16 bits: at most twice the error of plain torch in that dtype,
    both over all ``draws`` of the arguments (of a gradient of two numbers, one draw of rounding errors says little).
    """
    squares: dict[str, Tensor] = {}  # per name: squared error, that of plain torch, squared norm
    for seed in range(draws):
        exact = run(case.arguments(torch.float64, seed=seed), "reference")
        got = run(case.arguments(dtype, adapter_dtype, seed), backend)
        plain = run(case.arguments(dtype, adapter_dtype, seed), "reference") if dtype.itemsize == 2 else exact
        for name, want in exact.items():
            assert got[name].isfinite().all(), f"{name}: not finite"
            terms = torch.stack([(v**2).sum() for v in (got[name] - want, plain[name] - want, want)])
            squares[name] = squares.get(name, torch.zeros(3)) + terms
    for name, (error, plain_error, norm) in ((name, total.sqrt()) for name, total in squares.items()):
        relative = 1e-12 if dtype == torch.float64 else 1e-5
        bound = 2 * plain_error + 1e-6 if dtype.itemsize == 2 else relative * norm
        assert error <= bound, f"{name}: error {error:.3e}, allowed {bound:.3e}"
