"""At test time a trained segmenter looks more than once: in windows over a large picture, or at several scales and mirrored.
Its probabilities are averaged.

    model = augmented(load("best.ckpt"), scales=(0.75, 1, 1.25), flip=True)     # six views
    model = windowed(load("best.ckpt"), 512)                                    # windows of 512 x 512, half of it shared
    model.predict("street.jpg")

Both give a `Segmenter` with the usual verbs, whose logits are the logarithms of mean probabilities, and take any `Segmenter`,
one that they gave too. No shape depends on what is in the pictures; each picture of a batch is cut, scaled and mirrored
within its own valid part, and nothing of the padding comes into it.

Letters: B pictures, C categories, H, W pixels of the frame, h, w those of a window or view.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .model import Outputs, Segmenter


class Wrapper(Segmenter):
    """The base: another segmenter (held, not copied) that is asked in another way; a subclass writes `probabilities`."""

    def __init__(self, model: Segmenter) -> None:
        mean, std = (value.flatten().tolist() for value in (model.normalize.mean, model.normalize.std))
        super().__init__(mean=mean, std=std, num_classes=len(model.categories), loss=model.loss)
        self.model, self.resize = model, model.resize
        self.categories, self.colours = list(model.categories), list(model.colours)
        self.train(model.training)

    def forward(self, images: Tensor, sizes: Tensor) -> Outputs:
        """Logits whose softmax are the `probabilities`; nothing auxiliary."""
        found = self.probabilities(images, sizes)
        return Outputs(found.clamp(min=torch.finfo(found.dtype).tiny).log())

    def probabilities(self, images: Tensor, sizes: Tensor) -> Tensor:
        """(B, C, H, W) float32; in the padding they mean nothing, and may all be 0."""
        raise NotImplementedError

    def asked(self, images: Tensor, sizes: Tensor) -> Tensor:
        """The model's own probabilities of a window or a view."""
        return self.model(images, sizes).logits.float().softmax(1)


