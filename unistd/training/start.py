"""A run that starts from what another one has learned."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from fastmoe_lora import ranks_frozen
from unistd.model import UniSTD
from unistd.training.checkpoint import CheckpointError
from unistd.training.config import Config
from unistd.training.parts import task_of
from unistd.training.run import read_run, use_threads


class Start(NamedTuple):
    """What a run has taken over."""

    tasks: list[str]
    """whose encoders and decoders"""
    line: str
    """that says so"""


def start_from(model: UniSTD, config: Config, folder: str) -> Start:
    """Gives a new model the weights of the run in `folder`: of trunk and adapters, ranks among them, and of the
    encoders and decoders of the tasks that both have.

    Raises:
        CheckpointError: no such run, or its model has parts of other sizes; or its ranks are frozen, and this config
            would go on learning them.
    """
    trained = read_run(folder)
    use_threads(config)
    source, theirs, ours = trained.checkpoint, trained.model.state_dict(), model.state_dict()
    known = [task for task in model.tasks if task in trained.model.tasks]
    fresh = [task for task in model.tasks if task not in known]
    if ranks_frozen(trained.model) and config.ranks.epochs:
        raise CheckpointError(f"{source}: its ranks are frozen, but ranks.epochs is {config.ranks.epochs}, expected 0")
    if known and trained.config.model.residual != config.model.residual:
        residual = trained.config.model.residual
        raise CheckpointError(
            f"{source}: its decoders were trained with model.residual {residual}, expected {config.model.residual}"
        )
    for name in ours:
        if task_of(name) not in fresh:
            found, expected = _shape(theirs.get(name)), _shape(ours[name])
            if found != expected:
                raise CheckpointError(f"{source}: {name!r} is {found}, expected {expected} as in this config's model")
            ours[name] = theirs[name]
    if extra := next((name for name in theirs if name not in ours and task_of(name) in (None, *known)), None):
        raise CheckpointError(f"{source}: has {extra!r}, expected only parts that this config's model has")
    model.load_state_dict(ours)
    kept = ", ".join(["trunk", "adapters", *known])
    line = f"from step {trained.step} of {folder}: {kept}" + (f"; fresh: {', '.join(fresh)}" if fresh else "")
    return Start(known, line)


def was_learned(tasks: list[str]) -> Callable[[str], bool]:
    """Whether a run that took over these tasks has the parameter of a name from there."""
    return lambda name: task_of(name) in (None, *tasks)


def _shape(value: object) -> str:
    """What a value of a state dict is, as messages say it."""
    return f"{tuple(value.shape)}" if isinstance(value, Tensor) else "not there" if value is None else "there"
