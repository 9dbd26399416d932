"""Where the trunk comes from: open_clip, timm or sizes of one's own; weights from the hub, a file or nowhere."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from unistd.files import kind
from unistd.messages import shown
from unistd.model.config import TrunkConfig
from unistd.model.torchvision_ops import define_missing_ops
from unistd.model.weights import convert_weights, read_weights
from unistd.state_files import SUFFIXES

TIMM_PREFIX = "timm/"
_TIMM_ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu"}


def trunk_config(trunk: str | TrunkConfig, pretrained: str | None) -> TrunkConfig:
    """Sizes of a trunk; nothing is fetched or read. See `load_trunk`."""
    if isinstance(trunk, TrunkConfig):
        return trunk
    tag = None if _is_file(pretrained) else pretrained
    return _timm_config(trunk) if trunk.startswith(TIMM_PREFIX) else _open_clip_config(trunk, tag)


def load_trunk(trunk: str | TrunkConfig, pretrained: str) -> tuple[TrunkConfig, dict[str, Tensor]]:
    """Sizes and weights of a trunk.

    Args:
        trunk: "ViT-B-16" and other Vision Transformers of open_clip, "timm/vit_base_patch16_224" and others of timm, or
            a `TrunkConfig`.
        pretrained: a local .safetensors/.pt/.pth/.bin file; or a tag of that model on the hub, such as
            "laion2b_s34b_b88k" for ViT-B-16 or "augreg_in21k" for timm/vit_base_patch16_224.

    Returns:
        The sizes, and the weights by our names (`unistd.model.weights`).

    Raises:
        ValueError: unknown model or tag, a model that is no plain pre-norm Vision Transformer, or weights that do not
            fit.
        FileNotFoundError: no such file.
        OSError: the hub cannot be reached.
    """
    if isinstance(trunk, TrunkConfig) and not _is_file(pretrained):
        raise ValueError(
            f"pretrained: expected a file ({', '.join(SUFFIXES)}) beside a TrunkConfig, found {shown(pretrained)}"
        )
    config = trunk_config(trunk, pretrained)
    if _is_file(pretrained):
        return config, read_weights(pretrained, config)
    if trunk.startswith(TIMM_PREFIX):
        state = _timm_model(trunk, pretrained).state_dict()
        return config, convert_weights(state, config, f"{trunk} {pretrained}")
    return config, read_weights(_open_clip_file(trunk, pretrained), config)


def _is_file(pretrained: str | None) -> bool:
    return pretrained is not None and (Path(pretrained).suffix in SUFFIXES or kind(pretrained) == "a file")


def _open_clip_config(name: str, tag: str | None) -> TrunkConfig:
    define_missing_ops()
    import open_clip

    config = None if ":" in name else open_clip.get_model_config(name)  # a colon: a place to fetch sizes from
    if config is None:
        close = difflib.get_close_matches(name, open_clip.list_models(), n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"timm's models are named '{TIMM_PREFIX}...'"
        raise ValueError(f"trunk: open_clip has no model {shown(name)}; {hint}")
    vision = open_clip.CLIPVisionCfg(**config["vision_cfg"])
    if vision.timm_model_name:
        model = f"{TIMM_PREFIX}{vision.timm_model_name}"
        raise ValueError(f"trunk: {name!r} takes its image model from timm, expected {model!r}")
    if not isinstance(vision.layers, int):
        raise ValueError(f"trunk: {name!r} is a ResNet, expected a Vision Transformer")
    tag_config = open_clip.pretrained.get_pretrained_cfg(name, tag) if tag else {}
    quick = tag_config.get("quick_gelu", False) or config.get("quick_gelu", False)
    tanh = (vision.act_kwargs or {}).get("approximate") == "tanh"
    return TrunkConfig(
        width=vision.width,
        depth=vision.layers,
        heads=vision.width // vision.head_width,
        mlp_ratio=vision.mlp_ratio,
        activation="quick_gelu" if quick else "gelu_tanh" if tanh else "gelu",
        norm_eps=(vision.norm_kwargs or {}).get("eps", 1e-5),
        input_norm=not vision.no_ln_pre,
    )


def _open_clip_file(name: str, tag: str) -> str:
    """Path of the tag's weights, fetched from the hub if need be."""
    import open_clip

    config = open_clip.pretrained.get_pretrained_cfg(name, tag)
    if not config:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise ValueError(f"pretrained: {name!r} has no tag {shown(tag)}, expected a file or one of: {known}")
    try:
        with _reachable_or_cached() if config.get("hf_hub") else nullcontext():
            return open_clip.pretrained.download_pretrained(config)
    except Exception as error:  # whatever the network and the hub's client raise
        raise _fetch_error(name, tag, error) from error


