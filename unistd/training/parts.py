"""The parts of a model, by the names that `train.freeze` has for them, and what of them learns."""

from __future__ import annotations

from unistd.model import UniSTD
from unistd.training.config import Config


def task_of(name: str) -> str | None:
    """The task whose encoder or decoder has the parameter or buffer of this name; None: all tasks have it."""
    part, _, rest = name.partition(".")
    return rest.partition(".")[0] if part in ("encoders", "decoders") else None


def part_of(name: str) -> str:
    """The part that the parameter of this name is of: the name of a task, of its encoder and decoder; "adapters", which
    are experts, ranks, routers and temporal modules; or "trunk", the Transformer's own layers."""
    if (task := task_of(name)) is not None:
        return task
    words = name.split(".")
    adapters = "temporal" in words or "router" in words or words[-1] == "rank" or words[-1].startswith("lora_")
    return "adapters" if adapters else "trunk"


def frozen_parts(config: Config) -> set[str]:
    """The parts that do not learn by the config: `train.freeze`, and tasks that `train.only` leaves out."""
    return {*config.train.freeze, *(task for task in config.tasks if task not in config.learned)}


def freeze_parts(model: UniSTD, config: Config) -> None:
    """Takes the gradients off all that is not to learn."""
    frozen = frozen_parts(config)
    for name, parameter in model.named_parameters():
        if part_of(name) in frozen:
            parameter.requires_grad_(False)
