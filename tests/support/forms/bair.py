"""BAIR robot pushing as it is published, tiny: tfrecords framed by hand, and PredBench's arrays."""

from pathlib import Path

import google_crc32c
import numpy as np

CLIPS = {"train": 4, "val": 0, "test": 2}
FRAMES = 30


def sequences(clips: int, size: int, seed: int) -> np.ndarray:
    """(clips, 30, size, size, 3) uint8: noise that drifts by a pixel a frame."""
    still = np.random.default_rng(seed).integers(0, 256, (clips, size, size, 3), np.uint8)
    return np.stack([np.roll(still, frame, axis=2) for frame in range(FRAMES)], axis=1)


def write_bair_tfrecord(root: Path, *, clips: dict[str, int] = CLIPS, size: int = 64, seed: int = 0) -> None:
    """`<root>/bair/softmotion30_44k/{train,test}/*.tfrecords`: three sequences a file."""
    for number, (split, count) in enumerate(clips.items()):
        folder = root / "bair" / "softmotion30_44k" / split
        for first in range(0, count, 3):
            folder.mkdir(parents=True, exist_ok=True)
            held = sequences(count, size, seed + number)[first : first + 3]
            name = f"traj_{first}_to_{first + len(held) - 1}.tfrecords"
            (folder / name).write_bytes(b"".join(framed(example(sequence)) for sequence in held))


def write_bair_npy(root: Path, *, clips: dict[str, int] = CLIPS, size: int = 64, seed: int = 0) -> None:
    """`<root>/bair/{train,val,test}.npy`, (n, 30, size, size, 3)."""
    (root / "bair").mkdir(parents=True, exist_ok=True)
    for number, (split, count) in enumerate(clips.items()):
        if count:
            np.save(root / "bair" / f"{split}.npy", sequences(count, size, seed + number))


def framed(content: bytes) -> bytes:
    """A record of a tfrecord file."""
    length = len(content).to_bytes(8, "little")
    return length + masked_crc(length) + content + masked_crc(content)


def masked_crc(content: bytes) -> bytes:
    crc = google_crc32c.value(content)
    return ((((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


def example(sequence: np.ndarray) -> bytes:
    """A tf.train.Example as the data set has it: two views, the position of the arm and what it did, frame by frame."""
    features = {}
    for number, frame in enumerate(sequence):
        features[f"{number}/image_main/encoded"] = texts(frame[::-1].tobytes())
        features[f"{number}/image_aux1/encoded"] = texts(frame.tobytes())
        features[f"{number}/action"] = floats(np.full(4, number))
        features[f"{number}/endeffector_pos"] = floats(np.full(3, number))
    entries = (field(1, field(1, key.encode()) + field(2, value)) for key, value in features.items())
    return field(1, b"".join(entries))


def texts(*values: bytes) -> bytes:
    """A Feature of a BytesList."""
    return field(1, b"".join(field(1, value) for value in values))


def floats(values: np.ndarray) -> bytes:
    """A Feature of a FloatList."""
    return field(2, field(1, values.astype("<f4").tobytes()))


def field(number: int, content: bytes) -> bytes:
    """A field of wire type 2."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    groups = []
    while value >= 128:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])
