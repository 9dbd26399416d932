"""Queries, keys and values that the model computes by layers of their own, as one call."""

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fastmoe_lora import (
    RAMoELinear,
    adapt,
    check_adapters,
    disable_adapters,
    fixed_gates,
    freeze_ranks,
    load_adapters,
    merge,
    ramoe_layers,
    save_adapters,
    save_lora,
    unadapt,
)
from fastmoe_lora.fused import _running
from unistd.model.torchvision_ops import define_missing_ops

FEW = {"num_experts": 2, "max_rank": 4, "init_rank": 2.5}
QKV = ["q_proj", "k_proj", "v_proj"]


def vit(transformers):
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )
    names = QKV if hasattr(transformers.ViTModel(config).layers[0].attention, "q_proj") else ["query", "key", "value"]
    return transformers.ViTModel(config), {"pixel_values": torch.randn(2, 3, 16, 16)}, "*.attention", names


def clip(transformers):
    config = transformers.CLIPVisionConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )
    return transformers.CLIPVisionModel(config), {"pixel_values": torch.randn(2, 3, 16, 16)}, "*.self_attn", QKV


def bert(transformers):
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    names = ["query", "key", "value"]
    return transformers.BertModel(config), {"input_ids": torch.arange(10).view(2, 5)}, "*.attention.self", names


def llama(transformers):
    config = transformers.LlamaConfig(
        vocab_size=20, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1,
        intermediate_size=32,
    )  # fmt: skip
    return transformers.LlamaModel(config), {"input_ids": torch.arange(10).view(2, 5)}, "*.self_attn", QKV


MODELS = (vit, clip, bert, llama)


def made(make, **options):
    """(an adapted model, fused; its like, adapted layer by layer; inputs), with the same adapters."""
    define_missing_ops()
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    plain, inputs, pattern, names = make(transformers)
    plain.eval()
    options = {**FEW, **options}
    fused = adapt(copy.deepcopy(plain), {pattern: {"fuse": names, **options}})
    apart = adapt(copy.deepcopy(plain), {f"{pattern}.{name}": options for name in names})
    move(fused)
    share(fused, apart, names)
    return fused, apart, plain, inputs


