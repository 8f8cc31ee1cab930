"""What every network that names all pixels is: a module with three verbs, and the names of its categories."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backbone.model import Model
from ..datasets.structures import LabelMaps
from .losses import MapLoss


class Outputs(NamedTuple):
    """What `forward` knows of a batch: for every pixel of the frame, the logits of all categories.

    Attributes:
        logits: (B, C, H, W).
        auxiliary: further (B, C, H, W), of branches that only help to learn (deep supervision); empty where there are none.
    """

    logits: Tensor
    auxiliary: tuple[Tensor, ...] = ()


class Segmenter(Model):
    """A category for every pixel. A subclass writes the verb `forward`:

        outputs = model(images, sizes)                # `Outputs`; needs no targets; any H and W
        losses = model.losses(outputs, targets)       # dict of scalars to be summed
        label_maps = model.decode(outputs, sizes)     # `LabelMaps` in the frame, -1 in its padding

    Args:
        mean, std: of the pictures the backbone was trained on, RGB in [0, 1].
        num_classes: C; where there is a background, it is one of them.
        loss: what is minimised, also for auxiliary logits.
        auxiliary_weight: of the auxiliary logits' losses.

    Attributes:
        categories: C names, in the order of the labels.
        colours: C (red, green, blue), 0 to 255, in which the data draw them; empty where they say nothing.
    """

    task = "segmentation"

    def __init__(
        self,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        num_classes: int,
        loss: MapLoss | None = None,
        auxiliary_weight: float = 0.4,
    ) -> None:
        super().__init__(mean=mean, std=std)
        self.loss, self.auxiliary_weight = loss or MapLoss(num_classes), auxiliary_weight
        self.categories = [f"class {i}" for i in range(num_classes)]
        self.colours: list[tuple[int, int, int]] = []

    def forward(self, images: Tensor, sizes: Tensor) -> Outputs:
        """(B, 3, H, W) uint8 RGB and (B, 2) valid (height, width), of any size, to logits for every pixel."""
        raise NotImplementedError

    def losses(self, outputs: Outputs, targets: LabelMaps) -> dict[str, Tensor]:
        """`loss_map` and, where there are auxiliary logits, `loss_auxiliary`; targets are (B, H, W), see `LabelMaps`."""
        losses = {"loss_map": self.loss(outputs.logits, targets.labels)}
        if outputs.auxiliary:
            auxiliary = torch.stack([self.loss(logits, targets.labels) for logits in outputs.auxiliary])
            losses["loss_auxiliary"] = self.auxiliary_weight * auxiliary.sum()
        return losses

    def decode(self, outputs: Outputs, sizes: Tensor) -> LabelMaps:
        """The likeliest category of every pixel of the frame, (B, H, W); -1 in the padding."""
        return label_maps(outputs.logits.float().softmax(1), sizes)

    def segment(self, images: Tensor, sizes: Tensor) -> LabelMaps:
        """From pixels to label maps: `decode` after `forward`."""
        return self.decode(self(images, sizes), sizes)

    def description(self) -> dict[str, Any]:
        """See `Model.description`; the categories' names and colours are part of it."""
        colours = [list(colour) for colour in self.colours]
        return super().description() | {"categories": list(self.categories), "colours": colours}

    def restore(self, about: Mapping[str, Any]) -> None:
        """See `Model.restore`."""
        super().restore(about)
        if len(about["categories"]) != len(self.categories):
            raise ValueError(f"names {len(about['categories'])} categories for a model of {len(self.categories)}")
        self.categories = list(about["categories"])
        self.colours = [tuple(colour) for colour in about["colours"]]

    def predict(self, source: Any, *, every: int = 1) -> Iterator[LabelMaps]:
        """The label map of pictures or video, one picture at a time, at the picture's own resolution, on the CPU.

        Args:
            source: an image file, a folder, a glob, a video, a camera's number, an (H, W, 3) uint8 RGB array, or a list.
            every: of a video, only every so many frames.

        Raises:
            DataError: a source cannot be read.
        """
        from .inference import run

        for sample in run(self, source, every=every):
            yield sample.label_map


def label_maps(probabilities: Tensor, sizes: Tensor) -> LabelMaps:
    """The likeliest categories: of probabilities (B, C, H, W) and the valid (height, width) (B, 2), whose rest is -1."""
    scores, labels = probabilities.max(1)
    rows = torch.arange(labels.shape[1], device=labels.device) < sizes[:, 0, None]
    columns = torch.arange(labels.shape[2], device=labels.device) < sizes[:, 1, None]
    valid = rows[:, :, None] & columns[:, None, :]
    return LabelMaps(torch.where(valid, labels, -1).to(torch.int16), torch.where(valid, scores, 0).float())
