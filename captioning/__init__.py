"""Feature maps to sentences: vocabulary, decoders with and without attention, search. `load("best.ckpt")` gives a captioner."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from ..backbone.checkpoint import load_with, save
from .model import Captioner
from .show_and_tell import ShowAndTell, show_and_tell
from .show_attend_tell import show_attend_tell
from .transformer import transformer_captioner

CAPTIONERS: dict[str, Callable[..., Captioner]] = {
    "show_and_tell": show_and_tell,
    "show_attend_tell": show_attend_tell,
    "transformer_captioner": transformer_captioner,
}


def load(path: str | os.PathLike, *, device: torch.device | str | None = None) -> Captioner:
    """A trained captioner from a checkpoint, ready to `predict`.

    Only tensors and plain values are read from the file, never code.

    Args:
        path: a `.ckpt` that `sightline train` or `save` wrote.
        device: where to put it; by default the GPU where there is one.

    Raises:
        WeightsError: the file is missing, damaged, no checkpoint of a captioner, or holds pickled code.
    """
    return load_with(CAPTIONERS, path, device)
