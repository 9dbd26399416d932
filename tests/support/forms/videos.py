"""Videos, written by PyAV."""

from pathlib import Path

import av
import numpy as np


def write_video(path: Path, frames: np.ndarray, codec: str = "mpeg4", fps: int = 25) -> None:
    """Frames (n, h, w, 1 or 3) uint8, with a key frame every twelve."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.bit_rate = 4_000_000
        for frame in np.broadcast_to(frames, (*frames.shape[:3], 3)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
