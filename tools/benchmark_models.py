"""What `sightline benchmark` compares: our models and, behind the same verbs, torchvision's detectors and segmenters."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn
from torchvision import models

from sightline.backbone import load_weights
from sightline.backbone.model import Model
from sightline.backbone.protocol import IMAGENET_MEAN, IMAGENET_STD
from sightline.datasets.masks import to_pixels
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
    return _peer(spec).to(device).eval()


def build_alike(spec: str, device: torch.device | str, num_classes: int | None = None) -> Model:
    """As `build`; but of random weights ours is made as torchvision's is then, so that both have the same work to do.

    That is: batch norms that learn, in place of frozen ones, and no head that only helps to learn.

    Args:
        spec, device: as of `build`.
        num_classes: C, of a model of random weights; None leaves it at what it knows by itself.

    Raises:
        DataError: as `build`; or the model cannot be asked for a number of classes.
        WeightsError: as `build`.
    """
    if num_classes is not None and has_weights(spec):
        raise DataError(
            f"{spec} knows its classes from its weights: to ask for {num_classes}, name a model without any"
        )
    if spec.startswith(PEERS):
        return _peer(spec, num_classes).to(device).eval()
    name = spec.partition("@")[0]
    if has_weights(spec):  # or nobody knows it
        return build(spec, device)
    known = inspect.signature(model_names.MODELS[name]).parameters
    if num_classes is not None and "num_classes" not in known:
        raise DataError(f"{name} cannot be asked for a number of classes")
    options = {"norm": "batch", "auxiliary": False, "num_classes": num_classes}
    given = {key: value for key, value in options.items() if key in known and value is not None}
    return model_names.MODELS[name](**given).to(device).eval()


def _peer(spec: str, num_classes: int | None = None) -> Model:
    name, _, weights = spec.removeprefix(PEERS).partition("@")
    if name not in peers():
        raise DataError(f"no {name!r} among torchvision's {', '.join(peers())}{nearest(name, peers())}")
    kind = TorchvisionSegmenter if kind_of(spec) == "segmenter" else TorchvisionDetector
    return kind(name, weights or None, num_classes)


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
        num_classes: C, without the background that it counts as one of them; None for those of COCO.
    """

    def __init__(self, name: str, weights: str | None = None, num_classes: int | None = None) -> None:
        super().__init__(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), num_classes=num_classes or len(COCO_91))
        del self.normalize  # the network has its own
        self.network = _network(name, weights, None if num_classes is None else num_classes + 1)
        if num_classes is None:
            self.categories = list(COCO_91)
        transform = self.network.transform
        self.resize = (transform.min_size[-1], transform.max_size)
        # Pictures come resized, as they do to our own models, so that boxes stay as they are found.
        transform.resize = lambda image, target: (image, target)
        transform.postprocess = lambda found, *_: found
        if name.startswith("maskrcnn"):
            self.task = "instance_segmentation"

    def detect(self, images: Tensor, sizes: Tensor) -> Instances:
        return Instances.collate([_instances(found) for found in self.find(images, sizes)])

    def find(self, images: Tensor, sizes: Tensor) -> list[dict[str, Tensor]]:
        """What its own users get: a dictionary for each picture; labels count from 1."""
        return self.network(_pictures(images, sizes))

    def learn(self, images: Tensor, sizes: Tensor, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Its losses in training mode, to be summed; the targets are a dictionary for each picture, see `dictionaries`."""
        return self.network(_pictures(images, sizes), targets)


def _pictures(images: Tensor, sizes: Tensor) -> list[Tensor]:
    """Without their padding, in [0, 1]."""
    return [image[:, :h, :w] / 255 for image, (h, w) in zip(images, sizes.tolist(), strict=True)]


def dictionaries(targets: Instances, frame: tuple[int, int]) -> list[dict[str, Tensor]]:
    """Objects as torchvision's detectors learn from them: without padding, labels from 1, masks (N, H, W) of the whole frame."""
    return [_dictionary(targets[i], frame) for i in range(len(targets))]


def _dictionary(objects: Instances, frame: tuple[int, int]) -> dict[str, Tensor]:
    target = {"boxes": objects.boxes, "labels": objects.labels + 1}
    if objects.masks is not None:
        target["masks"] = to_pixels(objects.masks, objects.boxes, frame).to(torch.uint8)
    return target


def _network(name: str, weights: str | None, num_classes: int | None = None) -> nn.Module:
    own = "DEFAULT" if weights == "coco" else None
    classes = {} if num_classes is None else {"num_classes": num_classes}
    network = models.get_model(name, weights=own, weights_backbone=None, **classes)
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
        num_classes: C; None for those of VOC.
    """

    def __init__(self, name: str, weights: str | None = None, num_classes: int | None = None) -> None:
        super().__init__(mean=IMAGENET_MEAN, std=IMAGENET_STD, num_classes=num_classes or len(VOC_21))
        self.network, self.resize = _network(name, weights, num_classes), COCO_RESIZE
        if num_classes is None:
            self.categories = list(VOC_21)

    def forward(self, images: Tensor, sizes: Tensor) -> Outputs:
        return Outputs(self.network(self.normalize(images, sizes))["out"])
