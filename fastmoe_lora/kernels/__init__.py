"""Device code. Installed, it lies in this folder; in a source tree it is the `kernels/` folder beside the package."""

from pathlib import Path

if not (Path(__file__).parent / "triton").is_dir():
    __path__.append(str(Path(__file__).parents[2] / "kernels"))
