"""The device that a config asks for, and what is done where this machine has none."""

from __future__ import annotations

from collections.abc import Callable

from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException

from unistd.training.config import TrainConfig
from unistd.training.errors import TrainingError


def open_device(config: TrainConfig) -> Fabric:
    """The device that the config asks for; raises TrainingError where this machine has none."""
    try:
        return Fabric(accelerator=config.accelerator, devices=1, precision=config.precision)
    except (RuntimeError, ValueError, MisconfigurationException) as error:
        reason = " ".join(str(error).split())
        asked = f"train.accelerator {config.accelerator!r} with train.precision {config.precision!r}"
        raise TrainingError(
            f"{asked}: not to be had here ({reason}); expected a device of this machine, as train.accelerator=auto"
        ) from None


def open_device_or_cpu(config: TrainConfig, say: Callable[[str], None]) -> Fabric:
    """The device that the config asks for, to measure or forecast on; where this machine has none, the CPU, which
    `say` is told of in one line."""
    try:
        return open_device(config)
    except TrainingError:
        say(f"train.accelerator {config.accelerator!r} is not to be had here: the CPU is used instead")
        return Fabric(accelerator="cpu", devices=1, precision=config.precision)
