"""Exported, the layers are PyTorch's own operations: torch.export, ONNX Runtime, AOTInductor; batches of any size."""

import subprocess
import sys
import warnings

import pytest
import torch
from support.vit import adapted_vit, disturbed, images
from torch import Tensor, nn

from fastmoe_lora import FrozenLinear, RAMoELinear, adapt

WIDTH, TOKENS = 24, 5
OPTIONS = {
    "fractional ranks": {},
    "top-k router": {"top_k": 2},
    "sample router": {"router": "sample"},
    "as printed": {"interpolation": "as_printed"},
    "sampled ranks": {"interpolation": "sampled"},
    "dropout": {"dropout": 0.5},
    "cpu": {"backend": "cpu"},
    "reference": {"backend": "reference"},
}


@pytest.fixture(autouse=True)
def _quiet():
    """Of deprecations inside of torch.export and onnxscript."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", (FutureWarning, DeprecationWarning))
        yield


def vision_transformer(frozen: bool) -> tuple[nn.Module, Tensor]:
    return adapted_vit(frozen), images(2)


def encoder(frozen: bool) -> tuple[nn.Module, Tensor]:
    block = nn.TransformerEncoderLayer(WIDTH, 2, 32, batch_first=True)
    model = adapt(nn.TransformerEncoder(block, 1, enable_nested_tensor=False), {"*.self_attn": {"num_experts": 2}})
    for layer in model.layers:
        layer.linear1 = FrozenLinear.from_linear(layer.linear1)
    return disturbed(model, frozen), torch.randn(2, TOKENS, WIDTH)


def one_layer(frozen: bool, **options) -> tuple[nn.Module, Tensor]:
    layer = RAMoELinear(WIDTH, 36, splits=3, num_experts=3, init_rank=2.5, **options)
    return disturbed(layer, frozen), torch.randn(2, TOKENS, WIDTH)


CASES = {
    **{name: (one_layer, options) for name, options in OPTIONS.items()},
    "VisionTransformer": (vision_transformer, {}),
    "TransformerEncoder": (encoder, {}),
}
BOTH = [(name, frozen) for name in CASES for frozen in (False, True) if frozen or name in OPTIONS]


def exported(model: nn.Module, x: Tensor, **options) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1, max=64)
    return torch.export.export(model, (x,), dynamic_shapes=({0: batch},), **options)


def batches(x: Tensor) -> list[Tensor]:
    return [x, x[:1], torch.cat([x, 2 * x, x.flip(0)])]


def namespaces(program: torch.export.ExportedProgram) -> set[str]:
    graphs = (module.graph for module in program.graph_module.modules())
    targets = (node.target for graph in graphs for node in graph.nodes if node.op == "call_function")
    return {target.namespace for target in targets if isinstance(target, torch._ops.OpOverload)}


@pytest.mark.shows(
    "torch.export",
    "plain ATen operations, batches of any size: all routers, learning and frozen ranks, attention, whole models",
)
@pytest.mark.parametrize(("name", "frozen"), BOTH, ids=str)
def test_exports_as_operations_of_pytorch(name, frozen):
    make, options = CASES[name]
    model, x = make(frozen, **options)
    program = exported(model, x)
    assert namespaces(program) == {"aten"}
    for batch in batches(x):
        torch.testing.assert_close(program.module()(batch), model(batch))
    assert namespaces(program.run_decompositions()) == {"aten"}


@pytest.mark.shows("torch.export", "`strict=True` likewise")
@pytest.mark.parametrize("name", ["fractional ranks", "top-k router", "TransformerEncoder"])
def test_exports_strictly(name):
    make, options = CASES[name]
    model, x = make(True, **options)
    program = exported(model, x, strict=True)
    assert namespaces(program) == {"aten"}
    for batch in batches(x):
        torch.testing.assert_close(program.module()(batch), model(batch))


def test_the_first_call_of_all_may_be_an_export(tmp_path):
    script = """
import torch, fastmoe_lora
layer = fastmoe_lora.RAMoELinear(8, 8)
program = torch.export.export(layer, (torch.randn(2, 8),))
print({node.target.namespace for node in program.graph.nodes if hasattr(node.target, "namespace")})
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "{'aten'}\n"


@pytest.mark.shows("torch.export", "a saved program runs without this library")
def test_saved_programs_run_without_the_library(tmp_path):
    model, x = one_layer(True)
    torch.export.save(exported(model, x), tmp_path / "layer.pt2")
    torch.save((x, model(x)), tmp_path / "expected.pt")
    script = """
import sys, torch
program = torch.export.load("layer.pt2").module()
x, expected = torch.load("expected.pt")
torch.testing.assert_close(program(x), expected)
print("fastmoe_lora" in sys.modules)
"""
    command = [sys.executable, "-W", "ignore", "-c", script]
    assert subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout == "False\n"


@pytest.mark.parametrize("where", ["around", "inside"])
def test_exports_under_autocast(where):
    class Inside(nn.Module):
        def __init__(self, layer: nn.Module):
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return self.layer(x)

    layer, x = one_layer(False)
    expected = Inside(layer)(x)
    if where == "inside":
        program = exported(Inside(layer).eval(), x)
    else:
        with torch.autocast("cpu", torch.bfloat16):
            program = exported(layer, x)
    got = program.module()(x)
    assert got.dtype == expected.dtype == torch.bfloat16
    error = (layer(x) - expected.float()).abs().max()  # of computing in bfloat16 at all
    assert (got.float() - expected.float()).abs().max() <= 2 * error


def test_a_training_step_exports():
    layer, x = one_layer(False, dropout=0.5, interpolation="sampled")
    program = exported(layer.train(), x)
    assert namespaces(program) == {"aten"}
    assert not torch.equal(program.module()(x), program.module()(x))  # ranks and dropout are drawn at each call


@pytest.mark.shows(
    "ONNX", "`torch.onnx.export(dynamo=True)` of layers and of a Vision Transformer gives equal outputs in ONNX Runtime"
)
@pytest.mark.parametrize("frozen", [False, True], ids=["learning", "frozen"])
@pytest.mark.parametrize("name", ["fractional ranks", "top-k router", "VisionTransformer"])
def test_onnx_runtime_gives_equal_outputs(name, frozen, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    make, options = CASES[name]
    model, x = make(frozen, **options)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.onnx.export(model, (x,), dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for batch in batches(x):
        (got,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
        torch.testing.assert_close(torch.from_numpy(got), model(batch).detach(), rtol=1e-4, atol=1e-5)


def test_ties_of_a_top_k_router_are_the_same_in_onnx_runtime(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    layer, x = one_layer(True, top_k=2)
    nn.init.zeros_(layer.router.weight)  # all experts tie: the first two are taken
    torch.onnx.export(layer, (x,), tmp_path / "model.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), layer(x).detach())


@pytest.mark.shows("AOTInductor", "packages compute the same for batches of any size")
def test_aot_inductor_packages(tmp_path):
    layer, x = one_layer(True)
    path = torch._inductor.aoti_compile_and_package(exported(layer, x), package_path=str(tmp_path / "layer.pt2"))
    compiled = torch._inductor.aoti_load_package(path)
    for batch in batches(x):
        torch.testing.assert_close(compiled(batch), layer(batch).detach())
