"""The rank diagonal: how a continuous rank switches the columns of an expert on and off."""

import torch
from torch import Tensor

from . import _checks

INTERPOLATIONS = ("linear", "sampled", "as_printed")


def rank_diagonal(rank: Tensor, max_rank: int, interpolation: str = "linear", window: float = 1.0) -> Tensor:
    """The diagonal d that stands for rank r between A and B, ``(...,) -> (..., max_rank)``, differentiable in r.

    ``"linear"``: ``d[k] = clamp((r - k - 1/2) / window + 1/2, 0, 1)``. With ``window=1`` it is ``clamp(r - k, 0, 1)``,
    the linear interpolation between the products of rank floor(r) and ceil(r); its gradient flows to ``d[floor(r)]``
    alone (right derivative at whole r, left derivative at r = max_rank).
    ``"sampled"``: the whole-number diagonal of rank ``floor(r + xi)``, xi uniform in 1/2 +- window/2, drawn once for
    each element of ``rank``; its mean is the linear form above, and the gradient passes straight through to that mean.
    ``"as_printed"``: the two weights swapped, as in the summary of UniSTD (arXiv 2503.20748): the gradient has the
    wrong sign and whole ranks switch the adapter off. Kept for fidelity.

    Raises ValueError or TypeError for an unknown interpolation, ``max_rank < 1``, a ``window`` that is not a positive,
    finite number, or ranks that are not a floating-point tensor. A rank that is NaN gives NaN.
    """
    if not isinstance(rank, Tensor) or not rank.is_floating_point():
        raise TypeError(f"rank: got {_checks.shown(rank)}, expected a floating-point tensor")
    _checks.size("max_rank", max_rank)
    _checks.number("window", window, lambda width: width > 0, "a positive number")
    _checks.one_of("interpolation", interpolation, INTERPOLATIONS)
    return interpolate(rank, max_rank, interpolation, window)


def interpolate(rank: Tensor, max_rank: int, interpolation: str = "linear", window: float = 1.0) -> Tensor:
    """`rank_diagonal` of arguments that are known to be right."""
    k = torch.arange(max_rank, device=rank.device, dtype=rank.dtype)
    r = rank.unsqueeze(-1)
    if interpolation == "as_printed":
        low, high = r.detach().floor(), r.detach().ceil()
        return (r - low) * (k < low) + (high - r) * (k < high)
    value, slope = _ramp(r, k, window)
    mean = torch.where(slope, value, value.clamp(0, 1).detach())
    if interpolation == "linear":
        return mean
    xi = 0.5 + window * (torch.rand_like(r) - 0.5)
    drawn = (k < (r.detach() + xi).floor()).to(rank.dtype)
    return drawn + (mean - mean.detach())  # exactly 0 or 1, with the gradient of the mean


def _ramp(r: Tensor, k: Tensor, window: float) -> tuple[Tensor, Tensor]:
    """The unclamped ramp and where it rises; the end point r = max_rank counts as rising in its last column."""
    value = (r - k - 0.5 * (1 - window)) / window  # for window 1 exactly r - k, without rounding
    last = k == k.numel() - 1
    return value, (value >= 0) & ((value < 1) | (last & (value == 1)))


def as_diagonal(diag: Tensor, max_rank: int) -> Tensor:
    """Operator argument ``diag`` as a diagonal (S, E, R): given ready-made, or as continuous ranks (S, E)."""
    return diag if diag.dim() == 3 else interpolate(diag, max_rank)


def diagonal_gradient(grad: Tensor, diag: Tensor) -> Tensor:
    """Gradient of the operator argument ``diag`` from that of the diagonal, ``grad`` (S, E, R)."""
    if diag.dim() == 3:
        return grad
    k = torch.arange(grad.shape[-1], device=diag.device, dtype=diag.dtype)
    _, slope = _ramp(diag.unsqueeze(-1), k, window=1.0)
    return (grad * slope).sum(-1)