def move(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for _, layer in ramoe_layers(model):
        for parameter in (layer.lora_B, layer.rank):
            nn.init.uniform_(parameter, 0.5, 1.5, generator=generator)


def share(fused: nn.Module, apart: nn.Module, names: list[str]) -> None:
    """The adapters of joined layers, to those that are not."""
    modules = dict(apart.named_modules())
    with torch.no_grad():
        for name, layer in ramoe_layers(fused):
            parent = name.rpartition(".")[0]
            for index, one in enumerate(names):
                own = modules[f"{parent}.{one}"]
                units = slice(sum(layer.units[:index]), sum(layer.units[: index + 1]))
                own.lora_A.copy_(layer.lora_A[index : index + 1])
                own.lora_B.copy_(layer.lora_B[units].transpose(0, 1).flatten(1, 2)[None])
                own.rank.copy_(layer.rank[index : index + 1])
                own.router.weight.copy_(layer.router.weight.unflatten(0, (3, -1))[index])


def names_of(model: nn.Module) -> list[str]:
    return QKV if any(name.endswith("q_proj_k_proj_v_proj") for name, _ in ramoe_layers(model)) else MEMBERS


MEMBERS = ["query", "key", "value"]


@pytest.fixture
def calls(monkeypatch):
    """Which parts the joined layers were asked for; None is all of them."""
    asked = []
    forward = RAMoELinear.forward

    def counted(self, x, gates=None, part=None):
        asked.append(part)
        return forward(self, x, gates, part)

    monkeypatch.setattr(RAMoELinear, "forward", counted)
    return asked


@pytest.mark.shows(
    "transformers",
    "ViT, CLIP, BERT and Llama with grouped heads: queries, keys and values fused, equal to layers apart",
)
@pytest.mark.parametrize("router", ["token", "sample"])
@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_equal_to_the_layers_apart_gradients_too(make, router, calls):
    fused, apart, _, inputs = made(make, router=router)
    torch.testing.assert_close(fused(**inputs).last_hidden_state, apart(**inputs).last_hidden_state)
    names, outputs = names_of(fused), []
    inputs = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    for model in (fused.double(), apart.double()):
        calls.clear()
        outputs.append(model(**inputs).last_hidden_state)
        outputs[-1].backward(torch.randn(outputs[-1].shape, generator=torch.Generator().manual_seed(2)).double())
        once = [(0, 1), (1, 3)] if make is llama else [None]
        assert calls == (once * 2 if model is fused else [None] * 6)
    torch.testing.assert_close(*outputs)
    modules = dict(apart.named_modules())
    for name, layer in ramoe_layers(fused):
        for index, one in enumerate(names):
            own = modules[f"{name.rpartition('.')[0]}.{one}"]
            units = slice(sum(layer.units[:index]), sum(layer.units[: index + 1]))
            torch.testing.assert_close(layer.lora_A.grad[index], own.lora_A.grad[0])
            torch.testing.assert_close(layer.lora_B.grad[units].transpose(0, 1).flatten(1, 2), own.lora_B.grad[0])
            torch.testing.assert_close(layer.rank.grad[index], own.rank.grad[0])
            router_grad = layer.router.weight.grad.unflatten(0, (3, -1))[index]
            torch.testing.assert_close(router_grad, own.router.weight.grad)


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_fresh_adapters_add_nothing_are_all_reached_and_go_without_a_trace(make, tmp_path):
    define_missing_ops()
    plain, inputs, pattern, names = make(pytest.importorskip("transformers"))
    plain.eval()
    expected = plain(**inputs).last_hidden_state
    before = {name: (id(value), value.clone()) for name, value in plain.named_parameters()}
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), list(vars(m))) for m in plain.modules()]
    linears = [module for module in plain.modules() if isinstance(module, nn.Linear)]
    adapt(plain, {pattern: {"fuse": names, **FEW}})
    torch.testing.assert_close(plain(**inputs).last_hidden_state, expected)
    assert check_adapters(plain, **inputs) == [name for name, _ in ramoe_layers(plain)]
    move(plain)
    with disable_adapters(plain):
        torch.testing.assert_close(plain(**inputs).last_hidden_state, expected)
    moved = plain(**inputs).last_hidden_state
    assert (moved - expected).abs().max() > 1e-2
    save_adapters(plain, tmp_path)
    other = adapt(unadapt(copy.deepcopy(plain)), {pattern: {"fuse": names, **FEW}})
    load_adapters(other, tmp_path)
    assert torch.equal(other(**inputs).last_hidden_state, moved)
    unadapt(plain)
    assert [module for module in plain.modules() if isinstance(module, nn.Linear)] == linears
    after = dict(plain.named_parameters())
    assert list(after) == list(before)
    for name, (key, value) in before.items():
        assert id(after[name]) == key
        assert torch.equal(after[name], value)
        assert after[name].requires_grad
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks), list(vars(m))) for m in plain.modules()] == hooks
    assert torch.equal(plain(**inputs).last_hidden_state, expected)


@pytest.mark.parametrize("make", [bert, llama], ids=lambda make: make.__name__)
def test_frozen_ranks(make):
    fused, apart, _, inputs = made(make)
    for model in (fused, apart):
        for _, layer in ramoe_layers(model):
            with torch.no_grad():
                layer.rank.copy_(layer.rank.round())
        freeze_ranks(model)
    assert any(layer.columns is None or len(layer.columns) == sum(layer.units) for _, layer in ramoe_layers(fused))
    torch.testing.assert_close(fused(**inputs).last_hidden_state, apart(**inputs).last_hidden_state)


