"""backend="auto" on a GPU: a plan that does not compute what "packed" does is found at its first use, and replaced.

Kernels of this file's plans are `packed` itself, at fault where a test says so; real ones are in
test_self_check_compiled.py.
"""

import json
import os
import threading
import warnings
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from support.operator import Case, run
from support.triton_backend import pretend
from torch._subclasses import FakeTensorMode

from fastmoe_lora import ramoe_linear
from fastmoe_lora.backends import _flags, _plan, _self_check, _trial, _verdicts, packed, triton

backends = import_module("fastmoe_lora.backends")  # the package's attribute of that name is a function

CASE = Case(tokens=20, in_features=32, out_features=48, experts=2, max_rank=4)
CPU = torch.device("cpu")


class Kernels:
    """Stands in for the Triton kernels. `forward`, `backward`: change their results. `trials`: of which directions."""

    def __init__(self):
        self.forward = self.backward = lambda results: results
        self.trials: list[str] = []

    def run_forward(self, geometry, plan, *operands, processors=None):
        if processors:
            self.trials.append("forward")
        return self.forward(packed.forward(*operands))

    def run_backward(self, geometry, input_plan, weight_plan, *operands, processors=None):
        if processors:
            self.trials.append("backward")
        return self.backward(packed.backward(*operands))


def new_process() -> None:
    _self_check._known.clear()
    _self_check._attempts.clear()


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def kernels(monkeypatch, tmp_path):
    pretend(monkeypatch)
    monkeypatch.setattr(backends, "_resolve", lambda name, device_type, dtype: "checked" if name == "auto" else name)
    monkeypatch.setenv("FASTMOE_LORA_CACHE_DIR", str(tmp_path / "cache"))
    standing = Kernels()
    monkeypatch.setattr(triton, "run_forward", standing.run_forward)
    monkeypatch.setattr(triton, "run_backward", standing.run_backward)
    new_process()
    yield standing
    new_process()


def both_passes(case: Case = CASE, dtype=torch.bfloat16, backend: str = "auto") -> dict[str, torch.Tensor]:
    return run(case.arguments(dtype), backend)


def assert_same(got: dict, want: dict) -> None:
    for name, value in want.items():
        assert torch.equal(got[name], value), name


