"""What `sightline benchmark` compares: our models and, behind the same verbs, torchvision's detectors and segmenters."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision import models

from sightline.backbone import load_weights
from sightline.backbone.model import Model
from sightline.backbone.protocol import IMAGENET_MEAN, IMAGENET_STD
from sightline.datasets.structures import Instances
from sightline.datasets.table import DataError, nearest
from sightline.detectors import Detector
from sightline.detectors.coco_names import COCO_91
from sightline.segmentation import Segmenter
from sightline.segmentation.fcn_resnet import COCO_RESIZE, VOC_21
from sightline.segmentation.model import Outputs
from sightline.tools import model_names
from sightline.tools.model_names import Kind

PEERS = "torchvision:"
DETECTORS = ("fasterrcnn", "maskrcnn", "retinanet", "fcos")


def build(spec: str, device: torch.device | str) -> Model:
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
    if name not in peers():
        raise DataError(f"no {name!r} among torchvision's {', '.join(peers())}{nearest(name, peers())}")
    kind = TorchvisionSegmenter if kind_of(spec) == "segmenter" else TorchvisionDetector
    return kind(name, weights or None).to(device).eval()


def peers() -> list[str]:
    """The names of torchvision's detectors, of boxes or masks in pictures of any size, and of its segmenters."""
    detectors = [name for name in models.list_models(models.detection) if name.startswith(DETECTORS)]
    return [*detectors, *models.list_models(models.segmentation)]


def kind_of(spec: str) -> Kind:
    """What the model of a word of the command line is; raises as `model_names.kind_of`."""
    if not spec.startswith(PEERS):
        return model_names.kind_of(spec)
    name = spec.removeprefix(PEERS).partition("@")[0]
    return "segmenter" if name in models.list_models(models.segmentation) else "detector"


def has_weights(spec: str) -> bool:
    """Whether a model is trained, so that its accuracy means something."""
    return "@" in spec if spec.startswith(PEERS) else model_names.has_weights(spec)


class TorchvisionDetector(Detector):
    """One of torchvision's detectors behind our verb: it gets the same pixels, and keeps its own way of batching them.

    Masks stay as its network makes them, within their boxes: nobody's are drawn at the picture's size before they are scored,
    where all are drawn alike.

    Args:
        name: e.g. "fasterrcnn_resnet50_fpn".
        weights: None, a path to its state dict, or "coco" for torchvision's own (from its cache or the network).
    """

    def __init__(self, name: str, weights: str | None = None) -> None:
        super().__init__(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), num_classes=len(COCO_91))
        del self.normalize  # the network has its own
        self.network = _network(name, weights)
        self.categories = list(COCO_91)
        transform = self.network.transform
        self.resize = (transform.min_size[-1], transform.max_size)
        # Pictures come resized, as they do to our own models, so that boxes stay as they are found.
        transform.resize = lambda image, target: (image, target)
        transform.postprocess = lambda found, *_: found
        if name.startswith("maskrcnn"):
            self.task = "instance_segmentation"

    def detect(self, images: Tensor, sizes: Tensor) -> Instances:
        pictures = [image[:, :h, :w] / 255 for image, (h, w) in zip(images, sizes.tolist(), strict=True)]
        return Instances.collate([_instances(found) for found in self.network(pictures)])


def _network(name: str, weights: str | None) -> nn.Module:
    own = "DEFAULT" if weights == "coco" else None
    network = models.get_model(name, weights=own, weights_backbone=None)
    if weights not in (None, "coco"):
        load_weights(network, weights, allow_unexpected=("aux_classifier.",))  # which only helps to learn
    return network


def _instances(found: dict[str, Tensor]) -> Instances:
    masks = found["masks"][:, 0] if "masks" in found else None
    return Instances(found["boxes"], found["labels"] - 1, found["scores"], masks)


class TorchvisionSegmenter(Segmenter):
    """One of torchvision's segmenters behind our verbs.

    Args:
        name: e.g. "deeplabv3_resnet50".
        weights: as of `TorchvisionDetector`; all know Pascal VOC's 20 categories and background.
    """

    def __init__(self, name: str, weights: str | None = None) -> None:
        super().__init__(mean=IMAGENET_MEAN, std=IMAGENET_STD, num_classes=len(VOC_21))
        self.network = _network(name, weights)
        self.categories, self.resize = list(VOC_21), COCO_RESIZE

    def forward(self, images: Tensor, sizes: Tensor) -> Outputs:
        return Outputs(self.network(self.normalize(images, sizes))["out"])
