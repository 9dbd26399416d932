"""`RAMoEConfig` for those who ask for it, whether PEFT is installed or not."""

from importlib.util import find_spec


def config_class() -> type:
    """The config that `fastmoe_lora.peft` registers; without PEFT, a class that says so when it is called."""
    if find_spec("peft") is None:
        return RAMoEConfig
    from . import peft

    return peft.RAMoEConfig


class RAMoEConfig:
    """Stands in where PEFT is not installed."""

    def __init__(self, *arguments: object, **options: object):
        raise ImportError("RAMoEConfig: PEFT is not installed, expected it: pip install 'fastmoe_lora[peft]'")
