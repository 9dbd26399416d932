"""`train.compile`: encoders, blocks and decoders through torch.compile, for the training steps alone.

Each is compiled by itself: all blocks are one piece of code, so that a trunk of any depth is compiled once, once more
where batches change their sizes, and once its ranks are frozen. Names of parameters stay, and so do checkpoints. Random
numbers are those of the uncompiled model: the same ranks are drawn.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from unistd.model import UniSTD
from unistd.training.config import TrainConfig
from unistd.training.errors import TrainingError

_OPTIONS: dict[str, dict[str, Any]] = {
    "default": {"fallback_random": True},
    "reduce-overhead": {"fallback_random": True, "triton.cudagraphs": True},  # on a CPU as the first
}


def compile_parts(model: UniSTD, config: TrainConfig, backend: str = "inductor") -> None:
    """Has the parts of a model compiled at their first calls, if the config says so; in place.

    Raises TrainingError where this machine has no compiler for what torch writes.
    """
    if config.compile is None:
        return
    if next(model.parameters()).device.type == "cpu":
        _check_compiler()
    parts: list[nn.Module] = [*model.encoders.values(), *model.trunk.blocks, *model.decoders.values()]
    # each task has sizes of its own, and a form for changing batches
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 4 * len(model.tasks) + 8)
    options = _OPTIONS[config.compile] if backend == "inductor" else None
    for part in parts:
        part.compile(backend=backend, options=options)


def uncompiled(config: TrainConfig) -> AbstractContextManager:
    """Inside `with`, parts that are compiled run as they were written: measuring is not worth forms of its own."""
    return nullcontext() if config.compile is None else torch.compiler.set_stance("force_eager")


def _check_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise TrainingError("train.compile: torch.compile needs a C++ compiler, such as g++, found none") from None
