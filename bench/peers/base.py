"""What every entrant of the layer comparisons is."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from bench.harness.problem import Weights


class Peer(nn.Module, ABC):
    """One way to compute the layer, on given weights.

    Attributes:
        name: as in ``--against``. title: as in tables. note: what a reader of its row must know.
        ours: whether it is this package's.
        complete: computes the whole function (the floor does not).
        learns_ranks: has a gradient for the ranks; the others get the rank diagonal folded into A, which is less work.
        gated: has a router. Those without one are compared with a zero router, which is less work again.
        trains: can run a backward pass.
        roundings: how often it rounds the growing result to the compute dtype, see `allowed_error` of the problem.
        compiles: each new shape costs seconds or minutes of compilation.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    note: ClassVar[str] = ""
    ours: ClassVar[bool] = False
    complete: ClassVar[bool] = True
    learns_ranks: ClassVar[bool] = False
    gated: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    compiles: ClassVar[bool] = False

    @classmethod
    def unavailable(cls, device: torch.device, weights: Weights) -> str:
        """Why it cannot run here, or an empty string."""
        return ""

    @classmethod
    def problem(cls, weights: Weights) -> Weights:
        """The weights it is built on and judged by."""
        weights = weights if cls.learns_ranks else weights.folded
        return weights if cls.gated else weights.gateless

    @classmethod
    def roundings(cls, weights: Weights) -> int:
        return 1

    def prepare(self, x: Tensor) -> Tensor:
        """x as the entrant likes it best, (M, K); done once, not timed."""
        return x

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """x as `prepare` gave it -> y (M, N), or in parts along N (nobody is made to join what its user has apart)."""

    @abstractmethod
    def trainable(self) -> dict[str, list[Tensor]]:
        """Parameters that learn, by name; as a list, laid end to end, they are one tensor."""

    def canonical(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gradients by the names of `trainable`, each laid end to end -> by operand of `Weights`, in its order."""
        return gradients


def frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().contiguous(), requires_grad=False)


def learning(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().contiguous().clone())


def frozen_linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A frozen ``nn.Linear`` with this weight (N, K) and bias (N,)."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight, linear.bias = frozen(weight), frozen(bias)
    return linear
