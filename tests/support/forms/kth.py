"""KTH, tiny: frames as pictures with a gap in their numbers, and the original videos with their table."""

from pathlib import Path

from support.forms.pictures import moving, save
from support.forms.videos import write_video

CLIPS = 3
PERSONS = (1, 15, 17, 2, 16, 18)
SEQUENCES = ((1, 24), (27, 50))
SIZE = (120, 160)


def write_kth_frames(root: Path, *, clips: int = CLIPS, size: tuple[int, int] = SIZE, seed: int = 0) -> None:
    """`<root>/kth/{boxing,running}/personNN_ACTION_d1_uncomp/image_NNNN.jpg` of `clips` persons, in two sequences."""
    for number, person in enumerate(PERSONS[:clips]):
        for action in ("boxing", "running"):
            folder = root / "kth" / action / f"person{person:02d}_{action}_d1_uncomp"
            pictures = moving(SEQUENCES[-1][1], *size, 1, seed + number + 100 * (action == "running"))
            for first, last in SEQUENCES:
                for frame in range(first, last + 1):
                    save(folder / f"image_{frame:04d}.jpg", pictures[frame - 1])


def write_kth_avi(root: Path, *, clips: int = CLIPS, size: tuple[int, int] = SIZE, seed: int = 0) -> None:
    """The same as `<root>/kth/{boxing,running}/personNN_ACTION_d1_uncomp.avi`, with `<root>/kth/00sequences.txt`."""
    lines = ["The sequences of each video, in frames:\r\n\r\n"]
    for number, person in enumerate(PERSONS[:clips]):
        for action in ("boxing", "running"):
            name = f"person{person:02d}_{action}_d1"
            pictures = moving(SEQUENCES[-1][1] + 5, *size, 1, seed + number + 100 * (action == "running"))
            write_video(root / "kth" / action / f"{name}_uncomp.avi", pictures)
            lines.append(f"{name}\t\tframes\t{', '.join(f'{first}-{last}' for first, last in SEQUENCES)}\r\n")
    (root / "kth" / "00sequences.txt").write_text("".join(lines))
