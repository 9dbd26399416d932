"""An adapted Vision Transformer among PyTorch's own machinery: compiled, checkpointed, under autocast, from meta."""

import copy
from functools import partial

import pytest
import torch
from support.vit import adapted_vit, images, plain_vit
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from fastmoe_lora import ramoe_layers, ranks_frozen

STAGES = pytest.mark.parametrize("frozen", [False, True], ids=["learning", "frozen"])


def gradients(model: nn.Module, call, x: Tensor) -> list[Tensor]:
    """Output and the gradients of all that learns."""
    model.zero_grad()
    y = call(x)
    y.float().square().mean().backward()
    return [y.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def assert_alike(found: list[Tensor], wanted: list[Tensor], **tolerance) -> None:
    assert len(found) == len(wanted) > 1
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two, **tolerance)


@pytest.mark.shows("torch.compile", "a Vision Transformer is one graph, compiled once for batches of any size")
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@STAGES
def test_compiles_once_without_a_graph_break(frozen, training):
    model = adapted_vit(frozen, depth=2).train(training)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for batch in (4, 2, 7, 3):
        x = images(batch)
        torch._dynamo.mark_dynamic(x, 0)
        assert_alike(gradients(model, compiled, x), gradients(model, model, x))
    assert counter.frame_count == 1
    calls = [node for node in counter.graphs[0].graph.nodes if "ramoe_forward" in str(node.target)]
    assert len(calls) == len(dict(ramoe_layers(model)))  # an operator a layer, not what it is made of


@pytest.mark.shows("torch.compile", "with `dynamic=True` or without, no more compilations than the model had before")
@pytest.mark.parametrize("dynamic", [True, None], ids=["dynamic", "automatic"])
def test_is_compiled_no_more_often_than_before(dynamic):
    counts = []
    for model in (plain_vit(), adapted_vit()):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("eager")
        compiled = torch.compile(model, fullgraph=True, backend=counter, dynamic=dynamic)
        for batch in (4, 2, 7, 1, 3):
            compiled(images(batch))
        counts.append(counter.frame_count)
    assert counts[1] <= counts[0]


@pytest.mark.shows("torch.compile", "under autocast, outputs and gradients of the eager model")
@pytest.mark.shows("autocast", "a Vision Transformer, compiled or not")
def test_autocast_compiled_or_not():
    model, x = adapted_vit(), images(3)
    exact = gradients(model, model, x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        found, traced = gradients(model, model, x), gradients(model, compiled, x)
    assert found[0].dtype == traced[0].dtype == torch.bfloat16
    assert {gradient.dtype for gradient in found[1:]} == {torch.float32}
    for one, two, three in zip(found, traced, exact, strict=True):
        scale = three.abs().max()
        assert (one.float() - three).abs().max() < 0.1 * scale
        assert (two.float() - three).abs().max() < 0.1 * scale


class _Checkpointed(nn.Module):
    def __init__(self, block: nn.Module, reentrant: bool):
        super().__init__()
        self.block, self.reentrant = block, reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.block, x, use_reentrant=self.reentrant)


@pytest.mark.shows("Activation checkpointing", "block by block, reentrant or not: the same gradients, bit for bit")
@pytest.mark.parametrize("reentrant", [False, True], ids=["not reentrant", "reentrant"])
@STAGES
def test_checkpointed_blocks_have_the_same_gradients(frozen, reentrant):
    model = adapted_vit(frozen, depth=2, dropout=0.2, interpolation="sampled").train()
    x = images(3).requires_grad_()  # a reentrant block needs an input with a gradient
    torch.manual_seed(1)
    wanted = gradients(model, model, x)
    blocks = model.encoder.layers
    for name, block in list(blocks.named_children()):
        setattr(blocks, name, _Checkpointed(block, reentrant))
    torch.manual_seed(1)
    for one, two in zip(gradients(model, model, x), wanted, strict=True):
        assert torch.equal(one, two)


def _emptied(model: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    model.to_empty(device="cpu").load_state_dict(state)
    return model


def _assigned(model: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    model.load_state_dict(copy.deepcopy(state), assign=True)
    return model


@pytest.mark.shows("The meta device", "then `to_empty` and `load_state_dict`, or `load_state_dict(assign=True)`")
@pytest.mark.parametrize("fill", [_emptied, _assigned])
@STAGES
def test_from_the_meta_device(frozen, fill):
    source = adapted_vit(frozen)
    with torch.device("meta"):
        made = adapted_vit()
    assert all(parameter.is_meta for parameter in made.parameters())
    model = fill(made, source.state_dict()).eval()
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    assert ranks_frozen(model) == frozen
    x = images(2)
    assert torch.equal(model(x), source(x))
    learns = [{name for name, p in one.named_parameters() if p.requires_grad} for one in (model, source)]
    assert learns[0] == learns[1]
    assert_alike(gradients(model, model, x), gradients(source, source, x))


@pytest.mark.shows("inference_mode", "the outputs of the other modes, and training goes on after it")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "autocast"])
@STAGES
def test_inference_mode_then_training(frozen, dtype):
    model, x = adapted_vit(frozen), images(3)
    autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)
    with torch.inference_mode(), autocast():
        first = model(x)
    with torch.no_grad(), autocast():
        assert torch.equal(first.clone(), model(x))
    with autocast():
        found = gradients(model, model, x)
        with torch.inference_mode():
            again = model(x)
    assert torch.equal(again.clone(), first.clone())
    if dtype == torch.float32:
        torch.testing.assert_close(found[0], first.clone())
    assert all(gradient.isfinite().all() for gradient in found)
    assert any(gradient.abs().sum() > 0 for gradient in found[1:])
