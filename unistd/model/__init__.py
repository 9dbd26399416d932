"""The UniSTD network: `UniSTD` and the two dataclasses that size it."""

from unistd.model.config import AdapterConfig, TrunkConfig
from unistd.model.model import UniSTD

__all__ = ["AdapterConfig", "TrunkConfig", "UniSTD"]
