"""The measures that take a trained network: which tasks of a run they are of, and their networks from files."""

from __future__ import annotations

from torch import nn

from unistd.metrics import NETWORKS
from unistd.state_files import load_state
from unistd.tasks import TASKS, TaskSpec
from unistd.training.config import Config

_DISCIPLINES = ("motion", "driving")  # whose frames are pictures


def with_networks(spec: TaskSpec, config: Config, place: str) -> TaskSpec:
    """A task of a run, measured too by what there are files for: the ten tasks' pictures where `task_options` does not
    say what they are measured by; others where they ask for it.

    Raises ValueError, beginning with `place`, for a measure without its file, or of frames that it does not fit.
    """
    options = config.task_options.get(spec.name)
    free = spec.name in TASKS and (options is None or options.metrics is None)
    pictures = spec.discipline in _DISCIPLINES and spec.channels in (1, 3)
    for name, network in NETWORKS.items():
        given = getattr(config.metrics, f"{name}_weights") is not None
        if free and given and pictures and spec.frames_out >= network.frames and name not in spec.metrics:
            spec = spec.replace(metrics=(*spec.metrics, name))
        if name not in spec.metrics:
            continue
        if not given:
            raise ValueError(f"{place}: metrics: {name!r} takes a network, expected its file as metrics.{name}_weights")
        if spec.channels not in (1, 3):
            raise ValueError(f"{place}: {spec.channels} channels, expected 1 or 3 for {name}, or other metrics")
        if spec.frames_out < network.frames:
            least = f"expected at least {network.frames} for {name}"
            raise ValueError(f"{place}: {spec.frames_out} frames to forecast, {least}, or other metrics")
        if min(spec.height, spec.width) < network.side:
            frame, least = f"{spec.height} x {spec.width}", f"{network.side} x {network.side}"
            raise ValueError(
                f"{place}: frames of {frame} pixels, expected at least {least} for {name}, or other metrics"
            )
    return spec


def read_networks(config: Config) -> dict[str, nn.Module]:
    """The networks of a config's files, by measure, frozen; raises OSError, ValueError as `load_state`."""
    networks = {}
    for name, network in NETWORKS.items():
        key = f"{name}_weights"
        if (path := getattr(config.metrics, key)) is not None:
            networks[name] = network.make()
            load_state(networks[name], path, f"metrics.{key}", network.spare)
    return networks
