"""All experts of all splits as one matrix product, in plain PyTorch: any device, no compiler.

With the active columns of every A stacked (and the router's rows below them), the adapter is two matrix products with a
scaling of a narrow matrix between them; nothing of size M x N exists but the output itself.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..diagonal import as_diagonal, diagonal_gradient
from ..dropout import dropout as counter_dropout
from ..dropout import dropout_scale
from ..routing import route, route_backward


def available() -> bool:
    return True


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    diag: Tensor,
    gates: Tensor | None,
    router_weight: Tensor | None,
    columns: Tensor | None,
    top_k: int,
    scaling: float,
    dropout: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(y (M, N), low-rank product (M, S, P), gates (M, S, E)); the last two are what backward needs."""
    splits, experts, max_rank, _ = lora_A.shape
    layout = _Layout(columns, splits, experts, max_rank, lora_A.device)
    low_rank, used = _low_rank(counter_dropout(x, dropout, seed), lora_A, gates, router_weight, layout, top_k)
    t = (low_rank * _coefficients(used, diag, layout, scaling)).to(x.dtype)
    y = x @ weight.T if bias is None else torch.addmm(bias, x, weight.T)
    b = layout.columns_of(lora_B.permute(0, 1, 3, 2), x.dtype)  # (S, P, N/S)
    for s, part in enumerate(y.unflatten(1, (splits, lora_B.shape[2])).unbind(1)):
        part.addmm_(t[:, s], b[s])
    return y, low_rank, used.new_empty(0) if router_weight is None else used


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    diag: Tensor,
    gates: Tensor | None,
    router_weight: Tensor | None,
    columns: Tensor | None,
    top_k: int,
    scaling: float,
    dropout: float,
    seed: Tensor | None,
) -> Tensor:
    """y (M, N) of `forward`, written for PyTorch to export, transform and differentiate: nothing is done in place."""
    splits, experts, max_rank, _ = lora_A.shape
    layout = _Layout(columns, splits, experts, max_rank, lora_A.device)
    low_rank, gates = _low_rank(counter_dropout(x, dropout, seed), lora_A, gates, router_weight, layout, top_k)
    t = (low_rank * _coefficients(gates, diag, layout, scaling)).to(x.dtype)
    b = layout.columns_of(lora_B.permute(0, 1, 3, 2), x.dtype)
    update = torch.einsum("msp,spo->mso", t, b)
    return F.linear(x, weight, bias) + update.flatten(1)


def backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    lora_A: Tensor,
    lora_B: Tensor,
    diag: Tensor,
    gates: Tensor,
    router_weight: Tensor | None,
    columns: Tensor | None,
    low_rank: Tensor,
    scaling: float,
    dropout: float,
    seed: Tensor | None,
    needs: list[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of (x, weight, bias, lora_A, lora_B, diag, gates, router_weight), None where ``needs`` is False."""
    need_x, need_weight, need_bias, need_a, need_b, need_diag, need_gates, need_router = needs
    splits, experts, max_rank, _ = lora_A.shape
    layout = _Layout(columns, splits, experts, max_rank, lora_A.device)
    c = _coefficients(gates, diag, layout, scaling)  # (M, S, P)
    grad_parts = grad_y.unflatten(1, (splits, lora_B.shape[2]))  # (M, S, N/S)
    dx = dweight = dbias = da = db = ddiag = dgates = drouter = None

    if need_b:
        t = (low_rank * c).to(x.dtype)
        stacked = torch.stack([grad_parts[:, s].T @ t[:, s] for s in range(splits)])  # (S, N/S, P)
        db = layout.scatter(stacked.transpose(1, 2)).permute(0, 1, 3, 2).to(lora_B.dtype)

    if need_x or need_a or need_diag or need_gates or need_router:
        b = layout.columns_of(lora_B.permute(0, 1, 3, 2), x.dtype)
        u = torch.stack([grad_parts[:, s] @ b[s].T for s in range(splits)], dim=1)  # (M, S, P), gradient of t
        dc = u * low_rank.to(c.dtype)
        grad_narrow = (u * c).to(x.dtype).flatten(1)  # (M, S*P), gradient of the low-rank product
        if need_diag:
            grad_diag = layout.scatter((dc * layout.per_column(gates)).sum(0)[..., None])[..., 0] * scaling
            ddiag = diagonal_gradient(grad_diag, diag)
        if need_gates or router_weight is not None:
            by_rank = dc * (layout.diagonal(diag) * scaling)
            dgates = layout.per_expert(by_rank)
        if router_weight is not None:
            grad_logits = route_backward(dgates, gates).to(x.dtype).flatten(1)  # type: ignore[arg-type] # just made
            grad_narrow = torch.cat([grad_narrow, grad_logits], dim=1)
        if need_x:
            dx = grad_narrow @ _stack(lora_A, router_weight, layout, x.dtype)
            if dropout > 0:
                dx *= dropout_scale(x, dropout, seed)
            dx.addmm_(grad_y, weight)
        if need_a or need_router:
            stacked = grad_narrow.T @ counter_dropout(x, dropout, seed)  # (S*P [+ S*E], K)
            da = layout.scatter(stacked[: splits * layout.width].unflatten(0, (splits, layout.width))).to(lora_A.dtype)
            if router_weight is not None:
                drouter = stacked[splits * layout.width :].to(router_weight.dtype)
    if need_weight:
        dweight = grad_y.T @ x
    if need_bias:
        dbias = grad_y.sum(0)
    return dx, dweight, dbias, da, db, ddiag, dgates, drouter


class _Layout:
    """Which (expert, rank) columns of each split are computed, and the way between them and the full parameters."""

    def __init__(self, columns: Tensor | None, splits: int, experts: int, max_rank: int, device: torch.device):
        self.shape = (splits, experts, max_rank)
        self.full = columns is None
        self.width = experts * max_rank if columns is None else columns.shape[1]  # P
        self.active: Tensor
        if columns is not None:
            self.active = columns >= 0  # (S, P)
            self.column = columns.clamp(min=0).long()
            first = torch.arange(splits, device=device)[:, None] * (experts * max_rank)
            self.row = (self.column + first).flatten()
            self.expert = self.column // max_rank

    def columns_of(self, full: Tensor, dtype: torch.dtype) -> Tensor:
        """(S, E, R, D) -> (S, P, D), rounded to ``dtype``; padding is 0."""
        rows = full.to(dtype).flatten(0, 2)
        if not self.full:
            rows = rows.index_select(0, self.row) * self.active.flatten()[:, None]
        columns: Tensor = rows.unflatten(0, (self.shape[0], self.width))
        return columns

    def scatter(self, rows: Tensor) -> Tensor:
        """(S, P, D) -> (S, E, R, D), 0 in the columns that are off; the adjoint of ``columns_of``."""
        splits, experts, max_rank = self.shape
        full: Tensor
        if self.full:
            full = rows.unflatten(1, (experts, max_rank))
            return full
        full = rows.new_zeros(splits * experts * max_rank, rows.shape[-1])
        # Padding adds exact zeros to row 0 of its split.
        full.index_add_(0, self.row, rows.flatten(0, 1) * self.active.flatten()[:, None])
        full = full.unflatten(0, self.shape)
        return full

    def diagonal(self, diag: Tensor) -> Tensor:
        """(S, P)"""
        d = as_diagonal(diag, self.shape[2])
        return d.flatten(1) if self.full else d.flatten(1).gather(1, self.column) * self.active

    def per_column(self, gates: Tensor) -> Tensor:
        """(M, S, E) -> (M, S, P)"""
        if self.full:
            return gates.repeat_interleave(self.shape[2], dim=2, output_size=self.width)
        return gates.gather(2, self.expert.expand(gates.shape[0], -1, -1))

    def per_expert(self, values: Tensor) -> Tensor:
        """(M, S, P) -> (M, S, E), summed; the adjoint of ``per_column``."""
        _, experts, max_rank = self.shape
        if self.full:
            summed: Tensor = values.unflatten(2, (experts, max_rank)).sum(-1)
            return summed
        member = self.expert[:, :, None] == torch.arange(experts, device=values.device)  # (S, P, E)
        return torch.einsum("msp,spe->mse", values, (member & self.active[:, :, None]).to(values.dtype))


def _stack(lora_A: Tensor, router_weight: Tensor | None, layout: _Layout, dtype: torch.dtype) -> Tensor:
    """The active rows of A, then the router's: (S*P [+ S*E], K)."""
    rows = layout.columns_of(lora_A, dtype).flatten(0, 1)
    return rows if router_weight is None else torch.cat([rows, router_weight.to(dtype)])


def _low_rank(
    x: Tensor, lora_A: Tensor, gates: Tensor | None, router_weight: Tensor | None, layout: _Layout, top_k: int
) -> tuple[Tensor, Tensor]:
    """The low-rank product (M, S, P) of the adapters' input, and the gates (M, S, E), given or the router's."""
    splits, experts, _ = layout.shape
    product = x @ _stack(lora_A, router_weight, layout, x.dtype).T  # (M, S*P [+ S*E])
    low_rank = product[:, : splits * layout.width].unflatten(1, (splits, layout.width)).contiguous()
    if router_weight is not None:
        gates = route(product[:, splits * layout.width :].unflatten(1, (splits, experts)), top_k)
    return low_rank, gates  # type: ignore[return-value] # given or routed


def _coefficients(gates: Tensor, diag: Tensor, layout: _Layout, scaling: float) -> Tensor:
    """gate * d * scaling of every column, in the gates' precision: (M, S, P)."""
    return layout.per_column(gates) * (layout.diagonal(diag) * scaling)
