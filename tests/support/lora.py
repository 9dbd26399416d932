"""LoRA checkpoints written by PEFT for a small Llama, as somebody trained them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unistd.model.torchvision_ops import define_missing_ops

define_missing_ops()  # before transformers, and PEFT with it, import torchvision
import peft  # noqa: E402
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM  # noqa: E402

IDS = torch.tensor([[3, 14, 15, 9, 2, 6], [5, 3, 5, 8, 9, 7]])
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 32}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def llama() -> LlamaForCausalLM:
    """The same each time: two layers of width 16, four heads of which two share keys and values."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS)).eval()


def gpt2() -> GPT2LMHeadModel:
    """Two layers of width 16 whose linear layers are transformers' Conv1D."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=4, vocab_size=32, n_positions=8)).eval()


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits


def write_lora(folder: Path, model: nn.Module | None = None, **options: Any) -> Path:
    """A checkpoint of `peft.LoraConfig(**options)` whose adapters are random."""
    options = {"target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 8, **options}
    model = peft.get_peft_model(llama() if model is None else model, peft.LoraConfig(**options))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


def with_peft(folder: Path, model: nn.Module | None = None) -> nn.Module:
    """The model as PEFT loads it, with this adapter active."""
    return peft.PeftModel.from_pretrained(llama() if model is None else model, folder).eval()
