"""torchvision's Vision Transformer, tiny, adapted throughout."""

import torch
from torch import nn

from fastmoe_lora import adapt, freeze_ranks, ramoe_layers
from unistd.model.torchvision_ops import define_missing_ops


def adapted_vit(frozen: bool = False, depth: int = 1, **options) -> nn.Module:
    """In inference, with adapters and a head that do something: (B, 3, 16, 16) -> (B, 5)."""
    model = plain_vit(depth)
    options = {"num_experts": 2, "init_rank": 2.5, **options}
    adapt(model, {"*.self_attention": options, "*.mlp.*": {**options, "router": "sample"}})
    return disturbed(model, frozen)


def plain_vit(depth: int = 1) -> nn.Module:
    """The same without adapters."""
    define_missing_ops()
    from torchvision.models import VisionTransformer

    sizes = {"image_size": 16, "patch_size": 8, "num_layers": depth, "num_heads": 2, "hidden_dim": 24, "mlp_dim": 32}
    model = VisionTransformer(**sizes, num_classes=5)
    nn.init.normal_(model.heads.head.weight)
    return model.eval()


def disturbed(model: nn.Module, frozen: bool = False) -> nn.Module:
    """In inference, with adapters that do something."""
    for _, layer in ramoe_layers(model):
        nn.init.normal_(layer.lora_B)
    if frozen:
        freeze_ranks(model)
    return model.eval()


def images(batch: int) -> torch.Tensor:
    return torch.randn(batch, 3, 16, 16)
