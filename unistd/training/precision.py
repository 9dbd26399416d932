"""The number format that a model computes in, and in float16 the scale of the loss.

Weights, ranks and moments are float32 in all of them. float16 ends at 65,504 and loses what is below 6e-8, where many
gradients are: there the loss is multiplied by a scale, which a step whose gradients overflow halves and 2,000 steps
without one double.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning_fabric.plugins.precision import MixedPrecision
from torch import Tensor
from torch.optim import Optimizer

from unistd.training.config import TrainConfig
from unistd.training.expected import number, whole

FP16 = "16-mixed"
SMALLEST_SCALE = 1.0  # an overflow at a scale below it is not the scale's


def precision_options(config: TrainConfig) -> dict[str, Any]:
    """The arguments of Fabric's that say what is computed in which format."""
    if config.precision != FP16:
        return {"precision": config.precision}
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    on_cpu = config.accelerator == "cpu" or accelerator is None
    plugin = MixedPrecision(FP16, "cpu" if on_cpu else accelerator.type)
    plugin.scaler = None  # a `LossScale` has it: Fabric's would look at the device, and refuses fused optimizers
    return {"plugins": [plugin]}


class LossScale:
    """torch's scale of the loss in float16; in other formats nothing of it is done.

    Args:
        device: of the loss.
    """

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self.enabled = config.precision == FP16
        self._scaler = torch.amp.GradScaler(device.type, enabled=self.enabled)
        self._one = torch.ones((), device=device)

    def scale(self, loss: Tensor) -> Tensor:
        """The loss as it is to be differentiated."""
        return self._scaler.scale(loss)

    def unscale(self, optimizers: Iterable[Optimizer]) -> None:
        """Takes the scale from the gradients of what these optimizers move."""
        for optimizer in optimizers if self.enabled else ():
            self._scaler.unscale_(optimizer)

    def now(self) -> Tensor:
        """The scale, (), on the device; 1 in other formats."""
        return self._scaler.scale(self._one).detach()

    def update(self) -> None:
        """Follows a step, by what `unscale` found in its gradients."""
        self._scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """All that the steps to come depend on; empty in other formats."""
        return self._scaler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict`."""
        self._scaler.load_state_dict(dict(state))


def expected_scale(step: int) -> dict[str, Any]:
    """What a `LossScale.state_dict` after `step` steps must be, in the words of `expected.compare`."""
    fresh = torch.amp.GradScaler("cpu").state_dict()
    return fresh | {"scale": number(zero=False), "_growth_tracker": whole(0, step)}