def silently(function, *arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        return function(*arguments)


def last_column_is_lost(results):
    y, *others = results
    y[:, -1] = 0
    return y, *others


def gradient_of_b_is_off(gradients):
    *before, db, ddiag, dgates, drouter = gradients
    return *before, db * 1.05, ddiag, dgates, drouter


def fails_with(error):
    def change(results):
        raise error

    return change


# What is checked, when, and what follows


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_right_plans_are_used_and_tried_once(dtype, kernels):
    silently(both_passes, CASE, dtype)
    assert kernels.trials == ["forward", "backward"]
    kernels.forward = last_column_is_lost  # nobody looks again
    y = silently(both_passes, replace(CASE, tokens=33), dtype)["y"]
    assert not y[:, -1].any()
    assert kernels.trials == ["forward", "backward"]


def test_a_wrong_forward_gives_way_to_packed(kernels):
    kernels.forward = last_column_is_lost
    with pytest.warns(
        RuntimeWarning, match=r"forward, Plan\(mode='recompute', bm=.*Geometry\(k=32.*y: .*using 'packed'"
    ):
        got = both_passes()
    assert_same(got, both_passes(backend="packed"))
    silently(both_passes)  # one warning is enough


def test_wrong_gradients_give_way_to_packed(kernels):
    kernels.backward = gradient_of_b_is_off
    with pytest.warns(RuntimeWarning, match=r"backward, Plan\(.*Plan\(.*gradient of B: error .*using 'packed'"):
        got = both_passes()
    assert_same(got, both_passes(backend="packed"))


def test_what_is_asked_for_by_name_is_not_checked(kernels):
    kernels.forward = last_column_is_lost
    y = silently(both_passes, CASE, torch.bfloat16, "triton")["y"]
    assert not y[:, -1].any()
    assert not kernels.trials


@pytest.mark.parametrize(
    ("set_to", "expected"), [(None, "checked"), ("1", "checked"), ("", "checked"), ("0", "triton")]
)
def test_auto_is_checked_unless_switched_off(set_to, expected, monkeypatch):
    monkeypatch.delenv("FASTMOE_LORA_SELF_CHECK", raising=False)
    if set_to is not None:
        monkeypatch.setenv("FASTMOE_LORA_SELF_CHECK", set_to)
    monkeypatch.setattr(backends, "_availability", lambda name: True)
    resolve = backends._resolve.__wrapped__
    assert resolve("auto", "cuda", torch.bfloat16) == expected
    assert resolve("triton", "cuda", torch.bfloat16) == "triton"
    assert resolve("auto", "cpu", torch.bfloat16) == "cpu"


@pytest.mark.parametrize("name", ["checked", "_trial"])
def test_what_is_no_backend_by_name_is_refused(name):
    with pytest.raises(ValueError, match=f"backend: got '{name}'"):
        ramoe_linear(**CASE.arguments(torch.float32), backend=name)


def test_nothing_to_compute_is_nothing_to_check(kernels):
    both_passes(replace(CASE, tokens=0))
    assert not kernels.trials
    arguments = CASE.arguments(torch.bfloat16)
    arguments = {name: v.detach() if torch.is_tensor(v) else v for name, v in arguments.items()}
    weight = arguments["weight"].requires_grad_()  # a plain product
    ramoe_linear(**arguments).sum().backward()
    assert weight.grad is not None
    assert kernels.trials == ["forward"]


def test_each_use_has_a_trial_of_its_own(kernels):
    cases = (
        CASE,
        replace(CASE, bias=False),
        replace(CASE, dropout=0.2),
        replace(CASE, top_k=1),
        replace(CASE, in_features=40),
        replace(CASE, routed=False),
        replace(CASE, ready_diagonal=True),
        replace(CASE, max_rank=16, compacted=True),
        replace(CASE, tokens=5000),
    )
    for number, case in enumerate(cases, 1):
        silently(both_passes, case)
        assert kernels.trials.count("forward") == number, case
    silently(both_passes, CASE, torch.float16)
    assert kernels.trials.count("forward") == len(cases) + 1


# What is noticed


def element(value):
    def change(results):
        y, *others = results
        y[7, 5] = value
        return y, *others

    return change


def rows_swapped(results):
    y, *others = results
    y[[3, 4]] = y[[4, 3]]
    return y, *others


def gates_not_written(results):
    y, low_rank, gates = results
    return y, low_rank, torch.full_like(gates, float("nan"))


def low_rank_lost(results):
    y, low_rank, gates = results
    low_rank[-1] = 0
    return y, low_rank, gates


FORWARD_FAULTS = {
    "last column": (last_column_is_lost, "y"),
    "NaN": (element(float("nan")), "y: not finite"),
    "infinite": (element(float("inf")), "y: not finite"),
    "one element": (element(99.0), "y: error"),
    "rows swapped": (rows_swapped, "y"),
    "gates": (gates_not_written, "gates: not finite"),
    "low-rank product": (low_rank_lost, "low-rank product"),
    "exception": (
        fails_with(RuntimeError("Triton Error [CUDA]: invalid argument\nmore")),
        "RuntimeError: .*argument;?",
    ),
    "does not compile": (fails_with(AssertionError()), "AssertionError"),
}


@pytest.mark.parametrize(("fault", "words"), FORWARD_FAULTS.values(), ids=FORWARD_FAULTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_forward_faults_are_noticed(fault, words, dtype, kernels):
    kernels.forward = fault
    with pytest.warns(RuntimeWarning, match=rf"\({words}.*\); using 'packed'"):
        both_passes(dtype=dtype)


GRADIENTS = ("x", "weight", "bias", "A", "B", "diag", "gates", "router_weight")


@pytest.mark.parametrize("name", ["x", "A", "B", "diag", "gates", "router_weight"])
@pytest.mark.parametrize("kind", ["scaled", "one element", "NaN"])
def test_backward_faults_are_noticed(name, kind, kernels):
    def change(gradients):
        wrong = gradients[GRADIENTS.index(name)]
        if wrong is not None:
            if kind == "scaled":
                wrong *= 1.05
            else:
                wrong[(-1,) * wrong.dim()] = float("nan") if kind == "NaN" else wrong.abs().max() * 2
        return gradients

    kernels.backward = change
    with pytest.warns(RuntimeWarning, match=rf"\(gradient of {name}: .*using 'packed'"):
        both_passes(replace(CASE, routed=name != "gates"))


def test_counters_that_a_launch_leaves_are_noticed_and_put_back(kernels):
    def leave(results):
        _flags.flags(4, CPU)[3] = 1
        return results

    kernels.forward = leave
    with pytest.warns(RuntimeWarning, match="counters that are not 0"):
        both_passes()
    assert not _flags.flags(1, CPU).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    "changes",
    [
        {"splits": 1, "experts": 1, "max_rank": 1},  # gradients of one number
        {"experts": 16, "top_k": 8},
        {"experts": 6, "compacted": True, "max_rank": 8},
        {"dropout": 0.5, "top_k": 1},
        {"routed": False, "ready_diagonal": True, "in_features": 300},
    ],
    ids=str,
)
def test_other_roundings_pass(changes, dtype, kernels, monkeypatch):
    """Computed in float32 and rounded at the end: not what "packed" does to the bit, but right."""

    def precisely(function):
        def run(*arguments, processors=None):
            operands = [v for v in arguments if not isinstance(v, (_plan.Geometry, _plan.Plan))]
            higher = [v.double() if torch.is_tensor(v) and v.is_floating_point() else v for v in operands]
            dtypes = {v.dtype for v in operands if torch.is_tensor(v) and v.is_floating_point()} - {torch.float32}
            to = dtypes.pop() if dtypes else torch.float32
            results = function(*higher)
            names = ("to", "to", "float") if len(results) == 3 else ("to",) * 5 + ("float",) * 2 + ("to",)
            return tuple(
                r if r is None else r.float() if name == "float" else r.to(to)
                for r, name in zip(results, names, strict=True)
            )

        return run

    monkeypatch.setattr(triton, "run_forward", precisely(packed.forward))
    monkeypatch.setattr(triton, "run_backward", precisely(packed.backward))
    silently(both_passes, replace(CASE, **changes), dtype)


GEOMETRY = _plan.Geometry(32, 48, 3, 2, 4, 8, routed=True, ranks=True)
GEOMETRIES = (
    GEOMETRY,
    GEOMETRY._replace(aligned=False),
    GEOMETRY._replace(master=True, dropout=True),
    GEOMETRY._replace(routed=False, ranks=False),
    GEOMETRY._replace(experts=16, columns=64, top_k=True, dropout=True, aligned=False),
    GEOMETRY._replace(columns=3, compact=True),
    GEOMETRY._replace(columns=16, compact=True),  # wider than there are columns
    GEOMETRY._replace(splits=1, experts=1, max_rank=1, columns=1, compact=True),
    GEOMETRY._replace(k=19, n=21, bits=32),
)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: "-".join(map(str, g)))
def test_a_trial_has_the_geometry_of_the_call(geometry):
    dtype = torch.float32 if geometry.bits == 32 else torch.bfloat16
    plan = _plan.choose("forward", "sm_90", geometry, 4096)
    operands, grad_y = _trial._draw(_trial.Use("forward", CPU, dtype, geometry, (plan,), (True,)), 0)
    x, weight, bias, lora_a, lora_b, diag, gates, router, columns, top_k, _, dropout, seed = operands
    drawn = triton.geometry_of(weight, lora_a, diag, router, columns, top_k, dropout, x)
    assert drawn == geometry
    assert triton.geometry_of(weight, lora_a, diag, router, columns, top_k, dropout, x, grad_y) == geometry
    assert x.shape[0] > 2 * plan.bm
    assert x.shape[0] % plan.bm
    ramoe_linear(
        *(x, weight, bias, lora_a, lora_b, diag), gates=gates, router_weight=router, columns=columns,
        top_k=top_k or None, dropout=dropout, seed=seed, backend="packed",
    )  # fmt: skip


