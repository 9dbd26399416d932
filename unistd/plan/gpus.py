"""What the makers' data sheets say of GPUs. Nothing here was measured."""

from __future__ import annotations

from dataclasses import dataclass

from unistd.tasks.spec import nearest

EFFICIENCY = 0.5  # share of the peaks that is reached: an assumption, where nobody says otherwise


@dataclass(frozen=True)
class Gpu:
    """One GPU in the machine that it is usually sold in.

    Arithmetic is dense (data sheets often print twice that, "with sparsity"), bf16 accumulated in float32.

    Attributes:
        title: name for people.
        memory: bytes.
        bandwidth: of that memory, bytes/s.
        bf16, fp32: peak FLOP/s of matrix products in bfloat16 (float16 is alike), and in float32 as PyTorch has it by
            default (no TF32).
        link: bytes/s that it sends to the others of its node: half of the "total bandwidth" of NVLink, which counts
            both directions.
        network: bytes/s that it sends to other nodes.
        node: GPUs of a node.
    """

    title: str
    memory: float
    bandwidth: float
    bf16: float
    fp32: float
    link: float
    network: float
    node: int


GPUS = {
    # NVIDIA A100 80 GB and 40 GB data sheets, DGX A100 data sheet: 8 x HDR InfiniBand of 200 Gb/s
    "a100": Gpu("A100 SXM 80 GB", 80e9, 2.039e12, 312e12, 19.5e12, 300e9, 25e9, 8),
    "a100-40gb": Gpu("A100 SXM 40 GB", 40e9, 1.555e12, 312e12, 19.5e12, 300e9, 25e9, 8),
    # NVIDIA H100 data sheet (SXM), DGX H100 data sheet: 8 x NDR InfiniBand of 400 Gb/s
    "h100": Gpu("H100 SXM 80 GB", 80e9, 3.35e12, 989e12, 67e12, 450e9, 50e9, 8),
    # NVIDIA H200 data sheet (SXM), DGX H200 data sheet: 8 x NDR InfiniBand of 400 Gb/s
    "h200": Gpu("H200 SXM 141 GB", 141e9, 4.8e12, 989e12, 67e12, 450e9, 50e9, 8),
    # NVIDIA DGX B200 data sheet: of eight GPUs 1,440 GB, 64 TB/s, 36 PFLOP/s bf16 with sparsity, 14.4 TB/s NVLink;
    # float32 of the Blackwell architecture's technical brief
    "b200": Gpu("B200 SXM 180 GB", 180e9, 8e12, 2250e12, 75e12, 900e9, 50e9, 8),
    # NVIDIA L40S data sheet: PCIe 4.0 x16 to the others, network as its reference servers, 200 Gb/s of two GPUs
    "l40s": Gpu("L40S 48 GB", 48e9, 864e9, 362e12, 91.6e12, 32e9, 12.5e9, 8),
    # NVIDIA Ada architecture whitepaper (bf16 with float32 accumulation); a desktop: PCIe 4.0 x16, 10 Gb/s Ethernet
    "rtx4090": Gpu("GeForce RTX 4090 24 GB", 24e9, 1.008e12, 165.2e12, 82.6e12, 32e9, 1.25e9, 4),
    # AMD Instinct MI300X data sheet: seven Infinity Fabric links of 64 GB/s a direction
    "mi300x": Gpu("Instinct MI300X 192 GB", 192e9, 5.3e12, 1307e12, 163.4e12, 448e9, 50e9, 8),
}


def find_gpu(name: str) -> Gpu:
    """The GPU of that name, in capital letters or small ones; raises ValueError with the known ones."""
    if name.lower() not in GPUS:
        raise ValueError(f"--gpu: unknown GPU {name[:60]!r}{nearest(name.lower(), list(GPUS))}")
    return GPUS[name.lower()]
