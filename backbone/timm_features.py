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


class _WrappedTimm(Backbone):
    """A timm feature extractor with our attributes; parameters are timm's, with the prefix `body.`."""

    def __init__(self, body: Any, norm: str) -> None:
        super().__init__()
        from timm.layers import freeze_batch_norm_2d

        if norm not in ("batch", "frozen"):
            raise ValueError(
                f"norms of timm's networks are fixed: norm must be 'batch' (as they are) or 'frozen', got {norm!r}"
            )
        info = body.feature_info
        self.strides, self.channels = tuple(info.reduction()), tuple(info.channels())
        config = getattr(body, "pretrained_cfg", None) or {}
        self.mean = tuple(config.get("mean", IMAGENET_MEAN))
        self.std = tuple(config.get("std", IMAGENET_STD))
        self.channels_last = "NHWC" in str(getattr(body, "output_fmt", ""))
        self.stage_prefixes = _timm_stages(body)
        self.body = body if norm == "batch" else freeze_batch_norm_2d(body)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = self.body(images)
        return [x.permute(0, 3, 1, 2) for x in maps] if self.channels_last else maps


def _timm_features(name: str, pretrained: bool, out_indices: Sequence[int] | None) -> Any:
    try:
        import timm
    except ImportError as error:
        raise ImportError(f'the backbone "timm:{name}" needs timm: pip install "sightline[timm]"') from error
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise ValueError(
            f"timm has no model {name!r}; " + (f"close: {', '.join(close)}" if close else "see timm.list_models()")
        )
    try:
        if out_indices is None:
            strides = timm.create_model(name, features_only=True).feature_info.reduction()
            out_indices = [i for i, stride in enumerate(strides) if stride >= 4]
        return timm.create_model(name, features_only=True, pretrained=pretrained, out_indices=tuple(out_indices))
    except Exception as error:  # whatever a third party's constructors and downloads raise
        raise ValueError(
            f"timm could not build {name!r} with maps {out_indices}, pretrained={pretrained}: {error}"
        ) from error


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
