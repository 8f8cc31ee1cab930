"""Which object each anchor overlaps most, and how much of it crowds cover, without the IoU of all pairs ever standing in memory.

On CUDA Triton kernels do it in two launches and without waiting for the device (`match_triton`); elsewhere the plain versions
below, which are their test. No gradient flows through either.

Letters: B images, N objects (padded), A anchors or proposals.
"""

from __future__ import annotations

import functools
from types import ModuleType

import torch
from torch import Tensor

from .boxes import area, intersection, iou

# The plain versions hold the IoU of so many objects with an image's anchors: at 800 x 1216 pixels, 64 MB. On a CPU so many
# anchors of a batch at a time, which stay in its cache; elsewhere all, for fewer launches.
OBJECTS_AT_ONCE, ANCHORS_AT_ONCE = 16, 16384


# Operators to torch.compile and torch.export, which would write out the plain versions' loops over the objects.
@torch.library.custom_op("sightline::best_objects", mutates_args=())
def best_objects(anchors: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which object each anchor overlaps most.

    Args:
        anchors: (1 or B, A, 4), xyxy, finite; one stands for all images.
        boxes: (B, N, 4), xyxy, finite; zero where there is no object.

    Returns:
        Per anchor the highest IoU (B, A), the first object that has it (B, A) int64, 0 where no object overlaps, and
        whether the anchor's IoU is some object's highest (B, A) bool, ties included.
    """
    kernels = _kernels(anchors, boxes)
    if kernels is None:
        return best_objects_plain(anchors, boxes)
    with torch.cuda.device(boxes.device):  # Triton launches on the current GPU, whichever the boxes lie on
        return kernels.best_objects_triton(anchors, boxes)


@best_objects.register_fake
def _(anchors: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _nothing(anchors, boxes)


@torch.library.custom_op("sightline::covered", mutates_args=())
def covered(anchors: Tensor, crowds: Tensor) -> Tensor:
    """(B, A): the largest share of each anchor that lies inside one crowd box; arguments as `best_objects` has them."""
    kernels = _kernels(anchors, crowds)
    if kernels is None:
        return covered_plain(anchors, crowds)
    with torch.cuda.device(crowds.device):
        return kernels.covered_triton(anchors, crowds)


@covered.register_fake
def _(anchors: Tensor, crowds: Tensor) -> Tensor:
    return _zeros(anchors, crowds)


def _kernels(anchors: Tensor, boxes: Tensor) -> ModuleType | None:
    """The Triton versions, or None where they do not do: they compute in float32, on CUDA."""
    if not boxes.is_cuda or torch.promote_types(anchors.dtype, boxes.dtype) != torch.float32:
        return None
    return _triton()


@functools.cache
def _triton() -> ModuleType | None:
    """The module, or None where Triton is absent (it comes with PyTorch's CUDA packages on Linux)."""
    try:
        from . import match_triton
    except ImportError:
        return None
    return match_triton


def _nothing(anchors: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`best_objects` before any object was looked at."""
    best = _zeros(anchors, boxes)
    return best, torch.zeros_like(best, dtype=torch.int64), torch.zeros_like(best, dtype=torch.bool)


def _zeros(anchors: Tensor, boxes: Tensor) -> Tensor:
    """(B, A)."""
    return boxes.new_zeros(len(boxes), anchors.shape[1], dtype=torch.promote_types(anchors.dtype, boxes.dtype))


def best_objects_plain(anchors: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`best_objects` in plain PyTorch: a few objects and anchors at a time, so that no IoU of all pairs is held."""
    best, idxs, favourite = _nothing(anchors, boxes)
    if best.numel() == 0:
        return best, idxs, favourite
    parts, anchors = _parts(anchors, len(boxes)), _by_coordinate(anchors)
    highest = best.new_zeros(len(parts), *boxes.shape[:2])  # of each object in each part
    for own, part in zip(highest, parts, strict=True):
        for some in _slices(boxes.shape[1], OBJECTS_AT_ONCE):
            overlaps = iou(boxes[:, some], anchors[:, part])  # (B, some, part)
            own[:, some] = overlaps.amax(dim=2)
            value = overlaps.amax(dim=1)
            better = value > best[:, part]
            idxs[:, part] = torch.where(better, some.start + _first(overlaps, value), idxs[:, part])
            best[:, part] = torch.maximum(value, best[:, part])
    top = highest.amax(dim=0)
    wanted = torch.where(top > 0, top, -1)
    for own, part in zip(highest, parts, strict=True):
        here = _at_home(own == wanted)
        for few in _slices(len(here), OBJECTS_AT_ONCE):
            equal = iou(boxes[:, here[few]], anchors[:, part]).eq_(wanted[:, here[few], None])
            favourite[:, part] |= equal.amax(dim=1) > 0
    return best, idxs, favourite


def _first(overlaps: Tensor, value: Tensor) -> Tensor:
    """(B, A): the first of the objects whose overlap (B, n, A) is `value` (B, A), the highest; overwrites `overlaps`.

    The first has the largest of the weights n, n - 1 … 1: a CPU finds the maximum of numbers many times as fast as its place.
    """
    number = overlaps.shape[1]
    weights = torch.arange(number, 0, -1, dtype=overlaps.dtype, device=overlaps.device)
    return number - overlaps.eq_(value[:, None]).mul_(weights[:, None]).amax(dim=1).long()


def _at_home(here: Tensor) -> Tensor:
    """Numbers of the objects that have a best anchor in this part, in any image, from (B, N) bool.

    On a CPU few have. Elsewhere there is one part, so that all have, and asking would wait for the device.
    """
    return here.any(dim=0).nonzero()[:, 0] if here.is_cpu else torch.arange(here.shape[1], device=here.device)


def covered_plain(anchors: Tensor, crowds: Tensor) -> Tensor:
    """`covered` in plain PyTorch."""
    common = _zeros(anchors, crowds)
    if crowds.is_cpu and not crowds.any():  # most batches have none; elsewhere asking would wait for the device
        return common
    parts, anchors = _parts(anchors, len(crowds)), _by_coordinate(anchors)
    for part in parts:
        for some in _slices(crowds.shape[1], OBJECTS_AT_ONCE):
            inside = intersection(crowds[:, some], anchors[:, part]).amax(dim=1)
            common[:, part] = torch.maximum(common[:, part], inside)
    return common / area(anchors).clamp(min=1e-6)


def _parts(anchors: Tensor, images: int) -> list[slice]:
    number = anchors.shape[1]
    return _slices(number, max(1024, ANCHORS_AT_ONCE // images) if anchors.device.type == "cpu" else number)


def _slices(number: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, number, max(size, 1))]


def _by_coordinate(anchors: Tensor) -> Tensor:
    """The same anchors, each coordinate in one piece, over which a CPU computes several times as fast."""
    anchors = anchors[:1] if anchors.stride(0) == 0 else anchors
    return anchors.mT.contiguous().mT
