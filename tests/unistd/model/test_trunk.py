"""The trunk against the models that its weights come from: open_clip's and timm's own Vision Transformers."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import save_file
from support.tiny import ADAPTER, SPECS, batch, relative_error, tiny_model

from unistd import TrunkConfig, UniSTD
from unistd.model.layers import LayerFactory
from unistd.model.sources import load_trunk, trunk_config
from unistd.model.torchvision_ops import define_missing_ops
from unistd.model.trunk import Trunk
from unistd.model.weights import convert_weights, read_weights

define_missing_ops()
import open_clip  # noqa: E402
import timm  # noqa: E402
from open_clip.transformer import QuickGELU  # noqa: E402
from open_clip.transformer import VisionTransformer as OpenClipViT  # noqa: E402
from timm.models.vision_transformer import VisionTransformer as TimmViT  # noqa: E402

WIDTH, DEPTH, HEADS, TOKENS = 64, 3, 4, 17
CLIP = TrunkConfig(WIDTH, DEPTH, HEADS, input_norm=True)
TIMM = TrunkConfig(WIDTH, DEPTH, HEADS, norm_eps=1e-6)


def randomized(model):
    """Every parameter random, also those that start at zero or one."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1 + (0.5 if parameter.dim() == 1 else 0.0))
    return model.eval()


def open_clip_vit(width=WIDTH, depth=DEPTH, heads=HEADS, **options):
    return randomized(OpenClipViT(32, 8, width, depth, heads, 4.0, output_dim=8, **options))


def timm_vit(**options):
    options = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, **options}
    return randomized(TimmViT(img_size=32, patch_size=8, num_classes=0, **options))


def blocks_of(model):
    return model.transformer.resblocks if isinstance(model, OpenClipViT) else model.blocks


def whole_of(model, x):
    """All blocks and the LayerNorms around them."""
    if isinstance(model, OpenClipViT):
        return model.ln_post(model.transformer(model.ln_pre(x)))
    return model.norm(model.blocks(model.norm_pre(x)))


def assert_same_function(trunk, source, width=WIDTH):
    layout = ((2, TOKENS),)
    with torch.no_grad():
        for index, block in enumerate(blocks_of(source)):
            x = torch.randn(2, TOKENS, width)
            found = trunk.blocks[index](x.flatten(0, 1), layout)
            assert relative_error(found.unflatten(0, (2, TOKENS)), block(x)) < 1e-5
        x = torch.randn(2, TOKENS, width)
        assert relative_error(trunk(x.flatten(0, 1), layout).unflatten(0, (2, TOKENS)), whole_of(source, x)) < 1e-5


@pytest.mark.parametrize(
    ("config", "source"),
    [
        (CLIP, {}),
        (dataclasses.replace(CLIP, activation="quick_gelu"), {"act_layer": QuickGELU}),
        (CLIP, {"ls_init_value": 0.1}),
        (dataclasses.replace(CLIP, input_norm=False), {"no_ln_pre": True}),
        (TIMM, {}),
        (TIMM, {"qkv_bias": False, "proj_bias": False}),
        (TIMM, {"init_values": 0.1}),
        (dataclasses.replace(TIMM, input_norm=True), {"pre_norm": True}),
    ],
    ids=[
        "clip",
        "clip-quickgelu",
        "clip-layerscale",
        "clip-no-pre",
        "timm",
        "timm-no-bias",
        "timm-layerscale",
        "timm-pre",
    ],
)
def test_blocks_equal_those_of_the_source(config, source, tmp_path):
    is_clip = config.norm_eps == CLIP.norm_eps
    model = open_clip_vit(**source) if is_clip else timm_vit(**source)
    torch.save(model.state_dict(), tmp_path / "source.pt")
    weights = read_weights(tmp_path / "source.pt", config)
    assert_same_function(Trunk(config, ADAPTER, LayerFactory(weights, frozen=True)).eval(), model)


def test_a_block_of_the_real_vit_b_16():
    config = dataclasses.replace(trunk_config("ViT-B-16", None), depth=1)
    assert config == TrunkConfig(768, 1, 12, 4.0, "gelu", 1e-5, input_norm=True)
    source = open_clip_vit(768, 1, 12)
    weights = convert_weights(source.state_dict(), config, "random")
    assert_same_function(Trunk(config, ADAPTER, LayerFactory(weights, frozen=True)).eval(), source, width=768)


