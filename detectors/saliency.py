"""What a detector looks at: class activation mapping by gradients, on its backbone's maps.

The score of one answer is followed back to the feature maps; each cell's heat is the sum over channels of gradient times
activation, as far as it is above zero. That is HiResCAM (Draelos and Carin 2020, https://arxiv.org/abs/2011.08891).
Grad-CAM (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391) first averages the gradient over the map (eq. 1), and
gives the same where global pooling and a linear layer follow; where an answer comes from a region, as in detectors, that
mean forgets which, and the heat was seen to lie anywhere. Deviations: the score is the probability, not the logit, which
only changes the scale; where a backbone gives several maps, as a pyramid does, their heat is added up.

Letters: B images, C channels, H, W pixels of the frame, h, w cells of a map.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .model import Detector


class Heat(NamedTuple):
    """Where the evidence for one answer lies.

    Attributes:
        heat: (height, width) of the valid picture, 0 to 1; all zero where nothing speaks for the answer.
        label: of the answer.
        score: of the answer.
        box: (4,), the answer's, xyxy in the frame's pixels.
    """

    heat: Tensor
    label: int
    score: float
    box: Tensor


def heat_map(model: Detector, images: Tensor, sizes: Tensor, *, label: int | None = None) -> Heat:
    """The heat of a detector's best answer for one picture.

    The model is left as it was: a copy in double precision does the work, in which a score that rounds to 1 still has a
    gradient. It does so on the CPU, for not every device has that precision (Apple's GPUs do not).

    Args:
        model: any with a `backbone`, on any device.
        images: (1, 3, H, W), as for `model.detect`.
        sizes: (1, 2), the valid (height, width).
        label: of the answer to explain; None for the best of all.

    Raises:
        ValueError: the model has no backbone or no map in it, finds nothing, or nothing of that label, or its scores
            have no gradient.
    """
    if not isinstance(getattr(model, "backbone", None), nn.Module):
        raise ValueError(f"a heat map needs a model with a backbone; {type(model).__name__} has none")
    model, sizes = copy.deepcopy(model).eval().cpu().double(), sizes.cpu()
    # Detached, for on the CPU and in double precision the rest of this gives the caller's own tensor.
    images = images.detach().cpu().double().requires_grad_()
    with torch.enable_grad(), _collecting(model.backbone) as (given, inner):
        found = model.detect(images, sizes)
    if not found.scores.requires_grad:
        raise ValueError(f"a heat map follows a score's gradient, and the scores of {type(model).__name__} have none")
    best = _best(found.labels[0], found.scores[0], label)
    heats = _heats(found.scores[0, best], given or inner, images.shape[-2:])
    if not heats:
        raise ValueError(f"{type(model.backbone).__name__} makes no feature map that the answer depends on")
    height, width = sizes[0].tolist()
    heat = (sum(heats) if given else heats[-1])[:height, :width].float()
    heat = heat / heat.max().clamp(min=torch.finfo(heat.dtype).tiny)
    return Heat(heat, int(found.labels[0, best]), found.scores[0, best].item(), found.boxes[0, best].detach().float())


def _best(labels: Tensor, scores: Tensor, label: int | None) -> int:
    wanted = labels >= 0 if label is None else labels == label
    if not wanted.any():
        raise ValueError(
            "the model finds nothing" + ("" if label is None else f" of label {label}") + " in this picture"
        )
    return int(torch.where(wanted, scores, -1).argmax())


def _heats(score: Tensor, maps: Sequence[Tensor], size: Sequence[int]) -> list[Tensor]:
    """(H, W) of each map (1, C, h, w) that the score depends on."""
    if not maps:
        return []
    gradients = torch.autograd.grad(score, maps, allow_unused=True, retain_graph=True)
    heats = []
    for x, gradient in zip(maps, gradients, strict=True):
        if gradient is not None:
            heat = (gradient * x.detach()).sum(1, keepdim=True).relu()
            heats.append(F.interpolate(heat, size=tuple(size), mode="bilinear", align_corners=False)[0, 0])
    return heats


@contextmanager
def _collecting(backbone: nn.Module) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Two lists to be filled: the maps that the backbone gives, and all those made on its way (a classifier's)."""
    given: list[Tensor] = []
    inner: list[Tensor] = []

    def note(module: nn.Module, _: object, output: object) -> None:
        if module is backbone and isinstance(output, (list, tuple)):
            given.extend(x for x in output if _is_map(x))
        elif _is_map(output):
            inner.append(output)

    handles = [module.register_forward_hook(note) for module in backbone.modules()]
    try:
        yield given, inner
    finally:
        for handle in handles:
            handle.remove()


def _is_map(x: object) -> bool:
    return isinstance(x, Tensor) and x.ndim == 4 and x.shape[-2] * x.shape[-1] > 1 and x.requires_grad
