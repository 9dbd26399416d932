"""RAMoELinear: a linear layer with routed low-rank experts whose ranks are learned."""

import math
from typing import Any, Self

import torch
from torch import Tensor, nn

from .diagonal import INTERPOLATIONS, rank_diagonal
from .dropout import new_seed
from .functional import ramoe_linear
from .routing import route

ROUTERS = ("token", "sample", None)


class RAMoELinear(nn.Module):
    """Drop-in ``nn.Linear`` with RA-MoE adapters: ``(..., in_features) -> (..., out_features)``.

    A fresh layer computes exactly what its linear part does, since ``lora_B`` starts at zero.

    Args:
        num_experts: E, low-rank experts per split. max_rank: R, the largest rank of an expert.
        init_rank: where the continuous ranks start (4.5 in UniSTD), in [0, max_rank].
        splits: S, equal parts of the output with experts, ranks and router of their own (3 for a fused QKV).
        router: "token" (softmax per token, inside the operator), "sample" (the mean token of ``(..., N, in)``
            decides for all N), or None (the caller always hands in ``gates``).
        top_k: keep this many gates, renormalised; None keeps all.
        scaling: factor on the experts' sum. interpolation: see `rank_diagonal`; "sampled" draws in training only.
        dropout: rate on the adapters' input, in training.
        backend: "auto", or a name of `backends()`.

    Parameters: ``weight (out, in)``, ``bias (out)``, ``lora_A (S, E, R, in)``, ``lora_B (S, E, out/S, R)``,
    ``rank (S, E)`` and ``router.weight (S*E, in)``. Ranks stay float32 or float64 whatever the layer is cast to, since
    16 bits are too coarse to learn them in. Raises ValueError naming the argument that is out of range.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        num_experts: int = 6,
        max_rank: int = 8,
        init_rank: float = 4.5,
        splits: int = 1,
        router: str | None = "token",
        top_k: int | None = None,
        scaling: float = 1.0,
        interpolation: str = "linear",
        dropout: float = 0.0,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        _check_options(out_features, num_experts, max_rank, init_rank, splits, router, top_k, interpolation, dropout)
        self.in_features, self.out_features = in_features, out_features
        self.num_experts, self.max_rank, self.init_rank = num_experts, max_rank, init_rank
        self.splits, self.top_k, self.scaling = splits, top_k, scaling
        self.interpolation, self.dropout, self.backend = interpolation, dropout, backend
        self.router_kind = router
        self.rank_window = 1.0
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(out_features, in_features, **factory))
        self.bias = nn.Parameter(torch.empty(out_features, **factory)) if bias else None
        self.lora_A = nn.Parameter(torch.empty(splits, num_experts, max_rank, in_features, **factory))
        self.lora_B = nn.Parameter(torch.empty(splits, num_experts, out_features // splits, max_rank, **factory))
        precision = torch.promote_types(self.lora_A.dtype, torch.float32)
        self.rank = nn.Parameter(torch.empty(splits, num_experts, device=device, dtype=precision))
        self.router = None if router is None else nn.Linear(in_features, splits * num_experts, bias=False, **factory)
        # Whether the ranks are whole and fixed: part of the state, since it decides which columns are computed.
        self.register_buffer("rank_frozen", torch.zeros((), dtype=torch.bool, device=device))
        self.register_buffer("columns", None, persistent=False)
        self.reset_parameters()

    @classmethod
    def from_linear(cls, linear: nn.Linear, **options: Any) -> Self:
        """A layer that shares ``linear``'s weight and bias and freezes them.

        ``options`` are the constructor's; ``device`` and ``dtype`` are those of the adapters (default: the weight's).
        """
        weight, bias = linear.weight, linear.bias
        options = {"device": weight.device, "dtype": weight.dtype, **options}
        layer = cls(linear.in_features, linear.out_features, bias is not None, **options)
        layer.weight, layer.bias = weight.requires_grad_(False), bias
        if bias is not None:
            bias.requires_grad_(False)
        return layer.train(linear.training)

    def reset_parameters(self) -> None:
        """The linear part as ``nn.Linear``; A uniform likewise, B zero, ranks at ``init_rank``, router near zero."""
        bound = 1 / math.sqrt(self.in_features) if self.in_features else 0.0
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)
        nn.init.uniform_(self.lora_A, -bound, bound)
        nn.init.zeros_(self.lora_B)
        nn.init.constant_(self.rank, self.init_rank)
        if self.router is not None:
            nn.init.normal_(self.router.weight, std=0.02)

    def forward(self, x: Tensor, gates: Tensor | None = None) -> Tensor:
        """``x (..., in_features)``; ``gates (..., S, E)``, broadcastable to x's leading shape, replace the router's."""
        if gates is None and self.router_kind is None:
            raise ValueError(
                f"gates: got None, expected (..., {self.splits}, {self.num_experts}): the layer has no router"
            )
        router_weight = None
        if gates is None and self.router_kind == "token":
            router_weight = self.router.weight
        elif gates is None:
            gates = self.router_gates(x)
        dropout = self.dropout if self.training else 0.0
        return ramoe_linear(
            x,
            self.weight,
            self.bias,
            self.lora_A,
            self.lora_B,
            self._diagonal(),
            gates=gates,
            router_weight=router_weight,
            columns=self.columns,
            top_k=self.top_k,
            scaling=self.scaling,
            dropout=dropout,
            seed=new_seed(x.device) if dropout > 0 else None,
            backend=self.backend,
        )

    def router_gates(self, x: Tensor) -> Tensor:
        """The router's gates for ``x (..., in)``: (..., S, E), float32; per sample (..., 1, S, E) from (..., N, in)."""
        if self.router is None:
            raise ValueError("router_gates: the layer was built with router=None")
        if self.router_kind == "sample":
            if x.dim() < 2:
                raise ValueError(
                    f"x: got shape {tuple(x.shape)}, expected (..., tokens, in_features) for a sample router"
                )
            x = x.mean(-2, keepdim=True)
        weight = self.router.weight
        logits = x.to(weight.dtype) @ weight.T
        return route(logits.unflatten(-1, (self.splits, self.num_experts)), self.top_k or 0)

    def _diagonal(self) -> Tensor:
        """The operator's ``diag``: the ranks themselves where it interpolates on its own, else the diagonal."""
        if self.columns is not None:
            return self.rank  # whole ranks
        if self.interpolation == "linear" and self.rank_window == 1.0:
            return self.rank
        interpolation = self.interpolation
        if interpolation == "sampled" and not (self.training and self.rank.requires_grad):
            interpolation = "linear"
        return rank_diagonal(self.rank, self.max_rank, interpolation, self.rank_window)

    def fix_ranks_(self, whole: Tensor) -> None:
        """Fixes the ranks at ``whole`` (S, E): they stop learning, and columns that are off are no longer computed."""
        with torch.no_grad():
            self.rank.copy_(whole)
        self.rank_frozen.fill_(True)
        self._compact()

    def _compact(self) -> None:
        """Derives the table of active columns and the ranks' ``requires_grad`` from ``rank`` and ``rank_frozen``."""
        frozen = bool(self.rank_frozen)
        self.rank.requires_grad_(not frozen)
        self.columns = active_column_table(self.rank.detach(), self.max_rank) if frozen else None

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if not self.rank.is_meta:
            self._compact()

    def _apply(self, fn, recurse: bool = True) -> Self:
        ranks = self.rank.detach()
        super()._apply(fn, recurse)
        if self.rank.dtype not in (torch.float32, torch.float64):
            self.rank.data = ranks.to(self.rank.device)
        return self

    def extra_repr(self) -> str:
        return (
            f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, num_experts={self.num_experts}, "
            f"max_rank={self.max_rank}, splits={self.splits}, router={self.router_kind!r}"
        )


