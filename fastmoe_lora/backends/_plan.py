"""Which tile sizes a Triton kernel runs with: the problem's geometry, the plan table and the constants of a launch.

Standard library alone: the ahead-of-time compiler loads this file where torch is absent.
"""

import json
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

PLANS = Path(__file__).with_name("plans.json")
MODES = ("queue", "two_launch", "recompute")
KINDS = ("forward", "grad_input", "grad_weight")
MERGED_SPLITS = 3  # `forward` has so many products in a merged producer, each written out
Row = dict[str, Any]  # of the table: see `table`
Table = dict[str, dict[str, list[Row]]]


class Geometry(NamedTuple):
    """What a kernel is specialised to, all but the number of tokens: the operator's K, N, S, E, R, P and options."""

    k: int
    n: int
    splits: int
    experts: int
    max_rank: int
    columns: int
    routed: bool
    ranks: bool = False
    top_k: bool = False
    dropout: bool = False
    compact: bool = False
    bits: int = 16  # of the compute dtype
    master: bool = False  # adapters in float32 beside a 16-bit compute dtype
    aligned: bool = True  # x, the weight and the gradient of y begin at multiples of 16 bytes

    @property
    def split_n(self) -> int:
        return self.n // self.splits

    @property
    def low_rank_width(self) -> int:
        """Columns of a split, the router's included."""
        return self.columns + (self.experts if self.routed else 0)

    @property
    def block(self) -> int:
        """Width BP of a block of columns: a power of two that holds all, 16 (the least for a matrix unit) to 64."""
        return min(64, max(16, _power_of_two(self.low_rank_width)))

    @property
    def padded(self) -> int:
        """T: columns of a split in whole blocks."""
        return _ceil(self.low_rank_width, self.block) * self.block

    @property
    def grouped(self) -> bool:
        """The columns of the one block are whole groups of R: expert e is group e, the router's logits are group E."""
        power = self.max_rank == _power_of_two(self.max_rank) and not self.compact and self.padded == self.block
        return power and (not self.routed or (self.experts <= self.max_rank <= self.block - self.columns))

    @property
    def packs_a(self) -> bool:
        """A would have to be converted wherever it is read."""
        return self.master

    @property
    def packs_b(self) -> bool:
        """B cannot be read in 16-byte pieces as it lies."""
        return self.compact or self.master or self.max_rank * self.bits % 128 != 0

    @property
    def packed(self) -> int:
        """Numbers in the packed copies of A, with the router, and of B."""
        return self.padded * (self.splits * self.k * self.packs_a + self.n * self.packs_b)


@dataclass(frozen=True)
class Plan:
    """Tile sizes and launch options of one kernel. `bm`, `bn`: output tile; `bk`: step of the contraction."""

    mode: str
    bm: int
    bn: int
    bk: int
    warps: int
    stages: int
    group: int = 8  # row blocks dealt out together
    per_sm: int = 1  # programs per multiprocessor
    merge: bool = False  # one producer for all splits, of which there are up to three
    tma: bool = False
    flatten: bool = False  # forward: the loads of the next tile are under way while one is finished

    @property
    def options(self) -> dict[str, int]:
        """Of a launch, besides its constants."""
        return {"num_warps": self.warps, "num_stages": self.stages}

    @cached_property
    def _hash(self) -> int:
        return hash(tuple(getattr(self, field.name) for field in fields(self)))

    def __hash__(self) -> int:  # looked up by in every call
        return self._hash

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode: got {self.mode!r}, expected one of {MODES}")
        for name in ("bm", "bn", "bk"):
            value = getattr(self, name)
            if value < 16 or value & (value - 1):
                raise ValueError(f"{name}: got {value}, expected a power of two of at least 16")


def architecture(name: str) -> str:
    """Section of the plan table for a device; "small" where shared memory is unknown or below 160 KB."""
    family = {"sm_80": "sm_80", "sm_87": "sm_80", "sm_90": "sm_90", "sm_100": "sm_100", "sm_103": "sm_100"}
    return family.get(name, "gfx942" if name.startswith("gfx9") else "small")


def choose(kind: str, device: str, geometry: Geometry, tokens: int) -> Plan:
    """The first plan of the table's section for `device` that serves the geometry and can run it."""
    return _choose(kind, architecture(device), geometry, _bucket(tokens))


def table(path: Path = PLANS) -> Table:
    """architecture -> kind -> rows in order of preference. A row is a `Plan` and what it is for: bits, and optionally
    m (largest M), n, k, width (of a block of low-rank columns), grouped (see `Geometry.grouped`) and dropout."""
    found: Table = json.loads(path.read_text())
    return found


def plan_of(row: Row) -> Plan:
    names = {field.name for field in fields(Plan)}
    return Plan(**{key: value for key, value in row.items() if key in names})


def serves(row: Row, geometry: Geometry) -> bool:
    """Whether a row of the table is meant for this geometry, the number of tokens aside."""
    names = "n", "k", "bits", "grouped", "dropout"
    is_ = {name: getattr(geometry, name) for name in names} | {"width": geometry.block}
    return all(row.get(name) in (None, value) for name, value in is_.items())


