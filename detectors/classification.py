"""Classification: what a picture shows as a whole, by any network of `backbone.CLASSIFIERS`.

An image-level label is an object whose box is the whole picture, so classifiers train, predict and are scored as
detectors are.

Letters: B images, H, W pixels of the frame, C categories, D answers an image.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbone import build_classifier
from ..backbone.initialise import initialise
from ..datasets.structures import Instances
from .boxes import full_precision
from .model import Detector

LISTED = 5  # answers an image, so that the top-5 error means something


class Outputs(NamedTuple):
    """What `forward` says of a batch.

    Attributes:
        logits: (B, C).
        auxiliary: further (B, C), of classifiers on lower maps; only losses look at them.
    """

    logits: Tensor
    auxiliary: tuple[Tensor, ...]


class Classifier(Detector):
    """A network from images to logits.

    Where a picture does not fill its frame (as with `data.exact` every picture does), its valid part is stretched to
    the whole frame: a network that averages its last map would see the padding.

    Args:
        network: normalised images (B, 3, H, W) to logits (B, C); it states `mean`, `std` and `stage_prefixes` as a
            `Backbone` does, and `all_logits` and `aux_weight` where it has auxiliary classifiers (GoogLeNet).
        num_classes: C.
        label_smoothing: share of the target that is spread over all categories (https://arxiv.org/abs/1512.00567,
            section 7).
    """

    task = "classification"

    def __init__(self, network: nn.Module, num_classes: int, *, label_smoothing: float = 0.0) -> None:
        super().__init__(mean=network.mean, std=network.std, num_classes=num_classes)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        self.backbone, self.label_smoothing = network, label_smoothing

    def forward(self, images: Tensor, sizes: Tensor) -> Outputs:
        """Logits.

        Args:
            images: (B, 3, H, W) RGB, uint8 or float in 0..255, padded right and below.
            sizes: (B, 2), the valid (height, width) of each.
        """
        images = fill_frame(self.normalize(images, sizes), sizes)
        every = getattr(self.backbone, "all_logits", None)
        first, *auxiliary = every(images) if every else [self.backbone(images)]
        return Outputs(first, tuple(auxiliary))

    def losses(self, outputs: Outputs, targets: Instances) -> dict[str, Tensor]:
        """`loss_cls`, the cross-entropy of each image's first object, and `loss_aux` where there are auxiliary logits.

        Means over the images that have an object; 0 where none has.
        """
        labels = first_labels(targets)
        losses = {"loss_cls": self._cross_entropy(outputs.logits, labels)}
        if outputs.auxiliary:
            auxiliary = torch.stack([self._cross_entropy(logits, labels) for logits in outputs.auxiliary])
            losses["loss_aux"] = self.backbone.aux_weight * auxiliary.sum()
        return losses

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        options = {"label_smoothing": self.label_smoothing, "ignore_index": -1, "reduction": "sum"}
        total = F.cross_entropy(full_precision(logits), labels, **options)
        return total / (labels >= 0).sum().clamp(min=1)

    def probabilities(self, outputs: Outputs) -> Tensor:
        """(B, C), each row of sum 1."""
        return full_precision(outputs.logits).softmax(dim=-1)

    def decode(self, outputs: Outputs, sizes: Tensor) -> Instances:
        """The likeliest categories, see `whole_pictures`."""
        return whole_pictures(self.probabilities(outputs), sizes)


def fill_frame(images: Tensor, sizes: Tensor) -> Tensor:
    """Each picture's valid part stretched bilinearly to the whole frame; a picture that fills it stays as it is.

    Args:
        images: (B, 3, H, W) floats, padded right and below.
        sizes: (B, 2), the valid (height, width).
    """
    cells = images.permute(0, 2, 3, 1)
    cells = _stretch(cells, sizes[:, 0]).transpose(1, 2)
    cells = _stretch(cells, sizes[:, 1]).transpose(1, 2)
    return cells.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def _stretch(cells: Tensor, lengths: Tensor) -> Tensor:
    """Rows (B, n, ...) at which the first `lengths` (B,) of them options over all n."""
    count, lengths = cells.shape[1], lengths[:, None]
    # Centres of cells. Where lengths are n these are whole numbers, exactly: the numerator is below 2^24.
    places = (((2 * torch.arange(count, device=cells.device) + 1) * lengths / count - 1) / 2).clamp(min=0)
    lower = torch.minimum(places.long(), lengths - 1)
    upper = torch.minimum(lower + 1, lengths - 1)
    each = torch.arange(len(cells), device=cells.device)[:, None]
    weights = (places - lower).to(cells.dtype)[..., None, None]
    return torch.lerp(cells[each, lower], cells[each, upper], weights)


def first_labels(targets: Instances) -> Tensor:
    """(B,) int64: the label of each image's first object that is no crowd, -1 where there is none."""
    present = targets.labels >= 0
    if targets.crowd is not None:
        present = present & ~targets.crowd
    first = present.int().argmax(dim=1, keepdim=True)
    return torch.where(present, targets.labels, -1).gather(1, first).squeeze(1)


