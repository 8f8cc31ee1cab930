"""Test-time augmentation: a trained model looks at a picture at several scales and mirrored, and its answers become one.

Every view of a picture, one scale with or without a flip, is a member of an ensemble: boxes are mapped back to the picture
and fused by weighted boxes fusion, masks with them, and classifiers' probabilities averaged (`ensemble.py`). So any detector
can be augmented, one with a proposer and an ensemble too, and nothing is known here of any of them.

    model = augmented(load("best.ckpt"), scales=(0.75, 1, 1.25), flip=True)     # six views
    model.predict("street.jpg")

Pictures reach an augmented model at its largest scale, and the views are made from that on the device: a view of scale 1.25
shows what the original has more to show, and is no enlargement of the smaller picture.

Letters: B images, H, W pixels of the frame, N objects, P landmarks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..datasets.structures import Instances
from .boxes import clip
from .ensemble import Ensemble, ensemble
from .model import Detector

STRIDE = 32  # what the sides of a resized frame are multiples of: the largest stride of the usual networks


class Outputs(NamedTuple):
    """What the model says of the view, and what it takes to go back.

    Attributes:
        view: the model's own outputs.
        sizes: (B, 2), the valid (height, width) of the pictures, not of the view.
    """

    view: Any
    sizes: Tensor


class View(Detector):
    """A model that is shown pictures scaled and mirrored, and answers in the pictures' own pixels.

    Its losses are the model's on the view, with targets that have moved as the picture did.

    Args:
        model: any detector; it is shared, not copied.
        scale: of the pictures as they come, more than 0.
        flipped: left to right.
        upturned: top to bottom.
    """

    def __init__(self, model: Detector, *, scale: float = 1.0, flipped: bool = False, upturned: bool = False) -> None:
        mean, std = (value.flatten().tolist() for value in (model.normalize.mean, model.normalize.std))
        super().__init__(mean=mean, std=std, num_classes=len(model.categories))
        self.model, self.scale, self.flipped, self.upturned = model, scale, flipped, upturned
        self.task, self.categories, self.resize = model.task, list(model.categories), model.resize
        self.proposer = model.proposer

    def forward(self, images: Tensor, sizes: Tensor, proposals: Instances | None = None) -> Outputs:
        """The model's outputs for the view; proposals move as the picture does."""
        inputs = [self.picture(images, sizes), self._valid(sizes)]
        if proposals is not None:
            inputs.append(self.there(proposals, sizes))
        return Outputs(self.model(*inputs), sizes)

    def losses(self, outputs: Outputs, targets: Instances) -> dict[str, Tensor]:
        """The model's."""
        return self.model.losses(outputs.view, self.there(targets, outputs.sizes))

    def probabilities(self, outputs: Outputs) -> Tensor:
        """A classifier's (B, C)."""
        return self.model.probabilities(outputs.view)

    def decode(self, outputs: Outputs, sizes: Tensor) -> Instances:
        """The model's detections, mapped back."""
        return self.back(self.model.decode(outputs.view, self._valid(sizes)), sizes)

    def picture(self, images: Tensor, sizes: Tensor) -> Tensor:
        """The view of images (B, 3, H, W), uint8 or float in 0..255; scaled it is float, and its sides are multiples of 32.

        Each image is mirrored within its own valid area. What lies beyond repeats its border, so that nothing of the
        padding comes in when it is resized, and an image looks the same in every frame.
        """
        if self.scale == 1 and not (self.flipped or self.upturned):
            return images
        frame = images.shape[-2:]
        if self.scale != 1:
            frame = [-(-math.ceil(side * self.scale) // STRIDE) * STRIDE for side in frame]
        rows, columns = (
            self._places(sizes[:, axis, None], frame[axis], mirrored)
            for axis, mirrored in enumerate((self.upturned, self.flipped))
        )
        each = torch.arange(len(images), device=images.device)[:, None, None]
        images = images.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)
        if self.scale == 1:
            return images
        # By the factor itself, not to a size: then every picture is scaled alike, whatever its frame.
        images = F.interpolate(images.float(), scale_factor=self.scale, mode="bilinear", antialias=True)
        return images[..., : frame[0], : frame[1]]

    def _places(self, lengths: Tensor, side: int, mirrored: bool) -> Tensor:
        """(B, n) which of the first `lengths` (B, 1) rows stand where, enough of them to be scaled to `side`."""
        count = side if self.scale == 1 else math.ceil(side / self.scale) + 1
        inside = torch.minimum(torch.arange(count, device=lengths.device), lengths - 1)
        return lengths - 1 - inside if mirrored else inside

    def _valid(self, sizes: Tensor) -> Tensor:
        """(B, 2) what of the view is valid: the last row and column count if any of the picture is in them."""
        if self.scale == 1:
            return sizes
        return (sizes * self.scale - 1e-3).ceil().to(sizes.dtype)

    def there(self, instances: Instances, sizes: Tensor) -> Instances:
        """A batch's objects, given in the pictures' pixels, in those of the view."""
        return _scaled(self._mirrored(instances, sizes), self.scale)

    def back(self, instances: Instances, sizes: Tensor) -> Instances:
        """The inverse of `there`, up to rounding; clipped to the pictures."""
        instances = self._mirrored(_scaled(instances, 1 / self.scale), sizes)
        return instances if self.scale == 1 else replace(instances, boxes=clip(instances.boxes, sizes))

    def _mirrored(self, instances: Instances, sizes: Tensor) -> Instances:
        """x becomes width - x, y becomes height - y, as far as this view is mirrored; twice is the identity.

        Raises:
            ValueError: there are landmarks, whose names a mirror would change, and a model does not know them.
        """
        if not (self.flipped or self.upturned):
            return instances
        if instances.landmarks is not None:
            raise ValueError("a mirror makes left landmarks right ones, and a model knows no names: leave out flips")
        x0, y0, x1, y1 = instances.boxes.unbind(dim=-1)
        height, width = sizes[:, :1], sizes[:, 1:]
        masks = instances.masks
        if self.flipped:
            x0, x1, masks = width - x1, width - x0, None if masks is None else masks.flip(-1)
        if self.upturned:
            y0, y1, masks = height - y1, height - y0, None if masks is None else masks.flip(-2)
        return replace(instances, boxes=torch.stack([x0, y0, x1, y1], dim=-1), masks=masks)


def _scaled(instances: Instances, factor: float) -> Instances:
    landmarks = None if instances.landmarks is None else instances.landmarks * factor
    return replace(instances, boxes=instances.boxes * factor, landmarks=landmarks)


def augmented(
    model: Detector, *, scales: Sequence[float] = (1.0,), flip: bool = False, upturn: bool = False
) -> Ensemble:
    """A model that looks at every picture several times: at each of these scales, and there mirrored too.

    The model itself is held, not copied; losses are the mean over the views. Each view costs about as much as the model
    alone, times the square of its scale.

    Args:
        model: any detector, localizer or classifier, or an ensemble.
        scales: of the size that the model is made for; a model of one input size takes 1 alone.
        flip: each view left to right, too.
        upturn: each view top to bottom, too; where pictures have no up and down.

    Raises:
        ValueError: no scales or such that no model can see, or a model that finds nothing.
    """
    if not scales or not all(math.isfinite(scale) and 0 < scale <= 10 for scale in scales):
        raise ValueError(
            f"scales must be one or more factors above 0 and up to 10, e.g. 0.75 1 1.25, got {list(scales)}"
        )
    if len(set(scales)) < len(scales):
        raise ValueError(f"each scale counts once, got {list(scales)}")
    exact = len(model.resize) == 3 and model.resize[2]
    if exact and set(scales) != {1}:
        raise ValueError(f"a model of one input size, {model.resize[0]}x{model.resize[1]}, takes flips and no scales")
    largest = max(scales)
    flips = [(flipped, upturned) for upturned in (False, True)[: 1 + upturn] for flipped in (False, True)[: 1 + flip]]
    views = [
        View(model, scale=scale / largest, flipped=flipped, upturned=upturned)
        for scale in scales
        for flipped, upturned in flips
    ]
    together = ensemble(views)
    if largest != 1:
        together.resize = tuple(max(1, round(side * largest)) for side in model.resize[:2])
    return together.train(model.training)