def runs(kind: str, plan: Plan, geometry: Geometry) -> bool:
    """Whether the kernel's own conditions hold."""
    if plan.mode == "recompute" and not (kind == "forward" and geometry.padded == geometry.block):
        return False
    return not plan.tma or _tma(kind, plan, geometry)


def fit(kind: str, plan: Plan, geometry: Geometry) -> Plan:
    """The plan with what this geometry does not allow switched off."""
    in_one_block = not geometry.routed or geometry.padded == geometry.block
    changes: dict[str, Any] = {
        "merge": plan.merge and in_one_block and geometry.splits <= MERGED_SPLITS and kind == "forward",
        "tma": plan.tma and _tma(kind, plan, geometry),
    }
    if kind == "grad_input" and geometry.dropout:
        # The mask applies to the adapter's part alone, so that part comes first and cannot wait behind the main loop.
        changes["mode"] = "two_launch"
    return replace(plan, **changes)


def _tma(kind: str, plan: Plan, geometry: Geometry) -> bool:
    """Descriptors need rows aligned to 16 bytes, and no tile may reach into the next split."""
    aligned = geometry.aligned and geometry.k * geometry.bits % 128 == 0 and geometry.n * geometry.bits % 128 == 0
    step = plan.bn if kind == "forward" else plan.bk
    return kind != "grad_weight" and aligned and (geometry.splits == 1 or geometry.split_n % step == 0)


@cache
def _choose(kind: str, section: str, geometry: Geometry, bucket: int) -> Plan:
    for row in _table()[section][kind]:
        if serves(row, geometry) and bucket <= (row.get("m") or bucket):
            plan = plan_of(row)
            if runs(kind, plan, geometry):
                return fit(kind, plan, geometry)
    raise LookupError(f"plans.json: no row of {section}/{kind} serves {geometry}")


@cache
def _table() -> Table:
    return table()


def _bucket(tokens: int) -> int:
    """M rounded up to a power of two, so that few plans are looked up."""
    return _power_of_two(max(tokens, 1))


def forward_constants(geometry: Geometry, plan: Plan) -> dict[str, int | bool]:
    """Compile-time arguments of `forward` (without PRODUCE and CONSUME) or, in mode "recompute", of `recompute`."""
    constants = _shape(geometry) | {
        "RANKS": geometry.ranks,
        "TOP_K": geometry.top_k,
        "BM": plan.bm,
        "BN": plan.bn,
        "BK": plan.bk,
        "BP": geometry.block,
        "ROUTER_WIDTH": expert_width(geometry),
        "GROUPED": geometry.grouped,
    }
    if plan.mode == "recompute":
        return constants
    return constants | {
        "T": geometry.padded,
        "GROUP": plan.group,
        "MERGE": plan.merge,
        "PACK_A": geometry.packs_a,
        "PACK_B": geometry.packs_b,
        "TMA": plan.tma,
        "FLATTEN": plan.flatten,
    }


class ForwardWork(NamedTuple):
    """Of a call of `forward` that has so many tokens."""

    programs: int  # of a launch
    workspace: int  # numbers handed from producers to consumers, with the packed adapters
    counters: int  # of kernels/triton/queue.py


@lru_cache(maxsize=4096)
def forward_work(geometry: Geometry, plan: Plan, tokens: int, multiprocessors: int) -> ForwardWork:
    """How much a call has to launch and to allocate, cached: it takes as long as a launch, many layers call alike."""
    blocks, tiles = _ceil(tokens, plan.bm), geometry.splits * _ceil(geometry.split_n, plan.bn)
    if plan.mode == "recompute":
        return ForwardWork(blocks * tiles, 0, 0)
    producers = _ceil(geometry.columns, geometry.block) * (1 if plan.merge else geometry.splits)
    tasks = blocks * (producers + tiles) + _packing_tasks(geometry, plan)
    workspace = tokens * geometry.splits * geometry.padded + geometry.packed
    return ForwardWork(min(tasks, multiprocessors * plan.per_sm), workspace, flag_count(plan, tokens))


class BackwardWork(NamedTuple):
    """Of a call's backward pass: tasks or programs of its kernels, and the sizes of what they hand to each other."""

    input_tasks: int
    counters: int
    weight_programs: int
    parts: int  # of the token axis in `grad_weight`
    reduce_programs: int
    blocks: int  # of rows in `grad_input`
    narrow: tuple[int, ...]  # numbers in the compute dtype: ds, t, packed adapters
    wide: tuple[int, ...]  # float32: the diagonal's gradient by block of rows, those of A and of B by part


