"""One training step of a config with tensors that have shapes and no numbers: what it takes, before there is a GPU."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from unistd.masks import masked_square_error
from unistd.model import UniSTD
from unistd.plan.watch import Watch
from unistd.training.config import Config
from unistd.training.data import task_specs
from unistd.training.optim import build_optimizer
from unistd.training.parts import freeze_parts
from unistd.training.run import model_sizes

WEIGHTS, GRADIENTS, MOMENTS, FRAMES = "weights", "gradients", "optimizer's moments", "frames of a batch"
ACTIVATIONS, WORKSPACE = "activations", "workspace"
COMPONENTS = (WEIGHTS, GRADIENTS, MOMENTS, FRAMES, ACTIVATIONS, WORKSPACE)
BLOCKS = "trunk"  # which checkpointing computes once more
FORWARD, BACKWARD = ("encode", BLOCKS, "decode"), ("backward of decode", "backward of trunk", "backward of encode")
OPTIMIZER = "optimizer"
PHASES = (*FORWARD, *BACKWARD, OPTIMIZER)
_NAMED = {WEIGHTS, GRADIENTS, MOMENTS, FRAMES}

Operator = tuple[str, bool, int, int]  # phase, whether its numbers have 16 bits, FLOPs, bytes read and written


@dataclass(frozen=True)
class Step:
    """What a training step takes.

    Attributes:
        peaks: phase -> bytes by component at its fullest moment.
        operators: how often each operator is called; negative counts are part of an exact sum (see `Rehearsal`).
    """

    peaks: dict[str, dict[str, float]]
    operators: Counter[Operator]

    @property
    def memory(self) -> dict[str, float]:
        """Bytes by component at the fullest moment of all."""
        return max(self.peaks.values(), key=lambda parts: sum(parts.values()))

    @property
    def flops(self) -> float:
        """Floating-point operations of matrix products, convolutions and attention."""
        return sum(count * flops for (_, _, flops, _), count in self.operators.items())

    @property
    def bytes(self) -> float:
        """Bytes that operators read and write, each on its own: nothing is fused."""
        return sum(count * moved for (_, _, _, moved), count in self.operators.items())


class Rehearsal:
    """The model of a config and its optimizer without numbers, for steps of any tasks.

    All blocks of the trunk are alike, so that each figure is a straight line over the depth; models of depth 1 and 2
    give all others. (The peak of a phase, too: its place in a block and the first or the last block stay.)

    Args:
        config: what is to be trained. Adapters have their full width, as before their ranks are frozen.
        on_cpu: as the compiled CPU kernels do it, else as it is done on a GPU.
    """

    def __init__(self, config: Config, on_cpu: bool = False) -> None:
        self.depth = model_sizes(config)[0].depth
        self._models = [_Model(config, depth, on_cpu) for depth in range(1, min(self.depth, 2) + 1)]

    def step(self, tasks: Sequence[str], batch_size: int, checkpointing: bool = False) -> Step:
        """A step of `batch_size` samples of each of `tasks`."""
        steps = [model.step(tasks, batch_size, checkpointing) for model in self._models]
        return steps[0] if self.depth == 1 else _extrapolate(*steps, self.depth)


def _extrapolate(one: Step, two: Step, depth: int) -> Step:
    def line(first: float, second: float) -> float:
        return first + (depth - 1) * (second - first)

    peaks = {
        phase: {part: line(parts.get(part, 0), two.peaks[phase].get(part, 0)) for part in COMPONENTS}
        for phase, parts in one.peaks.items()
    }
    operators = {key: line(one.operators[key], two.operators[key]) for key in one.operators | two.operators}
    return Step(peaks, Counter(operators))


class _Model:
    """A model of some depth whose tensors have shapes alone."""

    def __init__(self, config: Config, depth: int, on_cpu: bool) -> None:
        self.config, self.specs, self.on_cpu = config, task_specs(config), on_cpu
        trunk, adapter = model_sizes(config)
        with torch.device("meta"):
            self.model = UniSTD(
                list(self.specs.values()),
                replace(trunk, depth=depth),
                config.model.pretrained,
                adapter=adapter,
                hidden=config.model.hidden,
                residual=config.model.residual,
                skips=config.model.skips,
                load_pretrained=False,
            )
        freeze_parts(self.model, config)
        self.watch, self._fake = Watch(), FakeTensorMode()
        with self._numberless():
            _with_shapes(self.model)
            self.watch.label((*self.model.parameters(), *self.model.buffers()), WEIGHTS)
            ranks = [layer.rank for layer in self.model.ramoe_layers().values()]
            self.optimizer = build_optimizer(self.model, config.optim, exclude=ranks)
            self._make_moments()
        self._follow()

    def step(self, tasks: Sequence[str], batch_size: int, checkpointing: bool) -> Step:
        self.model.trunk.checkpointing = checkpointing
        with self._numberless():
            shapes = {task: (self.specs[task].input_shape, self.specs[task].target_shape) for task in tasks}
            batch = {task: tuple(torch.empty(batch_size, *shape) for shape in pair) for task, pair in shapes.items()}
            self.watch.label((frames for pair in batch.values() for frames in pair), FRAMES)
            self.watch.begin(FORWARD[0])
            self._train(batch)
            self.model.zero_grad()
        peaks = {phase: _components(self.watch.peaks.get(phase, {})) for phase in PHASES}
        return Step(peaks, Counter(self.watch.operators))

    def _train(self, batch: dict[str, tuple[Tensor, Tensor]]) -> None:
        """The arithmetic of a pass of `Objective` and of the trainer's step."""
        formats = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
        half = formats.get(self.config.train.precision)
        with nullcontext() if half is None else torch.autocast("cpu", half):
            predictions = self.model({task: inputs for task, (inputs, _) in batch.items()})
        errors = [
            masked_square_error(predictions[task].float(), targets)
            if self.specs[task].missing
            else F.mse_loss(predictions[task].float(), targets, reduction="sum")
            for task, (_, targets) in batch.items()
        ]
        loss = torch.stack(errors).mean()
        self.watch.phase = BACKWARD[0]
        loss.backward()
        self.watch.phase = OPTIMIZER
        if self.config.optim.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip)
        self.optimizer.step()

    def _make_moments(self) -> None:
        """The optimizer's state, which its first step makes."""
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.empty_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad()
        states = (value for state in self.optimizer.state.values() for value in state.values())
        self.watch.label((value for value in states if isinstance(value, Tensor)), MOMENTS)

    def _follow(self) -> None:
        """Tells the watch where gradients are, and where encoders, trunk and decoders begin, there and back."""
        watch = self.watch

        def begins(phase: str) -> Callable[..., None]:
            return lambda *_: setattr(watch, "phase", phase)

        def trunk_begins(_, inputs: tuple[Tensor, ...]) -> None:
            watch.phase = BLOCKS
            if inputs[0].requires_grad:  # else no encoder learns
                inputs[0].register_hook(begins("backward of encode"))

        def trunk_ends(_, __, output: Tensor) -> None:
            watch.phase = "decode"
            output.register_hook(begins("backward of trunk"))

        self.model.trunk.register_forward_pre_hook(trunk_begins)
        self.model.trunk.register_forward_hook(trunk_ends)
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda p: watch.label([p.grad], GRADIENTS))

    @contextmanager
    def _numberless(self) -> Iterator[None]:
        """Inside `with`, tensors claim to be on a CPU (autocast knows no meta device) and have no numbers.

        The compiled CPU kernels keep packed weights where a GPU casts them; for a GPU, what plain PyTorch does counts.
        """
        name, before = "FASTMOE_LORA_BACKEND", os.environ.get("FASTMOE_LORA_BACKEND")
        os.environ[name] = "auto" if self.on_cpu else "packed"
        try:
            with self._fake, self.watch:
                yield
        finally:
            os.environ.pop(name)
            if before is not None:
                os.environ[name] = before


def _with_shapes(model: nn.Module) -> None:
    """Gives a model of the meta device tensors that claim to be on a CPU: autocast knows no meta device."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                module._parameters[name] = nn.Parameter(empty, parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _components(parts: dict[str, int]) -> dict[str, float]:
    found: Counter[str] = Counter()
    for what, size in parts.items():
        found[what if what in _NAMED else ACTIVATIONS if what in FORWARD else WORKSPACE] += size
    return dict(found)
