"""Any of timm's networks as a backbone; timm itself is imported only when one is asked for."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .protocol import IMAGENET_MEAN, IMAGENET_STD, Backbone


def wrap_timm(
    name: str, *, norm: str = "batch", pretrained: bool = False, out_indices: Sequence[int] | None = None
) -> Backbone:
    """A timm network's feature maps (https://huggingface.co/docs/timm/feature_extraction).

    Args:
        name: timm's, e.g. "convnext_tiny". Networks made for one image size (ViT, Swin) take that size only.
        norm: "batch" leaves the network's norms as they are, "frozen" freezes its batch norms.
        pretrained: with timm's weights, from its cache or the network.
        out_indices: which of its maps; None takes those of stride 4 and more.

    Raises:
        ImportError: timm is not installed.
        ValueError: timm has no such network or map, or cannot fetch its weights.
    """
    return _WrappedTimm(_timm_features(name, pretrained, out_indices), norm)


def timm_classifier(name: str, num_classes: int, *, norm: str = "batch", pretrained: bool = False) -> nn.Module:
    """A timm network, images to logits (B, num_classes), with a classifier's attributes; parameters are timm's.

    Args:
        name: timm's, e.g. "convnext_tiny" or, of several weights one, "resnet50.a1_in1k".
        norm, pretrained: as for `wrap_timm`; with another number of classes than the weights' the last layer is random.

    Raises:
        ImportError: timm is not installed.
        ValueError: timm has no such network, or cannot fetch its weights.
    """
    timm = _timm_with(name)
    _check_norm(norm)
    try:
        model = timm.create_model(name, pretrained=pretrained, num_classes=num_classes)
    except Exception as error:  # whatever a third party's constructors and downloads raise
        raise ValueError(f"timm could not build {name!r}, pretrained={pretrained}: {error}") from error
    config = model.pretrained_cfg
    model.mean, model.std = tuple(config.get("mean", IMAGENET_MEAN)), tuple(config.get("std", IMAGENET_STD))
    model.strides = model.channels = ()
    model.head_name = config["classifier"]
    model.stage_prefixes = _classifier_stages(model)
    return model if norm == "batch" else _frozen(model)


class _WrappedTimm(Backbone):
    """A timm feature extractor with our attributes; parameters are timm's, with the prefix `body.`."""

    def __init__(self, body: Any, norm: str) -> None:
        super().__init__()
        _check_norm(norm)
        info = body.feature_info
        self.strides, self.channels = tuple(info.reduction()), tuple(info.channels())
        config = getattr(body, "pretrained_cfg", None) or {}
        self.mean = tuple(config.get("mean", IMAGENET_MEAN))
        self.std = tuple(config.get("std", IMAGENET_STD))
        self.channels_last = "NHWC" in str(getattr(body, "output_fmt", ""))
        self.stage_prefixes = _timm_stages(body)
        self.body = body if norm == "batch" else _frozen(body)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = self.body(images)
        return [x.permute(0, 3, 1, 2) for x in maps] if self.channels_last else maps


def _timm_features(name: str, pretrained: bool, out_indices: Sequence[int] | None) -> Any:
    timm = _timm_with(name)
    try:
        if out_indices is None:
            strides = timm.create_model(name, features_only=True).feature_info.reduction()
            out_indices = [i for i, stride in enumerate(strides) if stride >= 4]
        return timm.create_model(name, features_only=True, pretrained=pretrained, out_indices=tuple(out_indices))
    except Exception as error:  # whatever a third party's constructors and downloads raise
        raise ValueError(
            f"timm could not build {name!r} with maps {out_indices}, pretrained={pretrained}: {error}"
        ) from error


def _check_norm(norm: str) -> None:
    if norm not in ("batch", "frozen"):
        raise ValueError(
            f"norms of timm's networks are fixed: norm must be 'batch' (as they are) or 'frozen', got {norm!r}"
        )


def _frozen(model: nn.Module) -> nn.Module:
    from timm.layers import freeze_batch_norm_2d

    return freeze_batch_norm_2d(model)


def _timm_with(name: str) -> Any:
    """The package timm, if it is installed and has that network."""
    try:
        import timm
    except ImportError as error:
        raise ImportError(f'the network "timm:{name}" needs timm: pip install "sightline[timm]"') from error
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise ValueError(
            f"timm has no model {name!r}; " + (f"close: {', '.join(close)}" if close else "see timm.list_models()")
        )
    return timm


def _timm_stages(body: nn.Module) -> dict[str, tuple[str, ...]]:
    """The children up to each map where timm lists them so; else the whole network is one stage."""
    ends = getattr(body, "return_layers", None)
    if not ends:
        return {"body": ("body",)}
    stages, current = {}, []
    for name, _ in body.named_children():
        current.append(f"body.{name}")
        if name in ends:
            stages[name], current = tuple(current), []
    return stages


def _classifier_stages(model: Any) -> dict[str, tuple[str, ...]]:
    """The children up to each map that timm lists; all but the classifier's where maps lie deeper than children."""
    children = [name for name, _ in model.named_children()]
    ends = [info["module"] for info in getattr(model, "feature_info", None) or []]
    below = [name for name in children if name != model.head_name.split(".")[0]]
    if not ends or not set(ends) <= set(below):
        return {"body": tuple(below)}
    stages, start = {}, 0
    for end in ends:
        stop = below.index(end) + 1
        stages[end], start = tuple(below[start:stop]), stop
    stages[ends[-1]] += tuple(below[start:])  # norms and 1x1 convolutions between the last map and the classifier
    return stages
