"""The rank phase: how the experts' ranks are learned, and when they are frozen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmoe_lora import RankOptimizer, freeze_ranks, rank_budget_loss, rank_window, ranks_frozen, set_rank_window
from unistd.model import UniSTD
from unistd.training.config import RankConfig
from unistd.training.sharding import whole


class RankPhase:
    """Learns the ranks of all RA-MoE layers for `steps` steps, then rounds, freezes and compacts them.

    'printed' is the paper's recipe: the penalty |budget - sum of ranks| is added to the loss and AdamW moves the
    ranks, clamped to [0, R]. 'sampled' draws whole ranks from a window that shrinks from `window` to 1, takes a step
    normalised over all ranks together and projects it onto the budget (see `fastmoe_lora.RankOptimizer`).
    """

    def __init__(self, model: UniSTD, config: RankConfig, steps: int) -> None:
        self.model, self.config, self.steps = model, config, steps
        self.layers = list(model.ramoe_layers().values())
        self.ranks = [layer.rank for layer in self.layers]
        self._last: dict[str, float] | None = None  # summary of the frozen ranks
        if config.recipe == "sampled":
            self.optimizer: torch.optim.Optimizer = RankOptimizer(model, lr=config.lr)
        else:
            self.optimizer = torch.optim.AdamW(self.ranks, lr=config.lr, weight_decay=0.0)

    @property
    def frozen(self) -> bool:
        """Whether the phase is over."""
        return ranks_frozen(self.model)

    @property
    def window(self) -> float:
        """Width of the window that the whole ranks are drawn from."""
        return self.layers[0].rank_window

    def begin_step(self, step: int) -> None:
        """Freezes the ranks when the phase is over, else sets the window of this step."""
        if self.frozen:
            return
        if step >= self.steps:
            self.freeze()
        else:
            self.restore_window(step + 1)

    def restore_window(self, step: int) -> None:
        """Sets the window as the first `step` steps of a run leave it; no checkpoint holds it."""
        restore_window(self.model, self.config, self.steps, step)

    def freeze(self) -> None:
        """Rounds the ranks within the budget, freezes them and drops the columns that are off."""
        freeze_ranks(self.model)
        for rank in self.ranks:
            rank.grad = None

    def penalty(self) -> Tensor | float:
        """What the recipe adds to the loss of this step: a scalar."""
        if self.frozen or self.config.recipe == "sampled":
            return 0.0
        return self.config.penalty * rank_budget_loss(self.model)

    @torch.no_grad()
    def end_step(self) -> None:
        """Moves the ranks along their gradients and keeps them within bounds."""
        if self.frozen:
            return
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.config.recipe == "printed":
            for layer in self.layers:
                layer.rank.clamp_(0, layer.max_rank)

    def summary(self) -> dict[str, float]:
        """Mean and spread (standard deviation) of all ranks, and their sum."""
        if self._last is None:
            ranks = torch.cat([whole(rank.detach()).flatten() for rank in self.ranks]).double()
            found = {"rank_mean": ranks.mean(), "rank_spread": ranks.std(), "rank_sum": ranks.sum()}
            found = {name: value.item() for name, value in found.items()}
            if not self.frozen:
                return found
            self._last = found
        return self._last

    def state_dict(self) -> dict[str, Any]:
        """State of the ranks' optimizer; the ranks themselves are the model's."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`."""
        self.optimizer.load_state_dict(state)


def restore_window(model: UniSTD, config: RankConfig, phase: int, step: int) -> None:
    """Sets the rank window of a model as the first `step` steps of a run leave it, whose rank phase has `phase`."""
    last = min(step, phase) - 1
    if last >= 0 and config.recipe == "sampled":
        set_rank_window(model, rank_window(last / phase, config.window, config.window_share))
