"""Classifiers by name: `build_classifier("vgg16", 20, weights="imagenet")`, images to logits (B, num_classes).

A classifier is an `nn.Module` that states what a `Backbone` does (`mean`, `std`, `stage_prefixes` for `freeze_stages`),
has no maps (`strides` and `channels` are empty), and names its last layer in `head_name` ("fc", "classifier.6"):
`classifier.get_submodule(classifier.head_name)`. That layer lies above all stages, so it is never frozen.
"""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Callable

from torch import nn

from .alexnet import alexnet_2012_classifier, alexnet_classifier
from .freeze import freeze_stages
from .googlenet import googlenet_2014_classifier, googlenet_classifier
from .lenet import lenet_classifier
from .mobilenet_v2 import mobilenet_v2_classifier, mobilenet_v2_tf_classifier
from .norms import Norm, norm_layer
from .resnet import (
    resnet18_classifier,
    resnet34_classifier,
    resnet50_classifier,
    resnet101_classifier,
    resnet152_classifier,
)
from .sources import WeightsError
from .squeezenet import squeezenet1_1_classifier
from .st_classifier import st_cnn_classifier
from .timm_features import timm_classifier
from .vgg import (
    vgg11_bn_classifier,
    vgg11_classifier,
    vgg13_bn_classifier,
    vgg13_classifier,
    vgg16_bn_classifier,
    vgg16_classifier,
    vgg19_bn_classifier,
    vgg19_classifier,
)
from .weights import BACKBONE_OF, Report, load_weights
from .yolo_networks import yolo9_bn_classifier, yolo9_classifier, yolo20_bn_classifier, yolo20_classifier
from .zfnet import zfnet_classifier

log = logging.getLogger(__name__)

# Each is a function of the number of classes and one keyword, `norm`: channels to a normalisation layer.
CLASSIFIERS: dict[str, Callable[..., nn.Module]] = {
    "lenet": lenet_classifier,
    "alexnet": alexnet_classifier,
    "alexnet_2012": alexnet_2012_classifier,
    "zfnet": zfnet_classifier,
    "vgg11": vgg11_classifier,
    "vgg11_bn": vgg11_bn_classifier,
    "vgg13": vgg13_classifier,
    "vgg13_bn": vgg13_bn_classifier,
    "vgg16": vgg16_classifier,
    "vgg16_bn": vgg16_bn_classifier,
    "vgg19": vgg19_classifier,
    "vgg19_bn": vgg19_bn_classifier,
    "googlenet": googlenet_classifier,
    "googlenet_2014": googlenet_2014_classifier,
    "resnet18": resnet18_classifier,
    "resnet34": resnet34_classifier,
    "resnet50": resnet50_classifier,
    "resnet101": resnet101_classifier,
    "resnet152": resnet152_classifier,
    "mobilenet_v2": mobilenet_v2_classifier,
    "mobilenet_v2_tf": mobilenet_v2_tf_classifier,
    "squeezenet1_1": squeezenet1_1_classifier,
    "yolo20": yolo20_classifier,
    "yolo20_bn": yolo20_bn_classifier,
    "yolo9": yolo9_classifier,
    "yolo9_bn": yolo9_bn_classifier,
    "st_cnn": st_cnn_classifier,
}

# What lies on top of a body in the classifiers above and in torchvision's: prefixes of keys.
TOPS = ("fc.", "classifier.", "aux1.", "aux2.")


def build_classifier(
    name: str,
    num_classes: int,
    *,
    norm: str | Norm = "batch",
    weights: str | os.PathLike | None = None,
    trainable_stages: int | None = None,
) -> nn.Module:
    """The classifier of that name.

    Args:
        name: one of `CLASSIFIERS`, or "timm:NAME" for any of timm's.
        num_classes: C, at least 1.
        norm: "batch", "sync", "group" or "frozen", or a function from channels to a layer.
        weights: a path, an address or a named source ("imagenet"): the same network's state dict, or a checkpoint of
            training in which it, or its body alone, is the backbone. What lies above all stages keeps its random
            weights where the file has another number of classes; fully connected layers do where it has none. Both
            are logged as a warning. None for random weights throughout.
        trainable_stages: how many stages to train, from the last; None trains all. The last layer is always trained.

    Raises:
        ValueError: no such name, norm or number of stages, or no classes.
        WeightsError: weights that cannot be had or do not fit; see `load_weights`.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    if name.startswith("timm:"):
        classifier = _build_timm(name.removeprefix("timm:"), num_classes, norm, weights)
    elif name in CLASSIFIERS:
        classifier = CLASSIFIERS[name](num_classes, norm=norm_layer(norm))
        if weights is not None:
            _load(classifier, weights, name=name, tops=TOPS)
    else:
        close = difflib.get_close_matches(name, CLASSIFIERS, n=1)
        meant = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"no classifier {name!r}; {meant}There are: {', '.join(CLASSIFIERS)}, and timm:NAME")
    if trainable_stages is not None:
        freeze_stages(classifier, trainable_stages)
    return classifier


def _load(classifier: nn.Module, weights: str | os.PathLike, *, name: str | None, tops: tuple[str, ...]) -> None:
    report = load_weights(
        classifier, weights, name=name, within=BACKBONE_OF, allow_missing=tops, allow_unexpected=("fpn.",)
    )
    staged = tuple(f"{prefix}." for prefixes in classifier.stage_prefixes.values() for prefix in prefixes)
    wrong = [
        f"{key} (file {theirs}, model {ours})" for key, theirs, ours in report.mismatched if key.startswith(staged)
    ]
    if wrong:
        raise WeightsError(
            f"weights do not fit {type(classifier).__name__}: {report.source} has of another shape {', '.join(wrong)}. "
            f"Only the last layer {classifier.head_name!r} may differ"
        )
    _tell_random(report)


def _tell_random(report: Report) -> None:
    random = [*report.missing, *(key for key, _, _ in report.mismatched)]
    if random:
        layers = dict.fromkeys(key.rpartition(".")[0] for key in random)
        log.warning("%s: random weights in %s, which the file does not have or has for other classes",
                    report.source, ", ".join(layers))  # fmt: skip


def _build_timm(name: str, num_classes: int, norm: str | Norm, weights: str | os.PathLike | None) -> nn.Module:
    if not isinstance(norm, str):
        raise ValueError("norms of timm's networks are fixed: norm must be 'batch' (as they are) or 'frozen'")
    classifier = timm_classifier(name, num_classes, norm=norm, pretrained=weights == "imagenet")
    published = classifier.pretrained_cfg.get("num_classes")
    if weights == "imagenet" and published != num_classes:
        log.warning(
            "timm:%s: random weights in %s, for its weights know %s classes", name, classifier.head_name, published
        )
    elif weights not in (None, "imagenet"):
        _load(classifier, weights, name=None, tops=(f"{classifier.head_name}.",))
    return classifier