@pytest.mark.shows(
    "transformers", "checkpoints of models that are not adapted load into BERT and Llama with fused projections"
)
@pytest.mark.parametrize("make", [bert, llama], ids=lambda make: make.__name__)
def test_checkpoints_of_models_that_are_not_adapted_fit_and_those_of_other_shapes_are_refused(make):
    fused, _, plain, inputs = made(make)
    for _, layer in ramoe_layers(fused):
        nn.init.zeros_(layer.lora_B)
        nn.init.zeros_(layer.weight)
    _, unexpected = fused.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    torch.testing.assert_close(fused(**inputs).last_hidden_state, plain(**inputs).last_hidden_state)
    again = copy.deepcopy(fused)
    again.load_state_dict(fused.state_dict())
    state = plain.state_dict()
    key = next(key for key in state if key.endswith(f"{names_of(fused)[1]}.weight"))
    state[key] = torch.zeros(2, 2)
    with pytest.raises(RuntimeError, match=f"{key} is a tensor"):
        fused.load_state_dict(state, strict=False)


@pytest.mark.parametrize("make", [bert, llama], ids=lambda make: make.__name__)
def test_merged_and_no_lora_as_a_whole(make, tmp_path):
    fused, apart, _, inputs = made(make)
    with fixed_gates(fused, gates=[0.7, 0.2]), fixed_gates(apart, gates=[0.7, 0.2]):
        expected = fused(**inputs).last_hidden_state
        torch.testing.assert_close(expected, apart(**inputs).last_hidden_state)
    with pytest.raises(ValueError, match="is fused, expected layers that are adapted apart"):
        save_lora(fused, tmp_path, expert=0)
    fused.requires_grad_(False)
    merge(fused, gates=[0.7, 0.2])
    torch.testing.assert_close(fused(**inputs).last_hidden_state, expected, rtol=1e-4, atol=1e-5)
    unadapt(fused, merged=True)
    torch.testing.assert_close(fused(**inputs).last_hidden_state, expected, rtol=1e-4, atol=1e-5)


class Three(nn.Module):
    """Called as ``how`` says."""

    def __init__(self, widths=(8, 8, 8), biases=(True, True, True), **options):
        super().__init__()
        for name, width, bias in zip("qkv", widths, biases, strict=True):
            self.add_module(name, nn.Linear(6, width, bias=bias))
        adapt(self, {"": {"fuse": ["q", "k", "v"], **FEW, **options}})
        move(self)

    def forward(self, how):
        return how(self)

    def apart(self, *xs):
        return [self.q_k_v(x, part=(i, i + 1)) for i, x in enumerate(xs)]


