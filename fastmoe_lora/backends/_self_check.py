"""Whether "auto" may use a Triton plan: tried once for all calls like it, in this process and those to come."""

import warnings
from collections import Counter
from threading import Lock

import torch

from . import _trial, _verdicts
from ._plan import Geometry, Plan
from ._trial import Use

_ATTEMPTS = 3  # trials begun in a process, where memory does not suffice for one
_Fields = tuple[str, torch.device, torch.dtype, Geometry, tuple[Plan, ...], tuple[bool, ...]]
_known: dict[Use, bool] = {}
_attempts: Counter[Use] = Counter()
_lock = Lock()


def is_right(use: _Fields) -> bool:
    """False where the plans failed their trial, which is held now if it has not been: "packed" is to do their work.

    use: the fields of a `Use`, to which such a tuple is equal and which takes as long to make as all the rest here.

    Warns (RuntimeWarning) of plans that failed, once a process, and of those that go without a trial: in the capture of
    a CUDA graph, or where memory does not suffice. Plans that nothing is known of yet are used there.
    """
    known = _known.get(use)  # type: ignore[call-overload] # such a tuple is equal to the Use
    return _first_use(Use(*use)) if known is None else known


def _first_use(use: Use) -> bool:
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return True  # somebody would see the trial's operations as the caller's
    with _lock:
        if use in _known:
            return _known[use]
        right, warning = _judged(use)
    if warning:
        warnings.warn(warning, RuntimeWarning, stacklevel=2)
    return right


def _judged(use: Use) -> tuple[bool, str | None]:
    """Whether to use the plans, and what to warn of."""
    verdict = _verdicts.read(use)
    if verdict is None:
        if _is_captured(use.device):
            return True, f"{_name(use)}: captured in a CUDA graph unchecked; call it once before the capture"
        try:
            verdict = {"fault": _trial.fault(use)}
        except Exception as error:
            _attempts[use] += 1
            if _trial.is_about_memory(error) and _attempts[use] < _ATTEMPTS:
                return True, None
            _known[use] = True
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            return True, f"{_name(use)}: used unchecked in this process, since the check failed ({reason})"
        _verdicts.write(use, verdict["fault"])
    fault = verdict["fault"]
    _known[use] = fault is None
    if fault is None:
        return True, None
    return False, f"{_name(use)}: does not compute what backend 'packed' does ({fault}); using 'packed' in its place"


def _is_captured(device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def _name(use: Use) -> str:
    device = torch.cuda.get_device_name(use.device) if use.device.type == "cuda" else use.device
    plans = ", ".join(map(str, use.plans))
    return f"backend 'triton', {use.direction}, {plans} for {use.geometry} in {use.dtype} on {device}"
