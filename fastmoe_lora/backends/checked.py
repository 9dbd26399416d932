"""Backend "triton" as "auto" takes it: a plan that fails its self-check (_self_check.py) gives way to "packed".

Forward and backward are decided on apart: what they hand to each other is the same for both backends.
"""

from .._signature import BackwardOperands, ForwardOperands, ForwardResults, Gradients
from . import packed, triton
from ._launch import on_device
from ._self_check import is_right


def available() -> bool | str:
    """True, or why the kernels cannot run here."""
    return triton.available()


def forward(*operands: *ForwardOperands) -> ForwardResults:
    """As `triton.forward`."""
    x, weight, bias, lora_A, _, diag, _, router_weight, columns, top_k, _, dropout, _ = operands
    geometry, plan = triton.forward_plan(x, weight, lora_A, diag, router_weight, columns, top_k, dropout)
    use = "forward", x.device, x.dtype, geometry, (plan,), (bias is not None,)
    if x.shape[0] and not is_right(use):
        return packed.forward(*operands)
    with on_device(x):
        return triton.run_forward(geometry, plan, *operands)


def backward(*operands: *BackwardOperands) -> Gradients:
    """As `triton.backward`."""
    grad_y, x, weight, lora_A, _, diag, _, router_weight, columns, _, _, dropout, _, needs = operands
    geometry, input_plan, weight_plan = triton.backward_plans(
        grad_y, x, weight, lora_A, diag, router_weight, columns, dropout
    )
    wanted = (needs[0], False, False, *needs[3:])  # the gradients of weight and bias are plain products
    use = "backward", x.device, x.dtype, geometry, (input_plan, weight_plan), wanted
    if x.shape[0] and any(wanted) and not is_right(use):
        return packed.backward(*operands)
    with on_device(x):
        return triton.run_backward(geometry, input_plan, weight_plan, *operands)
