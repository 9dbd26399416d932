"""Makes `import torchvision` work beside a PyTorch build that its compiled extension does not match.

open_clip and timm import torchvision for their image transforms. The wheel on PyPI is linked against CUDA PyTorch;
beside a CPU build its `_C.so` does not load, the operators `torchvision::nms` and `torchvision::qnms` stay undefined,
and the shape functions that torchvision registers for them (`torchvision/_meta_registrations.py`) raise "operator
torchvision::nms does not exist" at import. Neither operator is ever called here, so their schemas are enough.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_library: torch.library.Library | None = None  # definitions live as long as this object


def define_missing_ops() -> tuple[str, ...]:
    """Define the schemas of those operators that torchvision expects and its extension does not bring.

    Call it before the first import of torchvision, open_clip or timm. It does nothing where torchvision's own extension
    loads (which defines the operators itself) or where torchvision is not installed.

    Returns:
        The names of the operators defined by this call; empty when none was missing.
    """
    global _library
    if not _load_extension():
        return ()
    missing = tuple(name for name in _SCHEMAS if not hasattr(torch.ops.torchvision, name))
    if missing and _library is None:
        _library = torch.library.Library("torchvision", "FRAGMENT")
    for name in missing:
        _library.define(_SCHEMAS[name])
    return missing


def _load_extension() -> bool:
    """Load torchvision's operators, as its import would do first; False when torchvision is not installed."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return False
    for path in Path(spec.submodule_search_locations[0]).glob("_C*.so"):
        try:
            torch.ops.load_library(path)
        except OSError:  # linked against another build of PyTorch
            continue
    return True
