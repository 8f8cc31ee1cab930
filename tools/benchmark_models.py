"""What `sightline benchmark` compares: our detectors and, behind the same verb, torchvision's."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision import models

from sightline.backbone import load_weights
from sightline.datasets.structures import Instances
from sightline.datasets.table import DataError, nearest
from sightline.detectors import Detector
from sightline.detectors.coco_names import COCO_91
from sightline.tools import model_names

PEERS = "torchvision:"


def build(spec: str, device: torch.device | str) -> Detector:
    """The model that a word of the command line stands for, in evaluation mode.

    Args:
        spec: what `model_names.build` takes, or "torchvision:NAME", after which may come "@" and weights.
        device: where to put it.

    Raises:
        DataError: nothing is known by that name.
        WeightsError: the checkpoint or the weights cannot be had or do not fit.
    """
    if not spec.startswith(PEERS):
        return model_names.build(spec, device, others=[PEERS + peer for peer in peers()])
    name, _, weights = spec.removeprefix(PEERS).partition("@")
    return TorchvisionDetector(name, weights or None).to(device).eval()


def peers() -> list[str]:
    """The names of torchvision's detectors of boxes in pictures of any size."""
    names = models.list_models(models.detection)
    return [name for name in names if name.startswith(("fasterrcnn", "retinanet", "fcos"))]


def has_weights(spec: str) -> bool:
    """Whether a model is trained, so that its accuracy means something."""
    return "@" in spec if spec.startswith(PEERS) else model_names.has_weights(spec)


class TorchvisionDetector(Detector):
    """One of torchvision's detectors behind our verb: it gets the same pixels, and keeps its own way of batching them.

    Args:
        name: e.g. "fasterrcnn_resnet50_fpn".
        weights: None, a path to its state dict, or "coco" for torchvision's own (from its cache or the network).
    """

    def __init__(self, name: str, weights: str | None = None) -> None:
        super().__init__(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), num_classes=len(COCO_91))
        del self.normalize  # the network has its own
        if name not in peers():
            raise DataError(f"no {name!r} among torchvision's {', '.join(peers())}{nearest(name, peers())}")
        own = "DEFAULT" if weights == "coco" else None
        self.network = models.get_model(name, weights=own, weights_backbone=None)
        self.categories = list(COCO_91)
        transform = self.network.transform
        self.resize = (transform.min_size[-1], transform.max_size)
        transform.resize = _as_it_is  # pictures come resized, as they do to our own models
        if weights not in (None, "coco"):
            load_weights(self.network, weights)

    def detect(self, images: Tensor, sizes: Tensor) -> Instances:
        pictures = [image[:, :h, :w] / 255 for image, (h, w) in zip(images, sizes.tolist(), strict=True)]
        found = self.network(pictures)
        return Instances.collate([Instances(one["boxes"], one["labels"] - 1, one["scores"]) for one in found])


def _as_it_is(image: Tensor, target: None) -> tuple[Tensor, None]:
    return image, target
