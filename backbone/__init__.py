"""Pixels to feature maps. `build_backbone("resnet50_fpn")` gives one by name; `wrap` makes one of any network.

`build_classifier("vgg16", 20)` gives the networks with their last layers on: images to logits. Every builder of a backbone
is a function of one keyword, `norm`: channels to a normalisation layer (`norms.norm_layer`).
"""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Callable, Sequence

from .alexnet import alexnet, alexnet_2012
from .classifiers import CLASSIFIERS, TOPS, build_classifier
from .csp_darknet import (
    csp_darknet_l,
    csp_darknet_m,
    csp_darknet_nano,
    csp_darknet_s,
    csp_darknet_tiny,
    csp_darknet_x,
)
from .fpn import FPN, P6P7, BackboneWithFPN, MaxPoolP6, with_fpn
from .freeze import freeze_stages, stages
from .fully_convolutional import FullyConvolutional, to_convolutional
from .googlenet import googlenet, googlenet_2014
from .last_map import LastMap
from .lenet import lenet
from .mobilenet_v2 import (
    mobilenet_v2,
    mobilenet_v2_fpn,
    mobilenet_v2_lite_fpn,
    mobilenet_v2_tf,
    mobilenet_v2_tf_fpn,
    mobilenet_v2_tf_lite_fpn,
)
from .norms import FrozenBatchNorm2d, Norm, norm_layer
from .pafpn import (
    BackboneWithPAFPN,
    csp_darknet_l_pafpn,
    csp_darknet_m_pafpn,
    csp_darknet_nano_pafpn,
    csp_darknet_s_pafpn,
    csp_darknet_tiny_pafpn,
    csp_darknet_x_pafpn,
)
from .protocol import Backbone, check_backbone
from .resnet import (
    resnet10_narrow,
    resnet10_narrow_fpn,
    resnet18,
    resnet18_fpn,
    resnet34,
    resnet34_fpn,
    resnet50,
    resnet50_fpn,
    resnet50_fpn_v2,
    resnet101,
    resnet101_fpn,
    resnet152,
    resnet152_fpn,
)
from .sources import WeightsError
from .squeezenet import squeezenet1_1
from .timm_features import wrap_timm
from .vgg import vgg11, vgg11_bn, vgg13, vgg13_bn, vgg16, vgg16_bn, vgg19, vgg19_bn
from .weights import BACKBONE_OF, OLD_TORCHVISION, Report, load_weights
from .wrap import mobilenet_v3_large_fpn, wrap
from .yolo_networks import yolo9, yolo9_bn, yolo20, yolo20_bn, yolo_narrow
from .zfnet import zfnet

BACKBONES: dict[str, Callable[..., Backbone]] = {
    "resnet10_narrow": resnet10_narrow,
    "resnet10_narrow_fpn": resnet10_narrow_fpn,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet101": resnet101,
    "resnet152": resnet152,
    "resnet18_fpn": resnet18_fpn,
    "resnet34_fpn": resnet34_fpn,
    "resnet50_fpn": resnet50_fpn,
    "resnet50_fpn_v2": resnet50_fpn_v2,
    "resnet101_fpn": resnet101_fpn,
    "resnet152_fpn": resnet152_fpn,
    "mobilenet_v2": mobilenet_v2,
    "mobilenet_v2_fpn": mobilenet_v2_fpn,
    "mobilenet_v2_lite_fpn": mobilenet_v2_lite_fpn,
    "mobilenet_v2_tf": mobilenet_v2_tf,
    "mobilenet_v2_tf_fpn": mobilenet_v2_tf_fpn,
    "mobilenet_v2_tf_lite_fpn": mobilenet_v2_tf_lite_fpn,
    "mobilenet_v3_large_fpn": mobilenet_v3_large_fpn,
    "lenet": lenet,
    "alexnet": alexnet,
    "alexnet_2012": alexnet_2012,
    "zfnet": zfnet,
    "vgg11": vgg11,
    "vgg11_bn": vgg11_bn,
    "vgg13": vgg13,
    "vgg13_bn": vgg13_bn,
    "vgg16": vgg16,
    "vgg16_bn": vgg16_bn,
    "vgg19": vgg19,
    "vgg19_bn": vgg19_bn,
    "googlenet": googlenet,
    "googlenet_2014": googlenet_2014,
    "squeezenet1_1": squeezenet1_1,
    "yolo20": yolo20,
    "yolo20_bn": yolo20_bn,
    "yolo9": yolo9,
    "yolo9_bn": yolo9_bn,
    "yolo_narrow": yolo_narrow,
    "csp_darknet_nano": csp_darknet_nano,
    "csp_darknet_tiny": csp_darknet_tiny,
    "csp_darknet_s": csp_darknet_s,
    "csp_darknet_m": csp_darknet_m,
    "csp_darknet_l": csp_darknet_l,
    "csp_darknet_x": csp_darknet_x,
    "csp_darknet_nano_pafpn": csp_darknet_nano_pafpn,
    "csp_darknet_tiny_pafpn": csp_darknet_tiny_pafpn,
    "csp_darknet_s_pafpn": csp_darknet_s_pafpn,
    "csp_darknet_m_pafpn": csp_darknet_m_pafpn,
    "csp_darknet_l_pafpn": csp_darknet_l_pafpn,
    "csp_darknet_x_pafpn": csp_darknet_x_pafpn,
}


