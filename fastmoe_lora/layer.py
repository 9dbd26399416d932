"""RAMoELinear: a linear layer with routed low-rank experts whose ranks are learned."""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import _checks, _operands, ops
from ._frozen_ranks import active_column_table, hold, still
from ._linear_part import linear_part
from ._settings import rank_window, settings, settings_fault
from ._splits import by_unit, units_of, widths_of
from ._tracing import sizes, untraced
from ._wrappers import gathered, scattered
from .backends import NAMES
from .diagonal import INTERPOLATIONS, interpolate
from .dropout import new_seed
from .functional import ramoe_linear
from .routing import ROUTERS, route

if TYPE_CHECKING:
    from ._merged import Merged


class RAMoELinear(nn.Module):
    """Drop-in ``nn.Linear`` with RA-MoE adapters: ``(..., in_features) -> (..., out_features)``.

    A fresh layer computes exactly what its linear part does, since ``lora_B`` starts at zero.

    Args:
        num_experts: E, low-rank experts per split. max_rank: R, the largest rank of an expert.
        init_rank: where the continuous ranks start (4.5 in UniSTD), in [0, max_rank].
        splits: S, equal parts of the output with experts, ranks and router of their own (3 for a fused QKV); or the
            widths of S parts, multiples of the narrowest (queries, keys and values of grouped heads).
        router: "token" (softmax per token, inside the operator), "sample" (the mean token of ``(..., N, in)``
            decides for all N), or None (the caller always hands in ``gates``).
        top_k: keep this many gates, renormalised; None keeps all.
        scaling: factor on the experts' sum. interpolation: see `rank_diagonal`; "sampled" draws in training only.
        dropout: rate on the adapters' input, in training.
        backend: "auto", or a name of `backends()`.

    Of a frozen weight the "cpu" backend keeps a packed copy: see `fastmoe_lora.backends.cpu` for the writes through
    ``.data`` or numpy that it follows, and how to do without.

    Parameters: ``weight (out, in)``, ``bias (out)``, ``lora_A (S, E, R, in)``, ``lora_B (S, E, out/S, R)``,
    ``rank (S, E)`` and ``router.weight (S*E, in)``. With splits of several widths ``lora_B`` is (U, E, W, R): U units
    as wide as the narrowest split, W, those of a split one after another. Ranks stay float32 or float64 whatever the
    layer is cast to, since 16 bits are too coarse to learn them in. Sizes of zero work as in ``nn.Linear``. Raises
    ValueError or TypeError naming the argument that is wrong.

    The state dict holds beside them ``rank_frozen`` and, as ``_extra_state``, the options that decide what the numbers
    mean: ``rank_window`` is loaded, as it changes while ranks are learned, and another router, top_k, scaling, dropout
    or, unless the ranks are frozen, interpolation is refused. State dicts of earlier releases lack it, and load.
    ``load_state_dict`` reports, as torch reports its errors, such options, ranks outside [0, max_rank], frozen ranks
    that are not whole, and integers for numbers. A layer with any of these, or with a tensor of another shape, stays as
    it was; the other layers of a model are loaded all the same, which is torch's way.
    """

    weight: nn.Parameter  # (out, in)
    bias: nn.Parameter | None
    rank_frozen: Tensor  # whether the ranks are whole and fixed: 0-d, bool
    adapters_on = True  # see `disable_adapters`
    merged: "Merged | None" = None  # see `merge`
    ranks_whole = False  # ranks are whole and fixed; follows `rank_frozen`, without a look at the device

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        num_experts: int = 6,
        max_rank: int = 8,
        init_rank: float = 4.5,
        splits: int | Sequence[int] = 1,
        router: str | None = "token",
        top_k: int | None = None,
        scaling: float = 1.0,
        interpolation: str = "linear",
        dropout: float = 0.0,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.in_features = _checks.size("in_features", in_features, least=0)
        self.out_features = _checks.size("out_features", out_features, least=0)
        self.num_experts = _checks.size("num_experts", num_experts)
        self.max_rank = _checks.size("max_rank", max_rank)
        self.widths = widths_of(splits, self.out_features)
        self.units, self.splits = units_of(self.widths), len(self.widths)
        columns = (self.splits, self.num_experts, self.max_rank)
        _checks.elements("(splits, num_experts, max_rank)", *columns, most=2**30)
        _checks.elements("(splits, num_experts, max_rank, in_features)", *columns, self.in_features)
        _checks.elements("(num_experts, max_rank, out_features)", *columns[1:], self.out_features)
        _checks.elements("(out_features, in_features)", self.out_features, self.in_features)
        self.init_rank = _checks.number(
            "init_rank", init_rank, lambda rank: 0 <= rank <= self.max_rank, f"0 to max_rank = {self.max_rank}"
        )
        self.top_k = top_k
        if top_k is not None:
            fits, expected = (lambda k: 1 <= k <= self.num_experts), f"1 to num_experts = {self.num_experts}"
            self.top_k = _checks.whole("top_k", top_k, fits, expected)
        self.scaling = _checks.scaling(scaling)
        self.dropout = _checks.number("dropout", dropout, lambda rate: 0 <= rate < 1, "0 to below 1")
        self.router_kind = _checks.one_of("router", router, ROUTERS)
        self.interpolation = _checks.one_of("interpolation", interpolation, INTERPOLATIONS)
        self.backend = _checks.one_of("backend", backend, ("auto", *NAMES))
        _checks.instance("bias", bias, bool, "True or False")
        self.rank_window = 1.0
        factory = _checks.factory(device, dtype)
        self.weight = nn.Parameter(torch.empty(out_features, in_features, **factory))
        self.bias = nn.Parameter(torch.empty(out_features, **factory)) if bias else None
        self.lora_A = nn.Parameter(torch.empty(*columns, in_features, **factory))
        units = sum(self.units)
        self.lora_B = nn.Parameter(torch.empty(units, num_experts, out_features // units, max_rank, **factory))
        precision = torch.promote_types(self.lora_A.dtype, torch.float32)
        self.rank = nn.Parameter(torch.empty(*columns[:2], device=device, dtype=precision))
        gates = self.splits * self.num_experts
        self.router = None if router is None else nn.Linear(in_features, gates, bias=False, **factory)
        # Whether the ranks are whole and fixed: part of the state, since it decides which columns are computed.
        self.register_buffer("rank_frozen", torch.zeros((), dtype=torch.bool, device=device))
        # Not a buffer: what follows a model's buffers (an average of models, data parallelism) expects the same ones.
        self.columns: Tensor | None = None
        self.reset_parameters()

    @classmethod
    def from_linear(cls, linear: nn.Linear, **options: Any) -> Self:
        """A layer that shares ``linear``'s weight and bias and freezes them.

        ``options`` are the constructor's; ``device`` and ``dtype`` are those of the adapters (default: the weight's).
        Raises ValueError or TypeError naming what is wrong, before anything is frozen.
        """
        return cls.sharing(linear, **options).freeze_base_()

    @classmethod
    def sharing(cls, linear: nn.Linear, **options: Any) -> Self:
        """As `from_linear`, with nothing frozen yet."""
        weight, bias = linear_part(linear)
        _check_names(cls, options)
        options = {"device": weight.device, "dtype": weight.dtype, **options}
        layer = cls(linear.in_features, linear.out_features, bias is not None, **options)
        layer.weight, layer.bias = weight, bias
        return layer.train(linear.training)

    def freeze_base_(self) -> Self:
        """Freezes weight and bias."""
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                parameter.requires_grad_(False)
        return self

    def reset_parameters(self) -> None:
        """Linear part as ``nn.Linear``; A uniform likewise, B zero, ranks at ``init_rank``, learning; router near 0."""
        bound = 1 / math.sqrt(self.in_features) if self.in_features else 0.0
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)
        nn.init.uniform_(self.lora_A, -bound, bound)
        nn.init.zeros_(self.lora_B)
        nn.init.constant_(self.rank, self.init_rank)
        self.rank_frozen.zero_()
        self._thaw()
        if self.router is not None:
            nn.init.normal_(self.router.weight, std=0.02)

    def forward(self, x: Tensor, gates: Tensor | None = None, part: tuple[int, int] | None = None) -> Tensor:
        """``x (..., in_features)``; ``gates (..., S, E)``, broadcastable to x's leading shape, replace the router's.

        ``part = (first, last)`` computes splits first to last - 1 alone, of which the gates are then to be.
        """
        if part is not None:
            self._check_part(part)
        if not self.adapters_on:
            return self._linear(x, self.weight, part)
        if self.merged is not None:
            return self._linear(x, self.merged.checked(self, gates, part), part)
        if gates is None and self.router_kind is None:
            raise ValueError(
                f"gates: got None, expected (..., {self.splits}, {self.num_experts}): the layer has no router"
            )
        tensors: list[Any] = [self.weight, self.bias, self.lora_A, self.lora_B, self._diagonal()]
        if self.columns is not None and self.columns.device != self.lora_A.device:
            self.columns = self.columns.to(self.lora_A.device)
        router_weight, columns = None, self.columns
        if gates is None and self.router_kind == "token":
            router_weight = self.router.weight  # type: ignore[union-attr] # its kind says that there is one
        elif gates is None:
            gates = self.router_gates(x) if part is None else self.router_gates(x)[..., slice(*part), :]
        if part is not None:
            *five, router_weight, columns = self._of_part(part, [*tensors, router_weight, columns])
            tensors = list(five)  # the compiler of torch 2.11 takes what is starred for a tuple
        units = self.units if part is None else self.units[slice(*part)]
        if len(set(units)) > 1:
            gates, router_weight = self._by_unit(units, tensors, gates, router_weight)
        elif units[0] > 1:  # splits of one width
            tensors[3] = tensors[3].unflatten(0, (len(units), -1)).transpose(1, 2).flatten(2, 3)
            columns = None if columns is None else columns[:: units[0]].contiguous()
        dropout = self.dropout if self.training else 0.0
        return ramoe_linear(
            x,
            *tensors,
            gates=gates,
            router_weight=router_weight,
            columns=columns,
            top_k=self.top_k,
            scaling=self.scaling,
            dropout=dropout,
            seed=new_seed(self.lora_A.device) if dropout > 0 else None,
            backend=self.backend,
        )

    def _linear(self, x: Tensor, weight: Tensor, part: tuple[int, int] | None) -> Tensor:
        """What ``nn.Linear`` computes, to the bit."""
        bias: Tensor | None = self.bias
        if part is not None:
            rows = slice(*(sum(self.widths[:end]) for end in part))
            weight, bias = weight[rows], None if bias is None else bias[rows]
        _operands.check_linear(x, weight, bias, isinstance(x, Tensor) and ops.is_autocast(x.device.type))
        return F.linear(x, weight, bias)

    def _check_part(self, part: Any) -> None:
        if not (isinstance(part, tuple) and len(part) == 2 and all(type(end) is int for end in part)):
            raise TypeError(f"part: got {_checks.shown(part)}, expected (first, last), two whole numbers")
        if not 0 <= part[0] < part[1] <= self.splits:
            raise ValueError(f"part: got {part}, expected 0 <= first < last <= splits = {self.splits}")

    def _of_part(self, part: tuple[int, int], tensors: list[Tensor | None]) -> Iterator[Tensor | None]:
        """Of weight, bias, A, B, diagonal, router and columns, views of what belongs to these splits; the packed copy
        of a weight's view is kept as a weight's own is."""
        ones = (1,) * self.splits
        experts = (self.num_experts,) * self.splits
        rows = (self.widths, self.widths, ones, self.units, ones, experts, self.units)
        for tensor, of_splits in zip(tensors, rows, strict=True):
            yield None if tensor is None else tensor[slice(*(sum(of_splits[:end]) for end in part))]

    def _by_unit(
        self, units: tuple[int, ...], tensors: list[Any], gates: Tensor | None, router: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Gates and router of the splits' units, which take the place of splits; likewise A and diagonal in place."""
        tensors[2], tensors[4] = by_unit(tensors[2], units), by_unit(tensors[4], units)
        if router is not None:
            router = by_unit(router.unflatten(0, (-1, self.num_experts)), units).flatten(0, 1)
        if isinstance(gates, Tensor) and gates.dim() > 1 and gates.shape[-2] != 1:
            if gates.shape[-2] != len(units):
                expected = f"(..., {len(units)}, {self.num_experts})"
                raise ValueError(f"gates: got shape {tuple(gates.shape)}, expected one broadcastable to {expected}")
            gates = by_unit(gates, units, -2)
        return gates, router

    def router_gates(self, x: Tensor) -> Tensor:
        """The router's gates for ``x (..., in)``: (..., S, E), float32; per sample (..., 1, S, E) from (..., N, in)."""
        if self.router is None:
            raise ValueError("router: got None when the layer was built, expected 'token' or 'sample' for router_gates")
        weight = self.router.weight
        self._check_routed(x, weight.device)
        if self.router_kind == "sample":
            x = x.mean(-2, keepdim=True) if sizes(x)[-2] else x.sum(-2, keepdim=True)  # no mean of no tokens
        logits = x.to(weight.dtype) @ weight.T
        return route(logits.unflatten(-1, (self.splits, self.num_experts)), self.top_k or 0)

    @untraced
    def _check_routed(self, x: Tensor, device: torch.device) -> None:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"x: got {_checks.shown(x)}, expected a floating-point tensor")
        sample = self.router_kind == "sample"
        if x.shape[-1:] != (self.in_features,) or (sample and x.dim() < 2):
            tokens = "tokens, " if sample else ""
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected (..., {tokens}{self.in_features})")
        if x.device != device:
            raise ValueError(f"x: got a tensor on {x.device}, expected {device}, the router's device")

    def _diagonal(self) -> Tensor:
        """The operator's ``diag``: the ranks themselves where it interpolates on its own, else the diagonal."""
        if self.ranks_whole:
            return still(self.rank)
        if self.interpolation == "linear" and self.rank_window == 1.0:
            return self.rank
        interpolation = self.interpolation
        if interpolation == "sampled" and not (self.training and self.rank.requires_grad):
            interpolation = "linear"
        return interpolate(self.rank, self.max_rank, interpolation, self.rank_window)

    def fix_ranks_(self, whole: Tensor) -> None:
        """Fixes the ranks at ``whole`` (S, E): they stop learning, and columns that are off are no longer computed.

        Raises ValueError or TypeError, before anything is changed, unless these are whole numbers in [0, max_rank].
        """
        if not isinstance(whole, Tensor) or whole.dtype == torch.bool or whole.is_complex():
            raise TypeError(f"whole: got {_checks.shown(whole)}, expected a tensor of whole numbers")
        if whole.shape != self.rank.shape:
            raise ValueError(f"whole: got shape {tuple(whole.shape)}, expected {tuple(self.rank.shape)}")
        if fault := _checks.rank_fault(whole, self.max_rank, whole=True):
            raise ValueError(f"whole: {fault}")
        if self.rank.is_meta:
            raise ValueError("whole: got ranks for a layer on the meta device, expected one with numbers")
        with torch.no_grad():
            self.rank.copy_(scattered(whole, self.rank))
        self.rank_frozen.fill_(True)
        self._compact()

    def _compact(self) -> None:
        """Derives from ``rank`` and ``rank_frozen`` whether ranks learn, and the table of active columns."""
        if not bool(self.rank_frozen):
            return self._thaw()
        hold(self)
        self.ranks_whole = True
        self.columns = by_unit(active_column_table(gathered(self.rank.detach()), self.max_rank), self.units)

    def _thaw(self) -> None:
        self.rank.requires_grad_(True)
        self.ranks_whole = False
        self.columns = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call] # of torch
        if self.ranks_whole:  # of a copy, for whose gradients no wrapper waits
            self.rank.requires_grad_(False)
            hold(self)
        if self.merged is not None:
            self.merged.renew(self)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not self.rank_frozen.is_meta and bool(self.rank_frozen) != self.ranks_whole:
            # An average of models has copied the flag beside ranks that are means, not whole.
            destination[f"{prefix}rank_frozen"] = torch.full_like(self.rank_frozen, self.ranks_whole)

    def get_extra_state(self) -> Tensor:
        return settings(self)

    def options_fault(self, state: Any, frozen: bool) -> str | None:
        """What is wrong with an ``_extra_state`` for this layer, None if nothing; ``frozen``: the ranks beside it."""
        return settings_fault(self, state, frozen)

    def set_extra_state(self, state: Tensor) -> None:
        self.rank_window = rank_window(state)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        mine = {**dict(self.named_parameters()), "rank_frozen": self.rank_frozen}
        given = {name: state_dict[prefix + name] for name in mine if prefix + name in state_dict}
        fitting = {name: value for name, value in given.items() if _fits(value, mine[name])}
        options = state_dict.setdefault(f"{prefix}_extra_state", self.get_extra_state())  # earlier releases wrote none
        faults = self._state_faults(fitting, options) if self.merged is None else ["weight is merged: unmerge first"]
        error_msgs.extend(f"{prefix}{fault}." for fault in faults)
        refused = bool(faults) or len(fitting) < len(given)
        if refused:  # torch goes on, reports what does not fit and copies the rest: what is here already
            state_dict.update({prefix + name: mine[name] for name in fitting})
            state_dict[f"{prefix}_extra_state"] = self.get_extra_state()
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if not (refused or self.rank.is_meta):
            self._compact()

    def _state_faults(self, state: dict[str, Tensor], options: Any) -> list[str]:
        """What this layer cannot have: integers for numbers, ranks out of range or frozen and not whole, and options
        that give the numbers another meaning."""
        faults = []
        for name, value in state.items():
            right, expected = value.is_floating_point(), "floating-point numbers"
            if name == "rank_frozen":
                right, expected = value.dtype == torch.bool, "torch.bool"
            if not right:
                faults.append(f"{name} is of {value.dtype}, expected {expected}")
        rank, frozen = (gathered(state.get(name, getattr(self, name)).detach()) for name in ("rank", "rank_frozen"))
        if not (faults or rank.is_meta or frozen.is_meta):
            fault = _checks.rank_fault(rank, self.max_rank, whole=bool(frozen))
            faults = [fault] if fault else []
        fault = None if frozen.is_meta else self.options_fault(options, bool(frozen))
        return [*faults, fault] if fault else faults

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        ranks = self.rank.detach()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call] # of torch
        if self.rank.dtype not in (torch.float32, torch.float64):
            self.rank.data = ranks.to(self.rank.device)
        if self.merged is not None:
            self.merged.apply(self, fn)
        return self

    def extra_repr(self) -> str:
        splits = self.splits if max(self.units) == 1 else self.widths
        return (
            f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, num_experts={self.num_experts}, "
            f"max_rank={self.max_rank}, splits={splits}, router={self.router_kind!r}"
        )


def _fits(value: Any, mine: Tensor) -> bool:
    """Whether torch copies an entry of a state dict onto ``mine``: it takes one number in a list for a number."""
    return isinstance(value, Tensor) and (value.shape == mine.shape or (mine.dim() == 0 and value.shape == (1,)))


def _check_names(cls: type[RAMoELinear], options: dict[str, Any]) -> None:
    parameters = inspect.signature(cls).parameters.values()
    for name in options:
        _checks.one_of("options", name, [p.name for p in parameters if p.kind is p.KEYWORD_ONLY])
