"""Models of other libraries, tiny, with random weights none of which is zero, in evaluation."""

import torch
from torch import nn

from unistd.model.torchvision_ops import define_missing_ops

define_missing_ops()  # timm, open_clip and transformers import torchvision


def images(size: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def tokens(length: int = 7) -> torch.Tensor:
    return torch.randint(1, 90, (2, length), generator=torch.Generator().manual_seed(2))


def shaken(model: nn.Module) -> nn.Module:
    """Every part counts, those too that start at zero."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return model.eval()


_SWIN_V2 = {"img_size": 64, "window_size": 4, "depths": (1, 1), "embed_dim": 16, "num_heads": (2, 2)}
_TIMM = {
    "vit_tiny_patch16_224": {"img_size": 32, "depth": 1},
    "beit_base_patch16_224": {"img_size": 32, "depth": 1, "embed_dim": 32, "num_heads": 2},
    "swinv2_tiny_window8_256": _SWIN_V2,
    "eva02_tiny_patch14_224": {"img_size": 28, "depth": 1},
    "eva02_base_patch14_224": {"img_size": 28, "depth": 1, "embed_dim": 32, "num_heads": 2},
}


def timm_model(name: str) -> nn.Module:
    import timm

    return shaken(timm.create_model(name, **_TIMM[name]))


def open_clip() -> nn.Module:
    from open_clip.model import CLIP

    vision = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 32}
    text = {"context_length": 7, "vocab_size": 90, "width": 32, "heads": 2, "layers": 1}
    return shaken(CLIP(32, vision, text, output_dict=False))


def torchvision_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return shaken(VisionTransformer(32, 16, 1, 2, 16, 32, num_classes=4))


def torchvision_swin() -> nn.Module:
    from torchvision.models import SwinTransformer

    return shaken(SwinTransformer([4, 4], 8, [2], [2], [4, 4], num_classes=3, stochastic_depth_prob=0.0))


def torch_encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return shaken(nn.TransformerEncoder(layer, 1))


_SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}


def hugging_face(kind: str) -> nn.Module:
    import transformers as hf

    makers = {
        "ViT": lambda: hf.ViTForImageClassification(hf.ViTConfig(**_SIZES, image_size=32, patch_size=16)),
        "BERT": lambda: hf.BertForSequenceClassification(hf.BertConfig(**_SIZES, vocab_size=90)),
        "CLIP": lambda: hf.CLIPModel(
            hf.CLIPConfig(
                text_config={**_SIZES, "vocab_size": 90, "max_position_embeddings": 7, "eos_token_id": 2},
                vision_config={**_SIZES, "image_size": 32, "patch_size": 16},
                projection_dim=16,
            )
        ),
        "GPT-2": lambda: hf.GPT2LMHeadModel(
            hf.GPT2Config(n_embd=32, n_layer=1, n_head=4, n_positions=16, vocab_size=90, use_cache=False)
        ),
        "Llama": lambda: hf.LlamaForCausalLM(
            hf.LlamaConfig(**_SIZES, num_key_value_heads=2, vocab_size=90, use_cache=False)
        ),
    }
    return shaken(makers[kind]())
