"""What every builder of a model ends with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from .model import Model
from .weights import load_weights

M = TypeVar("M", bound=Model)


def finish(
    model: M,
    architecture: dict[str, Any],
    weights: str | None,
    *,
    allow_missing: Sequence[str] = (),
    name: str | None = None,
    rename: Sequence[tuple[str, str]] = (),
    convert: Callable[[dict[str, Tensor], Path], dict[str, Tensor]] | None = None,
) -> M:
    """Notes how a model was made, loads its weights, and lays them out channels-last, as its pictures are.

    Args:
        model: with random weights above its backbone.
        architecture: the builder's name and arguments, see `Model`.
        weights: of the whole model: None, a path, an address or a named source; see `load_weights`.
        allow_missing: prefixes of what may be missing, or of another shape, and then starts at random: the last layers.
        name: by which a named source knows the model.
        rename, convert: see `load_weights`.

    Raises:
        WeightsError: weights that cannot be had or do not fit.
    """
    model.architecture = architecture
    if weights is not None:
        own = (r"^(detector|captioner|segmenter)\.", "")  # a training run's checkpoint holds the model under that name
        missing = ("normalize.", *allow_missing)
        load_weights(model, weights, name=name, rename=(*rename, own), convert=convert, allow_missing=missing)
    # Where the first weights came from is no part of the model, and a path means nothing to whom the checkpoint is given.
    architecture["arguments"] |= dict.fromkeys({"weights", "backbone_weights"} & architecture["arguments"].keys())
    return model.to(memory_format=torch.channels_last)
