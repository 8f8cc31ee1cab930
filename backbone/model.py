"""What every model is: pixels are normalised by it, its backbone may be frozen, and it can be made anew from a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .freeze import set_norms
from .normalize import Normalize
from .precision import Precision, mixed


class Model(nn.Module):
    """The base of all models: `Detector` finds objects, `Captioner` writes sentences.

    Args:
        mean, std: of the pictures the backbone was trained on, RGB in [0, 1].
        padding: the grey, 0 to 255, around pictures in their frame; None for what normalises to zero.

    Attributes:
        task: what its answers are, and so how they are scored; each kind of model says its own.
        resize: what pictures are brought to before they reach the model: (shorter side, longer side at most), or
            (height, width, True) for exactly that size.
        architecture: the builder's name and arguments, from which `load` makes the model anew.
        precision: in which numbers it answers, see `mixed`; training has its trainer's.
    """

    task: str
    precision: Precision = "auto"

    def __init__(self, *, mean: Sequence[float], std: Sequence[float], padding: float | None = None) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std, padding)
        self.resize: tuple[int, int] | tuple[int, int, bool] = (800, 1333)
        self.architecture: dict[str, Any] | None = None

    def train(self, mode: bool = True) -> Model:
        """As of any module; but batch norms that are frozen are held still in training too, see `freeze_stages`."""
        super().train(mode)
        set_norms(self)
        return self

    def description(self) -> dict[str, Any]:
        """Plain values from which, with the weights, `load` makes the same model: they go into every checkpoint."""
        return {"format": 1, "architecture": self.architecture, "resize": list(self.resize)}

    def restore(self, about: Mapping[str, Any]) -> None:
        """Takes over what `description` said and the builder does not know.

        Raises:
            ValueError: it does not go with the model.
        """
        self.resize = tuple(about["resize"])


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; then every module, frozen ones too, is in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def answering(model: Model) -> Iterator[None]:
    """How a model answers everywhere: in evaluation mode, without gradients, in its own precision."""
    device = next(model.parameters()).device
    with evaluating(model), torch.inference_mode(), mixed(device, model.precision):
        yield
