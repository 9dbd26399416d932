"""The operator's arguments, described once: what ``forward`` and ``backward`` of every backend take, in this order.

Shapes: M tokens, K = in_features, N = out_features, S splits, E experts, R maximal rank, P computed columns a split.
"""

from torch import Tensor

_Tensors = tuple[
    Tensor,  # x (M, K)
    Tensor,  # weight (N, K)
    Tensor | None,  # bias (N)
    Tensor,  # lora_A (S, E, R, K)
    Tensor,  # lora_B (S, E, N/S, R)
    Tensor,  # diag (S, E, R), or ranks (S, E)
    Tensor | None,  # gates (M, S, E), or
    Tensor | None,  # router_weight (S*E, K)
    Tensor | None,  # columns (S, P), int32; None: all
]
_Options = tuple[float, float, Tensor | None]  # scaling, dropout, seed (), int64
CallOperands = tuple[*_Tensors, int | None, *_Options]  # top_k between the two; None: all
ForwardOperands = tuple[*_Tensors, int, *_Options]  # 0: all
ForwardResults = tuple[Tensor, Tensor, Tensor]  # y (M, N), low-rank product (M, S, P), gates (M, S, E)

BackwardOperands = tuple[
    Tensor,  # grad_y (M, N)
    Tensor,  # x
    Tensor,  # weight
    Tensor,  # lora_A
    Tensor,  # lora_B
    Tensor,  # diag
    Tensor,  # gates, given or routed
    Tensor | None,  # router_weight
    Tensor | None,  # columns
    Tensor,  # low-rank product (M, S, P), of the forward pass
    float,  # scaling
    float,  # dropout
    Tensor | None,  # seed
    list[bool],  # needs: of x, weight, bias, lora_A, lora_B, diag, gates, router_weight, whether its gradient is wanted
]
Gradients = tuple[Tensor | None, ...]  # in the order of needs, None where it is not wanted

ForwardInputs = tuple[*ForwardOperands, str]  # of the registered operators: the backend's name is behind the operands
BackwardInputs = tuple[*BackwardOperands, str]