def build_backbone(
    name: str,
    *,
    norm: str | Norm = "batch",
    weights: str | os.PathLike | None = None,
    trainable_stages: int | None = None,
    out_stages: Sequence[int] | Sequence[str] | None = None,
    output_stride: int | None = None,
) -> Backbone:
    """The backbone of that name.

    Args:
        name: one of `BACKBONES`, or "timm:NAME" for any of timm's.
        norm: "batch", "sync", "group" or "frozen", or a function from channels to a layer.
        weights: of the body, as its classifier has them: a path, an address or a named source ("imagenet"), or a
            checkpoint of training in which such a backbone, or its body alone, was part of another model. What is not the
            backbone's (a classifier's last layers, a detector's heads) is left out, and a pyramid that the file does not
            hold keeps its random weights. None for random weights throughout.
        trainable_stages: how many of the body's stages to train, from the last; None trains all. See `freeze_stages`.
        out_stages: which maps, as the network's own builder numbers or names them; None for its usual ones.
        output_stride: of a network whose last stages can be dilated instead of strided, their stride; None for its usual one.

    Raises:
        ValueError: no such name, norm or number of stages, or a network whose maps or stride cannot be chosen.
        WeightsError: weights that cannot be had or do not fit; see `load_weights`.
    """
    wanted = {"out_stages": out_stages, "output_stride": output_stride}
    wanted = {key: value for key, value in wanted.items() if value is not None}
    if name in BACKBONES or name.startswith("timm:"):
        _check_choices(name, wanted)
    if name.startswith("timm:"):
        backbone = _build_timm(name.removeprefix("timm:"), norm, weights)
    elif name in BACKBONES:
        backbone = BACKBONES[name](norm=norm_layer(norm), **wanted)
        if weights is not None:
            _load_body(backbone, name, weights)
    else:
        close = difflib.get_close_matches(name, BACKBONES, n=1)
        meant = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"no backbone {name!r}; {meant}There are: {', '.join(BACKBONES)}, and timm:NAME")
    if trainable_stages is not None:
        freeze_stages(backbone, trainable_stages)
    return backbone


def _check_choices(name: str, wanted: dict[str, object]) -> None:
    """What was asked for must be an argument of the network's builder."""
    for key, value in wanted.items():
        able = [other for other, build in BACKBONES.items() if key in inspect.signature(build).parameters]
        if name not in able:
            raise ValueError(
                f"{name} has no {key} to choose, got {key}={value}: leave it None; these have: {', '.join(able)}"
            )


def _load_body(backbone: Backbone, name: str, weights: str | os.PathLike) -> None:
    pyramid = isinstance(backbone, (BackboneWithFPN, BackboneWithPAFPN))
    body = backbone.body if pyramid else backbone
    # A wrapped `features` does not bear that name itself.
    flat = not any(key.startswith("features.") for key in body.state_dict())
    where = "body." if pyramid else ""
    load_weights(
        backbone,
        weights,
        name=name.split("_fpn")[0].removesuffix("_lite"),
        within=BACKBONE_OF,
        rename=[*OLD_TORCHVISION, *([(r"^features\.", "")] if flat else []), (r"^(?!fpn\.)", where)],
        allow_missing=("fpn.",) if pyramid else (),
        allow_unexpected=(*(where + top for top in TOPS), "fpn."),
    )


def _build_timm(name: str, norm: str | Norm, weights: str | os.PathLike | None) -> Backbone:
    if not isinstance(norm, str):
        raise ValueError("norms of timm's networks are fixed: norm must be 'batch' (as they are) or 'frozen'")
    backbone = wrap_timm(name, norm=norm, pretrained=weights == "imagenet")
    if weights not in (None, "imagenet"):
        load_weights(backbone.body, weights, within=BACKBONE_OF)
    return backbone