def test_a_router_on_trial_is_sure_of_its_choice():
    geometry = GEOMETRY._replace(k=256, experts=16, columns=64, top_k=True, dropout=True)
    plan = _plan.choose("forward", "sm_90", geometry, 4096)
    operands, _ = _trial._draw(_trial.Use("forward", CPU, torch.bfloat16, geometry, (plan,), (True,)), 0)
    chosen = [packed.forward(*version)[2] > 0 for version in (operands, _trial._in_float64(operands))]
    assert (chosen[0].sum(-1) == 8).all()
    assert torch.equal(*chosen)
    assert not torch.equal(chosen[0][:1].expand_as(chosen[0]), chosen[0])


def test_a_trial_leaves_no_trace(kernels):
    arguments = CASE.arguments(torch.bfloat16)
    before = torch.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        ramoe_linear(**arguments)
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before)
    assert kernels.trials == ["forward"]


# What is remembered


def files(folder) -> list:
    return sorted((folder / "cache" / "self_check").iterdir())


def test_verdicts_hold_for_the_processes_to_come(kernels, tmp_path):
    kernels.backward = gradient_of_b_is_off
    with pytest.warns(RuntimeWarning, match="gradient of B"):
        both_passes()
    assert sorted(json.loads(file.read_text())["fault"] is None for file in files(tmp_path)) == [False, True]
    kernels.trials.clear()
    new_process()
    with pytest.warns(RuntimeWarning, match="gradient of B.*using 'packed'"):
        got = both_passes()
    assert not kernels.trials
    assert_same(got, both_passes(backend="packed"))


