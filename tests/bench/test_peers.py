"""Every peer that can run here computes the layer's function: output and gradients, in float64 to rounding."""

import pytest
import torch

from bench.harness.layer_comparison import Entrant, Judge, compare_layers, enter
from bench.harness.problem import Problem, parse_size, relative_error, worst_error
from bench.harness.record import MEASURED, WRONG
from bench.peers import FLOOR, PEERS

CPU = torch.device("cpu")
SIZES = (Problem("split", 17, 24, 36, S=3, E=4, R=5), Problem("one", 33, 16, 20, E=2, R=8))


# A compiled peer runs the module of "three-gemm", in seconds; its own check happens before it is timed.
EAGER = [name for name, peer in PEERS.items() if peer.complete and not peer.compiles]
IN_FLOAT64 = [name for name in EAGER if name not in ("unsloth", "lorafusion", "scattermoe", "triton", "cpu")]


@pytest.mark.parametrize("problem", SIZES, ids=lambda problem: problem.name)
@pytest.mark.parametrize(
    ("name", "gradients"),
    [(name, gradients) for name in IN_FLOAT64 for gradients in (False, True) if PEERS[name].trains or not gradients],
)
def test_peer_equals_reference_in_float64(name, gradients, problem):
    weights = problem.weights(torch.float64)
    (entrant,) = enter(weights, CPU, [name], gradients=gradients)
    judge = Judge(weights, gradients)
    exact, _ = judge.expected(entrant.peer)
    found = judge.found(entrant)
    expected = {"y", "x", "lora_A", "lora_B", "router_weight"} if gradients else {"y"}
    assert found.keys() == expected | ({"rank"} if gradients and PEERS[name].learns_ranks else set())
    for key, value in found.items():
        assert relative_error(value.reshape(exact[key].shape), exact[key]) < 1e-12, key


@pytest.mark.parametrize("name", ["unsloth", "lorafusion", "scattermoe", "triton"])
def test_what_needs_a_gpu_says_so_in_one_line(name):
    (entry,) = enter(SIZES[0].weights(torch.float32), CPU, [name], gradients=False)
    assert entry.status == "unavailable"
    assert entry.reason
    assert "\n" not in entry.reason


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_entrant_of_a_comparison_passes_its_check(dtype):
    group = compare_layers(SIZES[0], dtype, device=CPU, names=[FLOOR, *EAGER], gradients=True, seconds=0, min_rounds=1)
    assert group.entry(FLOOR).measured
    for entry in group.entries:
        assert entry.status in (MEASURED, "unavailable"), f"{entry.name}: {entry.reason}"
        assert entry.measured == bool(entry.samples)
    assert {"packed", "reference", "three-gemm", "peft-lora", "hydralora"} <= {
        e.name for e in group.entries if e.samples
    }


def test_a_compiled_peer_runs_and_is_checked():
    group = compare_layers(
        SIZES[1], torch.float32, device=CPU, names=["compile"], gradients=True, seconds=0, min_rounds=1
    )
    assert group.entries[0].measured, group.entries[0].reason
    assert group.entries[0].error <= group.entries[0].allowed


@pytest.mark.parametrize("gradients", [False, True], ids=["forward", "backward"])
def test_a_wrong_result_is_not_timed_and_gets_no_ratio(monkeypatch, capsys, gradients):
    from bench.harness.progress import print_group

    kind = PEERS["packed"]
    right = kind.forward
    if gradients:  # the right output, with a gradient of x that is off by a thousandth
        monkeypatch.setattr(kind, "forward", lambda self, x: right(self, x * 1.001 - x.detach() * 0.001))
    else:
        monkeypatch.setattr(kind, "forward", lambda self, x: (right(self, x)[0] * 1.001,))
    group = compare_layers(SIZES[0], torch.float32, device=CPU, names=[FLOOR, "packed"], gradients=gradients, seconds=0)
    entry = group.entry("packed")
    assert entry.status == WRONG
    assert not entry.samples
    assert group.ratio("packed", FLOOR) is None
    print_group(group)
    line = next(line for line in capsys.readouterr().out.splitlines() if "packed" in line)
    assert "wrong: " in line
    assert " x linear" not in line


def test_a_result_that_is_not_finite_is_wrong(monkeypatch):
    kind = PEERS["packed"]
    right = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, x: (right(self, x)[0] * float("nan"),))
    (entrant,) = enter(SIZES[0].weights(torch.float32), CPU, ["packed"], gradients=False)
    assert entrant.entry.status == WRONG


def test_a_peer_that_raises_does_not_stop_the_others(monkeypatch):
    def broken(self, weights):
        raise RuntimeError("cannot be built")

    monkeypatch.setattr(PEERS["hydralora"], "__init__", broken)
    group = compare_layers(
        SIZES[0], torch.float32, device=CPU, names=[FLOOR, "hydralora", "packed"], gradients=False, seconds=0
    )
    assert group.entry("hydralora").status == "failed"
    assert group.entry("hydralora").reason == "RuntimeError: cannot be built"
    assert group.entry("packed").measured


def test_peers_get_contiguous_inputs_on_the_same_weights():
    weights = SIZES[0].weights(torch.float32)
    for name in (FLOOR, "three-gemm", "hydralora", "packed"):
        (entrant,) = enter(weights, CPU, [name], gradients=False)
        assert isinstance(entrant, Entrant)
        assert entrant.x.is_contiguous()
        assert torch.equal(entrant.x, weights.x)


def test_sizes_are_parsed_and_bad_ones_named():
    assert parse_size("M=3,K=4,N=6,S=2,E=3,R=1").shape == {"M": 3, "K": 4, "N": 6, "S": 2, "E": 3, "R": 1}
    for text in ("M=3", "M=3,K=4,N=6,S=4", "M=0,K=4,N=6", "huge"):
        with pytest.raises(ValueError, match=text):
            parse_size(text)


def test_the_worst_error_is_the_closest_to_its_bound_and_a_wrong_one_says_so():
    exact = {"y": torch.ones(4, dtype=torch.float64), "x": torch.ones(2, dtype=torch.float64)}
    plain = {name: value * 1.01 for name, value in exact.items()}
    error, allowed, wrong = worst_error({"y": exact["y"] * 1.001, "x": exact["x"] * 1.01}, exact, plain)
    assert (error, allowed, wrong) == (pytest.approx(0.01), pytest.approx(0.02, rel=1e-3), "")
    *_, wrong = worst_error({"y": exact["y"], "x": exact["x"] * 1.03}, exact, plain)
    assert wrong.startswith("x: relative error 3.00e-02")
    *_, wrong = worst_error({"y": exact["y"] * float("nan")}, exact, plain)
    assert wrong.startswith("y: relative error inf")
