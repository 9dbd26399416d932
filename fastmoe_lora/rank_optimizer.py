"""The optimizer of the ranks: Adam with one second moment for all of them, and the budget kept exactly."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from . import _checks
from ._wrappers import gathered
from .ranks import HeldRanks, checked_budget, named_layers, project_ranks_


class RankOptimizer(Optimizer):
    """Steps the ranks of all RA-MoE layers of ``model`` together, then projects them onto the budget.

    Adam divides each gradient by its own scale, so every rank moves at the same speed however little it matters. Here
    the mean square of *all* ranks' gradients is the one scale: the ranks that matter move, and the projection takes
    from the others. ``lr`` is in ranks per step; ``budget`` defaults to the sum at initialisation. Ranks that are
    frozen are left alone. Raises ValueError or TypeError naming the argument that is wrong, and in `step` ValueError
    naming the layer whose gradient or rank is not finite, before any is moved.

    As with torch's fused optimizers, an attribute ``found_inf`` (a number on the ranks' device; 0: all is well) may say
    instead whether a step is to change anything: then neither ranks nor moments do, and the host does not wait for the
    device. Gradients and ranks are not looked at then.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.99),
        budget: float | None = None,
    ):
        layers = named_layers(model)
        lr = _checks.number("lr", lr, lambda rate: rate >= 0, "a finite number, at least 0")
        _checks.instance("betas", betas, (tuple, list), "two numbers")
        if len(betas) != 2:
            raise ValueError(f"betas: got {_checks.shown(betas)}, expected two numbers")
        fast, slow = (_checks.number("betas", beta, lambda b: 0 <= b < 1, "each from 0 to below 1") for beta in betas)
        checked_budget(layers, budget)
        self.model, self.budget = model, budget
        self._names = {layer.rank: name for name, layer in layers.items()}
        super().__init__([layer.rank for layer in layers.values()], {"lr": lr, "betas": (fast, slow)})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        if closure is not None and not callable(closure):
            raise TypeError(f"closure: got {_checks.shown(closure)}, expected a function or None")
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            learning = [rank for rank in group["params"] if rank.grad is not None and rank.requires_grad]
            if not learning:
                continue
            gradients = torch.cat([gathered(rank.grad).flatten() for rank in learning])
            held = None if self.found_inf is None else HeldRanks(self.model, self.budget, self.found_inf)
            if held is None and not bool(
                torch.cat([gradients, *(gathered(rank.detach()).flatten() for rank in learning)]).isfinite().all()
            ):
                self._name_fault(learning)
            fast, slow = group["betas"]
            shared = self.state[group["params"][0]]
            shared["step"] = shared.get("step", 0) + 1
            square = shared.get("mean_square", gradients.new_zeros(()))
            new = slow * square + (1 - slow) * gradients.square().mean()
            shared["mean_square"] = square = self._unless_skipped(new, square)
            rate, left = self._corrections(shared, group["lr"], fast, slow, like=gradients)
            scale = (square / left).sqrt().clamp(min=1e-30)
            for rank in learning:
                state = self.state[rank]
                before = state.get("mean", torch.zeros_like(rank))
                state["mean"] = mean = self._unless_skipped(fast * before + (1 - fast) * rank.grad, before)
                rank -= rate * mean / scale
            if held is None:
                project_ranks_(self.model, self.budget)
            else:
                held.project_or_restore_()
        return loss

    def _unless_skipped(self, new: Tensor, old: Tensor) -> Tensor:
        return new if self.found_inf is None else torch.where(self.found_inf != 0, old, new)

    def _corrections(
        self, shared: dict[str, Any], lr: float, fast: float, slow: float, like: Tensor
    ) -> tuple[Tensor | float, Tensor | float]:
        """Adam's corrections for means that began at zero: lr / (1 - fast^n) and 1 - slow^n after n steps. How many of
        the steps were skipped is counted on the device."""
        if self.found_inf is None and "skipped" not in shared:
            return lr / (1 - fast ** shared["step"]), 1 - slow ** shared["step"]
        skipped = shared.get("skipped", like.new_zeros(()))
        if self.found_inf is not None:
            shared["skipped"] = skipped = skipped + (self.found_inf != 0)
        count = shared["step"] - skipped.double()
        return (lr / (1 - fast**count)).to(like.dtype), (1 - slow**count).to(like.dtype)

    def _name_fault(self, ranks: list[nn.Parameter]) -> None:
        """Raises ValueError naming the first gradient or rank that is not a finite number."""
        for rank in ranks:
            for what, tensor in (("rank.grad", rank.grad), ("rank", rank)):
                if tensor is None:
                    continue
                values = gathered(tensor.detach())
                if fault := _checks.element_fault(what, values, values.isfinite(), "a finite number"):
                    raise ValueError(f"model: layer {self._names[rank]!r}: {fault}")
