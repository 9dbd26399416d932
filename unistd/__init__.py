"""UniSTD: one Transformer that forecasts ten spatio-temporal tasks from four disciplines."""

from importlib import import_module
from typing import Any

_MODULES = {
    "TASKS": "unistd.tasks",
    "AdapterConfig": "unistd.model",
    "TaskSpec": "unistd.tasks",
    "TrunkConfig": "unistd.model",
    "UniSTD": "unistd.model",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    """Loads public names at first use (PEP 562), so that a part of the package does not cost the import of all."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
