"""The rank phase: how the experts' ranks are learned, and when they are frozen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmoe_lora import RankOptimizer, freeze_ranks, rank_budget_loss, rank_window, ranks_frozen, set_rank_window
from fastmoe_lora._wrappers import gathered
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
            on_gpu = self.ranks[0].is_cuda  # then it counts its steps there
            self.optimizer = torch.optim.AdamW(self.ranks, lr=config.lr, weight_decay=0.0, capturable=on_gpu)

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

    def gradient_norm(self) -> Tensor:
        """Of the ranks alone, (), on the device; 0 where they do not learn."""
        gradients = [gathered(rank.grad) for rank in self.ranks if rank.grad is not None]
        return torch.nn.utils.get_total_norm(gradients) if gradients else self.ranks[0].new_zeros(())

    @torch.no_grad()
    def end_step(self, skip: Tensor | None = None) -> None:
        """Moves the ranks along their gradients and keeps them within bounds.

        skip: (), on the device, not 0 where neither they nor their optimizer's state are to change; None: they are.
        """
        if self.frozen:
            return
        if self.config.recipe == "sampled":
            self.optimizer.found_inf = skip
            self.optimizer.step()
        else:
            self._printed_step(skip)
        self.optimizer.zero_grad()

    def _printed_step(self, skip: Tensor | None) -> None:
        before = {id(value): value.clone() for value in self._moved()}
        self.optimizer.step()
        for layer in self.layers:
            layer.rank.clamp_(0, layer.max_rank)
        for value in self._moved() if skip is not None else ():
            value.copy_(torch.where(skip != 0, before.get(id(value), 0), value))

    def _moved(self) -> list[Tensor]:
        """All that a step of the printed recipe changes, once it is there."""
        return [*self.ranks, *(value for state in self.optimizer.state.values() for value in state.values())]

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
        return self._with_capturable(self.optimizer.state_dict(), False)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`."""
        self.optimizer.load_state_dict(self._with_capturable(state, self.ranks[0].is_cuda))

    @staticmethod
    def _with_capturable(state: dict[str, Any], value: bool) -> dict[str, Any]:
        """The state of AdamW for another device: a checkpoint is that of a CPU."""
        groups = [group | ({"capturable": value} if "capturable" in group else {}) for group in state["param_groups"]]
        return state | {"param_groups": groups}


def restore_window(model: UniSTD, config: RankConfig, phase: int, step: int) -> None:
    """Sets the rank window of a model as the first `step` steps of a run leave it, whose rank phase has `phase`."""
    last = min(step, phase) - 1
    if last >= 0 and config.recipe == "sampled":
        set_rank_window(model, rank_window(last / phase, config.window, config.window_share))
