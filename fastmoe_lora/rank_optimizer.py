"""The optimizer of the ranks: Adam with one second moment for all of them, and the budget kept exactly."""

import torch
from torch import nn
from torch.optim import Optimizer

from .ranks import project_ranks_, ramoe_layers


class RankOptimizer(Optimizer):
    """Steps the ranks of all RA-MoE layers of ``model`` together, then projects them onto the budget.

    Adam divides each gradient by its own scale, so every rank moves at the same speed however little it matters. Here
    the mean square of *all* ranks' gradients is the one scale: the ranks that matter move, and the projection takes
    from the others. ``lr`` is in ranks per step; ``budget`` defaults to the sum at initialisation. Ranks that are
    frozen are left alone.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.99),
        budget: float | None = None,
    ):
        self.model, self.budget = model, budget
        ranks = [layer.rank for _, layer in ramoe_layers(model)]
        super().__init__(ranks, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            learning = [rank for rank in group["params"] if rank.grad is not None and rank.requires_grad]
            if not learning:
                continue
            fast, slow = group["betas"]
            shared = self.state[group["params"][0]]
            shared["step"] = shared.get("step", 0) + 1
            gradients = torch.cat([rank.grad.flatten() for rank in learning])
            square = shared.get("mean_square", gradients.new_zeros(()))
            shared["mean_square"] = square = slow * square + (1 - slow) * gradients.square().mean()
            scale = (square / (1 - slow ** shared["step"])).sqrt().clamp(min=1e-30)
            for rank in learning:
                state = self.state[rank]
                mean = state.get("mean", torch.zeros_like(rank))
                state["mean"] = mean = fast * mean + (1 - fast) * rank.grad
                rank -= group["lr"] / (1 - fast ** shared["step"]) * mean / scale
            project_ranks_(self.model, self.budget)
        return loss
