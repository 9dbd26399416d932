"""Paths of other people's modules that read weights instead of calling layers, and that an attribute switches off."""

from typing import Any

from torch import nn


def layer_calls(module: nn.Module, inside: set[str]) -> dict[str, Any]:
    """Attributes with which ``module`` calls its layers; ``inside`` are the names within it of those with adapters.

    PyTorch's own forward asks the first two: for its fused inference of encoders, and for it alone.
    """
    if isinstance(module, nn.TransformerEncoder):
        return {"use_nested_tensor": False}  # nested tensors are for the fused path alone
    if isinstance(module, nn.TransformerEncoderLayer):
        return {"activation_relu_or_gelu": 0}  # "neither of them"
    if "qkv" in inside and getattr(module, "qkv_bias_separate", None) is False:
        return {"qkv_bias_separate": True}  # timm's BEiT, EVA and Swin v2: the same sum, the bias added afterwards
    return {}
