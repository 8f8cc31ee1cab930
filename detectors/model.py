"""What every detector is: a module with three verbs, and the little it knows about itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..backbone.model import Model
from ..datasets.proposals import Proposer
from ..datasets.structures import Instances


class Detector(Model):
    """The base of all detectors. A subclass writes the verbs `forward`, `losses` and `decode`:

        outputs = model(images, sizes)              # a NamedTuple of tensors; needs no targets
        losses = model.losses(outputs, targets)     # dict of scalars to be summed
        instances = model.decode(outputs, sizes)    # final Instances in the frame's pixels

    All three do the same in training and evaluation; `self.training` only changes dropout, batch norm
    and how many proposals there are to learn from.

    Args:
        mean, std: of the pictures the backbone was trained on, RGB in [0, 1].
        num_classes: C.
        padding: the grey, 0 to 255, around pictures in their frame; None for what normalises to zero.

    Attributes:
        categories: C names, in the order of the labels.
        task: "detection", "classification" (an object is the whole picture), "localization" (one answer, or a fixed
            number) or "reconstruction" (nothing is found): how its answers are scored.
        proposer: says where to look, picture by picture, for models that do not propose themselves; most have none.
        refining: whether training is in its last epochs, without strong augmentation; the trainer sets it, and some losses
            have more terms then.
    """

    task = "detection"

    def __init__(
        self, *, mean: Sequence[float], std: Sequence[float], num_classes: int, padding: float | None = None
    ) -> None:
        super().__init__(mean=mean, std=std, padding=padding)
        self.categories = [f"class {i}" for i in range(num_classes)]
        self.proposer: Proposer | None = None
        self.refining = False

    def forward(self, images: Tensor, sizes: Tensor, proposals: Instances | None = None) -> Any:
        """What the network makes of a batch. Only models with a proposer look at `proposals`; most do not take any."""
        raise NotImplementedError

    def losses(self, outputs: Any, targets: Instances) -> dict[str, Tensor]:
        """Scalars by name, each "loss_…"; their sum is what training minimises."""
        raise NotImplementedError

    def decode(self, outputs: Any, sizes: Tensor) -> Instances:
        """The detections of (B, D), in the frame's pixels, best first; label -1 marks padding."""
        raise NotImplementedError

    def description(self) -> dict[str, Any]:
        """See `Model.description`; the names of the categories are part of it."""
        return super().description() | {"categories": list(self.categories)}

    def restore(self, about: Mapping[str, Any]) -> None:
        """See `Model.restore`."""
        super().restore(about)
        categories = list(about["categories"])
        counted = "num_classes" in ((self.architecture or {}).get("arguments") or {})  # an autoencoder has none
        if counted and len(categories) != len(self.categories):
            raise ValueError(f"names {len(categories)} categories for a model of {len(self.categories)}")
        self.categories = categories

    def detect(self, images: Tensor, sizes: Tensor, proposals: Instances | None = None) -> Instances:
        """From pixels to detections: `decode` after `forward`."""
        outputs = self(images, sizes) if proposals is None else self(images, sizes, proposals)
        return self.decode(outputs, sizes)

    def predict(self, source: Any, *, score: float = 0.5, every: int = 1) -> Iterator[Instances]:
        """Detections in pictures or video, one picture at a time, in the picture's own pixels, on the CPU.

        Args:
            source: an image file, a folder, a glob, a video, a camera's number, an (H, W, 3) uint8 RGB array, or a list.
            score: the least score of a detection; a classifier's best answer is given whatever its score.
            every: of a video, only every so many frames.

        Raises:
            DataError: a source cannot be read.
        """
        from .inference import run

        for sample in run(self, source, score=score, every=every):
            yield sample.target

    def track(self, source: Any, *, score: float = 0.5, every: int = 1) -> Iterator[Instances]:
        """Objects followed through a video, frame by frame; as `predict`, and `ids` tells which are the same object.

        Args:
            source: as of `predict`; the pictures of a folder are the frames of one video, in the order of their names.
                Ids start at 1, and go on from one video to the next.
            score: the least score of a good detection; an object that is being followed is also found by a lower one.
            every: only every so many frames.

        Raises:
            DataError: a source cannot be read.
        """
        from .inference import track

        for sample in track(self, source, score=score, every=every):
            yield sample.target
