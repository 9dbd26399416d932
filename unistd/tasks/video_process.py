"""The process in which videos are decoded; run as a program by `unistd.tasks.video`.

As `hdf5_process`, whose loop it runs, it imports nothing of `unistd`. Requests:

    {"path"} -> {"frames", "height", "width"}
    {"path", "times": true} -> the same, int64 bytes (frames,): presentation times
    {"path", "wanted": [...], "size": [h, w]} -> {}, uint8 bytes (n, 3, h, w) of the frames of these times
"""

import importlib.util
import os
from pathlib import Path

import numpy as np

_spec = importlib.util.spec_from_file_location("hdf5_process", Path(__file__).with_name("hdf5_process.py"))
_loop = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_loop)
Refusal = _loop.Refusal

_MOST_FRAMES = 10_000_000
_MOST_PIXELS = 40_000_000
_SECONDS, _BYTES_A_SECOND = 5.0, 5e5  # of processor time: decoding takes far more of it than reading


def answer(request: dict) -> tuple[dict, np.ndarray | None]:
    """What of a request; raises Refusal."""
    import av

    av.logging.set_level(av.logging.PANIC)
    path = request["path"]
    _loop._limit_time(_SECONDS + os.stat(path).st_size / _BYTES_A_SECOND)
    try:
        # only what a file of video is: no list of other files, no address
        with av.open(path, options={"protocol_whitelist": "file"}, metadata_errors="replace") as container:
            if not container.streams.video:
                raise Refusal("no video in it")
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            if stream.width * stream.height > _MOST_PIXELS:
                raise Refusal(f"{stream.width} x {stream.height} pixels, expected at most {_MOST_PIXELS} together")
            if "wanted" in request:
                return {}, _frames(container, stream, request)
            times = _times(container, stream)
            about = {"frames": len(times), "height": stream.height, "width": stream.width}
            return about, None if request.get("times") is None else times
    except (Refusal, MemoryError):
        raise
    except Exception as error:  # of the decoder: nearly any kind
        text = " ".join(str(error).split()) or type(error).__name__
        raise Refusal(f"not a readable video ({text[:200]})") from None


def _times(container, stream) -> np.ndarray:
    """(frames,) int64, increasing: the presentation time of each frame, from its packets alone."""
    times = []
    for packet in container.demux(stream):
        if packet.pts is not None and packet.size:
            if packet.is_corrupt:
                raise Refusal(f"packet {len(times)} is damaged")
            times.append(packet.pts)
            if len(times) > _MOST_FRAMES:
                raise Refusal(f"more than {_MOST_FRAMES} frames")
    found = np.unique(np.array(times, np.int64))
    if len(found) != len(times) or not len(found):
        raise Refusal(f"{len(times)} frames at {len(found)} times, expected one frame a time")
    return found


def _frames(container, stream, request: dict) -> np.ndarray:
    """Frames of those times: from the key frame before the first on, until the last was seen."""
    wanted = {time: row for row, time in enumerate(request["wanted"])}
    height, width = request["size"]
    frames = np.empty((len(wanted), 3, height, width), np.uint8)
    found = 0
    container.seek(request["wanted"][0], stream=stream, backward=True, any_frame=False)
    for frame in container.decode(stream):
        if frame.is_corrupt:
            raise Refusal(f"the frame at {frame.pts} is damaged")
        if frame.pts in wanted:
            picture = frame.to_ndarray(format="rgb24")
            if picture.shape != (height, width, 3):
                raise Refusal(f"a frame of {picture.shape[:2]} pixels, expected {(height, width)}")
            frames[wanted[frame.pts]] = picture.transpose(2, 0, 1)
            found += 1
            if found == len(wanted):
                return frames
        if frame.pts is not None and frame.pts > request["wanted"][-1]:
            break
    raise Refusal(f"{len(wanted) - found} of {len(wanted)} frames cannot be decoded, it is cut or damaged")


if __name__ == "__main__":
    _loop.main(answer)
