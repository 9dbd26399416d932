"""Adapted attention inside PyTorch's, torchvision's and open_clip's own Transformers, in training and in inference."""

import copy
import warnings

import pytest
import torch
from torch import nn

from fastmoe_lora import RAMoESelfAttention, adapt, ramoe_layers

OPTIONS = {"num_experts": 2, "max_rank": 4, "init_rank": 2.5}
PADDING = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]).bool()  # left aligned: PyTorch would make tensors nested
CAUSAL = nn.Transformer.generate_square_subsequent_mask(5)
PARTS = {"attention": ["*.self_attn"], "mlp": ["*.linear1", "*.linear2"], "first": ["*.linear1"]}


def encoder(**settings) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    settings = {"dropout": 0.0, "batch_first": True} | settings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's: no nested tensors with these settings
        return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, **settings), 2)


def adapted(model: nn.Module, patterns: list[str]) -> nn.Module:
    return adapt(model, dict.fromkeys(patterns, OPTIONS))


def disturb(model: nn.Module) -> None:
    """Adapters that do something."""
    for _, layer in ramoe_layers(model):
        nn.init.normal_(layer.lora_B)


ARGUMENTS = {
    "plain": {},
    "padding": {"src_key_padding_mask": PADDING},
    "causal": {"mask": CAUSAL, "is_causal": True},
    "found causal": {"mask": CAUSAL},
    "both": {"mask": CAUSAL, "src_key_padding_mask": PADDING},
}
SETTINGS = {
    "default": {},
    "norm_first": {"norm_first": True},
    "gelu": {"activation": "gelu"},
    "no bias": {"bias": False},
    "batch second": {"batch_first": False},
}


@pytest.mark.shows(
    "torch.nn Transformers", "`nn.TransformerEncoder`, attention and MLP, with masks, in training and in inference"
)
@pytest.mark.filterwarnings("ignore:.*mismatched.*:UserWarning")
@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("part", PARTS)
def test_an_encoder_computes_what_it_did_and_in_inference_what_it_learned(name, settings, part):
    model, arguments = encoder(**SETTINGS[settings]), ARGUMENTS[name]
    x = torch.randn(2, 5, 16) if settings != "batch second" else torch.randn(5, 2, 16)
    before = model(x, **arguments)
    adapted(model, PARTS[part])
    shown = PADDING.logical_not() if "src_key_padding_mask" in arguments else torch.ones(2, 5).bool()
    shown = shown if settings != "batch second" else shown.T
    torch.testing.assert_close(model(x, **arguments), before)
    disturb(model)
    trained = model(x, **arguments).detach()
    assert not torch.allclose(trained, before)
    with torch.no_grad():
        served = model.eval()(x, **arguments)
    torch.testing.assert_close(served[shown], trained[shown])


def test_an_encoder_of_adapted_layers_takes_no_fused_path():
    """Put together after adapting; the clones keep what was switched off."""
    layer = encoder().layers[0]
    adapt(nn.ModuleDict({"layer": layer}), {"layer.linear1": OPTIONS, "layer.self_attn": OPTIONS})
    with pytest.warns(UserWarning, match="enable_nested_tensor"):
        model = nn.TransformerEncoder(layer, 2)
    disturb(model)
    x = torch.randn(2, 5, 16)
    trained = model.train()(x, src_key_padding_mask=PADDING).detach()
    with torch.no_grad():
        served = copy.deepcopy(model).eval()(x, src_key_padding_mask=PADDING)
    torch.testing.assert_close(served[~PADDING], trained[~PADDING])


def test_encoders_without_adapters_keep_their_fused_path():
    model = nn.ModuleDict({"a": encoder(), "b": encoder()})
    adapt(model, {"b.layers.1.linear1": OPTIONS})
    assert [model[name].use_nested_tensor for name in "ab"] == [True, False]
    assert [layer.activation_relu_or_gelu for name in "ab" for layer in model[name].layers] == [1, 1, 1, 0]