def _timm_config(name: str) -> TrunkConfig:
    try:
        with torch.device("meta"):  # sizes only: no memory, no initialisation
            model = _timm_model(name)
    except (RuntimeError, NotImplementedError):  # a model that computes with numbers while it is made
        model = None
    config = _plain_config(model)
    if config is None:
        raise ValueError(f"trunk: {name!r} is no plain pre-norm Vision Transformer")
    return config


def _timm_model(name: str, tag: str | None = None) -> nn.Module:
    define_missing_ops()
    import timm

    model = name.removeprefix(TIMM_PREFIX)
    if "." in model:
        model, _, found = model.partition(".")
        raise ValueError(f"trunk: expected {TIMM_PREFIX + model!r} with pretrained={found!r}, found {name!r}")
    if not timm.is_model(model):
        close = difflib.get_close_matches(model, timm.list_models(), n=1)
        hint = f", did you mean {TIMM_PREFIX + close[0]!r}?" if close else ""
        raise ValueError(f"trunk: timm has no model {shown(model)}{hint}")
    if tag is None:
        return timm.create_model(model)
    known = [full.partition(".")[2] for full in timm.list_pretrained(f"{model}.*")]
    if tag not in known:
        tags = ", ".join(known) or "none"
        raise ValueError(f"pretrained: {name!r} has no tag {shown(tag)}, expected a file or one of: {tags}")
    try:
        with _reachable_or_cached():
            return timm.create_model(f"{model}.{tag}", pretrained=True)
    except Exception as error:  # whatever the network and the hub's client raise
        raise _fetch_error(name, tag, error) from error


def _plain_config(model: nn.Module | None) -> TrunkConfig | None:
    """Sizes of a timm model whose blocks are those of the original Vision Transformer; None for all others."""
    from timm.layers import Attention, Mlp
    from timm.models import vision_transformer

    if not isinstance(model, vision_transformer.VisionTransformer):
        return None
    block = model.blocks[0]
    parts = tuple(type(part) for part in (block, getattr(block, "attn", None), getattr(block, "mlp", None)))
    if parts != (vision_transformer.Block, Attention, Mlp) or not isinstance(block.norm1, nn.LayerNorm):
        return None
    activation = _TIMM_ACTIVATIONS.get(type(block.mlp.act).__name__)
    if activation is None:
        return None
    return TrunkConfig(
        width=model.embed_dim,
        depth=len(model.blocks),
        heads=block.attn.num_heads,
        mlp_ratio=block.mlp.fc1.out_features / model.embed_dim,
        activation=activation,
        norm_eps=block.norm1.eps,
        input_norm=isinstance(model.norm_pre, nn.LayerNorm),
    )


@contextmanager
def _reachable_or_cached() -> Iterator[None]:
    """Asks the hub for a sign of life; without one, its client looks into its cache alone.

    By itself it waits and asks again for a minute, and says so line by line. Raises what the hub's silence was where
    the cache does not serve.
    """
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception as silence:  # whatever the client's library for HTTP raises
        offline, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
        try:
            yield
        except Exception:
            raise silence from None
        finally:
            constants.HF_HUB_OFFLINE = offline
    else:
        yield


def _fetch_error(name: str, tag: str, error: Exception) -> OSError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return OSError(f"pretrained: weights {tag!r} of {name!r} could not be fetched ({reason}); a local file works too")
