"""Human3.6M as OpenSTL lays it out, tiny."""

from pathlib import Path

from support.forms.pictures import moving, save

CLIPS = {"train": 3, "test": 1}
FRAMES = 40


def write_human36m(root: Path, *, clips: dict[str, int] = CLIPS, size: int = 32, seed: int = 0) -> None:
    """`<root>/human/images/*.jpg` and `<root>/human/{train,test}.txt`, each clip a recording of 40 frames."""
    number = 0
    for split, count in clips.items():
        lines = []
        for _ in range(count):
            prefix, first = f"images/S{5 + number}_Sitting.58860488_", 100 + number
            for frame, pixels in enumerate(moving(FRAMES, size, size, 3, seed + number)):
                save(root / "human" / f"{prefix}{first + frame:06d}.jpg", pixels)
            lines.append(f"{prefix},{first},{first + FRAMES - 1}\n")
            number += 1
        (root / "human").mkdir(parents=True, exist_ok=True)
        (root / "human" / f"{split}.txt").write_text("".join(lines))
