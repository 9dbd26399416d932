"""All that the layer is compared with, and the layer itself: each entrant a small class, built on the same weights."""

from bench.peers.base import Peer
from bench.peers.concat_k import ConcatK
from bench.peers.gpu import LoRAFusion, ScatterMoE, Unsloth
from bench.peers.linear import FrozenLinear
from bench.peers.loops import HydraLoRA, MixLoRA
from bench.peers.ours import OURS
from bench.peers.peft_lora import PeftLoRA, PeftXLoRA
from bench.peers.three_gemm import CompiledAutotune, CompiledDefault, CompiledFreezing, ThreeGemm

FLOOR = FrozenLinear.name
PEERS: dict[str, type[Peer]] = {
    peer.name: peer
    for peer in (
        FrozenLinear,
        PeftLoRA,
        PeftXLoRA,
        HydraLoRA,
        MixLoRA,
        ThreeGemm,
        CompiledDefault,
        CompiledAutotune,
        CompiledFreezing,
        ConcatK,
        Unsloth,
        LoRAFusion,
        ScatterMoE,
        *OURS,
    )
}

__all__ = ["FLOOR", "PEERS", "Peer"]
