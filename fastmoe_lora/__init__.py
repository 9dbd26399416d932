"""fastmoe_lora: linear layers with routed low-rank experts whose ranks are learned (RA-MoE), fast on GPUs and CPUs."""

from ._version import __version__
from .adapt import adapt, trainable_parameters
from .attention import RAMoECrossAttention, RAMoESelfAttention
from .backends import backends
from .conv1d import RAMoEConv1D
from .diagonal import rank_diagonal
from .fixed_gates import fixed_gates
from .frozen_linear import FrozenLinear, frozen_linear
from .functional import ramoe_linear
from .io import load_adapters, save_adapters
from .layer import RAMoELinear
from .lora_export import save_lora
from .lora_import import adapters_from_lora
from .merge import merge, unmerge
from .rank_optimizer import RankOptimizer
from .ranks import (
    freeze_ranks,
    project_ranks_,
    ramoe_layers,
    rank_budget_loss,
    rank_report,
    rank_window,
    ranks_frozen,
    set_rank_window,
)
from .reach import check_adapters
from .self_attention import self_attention
from .unadapt import disable_adapters, unadapt

__all__ = [
    "FrozenLinear",
    "RAMoEConv1D",
    "RAMoECrossAttention",
    "RAMoELinear",
    "RAMoESelfAttention",
    "RankOptimizer",
    "__version__",
    "adapt",
    "adapters_from_lora",
    "backends",
    "check_adapters",
    "disable_adapters",
    "fixed_gates",
    "freeze_ranks",
    "frozen_linear",
    "load_adapters",
    "merge",
    "project_ranks_",
    "ramoe_layers",
    "ramoe_linear",
    "rank_budget_loss",
    "rank_diagonal",
    "rank_report",
    "rank_window",
    "ranks_frozen",
    "save_adapters",
    "save_lora",
    "self_attention",
    "set_rank_window",
    "trainable_parameters",
    "unadapt",
    "unmerge",
]


def __getattr__(name: str) -> object:
    """`RAMoEConfig`, which needs PEFT, is looked up when it is asked for."""
    if name != "RAMoEConfig":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ._peft_config import config_class

    return config_class()
