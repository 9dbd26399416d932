"""
A Vision Transformer of timm, adapted
=====================================

A small ViT learns to read upright digits. Then the digits lie on their side, and adapters learn what changed, while the
ViT stays frozen.
"""

# %%
# The digits of scikit-learn, 8 x 8 pixels, in tokens of 2 x 2.

import timm
import torch
from sklearn.datasets import load_digits
from torch import nn

from fastmoe_lora import adapt, check_adapters, disable_adapters, trainable_parameters, unadapt

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
labels = torch.tensor(digits.target)
order = torch.randperm(len(images))
train, test = order[:1400], order[1400:]

model = timm.create_model(
    "vit_tiny_patch16_224",
    img_size=8,
    patch_size=2,
    in_chans=1,
    num_classes=10,
    embed_dim=48,
    depth=3,
    num_heads=4,
)

# %%
# Training and testing, the same for both.


def learn(parameters, pictures: torch.Tensor, epochs: int, rate: float) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=rate)
    model.train()
    for _ in range(epochs):
        for batch in train[torch.randperm(len(train))].split(100):
            loss = nn.functional.cross_entropy(model(pictures[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()


@torch.no_grad()
def accuracy(pictures: torch.Tensor) -> float:
    return float((model(pictures[test]).argmax(-1) == labels[test]).float().mean())


learn(model.parameters(), images, epochs=15, rate=2e-3)
lying = images.rot90(1, (2, 3))
print(f"upright {accuracy(images):.0%}, lying {accuracy(lying):.0%}")

# %%
# Adapters on the attention's two layers. Nothing else learns, the head neither.

adapt(
    model,
    {
        "blocks.*.attn.qkv": {"splits": 3, "num_experts": 4, "max_rank": 4, "init_rank": 4.0},
        "blocks.*.attn.proj": {"num_experts": 2, "max_rank": 4, "init_rank": 4.0},
    },
)
check_adapters(model, images[:2])
learned = [p for name, p in trainable_parameters(model) if not name.endswith(".rank")]
learn(learned, lying, epochs=15, rate=5e-3)
print(f"lying, adapted: {accuracy(lying):.0%}")

# %%
# Without its adapters the model is what it was, bit for bit.

with disable_adapters(model):
    print(f"upright, adapters off: {accuracy(images):.0%}")
unadapt(model)
print(f"upright, adapters gone: {accuracy(images):.0%}")
