"""Moving MNIST, tiny: digits as MNIST is published and as torchvision keeps them, and finished sequences."""

import gzip
import struct
from pathlib import Path

import numpy as np

from support.forms.pictures import moving

FRAMES = 20


def digits(count: int, size: int, seed: int) -> np.ndarray:
    """(count, size, size) uint8: a dark rim around noise, so that no two are alike."""
    images = np.zeros((count, size, size), np.uint8)
    rim = size // 7
    inner = size - 2 * rim
    images[:, rim:-rim, rim:-rim] = np.random.default_rng(seed).integers(100, 256, (count, inner, inner), np.uint8)
    return images


def idx(images: np.ndarray, magic: int = 0x803) -> bytes:
    """Images as an idx3 file, not packed."""
    return struct.pack(">4I", magic, *images.shape) + images.tobytes()


def sequences(clips: int, size: int, seed: int) -> np.ndarray:
    """(clips, 20, size, size) uint8: noise that drifts."""
    return np.stack([moving(FRAMES, size, size, 1, seed + number)[..., 0] for number in range(clips)])


def write_mnist_gz(root: Path, *, clips: int = 32, size: int = 28, seed: int = 0) -> None:
    """`<root>/moving_mnist/{train,t10k}-images-idx3-ubyte.gz`: `clips` digits to train on, half as many others."""
    folder = root / "moving_mnist"
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, count) in enumerate({"train": clips, "t10k": clips // 2}.items()):
        content = gzip.compress(idx(digits(count, size, seed + number)), mtime=0)
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(content)


def write_mnist_raw(root: Path, *, clips: int = 32, size: int = 28, seed: int = 0) -> None:
    """`<root>/MNIST/raw/`: the same, packed and unpacked, as torchvision leaves them."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, count) in enumerate({"train": clips, "t10k": clips // 2}.items()):
        content = idx(digits(count, size, seed + number))
        (folder / f"{name}-images-idx3-ubyte").write_bytes(content)
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(content, mtime=0))


def write_moving_mnist_npy(
    root: Path, *, clips: int = 6, size: int = 64, seed: int = 0, time_first: bool = True
) -> None:
    """`<root>/moving_mnist/mnist_test_seq.npy`, (20, clips, size, size), as published; or sample first, as PredBench
    has it, with `mnist_val_seq_1.npy`; and digits to train on."""
    write_mnist_gz(root, seed=seed)
    if time_first:
        np.save(root / "moving_mnist/mnist_test_seq.npy", sequences(clips, size, seed).swapaxes(0, 1))
    else:
        np.save(root / "moving_mnist/mnist_test_seq.npy", sequences(clips, size, seed))
        np.save(root / "moving_mnist/mnist_val_seq_1.npy", sequences(clips, size, seed + clips))


def write_moving_mnist_floats(root: Path, *, clips: int = 2, size: int = 64, seed: int = 0) -> None:
    """`<root>/moving_mnist/mm_dis01_seq0.npy` and so on, a sequence each, (1, 20, size, size) float32 in [0, 1]."""
    (root / "moving_mnist").mkdir(parents=True, exist_ok=True)
    for number, sequence in enumerate(sequences(clips, size, seed)):
        content = sequence[None] / np.float32(255)
        np.save(root / "moving_mnist" / f"mm_dis01_seq{number}.npy", content)