def alike(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_one_call_for_one_input_and_widths_and_biases_of_any_kind(calls):
    x = torch.randn(5, 6)
    for widths, biases, once in (
        ((8, 8, 8), (1, 1, 1), [None]),
        ((8, 2, 2), (1, 0, 1), [(0, 1), (1, 3)]),
        ((4, 12, 8), (0, 0, 0), [(0, 1), (1, 2), (2, 3)]),
    ):
        three = Three(widths, map(bool, biases))
        expected = three.apart(x, x, x)
        calls.clear()
        alike(three(lambda m: [m.q(x), m.k(x), m.v(x)]), expected)
        assert calls == once
        calls.clear()
        alike(three(lambda m: [m.v(x), m.q(x), m.k(x)]), [expected[i] for i in (2, 0, 1)])
        assert calls == once
        assert [m.bias is not None for m in (three.q, three.k, three.v)] == list(map(bool, biases))


def test_other_inputs_are_computed_alone(calls):
    three, x, z = Three(), torch.randn(5, 6), torch.randn(5, 6)
    for xs in ((x, z, z), (x, z, x), (x, x.clone(), x), (z, x, x[:])):
        alike(three(lambda m, xs=xs: [m.q(xs[0]), m.k(xs[1]), m.v(xs[2])]), three.apart(*xs))
    calls.clear()
    alike(three(lambda m: [m.q(x), m.q(x), m.k(x), m.v(x), m.v(x)]), [three.apart(x, x, x)[i] for i in (0, 0, 1, 2, 2)])
    assert calls[:2] == [None, (0, 1)]
    calls.clear()
    alike([three.q(x), three.k(x), three.v(x)], three.apart(x, x, x))  # outside of the parent
    assert None not in calls


def test_an_input_that_was_written_is_another():
    three, x = Three(), torch.randn(5, 6)

    def how(m):
        q = m.q(x)
        x.add_(1)
        return [q, m.k(x), m.v(x)]

    former = x.clone()
    alike(three(how), three.apart(former, x, x))

    with torch.inference_mode():  # which does not count writes
        x = torch.randn(5, 6)
        former = x.clone()
        alike(three(how), three.apart(former, x, x))


def test_another_mode_is_another_call():
    three, x = Three(), torch.randn(5, 6)

    def without_gradients(m):
        with torch.no_grad():
            q = m.q(x)
        return [q, m.k(x), m.v(x)]

    q, k, v = three(without_gradients)
    assert (q.requires_grad, k.requires_grad, v.requires_grad) == (False, True, True)

    def lower(m):
        with torch.autocast("cpu", torch.bfloat16):
            q = m.q(x)
        return [q, m.k(x), m.v(x)]

    assert [y.dtype for y in three(lower)] == [torch.bfloat16, torch.float32, torch.float32]

    def off(m):
        q = m.q(x)
        with disable_adapters(m):
            return [q, m.k(x)]

    torch.testing.assert_close(three(off)[1], nn.functional.linear(x, three.k.weight, three.k.bias))


def test_outputs_may_be_written_one_by_one():
    three, x = Three(), torch.randn(5, 6)

    def how(m):
        q, k, v = m.q(x), m.k(x), m.v(x)
        kept = k.square()  # saves k
        q *= 2
        q.relu_()
        return kept.sum() + q.sum() + v.sum()

    three(how).backward()
    grads = [parameter.grad.clone() for parameter in three.parameters() if parameter.grad is not None]
    three.zero_grad()
    q, k, v = three.apart(x, x, x)
    ((2 * q).relu().sum() + k.square().sum() + v.sum()).backward()
    alike(grads, [parameter.grad for parameter in three.parameters() if parameter.grad is not None])


@pytest.mark.parametrize("failing", [False, True])
def test_nothing_is_held_when_the_parent_is_through(failing):
    three, held = Three(), []

    def how(m):
        x = torch.randn(5, 6)
        held.append(weakref.ref(x))
        q = m.q(x)
        held.append(weakref.ref(q))
        if failing:
            raise RuntimeError("here")
        return None

    gc.disable()
    try:
        for _ in range(2):
            if failing:
                with pytest.raises(RuntimeError, match="here"):
                    three(how)
            else:
                three(how)
        assert not _running.now
    finally:
        gc.enable()
    gc.collect()
    assert not [reference for reference in held if reference() is not None]


@pytest.mark.shows("Activation checkpointing", "of fused projections, around the attention or around one of them")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_checkpointing_around_the_parent_and_around_one_layer(reentrant, dropout, calls):
    three = Three(dropout=dropout).train()
    x = torch.randn(5, 6, requires_grad=True)

    def around(m):
        return torch.cat([m.q(x), m.k(x), m.v(x)], -1)

    def within(m):
        return torch.cat([checkpoint(m.q, x, use_reentrant=reentrant), m.k(x), m.v(x)], -1)

    torch.manual_seed(3)
    loss = three(around).square().sum()
    loss.backward()
    expected, x.grad = x.grad, None
    torch.manual_seed(3)
    calls.clear()
    again = checkpoint(lambda x: three(lambda m: torch.cat([m.q(x), m.k(x), m.v(x)], -1)), x, use_reentrant=reentrant)
    again.square().sum().backward()
    torch.testing.assert_close(x.grad, expected)
    assert calls == [None, None]
    if not dropout:
        x.grad = None
        three(within).square().sum().backward()
        torch.testing.assert_close(x.grad, expected)


def test_graphs_that_are_kept_give_the_same_again():
    three, x = Three(), torch.randn(5, 6, requires_grad=True)
    q, k, v = three(lambda m: [m.q(x), m.k(x), m.v(x)])
    loss = q.sum() + (k * v).sum()
    first = torch.autograd.grad(loss, x, retain_graph=True)
    assert torch.equal(first[0], torch.autograd.grad(loss, x)[0])
    q, k, v = three(lambda m: [m.q(x), m.k(x), m.v(x)])
    (alone,) = torch.autograd.grad(k.sum(), x)
    (expected,) = torch.autograd.grad(three.apart(x, x, x)[1].sum(), x)
    torch.testing.assert_close(alone, expected)


def test_threads_do_not_take_each_others_parts():
    three, failures = Three(), []
    barrier = threading.Barrier(4)

    def work(seed):
        generator = torch.Generator().manual_seed(seed)
        barrier.wait()
        for _ in range(30):
            x = torch.randn(3, 6, generator=generator)
            with torch.no_grad():
                found = three(lambda m, x=x: [m.q(x), m.k(x), m.v(x)])
                for one, other in zip(found, three.apart(x, x, x), strict=True):
                    if not torch.allclose(one, other, atol=1e-5):
                        failures.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


class Around(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(lambda m: [m.q(x), m.k(x), m.v(x)])


@pytest.mark.shows("torch.compile", "fused projections are one graph, with a call for each")
def test_compiled_transformed_copied_and_pickled():
    three, x = Three((8, 4, 4)), torch.randn(5, 6)
    expected = three.apart(x, x, x)

    model = Around(three)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.inner.q.layer is twin.inner.q_k_v is not three.q_k_v
        alike(twin(x), expected)
        nn.init.zeros_(twin.inner.q_k_v.weight)
    alike(model(x), expected)
    alike(torch.compile(model, fullgraph=True, backend="eager")(x), expected)
    with torch.no_grad():
        alike(torch.func.vmap(lambda x: tuple(model(x[None])))(x), [y[:, None] for y in expected])


def test_a_second_adapt_and_the_way_back_after_a_move():
    three, x = Three(), torch.randn(5, 6)
    holder = nn.Sequential(three, nn.Linear(6, 3))
    before = {name for name, parameter in holder.named_parameters() if parameter.requires_grad}
    adapt(holder, {"1": FEW})
    assert before - {"1.weight", "1.bias"} <= {name for name, p in holder.named_parameters() if p.requires_grad}
    weight = three.k.weight.clone()
    unadapt(holder.double())
    assert type(three.k) is nn.Linear
    assert torch.equal(three.k.weight, weight.double())
    assert three.k.weight.is_contiguous()
    assert three.k(x.double()).shape == (5, 8)


def test_hooks_of_the_layers_go_on():
    parent = nn.Module()
    parent.q, parent.k = nn.Linear(6, 8), nn.Linear(6, 8)
    seen = []
    parent.k.register_forward_hook(lambda module, inputs, output: seen.append(module) or output * 2)
    parent.forward = lambda x: (parent.q(x), parent.k(x))
    x = torch.randn(2, 6)
    expected = parent(x)
    adapt(parent, {"": {"fuse": ["q", "k"], **FEW}})
    alike(parent(x), expected)
    assert seen[1] is parent.k


class Parted(nn.Module):
    """Which of its layers matter to the output, ``uses`` says."""

    def __init__(self, uses):
        super().__init__()
        self.q, self.k, self.v, self.uses = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 8), uses

    def forward(self, x):
        return sum(getattr(self, name)(x) for name in self.uses)


@pytest.mark.parametrize(("uses", "missed"), [("qkv", ""), ("qk", "'v'"), ("v", "'q', 'k'")])
def test_a_layer_that_is_never_called_is_found(uses, missed):
    model = adapt(Parted(uses), {"": {"fuse": ["q", "k", "v"], **FEW}})
    hooks = [len(module._forward_hooks) for module in model.modules()]
    if missed:
        with pytest.raises(ValueError, match=f"of 4 adapters were never reached: {missed}: Parted reads"):
            check_adapters(model, torch.randn(2, 6))
    else:
        assert check_adapters(model, torch.randn(2, 6)) == ["q_k_v"]
    assert [len(module._forward_hooks) for module in model.modules()] == hooks


class Reading(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, 8) for _ in range(3))

    def forward(self, x):
        return nn.functional.linear(x, self.q.weight), self.k(x), self.v(x)


