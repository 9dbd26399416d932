"""The device that a config asks for, and what is done where this machine has none."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import TorchElasticEnvironment
from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy
from lightning_fabric.utilities.exceptions import MisconfigurationException

from unistd.training.config import TrainConfig
from unistd.training.errors import TrainingError
from unistd.training.precision import precision_options
from unistd.training.processes import ALONE, Processes
from unistd.training.sharding import shard


def open_device(config: TrainConfig, processes: Processes = ALONE) -> Fabric:
    """The device of this process that the config asks for, and how several `processes`, which have met, share a model.

    Raises TrainingError where this machine has no such device.
    """
    try:
        options = _sharing(config, processes), precision_options(config)
        plugins = [plugin for part in options for plugin in part.pop("plugins", [])]
        fabric = Fabric(accelerator=config.accelerator, plugins=plugins, **options[0], **options[1])
        fabric.launch()
        return fabric
    except (RuntimeError, ValueError, MisconfigurationException) as error:
        reason = " ".join(str(error).split())
        asked = f"train.accelerator {config.accelerator!r} with train.precision {config.precision!r}"
        raise TrainingError(
            f"{asked}: not to be had here ({reason}); expected a device of this machine, as train.accelerator=auto"
        ) from None


def _sharing(config: TrainConfig, processes: Processes) -> dict[str, Any]:
    """Arguments of Fabric's that say how many processes there are and what each holds."""
    if processes.world == 1:
        return {"devices": 1}
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)  # it counts the processes, each of them for itself
    if config.strategy == "fsdp":
        strategy = ModelParallelStrategy(
            lambda model, mesh: shard(model, mesh["data_parallel"], config.shard_frozen), processes.world, 1
        )
    else:
        strategy = DDPStrategy(forward_sync_buffers=False, gradient_as_bucket_view=True)  # they never differ
    nodes = processes.world // processes.local_world
    environment = TorchElasticEnvironment()
    return {"devices": processes.local_world, "num_nodes": nodes, "strategy": strategy, "plugins": [environment]}


def open_device_or_cpu(config: TrainConfig, say: Callable[[str], None], processes: Processes = ALONE) -> Fabric:
    """The device that the config asks for, to measure or forecast on; where this machine has none, the CPU, which
    `say` is told of in one line. Each of several `processes`, which have met, holds the whole model."""
    config = config.model_copy(update={"strategy": "ddp"})
    try:
        return open_device(config, processes)
    except TrainingError:
        say(f"train.accelerator {config.accelerator!r} is not to be had here: the CPU is used instead")
        return open_device(config.model_copy(update={"accelerator": "cpu"}), processes)
