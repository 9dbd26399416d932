"""The trained forecasters by name: how each is built and at which rate it learns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn

from bench.forecasting.rivals import conv_lstm, simvp
from bench.harness.unistd_model import without_adapters
from unistd import TaskSpec
from unistd.training import Config
from unistd.training.run import build_model


@dataclass(frozen=True)
class Entrant:
    """``build``: a model of these tasks that is called as UniSTD is. ``optim``: what its training has in place of the
    config's `optim`. ``adapted``: it has ranks to learn."""

    title: str
    build: Callable[[Config, Mapping[str, TaskSpec]], nn.Module]
    optim: Mapping[str, float] = field(default_factory=dict)
    adapted: bool = False


def _unistd(config: Config, specs: Mapping[str, TaskSpec]) -> nn.Module:
    return build_model(config)


def plain_vit(config: Config, specs: Mapping[str, TaskSpec]) -> nn.Module:
    """UniSTD's encoders, trunk and decoders, without experts and temporal modules."""
    model = without_adapters(build_model(config))
    for block in model.trunk.blocks:
        block.temporal = _Unchanged()
    return model


class _Unchanged(nn.Module):
    def forward(self, x, layout):
        return x


_OPENSTL = {"lr": 1e-3, "weight_decay": 0.0}  # of its settings for these models

ENTRANTS = {
    "unistd": Entrant("UniSTD", _unistd, adapted=True),
    "simvp": Entrant("SimVP-gSTA", lambda config, specs: simvp(specs), _OPENSTL),
    "convlstm": Entrant("ConvLSTM", lambda config, specs: conv_lstm(specs), _OPENSTL),
    "vit": Entrant("plain ViT", plain_vit),
}