@lru_cache(maxsize=4096)
def backward_work(
    geometry: Geometry,
    input_plan: Plan,
    weight_plan: Plan,
    tokens: int,
    multiprocessors: int,
    with_a: bool,
    with_b: bool,
    with_diag: bool,
) -> BackwardWork:
    """Cached as `forward_work` is. with_a: the router's gradient comes with that of A."""
    tiles = grad_weight_tiles(geometry, weight_plan, with_a, with_b)
    parts = token_parts(weight_plan, tiles, tokens, multiprocessors) if tiles else 0
    blocks, width = _ceil(tokens, input_plan.bm), geometry.splits * geometry.padded
    rows = tokens * width
    partial = parts * geometry.k * width * with_a, parts * geometry.n * geometry.padded * with_b
    return BackwardWork(
        grad_input_tasks(geometry, input_plan, tokens),
        flag_count(input_plan, tokens),
        tiles * parts,
        parts,
        reduce_programs(geometry, with_a, with_b, with_diag),
        blocks,
        tuple(map(_aligned, (rows, rows, geometry.packed))),
        tuple(map(_aligned, (blocks * width, *partial))),
    )


def _aligned(count: int) -> int:
    """So many numbers, rounded up so that what lies behind them begins at a multiple of 256 bytes."""
    return _ceil(count, 128) * 128


def flag_count(plan: Plan, tokens: int) -> int:
    """Counters of a queued launch (kernels/triton/queue.py)."""
    return 3 + _ceil(tokens, plan.bm)


def launches(plan: Plan) -> tuple[dict[str, bool], ...]:
    """The phases of each launch of a queued kernel."""
    if plan.mode == "queue":
        return ({"PRODUCE": True, "CONSUME": True},)
    return {"PRODUCE": True, "CONSUME": False}, {"PRODUCE": False, "CONSUME": True}


def grad_input_constants(geometry: Geometry, plan: Plan) -> dict[str, int | bool]:
    """Compile-time arguments of `grad_input` (without PRODUCE and CONSUME)."""
    unused = ("TOP_K", "MERGE", "FLATTEN")
    return {name: value for name, value in forward_constants(geometry, plan).items() if name not in unused}


def grad_input_tasks(geometry: Geometry, plan: Plan, tokens: int) -> int:
    """Tasks of one launch of `grad_input` that does both phases."""
    return _ceil(tokens, plan.bm) * (geometry.splits + _ceil(geometry.k, plan.bn)) + _packing_tasks(geometry, plan)


def grad_weight_constants(geometry: Geometry, plan: Plan) -> dict[str, int]:
    """Compile-time arguments of `grad_weight`."""
    shape = {name: value for name, value in _shape(geometry).items() if name not in ("E", "R")}
    return shape | {"T": geometry.padded, "BN": plan.bn, "BK": plan.bk, "BP": geometry.block}


def grad_weight_tiles(geometry: Geometry, plan: Plan, with_a: bool, with_b: bool) -> int:
    """Tiles of dA and dB, each of which is split over the tokens."""
    a = _ceil(geometry.k, plan.bn) * geometry.splits * geometry.padded // geometry.block
    b = geometry.splits * _ceil(geometry.split_n, plan.bn) * _ceil(geometry.columns, geometry.block)
    return with_a * a + with_b * b


def token_parts(plan: Plan, tiles: int, tokens: int, multiprocessors: int) -> int:
    """Parts of the token axis that fill the device once, of at least four steps each."""
    return max(1, min(multiprocessors * plan.per_sm // tiles, _ceil(tokens, 4 * plan.bk)))


REDUCE_ROWS, REDUCE_COLUMNS = 64, 16  # tile of `reduce`; 4 warps


def reduce_constants(geometry: Geometry) -> dict[str, int | bool]:
    """Compile-time arguments of `reduce`."""
    return _shape(geometry) | {
        "T": geometry.padded,
        "RANKS": geometry.ranks,
        "P2": _power_of_two(geometry.columns),
        "R2": _power_of_two(geometry.max_rank),
        "BR": REDUCE_ROWS,
        "BC": REDUCE_COLUMNS,
    }


def reduce_programs(geometry: Geometry, with_a: bool, with_b: bool, with_diag: bool) -> int:
    """Programs of one launch of `reduce`."""
    splits, experts = geometry.splits, geometry.experts
    rows = _ceil(experts * geometry.max_rank + experts, REDUCE_ROWS)
    a = splits * rows * _ceil(geometry.k, REDUCE_COLUMNS)
    b = splits * experts * _ceil(geometry.split_n, REDUCE_ROWS)
    return with_a * a + with_b * b + with_diag * splits * experts


def expert_width(geometry: Geometry) -> int:
    return max(16, _power_of_two(geometry.experts))


def _shape(geometry: Geometry) -> dict[str, int]:
    names = {"K": "k", "N": "n", "S": "splits", "E": "experts", "R": "max_rank", "P": "columns"}
    return {constant: getattr(geometry, name) for constant, name in names.items()}


def _packing_tasks(geometry: Geometry, plan: Plan) -> int:
    a = geometry.padded // geometry.block * _ceil(geometry.k, plan.bk)
    return geometry.splits * (a * geometry.packs_a + _ceil(geometry.split_n, plan.bn) * geometry.packs_b)


def _power_of_two(value: int) -> int:
    return 1 << (value - 1).bit_length()


def _ceil(value: int, by: int) -> int:
    return -(-value // by)