@pytest.mark.parametrize("changed", ["driver", "triton", "torch", "name", "source"])
def test_verdicts_hold_for_one_machine(changed, kernels, monkeypatch):
    silently(both_passes)
    machine = _verdicts._machine(CPU)
    new_process()
    monkeypatch.setattr(_verdicts, "_machine", lambda device: machine | {changed: "another"})
    silently(both_passes)
    assert kernels.trials == ["forward", "backward"] * 2


def test_source_is_part_of_what_a_verdict_holds_for(tmp_path, monkeypatch):
    before = _verdicts._source.__wrapped__()
    (tmp_path / "kernel.py").write_text("another")
    monkeypatch.setattr("fastmoe_lora.kernels.triton.__path__", [str(tmp_path)])
    assert _verdicts._source.__wrapped__() != before


def damages():
    return {
        "empty": lambda text: "",
        "cut short": lambda text: text[: len(text) // 2],
        "a list": lambda text: "[1]",
        "too deep": lambda text: "[" * 60000,
        "too large": lambda text: " " * (1 << 17) + text,
        "no text": lambda text: b"\xff\xfe\x00",
        "no fault": lambda text: json.dumps({"of": json.loads(text)["of"]}),
        "fault is a number": lambda text: json.dumps(json.loads(text) | {"fault": 3}),
        "of something else": lambda text: json.dumps(json.loads(text) | {"of": {}}),
        "pipe": str,
        "folder": str,
        "dangling link": str,
    }


@pytest.mark.parametrize("kind", damages())
def test_a_damaged_cache_is_as_good_as_none(kind, kernels, tmp_path):
    silently(both_passes)
    for file in files(tmp_path):
        text = damages()[kind](file.read_text())
        file.unlink()
        if kind == "pipe":
            os.mkfifo(file)
        elif kind == "folder":
            file.mkdir()
        elif kind == "dangling link":
            file.symlink_to("nowhere")
        else:
            file.write_bytes(text if isinstance(text, bytes) else text.encode())
    new_process()
    silently(both_passes)
    assert kernels.trials == ["forward", "backward"] * 2
    new_process()
    silently(both_passes)
    assert len(kernels.trials) == (6 if kind == "folder" else 4)  # the others have been put right


@pytest.mark.parametrize("kind", ["file in the way", "no permission", "no home", "full"])
def test_without_a_cache_every_process_tries(kind, kernels, monkeypatch, tmp_path):
    if kind == "file in the way":
        (tmp_path / "cache").write_text("")
    elif kind == "no home":
        monkeypatch.setattr("pathlib.Path.home", lambda: _raise(RuntimeError("no home")))
        for name in ("FASTMOE_LORA_CACHE_DIR", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
    else:
        error = PermissionError("no") if kind == "no permission" else OSError(28, "No space left on device")
        monkeypatch.setattr(
            "tempfile.mkstemp" if kind == "no permission" else "os.replace", lambda *_, **__: _raise(error)
        )
    silently(both_passes)
    silently(both_passes)
    assert kernels.trials == ["forward", "backward"]
    new_process()
    silently(both_passes)
    assert kernels.trials == ["forward", "backward"] * 2
    if kind == "full":
        assert not files(tmp_path)


def _raise(error):
    raise error


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("FASTMOE_LORA_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert _verdicts.folder() == tmp_path / ".cache" / "fastmoe_lora"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert _verdicts.folder() == tmp_path / "xdg" / "fastmoe_lora"
    monkeypatch.setenv("FASTMOE_LORA_CACHE_DIR", str(tmp_path / "own"))
    assert _verdicts.folder() == tmp_path / "own"


# When there is no check


OUT_OF_MEMORY = {
    "torch's": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "Triton's": RuntimeError("Triton Error [CUDA]: out of memory"),
    "the host's": MemoryError(),
}


@pytest.mark.parametrize("error", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY)
@pytest.mark.parametrize("whose", ["forward", "packed"])
def test_want_of_memory_condemns_no_plan(error, whose, kernels, monkeypatch, tmp_path):
    use = _use(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(_trial.packed if whose == "packed" else triton, f"{'' if whose == 'packed' else 'run_'}forward",
                      lambda *_, **__: _raise(error))  # fmt: skip
        assert silently(_self_check.is_right, use)
        assert silently(_self_check.is_right, use)
        assert not (tmp_path / "cache").exists()
    assert silently(_self_check.is_right, use)
    assert kernels.trials == ["forward"]
    assert len(files(tmp_path)) == 1
    new_process()
    with monkeypatch.context() as patch:
        files(tmp_path)[0].unlink()
        patch.setattr(triton, "run_forward", lambda *_, **__: _raise(error))
        assert silently(_self_check.is_right, use)
        assert silently(_self_check.is_right, use)
        with pytest.warns(RuntimeWarning, match="used unchecked in this process"):
            assert _self_check.is_right(use)
    assert silently(_self_check.is_right, use)
    assert kernels.trials == ["forward"]
    assert not files(tmp_path)


def test_where_packed_fails_the_plan_is_used_with_a_warning(kernels, monkeypatch, tmp_path):
    use = _use(monkeypatch)
    monkeypatch.setattr(_trial.packed, "forward", lambda *_: _raise(RuntimeError("CUBLAS_STATUS_NOT_INITIALIZED")))
    with pytest.warns(RuntimeWarning, match="unchecked in this process, since the check failed .*CUBLAS"):
        assert _self_check.is_right(use)
    assert not (tmp_path / "cache").exists()


def _use(patch) -> _trial.Use:
    """That of a call."""
    seen = []
    checked = backends.load("checked")
    with patch.context() as inner:
        inner.setattr(checked, "is_right", lambda use: seen.append(use) or True)
        ramoe_linear(**CASE.arguments(torch.bfloat16))
    return _trial.Use(*seen[0])


def test_under_capture_what_is_known_counts_and_nothing_is_tried(kernels, monkeypatch):
    kernels.forward = last_column_is_lost
    use = _use(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(_self_check, "_is_captured", lambda device: True)
        with pytest.warns(RuntimeWarning, match="captured in a CUDA graph unchecked"):
            assert _self_check.is_right(use)
        assert not kernels.trials
    with pytest.warns(RuntimeWarning, match="using 'packed'"):
        assert not _self_check.is_right(use)
    new_process()
    monkeypatch.setattr(_self_check, "_is_captured", lambda device: True)
    with pytest.warns(RuntimeWarning, match="using 'packed'"):
        assert not _self_check.is_right(use)  # from the disk


def test_no_check_while_somebody_compiles(kernels, monkeypatch):
    use = _use(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert _self_check.is_right(use)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert _self_check.is_right(use)
        assert ramoe_linear(**CASE.arguments(torch.bfloat16)).shape == (20, 48)
    assert not kernels.trials


def test_compiled_graphs_check_when_they_run(kernels, monkeypatch):
    kernels.forward = last_column_is_lost
    compiling = []
    fault = _trial.fault
    monkeypatch.setattr(_trial, "fault", lambda use: compiling.append(torch.compiler.is_compiling()) or fault(use))
    arguments = CASE.arguments(torch.bfloat16)
    compiled = torch.compile(lambda x: ramoe_linear(**(arguments | {"x": x})), fullgraph=True, backend="aot_eager")
    with pytest.warns(RuntimeWarning, match="forward.*using 'packed'"):
        y = compiled(arguments["x"])
    y.sum().backward()
    assert torch.equal(y, ramoe_linear(**arguments, backend="packed"))
    assert compiling == [False, False]


# Several at once


def test_threads_share_one_trial(kernels):
    kernels.forward = last_column_is_lost
    results, start = [], threading.Barrier(8)

    def call():
        start.wait()
        results.append(both_passes())

    threads = [threading.Thread(target=call, daemon=True) for _ in range(8)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
    assert len([w for w in caught if "using 'packed'" in str(w.message)]) == 1
    assert kernels.trials.count("forward") == 1 + _trial.DRAWS
    assert kernels.trials.count("backward") == 1
    want = both_passes(backend="packed")
    for got in results:
        assert_same(got, want)


def test_warnings_as_errors_are_raised_once(kernels):
    kernels.forward = last_column_is_lost
    with pytest.raises(RuntimeWarning, match="using 'packed'"):
        silently(both_passes)
    assert_same(silently(both_passes), both_passes(backend="packed"))


def test_writers_at_the_same_time_leave_whole_files(kernels, monkeypatch, tmp_path):
    use = _use(monkeypatch)
    read = []

    def write():
        for _ in range(50):
            _verdicts.write(use, None)
            read.append(_verdicts.read(use))

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read == [{"fault": None}] * 200
    assert len(files(tmp_path)) == 1