@pytest.mark.parametrize(
    "form", ["clip.safetensors", "tower.safetensors", "clip.pt", "checkpoint.pt", "half.safetensors"]
)
def test_every_form_of_a_file(form, tmp_path):
    source = open_clip_vit()
    state = source.state_dict()
    if not form.startswith(
        "tower"
    ):  # the image tower in a whole CLIP, whose text tower has the same names without prefix
        text = {f"transformer.resblocks.0.{key}": torch.zeros(3) for key in ("ln_1.weight", "attn.in_proj_weight")}
        state = text | {f"visual.{key}": value for key, value in state.items()}
    if form.startswith("half"):
        source.half().float()
        state = {key: value.half() for key, value in state.items()}
    path = tmp_path / form
    if form.startswith("checkpoint"):
        torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    elif path.suffix == ".pt":
        torch.save(state, path)
    else:
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    weights = read_weights(path, CLIP)
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert_same_function(Trunk(CLIP, ADAPTER, LayerFactory(weights, frozen=True)).eval(), source)


@pytest.fixture
def local_hub(monkeypatch, tmp_path):
    """An open_clip model of our own with two tags whose weights are a local file."""
    vision = {"image_size": 32, "patch_size": 8, "width": WIDTH, "layers": DEPTH, "head_width": WIDTH // HEADS}
    text = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}
    (tmp_path / "unistd-tiny.json").write_text(json.dumps({"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}))
    source = open_clip_vit(act_layer=QuickGELU)
    torch.save({f"visual.{key}": value for key, value in source.state_dict().items()}, tmp_path / "hub.pt")
    tags = {"good": {"file": str(tmp_path / "hub.pt"), "quick_gelu": True}, "far": {"url": "http://127.0.0.1:9/x.pt"}}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "unistd-tiny", {})
    open_clip.add_model_config(tmp_path / "unistd-tiny.json")
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "unistd-tiny", tags)
    monkeypatch.setenv("HOME", str(tmp_path))
    return source


def test_a_tag_of_the_hub_brings_weights_and_activation(local_hub):
    config, weights = load_trunk("unistd-tiny", "good")
    assert config == dataclasses.replace(CLIP, activation="quick_gelu")
    assert_same_function(Trunk(config, ADAPTER, LayerFactory(weights, frozen=True)).eval(), local_hub)
    with pytest.raises(
        ValueError, match=r"^pretrained: 'unistd-tiny' has no tag 'bad', expected a file or one of: good"
    ):
        load_trunk("unistd-tiny", "bad")
    with pytest.raises(
        OSError, match=r"^pretrained: weights 'far' of 'unistd-tiny' could not be fetched \(.*\); a local"
    ):
        load_trunk("unistd-tiny", "far")


def test_a_timm_model_by_name_from_a_local_file(tmp_path):
    source = randomized(timm.create_model("vit_tiny_patch16_224"))
    save_file(source.state_dict(), tmp_path / "tiny.safetensors")
    config, weights = load_trunk("timm/vit_tiny_patch16_224", str(tmp_path / "tiny.safetensors"))
    assert config == TrunkConfig(192, 12, 3, norm_eps=1e-6)
    assert_same_function(Trunk(config, ADAPTER, LayerFactory(weights, frozen=True)).eval(), source, width=192)


def test_a_timm_tag_is_fetched_by_timm(monkeypatch):
    source = timm_vit(num_heads=1)
    create = timm.create_model

    def create_model(name, pretrained=False):
        return source if (name, pretrained) == ("vit_tiny_patch16_224.augreg_in21k", True) else create(name)

    monkeypatch.setattr(timm, "create_model", create_model)
    with pytest.raises(ValueError, match=r"^timm/vit_tiny_patch16_224 augreg_in21k: found 3 blocks, expected 12$"):
        load_trunk("timm/vit_tiny_patch16_224", "augreg_in21k")
    with pytest.raises(
        ValueError, match=r"^pretrained: 'timm/vit_tiny_patch16_224' has no tag 'bad', expected a file or"
    ):
        load_trunk("timm/vit_tiny_patch16_224", "bad")


@pytest.mark.parametrize(
    ("trunk", "message"),
    [
        ("ViT-B16", r"trunk: open_clip has no model 'ViT-B16'; did you mean 'ViT-B-16'\?"),
        ("nothing", r"trunk: open_clip has no model 'nothing'; timm's models are named 'timm/...'"),
        ("RN50", r"trunk: 'RN50' is a ResNet, expected a Vision Transformer"),
        (
            "ViT-B-16-SigLIP",
            r"trunk: 'ViT-B-16-SigLIP' takes its image model from timm, expected 'timm/vit_base_patch16_siglip_224'",
        ),
        (
            "timm/vit_tiny_patch16",
            r"trunk: timm has no model 'vit_tiny_patch16', did you mean 'timm/vit_tiny_patch16_.*",
        ),
        ("timm/resnet18", r"trunk: 'timm/resnet18' is no plain pre-norm Vision Transformer"),
        ("timm/vit_base_patch16_rpn_224", r"trunk: 'timm/vit_base_patch16_rpn_224' is no plain pre-norm .*"),
        (
            "timm/vit_tiny_patch16_224.augreg_in21k",
            r"trunk: expected 'timm/vit_tiny_patch16_224' with pretrained='augreg_in21k', found 'timm/.*'",
        ),
    ],
)
def test_trunks_that_are_not_there_or_not_plain(trunk, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        trunk_config(trunk, None)


def test_files_that_do_not_fit_are_one_line(tmp_path):
    state = open_clip_vit().state_dict()
    path = tmp_path / "weights.pt"

    def read(value, config=CLIP):
        torch.save(value, path)
        return read_weights(path, config)

    with pytest.raises(ValueError, match=r"weights.pt: found 3 blocks, expected 2$"):
        read(state, dataclasses.replace(CLIP, depth=2))
    with pytest.raises(
        ValueError, match=r"weights.pt: 'blocks.0.mlp.fc1.weight' has shape \(256, 64\), expected \(128, 64\)$"
    ):
        read(state, dataclasses.replace(CLIP, mlp_ratio=2.0))
    with pytest.raises(ValueError, match=r"weights.pt: holds no weights for 'norm_out.weight'$"):
        read({key: value for key, value in state.items() if not key.startswith("ln_post")})
    with pytest.raises(ValueError, match=r"weights.pt: 'blocks.0.attn.q_norm.weight' has no place in a plain pre-norm"):
        read(timm_vit(qk_norm=True).state_dict(), TIMM)
    with pytest.raises(ValueError, match=r"weights.pt: no Vision Transformer of open_clip or timm"):
        read(torch.nn.Linear(2, 2).state_dict())
    with pytest.raises(ValueError, match=r"weights.pt: expected a state dict, found list$"):
        read([1, 2])
    with pytest.raises(ValueError, match=r"weights.pt: cannot be read as weights \(.*\)$"):
        read(dataclasses.replace(CLIP))  # an object: weights_only refuses it
    for name in ("weights.pt", "weights.safetensors"):
        (tmp_path / name).write_bytes(b"truncated")
        with pytest.raises(ValueError, match=rf"{name}: cannot be read as weights \(.*\)$"):
            read_weights(tmp_path / name, CLIP)
    with pytest.raises(FileNotFoundError, match=r"^pretrained: no such file .*absent.pt$"):
        load_trunk(CLIP, str(tmp_path / "absent.pt"))
    with pytest.raises(ValueError, match=r"^pretrained: expected a file \(.*\) beside a TrunkConfig, found 'laion2b'$"):
        load_trunk(CLIP, "laion2b")


def test_a_pretrained_trunk_is_frozen_and_the_rest_learns(tmp_path):
    path = str(tmp_path / "source.pt")
    torch.save(open_clip_vit().state_dict(), path)
    model = tiny_model(trunk=CLIP, pretrained=path)
    sum(value.square().sum() for value in model(batch()).values()).backward()
    adapters = ("lora_A", "lora_B", "rank", "router.weight")
    for name, parameter in model.named_parameters():
        learns = not name.startswith("trunk.") or name.endswith(adapters) or ".temporal." in name
        assert parameter.requires_grad == learns, name
        assert (parameter.grad is not None) == learns, name


def test_a_checkpoint_needs_no_weight_file(tmp_path):
    path = tmp_path / "source.pt"
    torch.save(open_clip_vit().state_dict(), path)
    model = tiny_model(trunk=CLIP, pretrained=str(path))
    path.unlink()
    other = UniSTD(SPECS, CLIP, str(path), adapter=ADAPTER, hidden=8, load_pretrained=False).double().eval()
    other.load_state_dict(model.state_dict())
    frames = batch()
    expected = model(frames)
    assert all(torch.equal(forecast, expected[name]) for name, forecast in other(frames).items())
    assert [p.requires_grad for p in other.parameters()] == [p.requires_grad for p in model.parameters()]
