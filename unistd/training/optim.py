"""The optimiser, its parameter groups and its schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from unistd.training.config import OptimConfig


def build_optimizer(
    model: nn.Module,
    config: OptimConfig,
    exclude: Sequence[nn.Parameter] = (),
    slow: Callable[[str], bool] = lambda name: False,
    factor: float = 1.0,
) -> AdamW:
    """AdamW over the trainable parameters but `exclude` (the ranks); decay for those of two dimensions or more only.

    slow: says of a parameter's name whether it learns at `factor` times the rate.
    """
    excluded = {id(parameter) for parameter in exclude}
    trained = [(slow(n), p) for n, p in model.named_parameters() if p.requires_grad and id(p) not in excluded]
    groups = []
    for is_slow in (False, True):
        mine, lr = [p for slowly, p in trained if slowly == is_slow], config.lr * (factor if is_slow else 1)
        groups += [
            {"params": [p for p in mine if p.ndim >= 2], "weight_decay": config.weight_decay, "lr": lr},
            {"params": [p for p in mine if p.ndim < 2], "weight_decay": 0.0, "lr": lr},
        ]
    return AdamW([group for group in groups if group["params"]], lr=config.lr, fused=True)


def build_schedule(optimizer: AdamW, config: OptimConfig, steps: int) -> LambdaLR:
    """Linear warm-up over the first `warmup` share of `steps`, then a cosine down to `final_lr` of the peak."""
    return LambdaLR(optimizer, _share_of_peak(config, steps))


def _share_of_peak(config: OptimConfig, steps: int) -> Callable[[int], float]:
    rising = round(config.warmup * steps)

    def share_of_peak(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        done = (step - rising) / max(1, steps - rising)
        return config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return share_of_peak


def replan(schedule: LambdaLR, config: OptimConfig, steps: int) -> None:
    """Has a schedule that is under way go on as that of a run of `steps` steps."""
    groups = schedule.optimizer.param_groups
    schedule.lr_lambdas = [_share_of_peak(config, steps)] * len(groups)
    for group, base, share in zip(groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
        group["lr"] = base * share(schedule.last_epoch)
    schedule._last_lr = [group["lr"] for group in groups]
