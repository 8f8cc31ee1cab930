"""A model from a checkpoint, and back."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from .model import Model
from .sources import WeightsError
from .weights import load_weights, read_file


def save(model: Model, path: str | os.PathLike) -> None:
    """Writes the model alone, without an optimiser's state; `load` reads it. What was there stays until all is written."""
    partial = Path(f"{path}.partial")
    try:
        torch.save({"sightline": model.description(), "state_dict": model.state_dict()}, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_with(
    builders: Mapping[str, Callable[..., Model]],
    path: str | os.PathLike,
    device: torch.device | str | None = None,
) -> Model:
    """A model from what `save` or a training wrote, in evaluation mode. Only tensors and plain values are read, never code.

    Args:
        builders: the functions that make models, by name.
        path: the checkpoint.
        device: where to put it; by default the GPU where there is one.

    Raises:
        WeightsError: the file is missing, damaged, no checkpoint of ours or of another kind of model, or holds pickled code.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no checkpoint at {path}; a run keeps its best one in runs/RECIPE/N/checkpoints/best.ckpt")
    content = read_file(path)
    if not isinstance(content, dict) or not isinstance(content.get("sightline"), dict):
        raise WeightsError(
            f"{path} holds weights, but not which model they belong to; Sightline's own checkpoints do. For another tool's "
            f"weights say which: `NAME@{path.name}` on the command line, yolox_nano@{path.name} say; faster_rcnn(weights=...) in "
            "Python"
        )
    about = content["sightline"]
    architecture = about.get("architecture")
    if architecture is None:
        raise WeightsError(
            f"{path} was saved from a model built by hand; build it again and call load_weights(model, path)"
        )
    if architecture["name"] not in builders:
        raise WeightsError(
            f"{path} holds a {architecture['name']!r}, which is not known here (known are {', '.join(builders)}); "
            "detectors, segmenters and captioners have each a load of their own: sightline.detectors.load, "
            "sightline.segmentation.load, sightline.captioning.load"
        )
    arguments = dict(architecture["arguments"])
    arguments |= dict.fromkeys({"weights", "backbone_weights"} & arguments.keys())
    try:
        model = builders[architecture["name"]](**arguments)
    except TypeError as error:
        raise WeightsError(f"{path} was written by another version of Sightline, whose {error}") from error
    load_weights(model, path, key="state_dict", rename=((r"^(detector|captioner|segmenter)\.", ""),))
    try:
        model.restore(about)
    except ValueError as error:
        raise WeightsError(f"{path} {error}; it was changed by hand") from error
    return model.to(device or default_device()).eval()


def default_device() -> str:
    """The best there is: "cuda", "mps" or "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