def whole_pictures(probabilities: Tensor, sizes: Tensor) -> Instances:
    """The likeliest categories as objects: Instances of (B, D), each box the whole valid picture, best first.

    Args:
        probabilities: (B, C); rows that are no numbers give padding.
        sizes: (B, 2), the valid (height, width).
    """
    scores, labels = probabilities.topk(min(LISTED, probabilities.shape[-1]), dim=-1)
    known = scores.isfinite()
    corners = torch.cat([torch.zeros_like(sizes), sizes.flip(-1)], dim=-1)[:, None]
    boxes = torch.where(known[..., None], corners.to(torch.float32), 0.0)
    return Instances(boxes, torch.where(known, labels, -1), torch.where(known, scores, 0))


def classifier(
    network: str = "resnet18",
    num_classes: int = 1000,
    *,
    weights: str | None = None,
    norm: str = "batch",
    trainable_stages: int | None = None,
    label_smoothing: float = 0.0,
    dropout: float | None = None,
    init: str | None = None,
) -> Classifier:
    """A classifier by its network's name.

    Args:
        network: a name in `CLASSIFIERS`, or "timm:NAME".
        num_classes: C.
        weights: where the network starts: None, a path, a URL or "imagenet"; a classifier's weights, or a checkpoint of
            training (of an autoencoder, say) that has the network's body as its backbone. With another number of
            classes the last layer starts at random.
        norm: "batch", "sync", "group" or "frozen"; frozen statistics only make sense with trained weights.
        trainable_stages: how many of the network's stages train, counted from the last; None trains all, and with 0
            only the last layer learns. Batch norms of the others are held still, see `freeze_stages`.
        label_smoothing: in [0, 1).
        dropout: the share of units that each of the network's dropout layers drops; None leaves the paper's.
        init: how random weights start, a name in `backbone.initialise.INITIALISERS`; None for the network's own way.

    Raises:
        ValueError: an argument out of range, dropout for a network without, or both `weights` and `init`.
    """
    architecture = {"name": "classifier", "arguments": dict(locals())}
    if weights is not None and init is not None:
        raise ValueError(f"init={init!r} would undo weights={str(weights)!r}: give one of the two")
    body = build_classifier(network, num_classes, norm=norm, weights=weights, trainable_stages=trainable_stages)
    if init is not None:
        initialise(body, init, seed=int(torch.randint(2**31, ())))  # so that it follows from the run's seed
    if dropout is not None:
        _set_dropout(body, dropout, network)
    model = Classifier(body, num_classes, label_smoothing=label_smoothing)
    # Where the first weights came from is no part of the model, and a path means nothing to whom the checkpoint is given.
    architecture["arguments"] |= dict.fromkeys(("weights", "init"))
    model.architecture = architecture
    return model


def _set_dropout(network: nn.Module, share: float, name: str) -> None:
    layers = [module for module in network.modules() if isinstance(module, nn.Dropout)]
    if not layers:
        raise ValueError(f"{name} has no dropout layers; leave dropout out (null)")
    if not 0 <= share < 1:
        raise ValueError(f"dropout must be in [0, 1), got {share}")
    for layer in layers:
        layer.p = share