def twice() -> nn.Module:
    model = nn.ModuleDict({"a": Reading(), "b": Reading()})
    model["b"].k = model["a"].k
    return model


def two() -> nn.Module:
    return nn.ModuleDict({"q": nn.Linear(6, 8), "k": nn.Linear(6, 8)})


def other_inputs() -> nn.Module:
    return nn.ModuleDict({"q": nn.Linear(6, 8), "k": nn.Linear(6, 8), "v": nn.Linear(5, 8)})


REFUSED = {
    "one name": (lambda: nn.ModuleDict({"q": nn.Linear(6, 8)}), {"": {"fuse": ["q"]}}, "two layers or more"),
    "twice the same": (Reading, {"": {"fuse": ["q", "q"]}}, "each once"),
    "a text": (Reading, {"": {"fuse": "qk"}}, "a list of names"),
    "numbers": (Reading, {"": {"fuse": [1, 2]}}, "a list of names"),
    "none": (Reading, {"": {"fuse": None}}, "a list of names"),
    "no such layers": (Reading, {"": {"fuse": ["q", "w"]}}, "matches no module with q, w of Reading"),
    "no such module": (Reading, {"a.*": {"fuse": ["q", "k"]}}, "matches no module with q, k"),
    "other inputs": (other_inputs, {"": {"fuse": ["q", "k", "v"]}}, "fuse: got layers of 5 and 6 features"),
    "other dtypes": (
        lambda: nn.ModuleDict({"q": nn.Linear(6, 8), "k": nn.Linear(6, 8).double()}),
        {"": {"fuse": ["q", "k"]}},
        "fuse: got weights of torch.float32 and torch.float64",
    ),
    "no multiples": (
        lambda: nn.ModuleDict({"q": nn.Linear(6, 9), "k": nn.Linear(6, 6)}),
        {"": {"fuse": ["q", "k"]}},
        "expected multiples of the smallest",
    ),
    "splits": (two, {"": {"fuse": ["q", "k"], "splits": 2}}, "splits: got 2, expected none"),
    "another option": (two, {"": {"fuse": ["q", "k"], "max_rank": 0}}, "max_rank: got 0"),
    "not linear": (
        lambda: nn.ModuleDict({"q": nn.Linear(6, 8), "k": nn.LayerNorm(6)}),
        {"": {"fuse": ["q", "k"]}},
        "rules: 'k': fuse: got a LayerNorm, expected an nn.Linear",
    ),
    "one layer in two places": (twice, {"a": {"fuse": ["q", "k"]}}, "'a.k' is 'b.k' by another name"),
    "two rules": (Reading, {"k": FEW, "": {"fuse": ["q", "k"]}}, "rules: 'k' is matched by 'k' and by ''"),
    "read": (Reading, {"": {"fuse": ["q", "k", "v"]}}, "rules: 'q': expected a layer that is called"),
    "parametrized": (
        lambda: nn.ModuleDict({"q": nn.utils.parametrizations.weight_norm(nn.Linear(6, 8)), "k": nn.Linear(6, 8)}),
        {"": {"fuse": ["q", "k"]}},
        "rules: 'q': ",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name_with_nothing_changed(case):
    make, rules, culprit = REFUSED[case]
    model = make()
    before = [(name, type(module), list(vars(module))) for name, module in model.named_modules()]
    with pytest.raises((TypeError, ValueError)) as refusal:
        adapt(model, rules)
    assert culprit in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert [(name, type(module), list(vars(module))) for name, module in model.named_modules()] == before
    assert all(parameter.requires_grad for parameter in model.parameters())
