"""
Three LoRAs into one mixture
============================

A small language model, three LoRA checkpoints that PEFT has trained on three kinds of text, and one mixture of them
whose router learns which to use.
"""

# %%
# A model of the GPT-2 family on characters, and three toy languages.

import tempfile
from pathlib import Path

import peft
import torch
import transformers

from fastmoe_lora import adapters_from_lora, fixed_gates

torch.manual_seed(0)
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
LENGTH = 24


def text(kind: str, count: int) -> torch.Tensor:
    """(count, LENGTH) letters: an alphabet that runs forward, backward, or in steps of three, from a random letter."""
    step = {"forward": 1, "backward": -1, "threes": 3}[kind]
    return (torch.randint(26, (count, 1)) + step * torch.arange(LENGTH)) % len(ALPHABET)


KINDS = ("forward", "backward", "threes")


def base() -> transformers.GPT2LMHeadModel:
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=26, n_positions=LENGTH, n_embd=48, n_layer=2, n_head=4)
    )


def learn(model, batches, rate: float, steps: int) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    for _ in range(steps):
        letters = batches()
        loss = model(input_ids=letters, labels=letters).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def errors(model) -> str:
    model.eval()
    losses = {kind: float(model(input_ids=(t := text(kind, 64)), labels=t).loss) for kind in KINDS}
    model.train()
    return "  ".join(f"{kind} {loss:.2f}" for kind, loss in losses.items())


# %%
# The base model has seen single letters repeated; it knows none of the three.

pretrained = base()
learn(pretrained, lambda: torch.randint(26, (32, 1)).expand(-1, LENGTH), 3e-3, 60)
start = pretrained.state_dict()
print("base:    ", errors(pretrained))

# %%
# One LoRA for each, saved as PEFT saves it.

folder = Path(tempfile.mkdtemp())
for kind in KINDS:
    model = base()
    model.load_state_dict(start)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    model = peft.get_peft_model(model, config)
    learn(model, lambda kind=kind: text(kind, 32), 1e-2, 120)
    model.save_pretrained(folder / kind)
    print(f"{kind:9}", errors(model))

# %%
# The three as experts of one model. The router is new: first each expert alone, then all of them equally.

model = base()
model.load_state_dict(start)
adapters_from_lora(model, [folder / kind for kind in KINDS])
for expert, kind in enumerate(KINDS):
    with fixed_gates(model, [float(expert == other) for other in range(3)]):
        print(f"only {kind:9}", errors(model))
print("all, untrained router", errors(model))

# %%
# Router and experts learn on all three kinds; a text says itself, after two letters, which kind it is.

learn(model, lambda: torch.cat([text(kind, 16) for kind in KINDS]), 5e-3, 150)
print("all, trained:        ", errors(model))