def active_column_table(ranks: Tensor, max_rank: int) -> Tensor | None:
    """Whole ranks (S, E) -> the active columns ``e*R + k`` of each split, (S, P) int32; None if that saves nothing.

    P is the largest number of active columns of a split, rounded up to a multiple of 8; -1 pads.
    """
    splits, experts = ranks.shape
    k = torch.arange(max_rank, device=ranks.device)
    active = (k < ranks[..., None]).flatten(1)  # (S, E*R)
    width = max(8, -(-int(active.sum(1).max()) // 8) * 8)
    if width >= experts * max_rank:
        return None
    column = torch.arange(experts * max_rank, device=ranks.device).expand(splits, -1)
    ordered = torch.where(active, column, experts * max_rank).sort(dim=1).values[:, :width]
    return torch.where(ordered < experts * max_rank, ordered, -1).to(torch.int32)


def _check_options(
    out_features, num_experts, max_rank, init_rank, splits, router, top_k, interpolation, dropout
) -> None:
    for name, value in (("num_experts", num_experts), ("max_rank", max_rank), ("splits", splits)):
        if value < 1:
            raise ValueError(f"{name}: got {value}, expected at least 1")
    if out_features % splits:
        raise ValueError(f"splits: got {splits}, expected a divisor of out_features = {out_features}")
    if not 0 <= init_rank <= max_rank:
        raise ValueError(f"init_rank: got {init_rank}, expected 0 to max_rank = {max_rank}")
    if router not in ROUTERS:
        raise ValueError(f"router: got {router!r}, expected one of {ROUTERS}")
    if top_k is not None and not 1 <= top_k <= num_experts:
        raise ValueError(f"top_k: got {top_k}, expected 1 to num_experts = {num_experts}")
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation: got {interpolation!r}, expected one of {INTERPOLATIONS}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout: got {dropout}, expected 0 to below 1")
