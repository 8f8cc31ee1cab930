"""A model from one word of the command line: a checkpoint's path, or a model's name with weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch

from sightline.backbone.checkpoint import load_with
from sightline.backbone.model import Model
from sightline.backbone.weights import read_file
from sightline.captioning import CAPTIONERS
from sightline.datasets.table import DataError, nearest
from sightline.detectors import DETECTORS
from sightline.segmentation import INSTANCE_SEGMENTERS, SEGMENTERS

MODELS: dict[str, Callable[..., Model]] = {**DETECTORS, **INSTANCE_SEGMENTERS, **SEGMENTERS, **CAPTIONERS}
# What a model's answers are: boxes with or without masks, sentences, a category for every pixel. Each has its own tools.
Kind = Literal["detector", "captioner", "segmenter"]


def build(word: str, device: torch.device | str, others: Sequence[str] = ()) -> Model:
    """The model, in evaluation mode.

    Args:
        word: a checkpoint's path, or a name in `MODELS`, after which may come "@" and weights: a path, an address or a
            named source ("yolox_nano@yolox_nano.pth", "faster_rcnn@coco"). Without them they are random.
        device: where to put it.
        others: what else the command takes, for the message where nothing is known.

    Raises:
        DataError: nothing is known by that name.
        WeightsError: the checkpoint or the weights cannot be had or do not fit.
    """
    name, _, weights = word.partition("@")
    if name in MODELS:
        return MODELS[name](weights=weights or None).to(device).eval()
    if Path(word).suffix not in (".ckpt", ".pt", ".pth") and not Path(word).exists():
        known = [*MODELS, *others]
        hint = nearest(name, known) or "."
        raise DataError(f"no checkpoint and no model {name!r}{hint} There are {', '.join(known)}")
    return load_with(MODELS, word, device)


def trained(word: str, device: torch.device | str) -> Model:
    """As `build`, for what is to find something.

    Raises:
        DataError: as `build`; or the model's weights would be random.
        WeightsError: as `build`.
    """
    if not has_weights(word):
        raise DataError(
            f"{word} alone has random weights and finds nothing; name some, a file's path say: {word.rstrip('@')}@WEIGHTS"
        )
    return build(word, device)


def has_weights(word: str) -> bool:
    """Whether the model is trained, so that what it finds means something."""
    name, _, weights = word.partition("@")
    return bool(weights) or name not in MODELS


def kind_of(word: str) -> Kind:
    """What a checkpoint, or a name with weights, makes; the model is not made for that.

    Models of objects with masks are detectors. So is what nobody knows, of which `build` says more.

    Raises:
        WeightsError: the checkpoint is damaged.
    """
    name, path = word.partition("@")[0], Path(word)
    if name not in MODELS and path.is_file():
        name = _builder(path)
    if name in CAPTIONERS:
        return "captioner"
    return "segmenter" if name in SEGMENTERS else "detector"


def _builder(path: Path) -> str | None:
    """The name of the function that makes a checkpoint's model; None where the file does not say."""
    content = read_file(path)
    about = content.get("sightline") if isinstance(content, dict) else None
    architecture = about.get("architecture") if isinstance(about, dict) else None
    return architecture["name"] if architecture else None