def test_a_nested_tensor_is_refused_in_one_line():
    model = encoder()
    for layer in model.layers:  # by hand: nobody switched the encoder's nested tensors off
        layer.self_attn = RAMoESelfAttention.from_attention(layer.self_attn, **OPTIONS)
    with torch.no_grad(), pytest.raises(ValueError, match=r"^query: got a nested tensor, .*enable_nested_tensor=False"):
        model.eval()(torch.randn(2, 5, 16), src_key_padding_mask=PADDING)


@pytest.mark.shows("torch.nn Transformers", "`nn.TransformerDecoder`, self-attention and cross-attention")
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_a_decoder_with_both_its_attentions(batch_first, norm_first):
    torch.manual_seed(0)
    settings = {"dropout": 0.0, "batch_first": batch_first, "norm_first": norm_first}
    model = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 2, 32, **settings), 2)
    x, memory = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    if not batch_first:
        x, memory = x.transpose(0, 1), memory.transpose(0, 1)
    padding = torch.zeros(2, 7).bool()
    padding[0, 4:] = True
    arguments = {"tgt_mask": CAUSAL, "tgt_is_causal": True, "memory_key_padding_mask": padding}
    before = model(x, memory, **arguments)
    adapted(model, ["*.self_attn", "*.multihead_attn"])
    torch.testing.assert_close(model(x, memory, **arguments), before)
    disturb(model)
    trained = model(x, memory, **arguments)
    trained.square().sum().backward()
    assert len(list(ramoe_layers(model))) == 8
    for name, layer in ramoe_layers(model):
        assert layer.lora_A.grad.flatten(1).norm(dim=1).gt(0).all(), name
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x, memory, **arguments), trained)


@pytest.mark.shows("torch.nn Transformers", "`nn.Transformer` with the dropout of its attention")
def test_a_whole_transformer_with_dropout_of_its_attentions():
    model = nn.Transformer(16, 2, 1, 1, 32, batch_first=True)
    for module in model.modules():
        if isinstance(module, nn.Dropout):  # draws in the order of its input's memory, which may be another
            module.p = 0.0
    x, y = torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    torch.manual_seed(1)
    before = model(x, y, tgt_mask=CAUSAL)
    adapted(model, ["*attn"])
    torch.manual_seed(1)
    torch.testing.assert_close(model(x, y, tgt_mask=CAUSAL), before)


def test_torchvisions_vit():
    from unistd.model.torchvision_ops import define_missing_ops

    define_missing_ops()
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    model = VisionTransformer(32, 8, 2, 2, 16, 32, attention_dropout=0.1, num_classes=4).eval()
    nn.init.normal_(model.heads.head.weight)
    _learns(model, ["*.self_attention"], (torch.randn(2, 3, 32, 32),), 4)


@pytest.mark.parametrize("pool", ["tok", "attentional"])
def test_open_clips_towers(pool):
    from unistd.model.torchvision_ops import define_missing_ops

    define_missing_ops()
    from open_clip.model import CLIP

    torch.manual_seed(0)
    vision = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 32}
    if pool == "attentional":  # queries of width 32 look at keys of width 48
        vision |= {"attentional_pool": True, "width": 48, "attn_pooler_queries": 3, "attn_pooler_heads": 2}
    text = {"context_length": 12, "vocab_size": 100, "width": 32, "heads": 2, "layers": 2}
    model = CLIP(32, vision, text, output_dict=False).eval()
    patterns = ["visual.*.attn", "transformer.*.attn"]  # the pooler's among them
    tower = torch.randn(2, 3, 32, 32), torch.randint(1, 99, (2, 12))
    _learns(model, patterns, tower, 8 + (4 if pool == "attentional" else 0))


def _learns(model: nn.Module, patterns: list[str], inputs: tuple[torch.Tensor, ...], layers: int) -> None:
    before = model(*inputs)
    adapted(model, patterns)
    assert len(list(ramoe_layers(model))) == layers
    after = model(*inputs)
    torch.testing.assert_close(after, before)
    out = after[0] * after[1] if isinstance(after, tuple) else after
    out.square().sum().backward()
    for name, layer in ramoe_layers(model):
        assert layer.lora_B.grad.abs().sum() > 0, name