class Windowed(Wrapper):
    """Windows evenly spread over each picture, see `windowed`.

    Args:
        model: any segmenter.
        window: (height, width).
        overlap: the least share of a window's side that it has in common with the next.
    """

    def __init__(self, model: Segmenter, window: tuple[int, int], overlap: float) -> None:
        super().__init__(model)
        self.window, self.overlap = window, overlap

    def probabilities(self, images: Tensor, sizes: Tensor) -> Tensor:
        """The mean over the windows that a pixel lies in; the model's own where one window covers the frame."""
        frame = tuple(images.shape[-2:])
        window = tuple(min(pair) for pair in zip(self.window, frame, strict=True))
        if window == frame:
            return self.asked(images, sizes)
        total = count = 0
        for top in self._starts(sizes[:, 0], frame[0], window[0]):
            for left in self._starts(sizes[:, 1], frame[1], window[1]):
                corner = torch.stack([top, left], 1)
                found, seen = self._look(images, sizes, corner, window)
                total, count = total + found, count + seen
        return total / count.clamp(min=1)

    def _starts(self, lengths: Tensor, side: int, window: int) -> list[Tensor]:
        """Where windows begin along one axis, (B,) each: as many as the frame's side needs, spread over each picture's length."""
        steps = math.ceil((side - window) / (window * (1 - self.overlap)) - 1e-9)
        free = (lengths - window).clamp(min=0)
        return [(free * i + steps // 2) // max(steps, 1) for i in range(steps + 1)]

    def _look(self, images: Tensor, sizes: Tensor, corner: Tensor, window: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The probabilities (B, C, H, W) of one window, 0 outside of it, and where that is, (B, 1, H, W)."""
        inside = [torch.arange(side, device=images.device) + corner[:, i, None] for i, side in enumerate(window)]
        valid = torch.stack([(sizes - corner)[:, i].clamp(max=side) for i, side in enumerate(window)], 1)
        found = self.asked(_pick(images, *inside), valid)
        there = [torch.arange(images.shape[2 + i], device=images.device) - corner[:, i, None] for i in (0, 1)]
        places = [at.clamp(0, side - 1) for at, side in zip(there, window, strict=True)]
        rows, columns = (at == place for at, place in zip(there, places, strict=True))
        seen = (rows[:, :, None] & columns[:, None])[:, None]
        return torch.where(seen, _pick(found, *places), 0), seen


class View(NamedTuple):
    """How a picture is looked at: scaled by a factor, at most 1, after it was mirrored left to right, or not."""

    scale: float
    flipped: bool


class Augmented(Wrapper):
    """Several views of each picture, see `augmented`."""

    def __init__(self, model: Segmenter, views: Sequence[View]) -> None:
        super().__init__(model)
        self.views = tuple(views)

    def probabilities(self, images: Tensor, sizes: Tensor) -> Tensor:
        """The mean over the views."""
        total = 0
        for view in self.views:
            valid = sizes if view.scale == 1 else (sizes * view.scale - 1e-3).ceil().to(sizes.dtype)
            found = self.asked(_seen(images, sizes, view), valid)
            total = total + _brought_back(found, valid, sizes, view, tuple(images.shape[-2:]))
        return total / len(self.views)


def _seen(images: Tensor, sizes: Tensor, view: View) -> Tensor:
    """The view of images (B, 3, H, W); scaled it is float, in 0..255, of ceil(scale H) x ceil(scale W)."""
    if view == (1, False):
        return images
    frame = [math.ceil(side * view.scale) for side in images.shape[-2:]]
    reach = images.shape[-2:] if view.scale == 1 else [math.ceil(side / view.scale) + 1 for side in frame]
    images = _pick(images, _within(sizes[:, 0], reach[0]), _within(sizes[:, 1], reach[1], mirrored=view.flipped))
    if view.scale == 1:
        return images
    # By the factor itself, not to a size: then every picture is scaled alike, whatever its frame.
    images = F.interpolate(images.float(), scale_factor=view.scale, mode="bilinear", antialias=True)
    return images[..., : frame[0], : frame[1]]


def _brought_back(found: Tensor, valid: Tensor, sizes: Tensor, view: View, frame: tuple[int, int]) -> Tensor:
    """Probabilities of a view, (B, C, h, w) with its `valid` parts, in the frame (H, W) of pictures of `sizes`."""
    if view.scale != 1:
        reach = [math.ceil(side * view.scale) + 1 for side in frame]
        found = _pick(found, _within(valid[:, 0], reach[0]), _within(valid[:, 1], reach[1]))
        found = F.interpolate(found, scale_factor=1 / view.scale, mode="bilinear")[..., : frame[0], : frame[1]]
    if not view.flipped:
        return found
    return _pick(found, _within(sizes[:, 0], frame[0]), _within(sizes[:, 1], frame[1], mirrored=True))


def _within(lengths: Tensor, count: int, *, mirrored: bool = False) -> Tensor:
    """(B, count) rows 0, 1, ... of pictures that have `lengths` (B,) of them, or from the last one back; then the end's again."""
    last = lengths[:, None] - 1
    inside = torch.minimum(torch.arange(count, device=lengths.device), last)
    return last - inside if mirrored else inside


def _pick(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(B, C, h, w): of maps (B, C, H, W) the pixels in rows (B, h) and columns (B, w)."""
    each = torch.arange(len(maps), device=maps.device)[:, None, None]
    return maps.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def windowed(model: Segmenter, window: int | tuple[int, int], *, overlap: float = 0.5) -> Windowed:
    """A model that looks at large pictures through windows of the size that it is made for.

    Pictures reach it as `model.resize` says, which is to be set to more than the window.

    Args:
        model: any segmenter; it is held, not copied.
        window: its side, or (height, width), in pixels of the frame.
        overlap: the least share of a window's side that it has in common with the next, 0 to 0.9.

    Raises:
        ValueError: a window of less than 32 pixels a side, or no such overlap.
    """
    sides = (window, window) if isinstance(window, int) else tuple(window)
    if len(sides) != 2 or min(sides) < 32:
        raise ValueError(f"a window must be at least 32 pixels a side, e.g. 512 or (384, 512), got {window}")
    if not 0 <= overlap <= 0.9:
        raise ValueError(f"the overlap of windows must be from 0 to 0.9 of their side, got {overlap}")
    return Windowed(model, sides, overlap)


def augmented(model: Segmenter, *, scales: Sequence[float] = (1.0,), flip: bool = False) -> Augmented:
    """A model that looks at every picture several times: at each of these scales, and there mirrored too.

    Pictures reach it at its largest scale, from which the smaller views are made. Each view costs about as much as the model
    alone, times the square of its scale.

    Args:
        model: any segmenter; it is held, not copied.
        scales: of the size that the model is made for.
        flip: each view left to right, too.

    Raises:
        ValueError: no scales, one twice, or such that no model can see; or pictures reach the model as they are, and the
            largest scale is not 1.
    """
    if not scales or not all(math.isfinite(scale) and 0 < scale <= 10 for scale in scales):
        raise ValueError(
            f"scales must be one or more factors above 0 and up to 10, e.g. 0.75 1 1.25, got {list(scales)}"
        )
    if len(set(scales)) < len(scales):
        raise ValueError(f"each scale counts once, got {list(scales)}")
    largest = max(scales)
    together = Augmented(model, [View(s / largest, flipped) for s in scales for flipped in (False, True)[: 1 + flip]])
    if not model.resize:
        if largest != 1:
            raise ValueError(
                f"pictures that reach the model as they are have no larger view: give scales up to 1, got {list(scales)}"
            )
        return together
    height, width, *exact = model.resize
    together.resize = (max(1, round(height * largest)), max(1, round(width * largest)), *exact)
    return together
