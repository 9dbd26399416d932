"""UniSTD: one Transformer that forecasts many spatio-temporal tasks (CVPR 2025, arXiv 2503.20748)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

from fastmoe_lora import RAMoELinear, ramoe_layers
from unistd.masks import fill_missing
from unistd.model.config import AdapterConfig, TrunkConfig
from unistd.model.convolution import Decoder, Encoder
from unistd.model.layers import LayerFactory
from unistd.model.packing import pack, unpack
from unistd.model.position import sinusoidal_positions
from unistd.model.sources import load_trunk, trunk_config
from unistd.model.trunk import Trunk
from unistd.tasks import TaskSpec, get_task
from unistd.tasks.spec import nearest


class UniSTD(nn.Module):
    """Encoder per task -> tokens + positions -> one Transformer for all tasks -> decoder per task.

        model = UniSTD(["taxibj", "kth"], "ViT-B-16", "laion2b_s34b_b88k")
        model(frames, task="taxibj")                    # (B, 4, 2, 32, 32) -> (B, 4, 2, 32, 32)
        model({"taxibj": frames, "kth": more_frames})   # a mixed batch in one pass of the Transformer -> dict

    Args:
        tasks: names of `unistd.TASKS`, or specs of one's own shapes, each a `TaskSpec`.
        trunk: "ViT-B-16" and other Vision Transformers of open_clip, "timm/vit_base_patch16_224" and others of timm, or
            a `TrunkConfig`.
        pretrained: the trunk's weights: a tag on the hub ("laion2b_s34b_b88k") or a local .safetensors/.pt file; the
            trunk's own layers are then frozen, and what learns is adapters, temporal modules, encoders and decoders.
            None: random weights, and the trunk is trained too.
        adapter: experts and ranks; the defaults are the paper's.
        hidden: channels of the encoders' and decoders' convolutions at half the frame's size.
        residual: the decoders forecast the change from the last input frame, zero at the start.
        skips: the decoders also see the frames and the encoders' first features, at their own size.
        checkpointing: in training, recompute each block in the backward pass instead of keeping its activations.
        load_pretrained: False leaves `pretrained` unread: for a model whose weights come from a checkpoint.

    Raises:
        ValueError: an unknown or repeated task, an unknown trunk or tag, or weights that do not fit.
        FileNotFoundError: no such weight file. OSError: the hub cannot be reached.
    """

    def __init__(
        self,
        tasks: Sequence[str | TaskSpec],
        trunk: str | TrunkConfig = "ViT-B-16",
        pretrained: str | None = None,
        *,
        adapter: AdapterConfig | None = None,
        hidden: int = 32,
        residual: bool = False,
        skips: bool = False,
        checkpointing: bool = False,
        load_pretrained: bool = True,
    ) -> None:
        super().__init__()
        self.tasks = _specs_by_name(tasks)
        weights = None
        if pretrained is not None and load_pretrained:
            self.trunk_config, weights = load_trunk(trunk, pretrained)
        else:
            self.trunk_config = trunk_config(trunk, pretrained)
        adapter, width = adapter or AdapterConfig(), self.trunk_config.width
        layers = LayerFactory(weights, frozen=pretrained is not None)
        self.encoders = nn.ModuleDict({name: Encoder(spec, width, hidden, skips) for name, spec in self.tasks.items()})
        self.trunk = Trunk(self.trunk_config, adapter, layers, checkpointing)
        self.decoders = nn.ModuleDict(
            {name: Decoder(spec, width, hidden, residual, skips) for name, spec in self.tasks.items()}
        )
        for name, spec in self.tasks.items():
            self.register_buffer(f"positions_{name}", sinusoidal_positions(*spec.grid, width), persistent=False)

    @overload
    def forward(self, frames: Tensor, task: str) -> Tensor: ...

    @overload
    def forward(self, frames: Mapping[str, Tensor], task: None = None) -> dict[str, Tensor]: ...

    def forward(self, frames: Tensor | Mapping[str, Tensor], task: str | None = None) -> Tensor | dict[str, Tensor]:
        """Forecast the frames that follow.

        Args:
            frames: (B, Tin, C, H, W), normalised to [0, 1], of one task; or a dict of such tensors by task name. Of a
                task whose spec has `missing`, NaN is what was not measured; see `unistd.masks.fill_missing`.
            task: the task's name; left out where `frames` is a dict.

        Returns:
            (B, Tout, C, H, W); or a dict of such tensors, in the order of `frames`.

        Raises:
            ValueError: an unknown task, or frames of another shape than the task's.
        """
        if isinstance(frames, Tensor):
            if task is None:
                raise ValueError(f"task: expected the name of a task beside a tensor, one of {', '.join(self.tasks)}")
            return self._forecast({task: frames})[task]
        if task is not None:
            raise ValueError(f"task: expected none beside a dict of frames, found {task!r}")
        if not frames:
            raise ValueError("frames: expected at least one task, found an empty dict")
        return self._forecast(frames)

    def _forecast(self, frames: Mapping[str, Tensor]) -> dict[str, Tensor]:
        for name, value in frames.items():
            self._check_frames(name, value)
        frames = {name: fill_missing(value) if self.tasks[name].missing else value for name, value in frames.items()}
        encoded = {name: self.encoders[name](value) for name, value in frames.items()}
        tokens = {name: value + self.get_buffer(f"positions_{name}") for name, (value, _) in encoded.items()}
        shapes = {name: (value.shape[0], value.shape[1]) for name, value in tokens.items()}
        features = unpack(self.trunk(*pack(tokens)), shapes)
        return {
            name: self.decoders[name](features[name], value[:, -1], encoded[name][1]) for name, value in frames.items()
        }

    def _check_frames(self, name: str, frames: Tensor) -> None:
        if name not in self.tasks:
            raise ValueError(f"unknown task {name!r}{nearest(name, list(self.tasks))}")
        expected = self.tasks[name].input_shape
        if frames.dim() != 5 or tuple(frames.shape[1:]) != expected:
            sizes = ", ".join(str(size) for size in expected)
            raise ValueError(f"frames of task {name!r}: expected shape (B, {sizes}), found {tuple(frames.shape)}")

    def ramoe_layers(self) -> dict[str, RAMoELinear]:
        """All RA-MoE layers by name, in the order of the blocks."""
        return dict(ramoe_layers(self))

    @torch.no_grad()
    def task_gates(self, frames: Tensor, task: str) -> dict[str, Tensor]:
        """How a task uses the experts: the mean gates of each RA-MoE layer over `frames` (B, Tin, C, H, W).

        Returns:
            Layer name -> (S, E) float32 on the CPU; each row sums to one.
        """
        found: dict[str, Tensor] = {}

        def record(name: str):
            def hook(layer: RAMoELinear, inputs: tuple[Tensor, ...]) -> None:
                gates = inputs[1] if len(inputs) > 1 else layer.router_gates(inputs[0])
                found[name] = gates.flatten(0, -3).mean(dim=0).float().cpu()

            return hook

        training = self.training
        handles = [layer.register_forward_pre_hook(record(name)) for name, layer in self.ramoe_layers().items()]
        try:
            self.eval()(frames, task)
        finally:
            self.train(training)
            for handle in handles:
                handle.remove()
        return found

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False):
        """As `nn.Module.load_state_dict`, but a state of another architecture is one line, before anything is changed.

        Raises:
            ValueError: other tasks, or weights that this model lacks, needs, or has in another shape.
        """
        if strict:
            self._check_state(state_dict)
        return super().load_state_dict(state_dict, strict, assign)

    def _check_state(self, state: Mapping[str, Any]) -> None:
        found = list(dict.fromkeys(key.split(".")[1] for key in state if key.startswith("encoders.")))
        if sorted(found) != sorted(self.tasks):
            raise ValueError(
                f"state_dict of another architecture: its tasks are {', '.join(found) or 'none'},"
                f" this model's {', '.join(self.tasks)}"
            )
        own = self.state_dict()
        for key, value in own.items():
            if key.endswith("._extra_state"):  # options: the layers compare them, where there are any
                continue
            if key not in state:
                raise ValueError(f"state_dict of another architecture: it has no {key!r}")
            if state[key].shape != value.shape:
                raise ValueError(
                    f"state_dict of another architecture: its {key!r} is {tuple(state[key].shape)},"
                    f" this model's {tuple(value.shape)}"
                )
        unknown = next((key for key in state if key not in own), None)
        if unknown is not None:
            raise ValueError(f"state_dict of another architecture: this model has no {unknown!r}")


def _specs_by_name(tasks: Sequence[str | TaskSpec]) -> dict[str, TaskSpec]:
    if isinstance(tasks, str) or not tasks:
        raise ValueError(f"tasks: expected a list of at least one task, found {tasks!r}")
    specs = [get_task(task).spec if isinstance(task, str) else task for task in tasks]
    by_name = {spec.name: spec for spec in specs}
    if len(by_name) < len(specs):
        raise ValueError(f"tasks: expected each task once, found {', '.join(spec.name for spec in specs)}")
    return by_name
