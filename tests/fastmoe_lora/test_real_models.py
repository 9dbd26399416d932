"""Classes of other libraries, from `adapt` to `unadapt`; and what is refused of them, by name."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from support import real_models as real
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fastmoe_lora import (
    adapt,
    check_adapters,
    disable_adapters,
    load_adapters,
    ramoe_layers,
    save_adapters,
    trainable_parameters,
    unadapt,
)

OPTIONS = {"num_experts": 2, "max_rank": 4, "init_rank": 2.5}


class Model(NamedTuple):
    make: Callable[[], nn.Module]
    patterns: dict[str, dict[str, Any]]
    inputs: Callable[[], dict[str, Tensor] | tuple[Tensor, ...]]
    adapters: int

    def adapt(self, model: nn.Module) -> nn.Module:
        return adapt(model, {pattern: {**OPTIONS, **more} for pattern, more in self.patterns.items()})


def outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    found = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    return [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def train(model: nn.Module, inputs: Any) -> None:
    optimizer = torch.optim.AdamW((parameter for _, parameter in trainable_parameters(model)), lr=0.02)
    model.train()
    for _ in range(3):
        optimizer.zero_grad()
        sum(output.square().mean() for output in outputs(model, inputs)).backward()
        optimizer.step()
    model.eval()


def bits(model: nn.Module) -> dict[str, tuple]:
    state = model.state_dict(keep_vars=True)
    return {name: (value.requires_grad, value.dtype, value.detach().numpy().tobytes()) for name, value in state.items()}


MLP = {"*.mlp.fc1": {}, "*.mlp.fc2": {}}
TIMM = {"*.attn.qkv": {"splits": 3}, "*.attn.proj": {}, **MLP}


def image(size: int = 32) -> Callable[[], tuple[Tensor]]:
    return lambda: (real.images(size),)


def ids() -> dict[str, Tensor]:
    return {"input_ids": real.tokens()}


MODELS = [
    pytest.param(
        Model(partial(real.timm_model, "vit_tiny_patch16_224"), TIMM, image(), 4),
        marks=pytest.mark.shows(
            "timm", "ViT: QKV (three splits), output projection and MLP, from `adapt` to `unadapt`"
        ),
        id="timm ViT",
    ),
    pytest.param(
        Model(partial(real.timm_model, "beit_base_patch16_224"), TIMM, image(), 4),
        marks=pytest.mark.shows(
            "timm", "BEiT: QKV, which it calls then, projection and MLP, from `adapt` to `unadapt`"
        ),
        id="timm BEiT",
    ),
    pytest.param(
        Model(partial(real.timm_model, "swinv2_tiny_window8_256"), TIMM, image(64), 8),
        marks=pytest.mark.shows(
            "timm", "Swin v2: QKV, which it calls then, projection, MLP, from `adapt` to `unadapt`"
        ),
        id="timm Swin v2",
    ),
    pytest.param(
        Model(partial(real.timm_model, "eva02_tiny_patch14_224"), TIMM, image(28), 4),
        marks=pytest.mark.shows("timm", "EVA-02, tiny: QKV, which it calls then, projection, MLP, to `unadapt`"),
        id="timm EVA-02 tiny",
    ),
    pytest.param(
        Model(
            partial(real.timm_model, "eva02_base_patch14_224"),
            {"*.attn.?_proj": {}, "*.attn.proj": {}, "*.mlp.fc*": {}},
            image(28),
            7,
        ),
        marks=pytest.mark.shows("timm", "EVA-02, base: separate queries, keys, values, SwiGLU, to `unadapt`"),
        id="timm EVA-02 base",
    ),
    pytest.param(
        Model(
            real.open_clip,
            {"*.attn": {}, "*.mlp.c_fc": {}, "*.mlp.c_proj": {}},
            lambda: (real.images(), real.tokens()),
            8,
        ),
        marks=pytest.mark.shows("open_clip", "CLIP: attention and MLP of both towers, from `adapt` to `unadapt`"),
        id="open_clip CLIP",
    ),
    pytest.param(
        Model(
            partial(real.hugging_face, "ViT"),
            {"*.attention.?_proj": {}, "*.mlp.fc?": {}},
            lambda: {"pixel_values": real.images()},
            6,
        ),
        marks=pytest.mark.shows("transformers", "ViT: attention and MLP, from `adapt` to `unadapt`"),
        id="transformers ViT",
    ),
    pytest.param(
        Model(
            partial(real.hugging_face, "CLIP"),
            {"*.self_attn.*_proj": {}, "*.mlp.fc?": {}},
            lambda: {"input_ids": real.tokens(), "pixel_values": real.images()},
            12,
        ),
        marks=pytest.mark.shows("transformers", "CLIP: attention and MLP of both towers, from `adapt` to `unadapt`"),
        id="transformers CLIP",
    ),
    pytest.param(
        Model(
            partial(real.hugging_face, "BERT"),
            {"*.query": {}, "*.key": {}, "*.value": {}, "*.layer.*.dense": {}},
            ids,
            6,
        ),
        marks=pytest.mark.shows("transformers", "BERT: attention and MLP, from `adapt` to `unadapt`"),
        id="transformers BERT",
    ),
    pytest.param(
        Model(
            partial(real.hugging_face, "GPT-2"),
            {"*.c_attn": {"splits": 3}, "*.c_proj": {}, "*.c_fc": {}, "lm_head": {}},
            ids,
            5,
        ),
        marks=pytest.mark.shows(
            "transformers", "GPT-2: `Conv1D` of attention and MLP, and the head tied to the embedding, to `unadapt`"
        ),
        id="transformers GPT-2",
    ),
    pytest.param(
        Model(partial(real.hugging_face, "Llama"), {"*.self_attn.*_proj": {}, "*.mlp.*_proj": {}}, ids, 7),
        marks=pytest.mark.shows("transformers", "Llama with grouped heads: attention and MLP, to `unadapt`"),
        id="transformers Llama",
    ),
    pytest.param(
        Model(real.torchvision_vit, {"*.self_attention": {}, "*.mlp.?": {}}, image(), 4),
        marks=pytest.mark.shows("torchvision", "ViT: attention and MLP, from `adapt` to `unadapt`"),
        id="torchvision ViT",
    ),
    pytest.param(
        Model(real.torchvision_swin, {"*.mlp.?": {}}, image(), 4),
        marks=pytest.mark.shows("torchvision", "Swin: MLP, from `adapt` to `unadapt`"),
        id="torchvision Swin",
    ),
    pytest.param(
        Model(
            real.torch_encoder,
            {"*.self_attn": {}, "*.linear?": {}},
            lambda: (torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(4)),),
            4,
        ),
        marks=pytest.mark.shows("torch.nn Transformers", "`nn.TransformerEncoder`, from `adapt` to `unadapt`"),
        id="nn.TransformerEncoder",
    ),
]


@pytest.mark.filterwarnings("ignore:.*nested_tensor:UserWarning")
@pytest.mark.parametrize("model", MODELS)
def test_from_adapt_to_unadapt(model: Model, tmp_path: Path):
    plain, inputs = model.make(), model.inputs()
    before, output = bits(plain), [value.detach() for value in outputs(plain, inputs)]
    assert output
    adapted = model.adapt(plain)
    names = [name for name, _ in ramoe_layers(adapted)]
    assert len(names) == model.adapters
    torch.testing.assert_close(outputs(adapted, inputs), output)
    given = {"args": (), "kwargs": inputs} if isinstance(inputs, dict) else {"args": inputs, "kwargs": {}}
    assert check_adapters(adapted, *given["args"], **given["kwargs"]) == names

    fresh = {name: (layer.lora_A.clone(), layer.lora_B.clone()) for name, layer in ramoe_layers(adapted)}
    train(adapted, inputs)
    for name, layer in ramoe_layers(adapted):
        assert not torch.equal(layer.lora_A, fresh[name][0]), name
        assert not torch.equal(layer.lora_B, fresh[name][1]), name
    trained = outputs(adapted, inputs)
    assert any(not torch.allclose(mine, plain) for mine, plain in zip(trained, output, strict=True))
    with disable_adapters(adapted):
        torch.testing.assert_close(outputs(adapted, inputs), output)

    save_adapters(adapted, tmp_path)
    loaded = model.adapt(model.make())
    load_adapters(loaded, tmp_path)
    torch.testing.assert_close(outputs(loaded, inputs), trained)

    assert unadapt(adapted) is adapted
    assert bits(adapted) == before
    for mine, original in zip(outputs(adapted, inputs), output, strict=True):
        assert torch.equal(mine, original)


REFUSED = [
    pytest.param(
        real.torchvision_swin,
        {"*.attn.qkv": {}},
        r"attn\.qkv': expected a layer that is called, but ShiftedWindowAttention\.forward",
        marks=pytest.mark.shows("torchvision", "Swin: attention, which reads weights, is refused by name"),
        id="torchvision Swin",
    ),
    pytest.param(
        real.torchvision_swin,
        {"*.mlp.0": {}, "*.attn.proj": {}},
        r"attn\.proj': expected a layer that is called, but ShiftedWindowAttention\.forward",
        id="torchvision Swin, after others",
    ),
]


@pytest.mark.parametrize(("make", "rules", "message"), REFUSED)
def test_what_is_refused_by_name_stays_as_it_was(make, rules, message):
    model = make()
    before, modules = bits(model), dict(model.named_modules())
    with pytest.raises(ValueError, match=message):
        adapt(model, rules)
    assert bits(model) == before
    assert dict(model.named_modules()) == modules
