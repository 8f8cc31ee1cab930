"""Trains our Faster or Mask R-CNN and torchvision's on the same pictures, one after the other in one run: AP and seconds.

    python benchmarks/train_beside_torchvision.py BCCD --train trainval --val test --epochs 24 --min-size 480
    python benchmarks/train_beside_torchvision.py BCCD --train trainval --val test --epochs 16 --min-size 240 \\
        --backbone resnet10_narrow_fpn --head-width 256 --samples 128          # for a CPU
    python benchmarks/train_beside_torchvision.py nuclei/ --val test --masks --epochs 15 --min-size 512 --max-size 1024 \\
        --anchors 2 --detections 300

Both start from random weights on backbones of one kind, and get the same batches, augmentation, sizes, anchors, optimiser
and schedule; torchvision's model is handed the pictures already resized, and masks at the size of the whole picture, as it
wants them. Each is scored by the same code, which equals pycocotools. Seconds are those of the training steps, loading
included, without validation and without drawing torchvision's masks, for which both sides wait for a GPU once a step; of the
CPU's too, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from sightline.backbone import Backbone, build_backbone
from sightline.datasets.augment import Augment
from sightline.datasets.data_module import DetectionData
from sightline.datasets.structures import Batch, Instances
from sightline.detectors import faster_rcnn
from sightline.evaluation import DetectionCollector
from sightline.segmentation import mask_rcnn
from sightline.tools.benchmark_models import dictionaries
from sightline.training import StepDecay
from sightline.training.tasks import evaluate, truth_of

MASK_SIDE = 28  # cells of a true mask


@dataclass(frozen=True)
class Build:
    """What both models are built by.

    Attributes:
        backbone: with a pyramid.
        anchors: the anchors' side, in strides of their level.
        samples: regions an image that the second stage learns from.
        detections: an image's, at most.
        masks: Mask R-CNN, whose mask heads are as wide as the pyramid.
    """

    backbone: str
    num_classes: int
    head_width: int
    anchors: float
    samples: int
    detections: int
    masks: bool

    def anchor_sizes(self, backbone: Backbone) -> tuple[tuple[float], ...]:
        """One a level."""
        return tuple((self.anchors * stride,) for stride in backbone.strides)


class Ours(nn.Module):
    """Our model behind the three calls that this file makes."""

    def __init__(self, build: Build) -> None:
        super().__init__()
        body = build_backbone(build.backbone)
        options = {"mask_width": body.channels[0]} if build.masks else {}
        self.model = (mask_rcnn if build.masks else faster_rcnn)(
            build.backbone,
            build.num_classes,
            norm="batch",
            anchor_sizes=build.anchor_sizes(body),
            head_width=build.head_width,
            samples=build.samples,
            detections=build.detections,
            **options,
        )

    def targets(self, batch: Batch) -> Instances:
        return batch.targets

    def loss(self, batch: Batch, targets: Instances) -> torch.Tensor:
        return sum(self.model.losses(self.model(batch.images, batch.sizes), targets).values())

    def detect(self, batch: Batch) -> Instances:
        return self.model.detect(batch.images, batch.sizes)


class Peer(nn.Module):
    """torchvision's model, on a backbone of the same kind, behind the same calls."""

    def __init__(self, build: Build) -> None:
        super().__init__()
        body = Named(build_backbone(build.backbone, norm="batch"))
        sizes, width = build.anchor_sizes(body.body), body.out_channels
        pooled = [str(i) for i, stride in enumerate(body.body.strides) if stride <= 32]
        parts = {}
        if build.masks:
            parts = {
                "mask_roi_pool": MultiScaleRoIAlign(pooled, 14, 2),
                "mask_head": MaskRCNNHeads(width, (width,) * 4, 1),
                "mask_predictor": MaskRCNNPredictor(width, width, build.num_classes + 1),
            }
        self.model = (MaskRCNN if build.masks else FasterRCNN)(
            body,
            rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
            box_roi_pool=MultiScaleRoIAlign(pooled, 7, 2),
            box_head=TwoMLPHead(width * 49, build.head_width),
            box_predictor=FastRCNNPredictor(build.head_width, build.num_classes + 1),
            box_batch_size_per_image=build.samples,
            box_detections_per_img=build.detections,
            **parts,
        )
        # Pictures come resized, and compact masks are scored as ours are.
        self.model.transform.resize = lambda image, target: (image, target)
        self.model.transform.postprocess = lambda found, *_: found
        self.detections = build.detections

    def targets(self, batch: Batch) -> list[dict[str, torch.Tensor]]:
        return dictionaries(batch.targets, tuple(batch.images.shape[-2:]))

    def loss(self, batch: Batch, targets: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        return sum(self.model(self._pictures(batch), targets).values())

    def detect(self, batch: Batch) -> Instances:
        found = self.model(self._pictures(batch))
        masks = [f["masks"][:, 0] if "masks" in f else None for f in found]
        images = [Instances(f["boxes"], f["labels"] - 1, f["scores"], m) for f, m in zip(found, masks, strict=True)]
        return Instances.collate(images, size=self.detections)

    def _pictures(self, batch: Batch) -> list[torch.Tensor]:
        sizes = batch.sizes.tolist()
        return [image[:, :h, :w].float() / 255 for image, (h, w) in zip(batch.images, sizes, strict=True)]


class Named(nn.Module):
    """A backbone as torchvision's detectors take it."""

    def __init__(self, body: Backbone) -> None:
        super().__init__()
        self.body, self.out_channels = body, body.channels[0]

    def forward(self, images: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        return OrderedDict((str(i), level) for i, level in enumerate(self.body(images)))


class Watch:
    """Seconds that pass, and those of them that this process spends on the CPU, but for pauses."""

    def __init__(self, device: str) -> None:
        self.device, self.seconds, self.cpu_seconds = device, 0.0, 0.0

    @contextmanager
    def running(self, sign: int = 1) -> Iterator[None]:
        started = self._now()
        yield
        wall, cpu = (now - then for now, then in zip(self._now(), started, strict=True))
        self.seconds, self.cpu_seconds = self.seconds + sign * wall, self.cpu_seconds + sign * cpu

    def paused(self) -> AbstractContextManager[None]:
        """Within `running`."""
        return self.running(-1)

    def _now(self) -> tuple[float, float]:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()


def train(model: Ours | Peer, data: DetectionData, arguments: argparse.Namespace, device: str) -> dict:
    """Trains with SGD and one drop of the rate at four fifths; AP after each quarter of the epochs."""
    model.to(device)
    loader, history, watch, epochs = data.train_dataloader(), [], Watch(device), arguments.epochs
    optimizer = torch.optim.SGD(model.parameters(), arguments.rate, momentum=0.9, weight_decay=1e-4)
    total = epochs * len(loader)
    schedule = StepDecay(milestones=(0.8,), warmup_steps=min(100, total // 10))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule.factor(step, total))
    for epoch in range(epochs):
        model.train()
        loader.batch_sampler.set_epoch(epoch)
        with watch.running():
            for batch in loader:
                batch = batch.to(device)
                with watch.paused():
                    targets = model.targets(batch)
                with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                    loss = model.loss(batch, targets)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                scheduler.step()
        if (epoch + 1) % max(1, epochs // 4) == 0 or epoch + 1 == epochs:
            scores = score(model, data, arguments, device)
            history.append({"epoch": epoch + 1, "seconds": round(watch.seconds, 1), **scores})
            numbers = " ".join(f"{name} {value:.3f}" for name, value in scores.items())
            spent = f"{watch.seconds:7.1f} s ({watch.cpu_seconds:.1f} of CPU)"
            print(
                f"{type(model).__name__:<5} epoch {epoch + 1:>3}  {spent}  loss {loss.item():.3f}  {numbers}",
                flush=True,
            )
    spent = {"seconds": round(watch.seconds, 1), "cpu_seconds": round(watch.cpu_seconds, 1)}
    return {**spent, "history": history, **scores}


@torch.inference_mode()
def score(model: Ours | Peer, data: DetectionData, arguments: argparse.Namespace, device: str) -> dict[str, float]:
    model.eval()
    collector, table = DetectionCollector(), data.tables["val"]
    for batch in data.val_dataloader():
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            found = model.detect(batch.to(device))
        ids, sizes = [info.id for info in batch.infos], [info.size for info in batch.infos]
        collector.update(found.to_original(batch.infos), ids, sizes)
    task = "instance_segmentation" if arguments.masks else "detection"
    truth = truth_of(task, table)
    found = collector.detections(truth)
    summary = evaluate(task, truth, found, table.categories, max_dets=(1, 10, arguments.detections)).summary()
    names = ("AP", "AP50", "AP75", "mask_AP", "mask_AP50", "mask_AP75")
    return {name: round(summary[name], 4) for name in names if name in summary}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", help="data set in any known form")
    parser.add_argument("--train", help="the data set's name of the part to train on")
    parser.add_argument("--val", help="the data set's name of the part to score")
    parser.add_argument(
        "--backbone", default="resnet18_fpn", help="a name in sightline.backbone.BACKBONES, with a pyramid"
    )
    parser.add_argument("--head-width", type=int, default=1024)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--min-size", type=int, default=480)
    parser.add_argument("--max-size", type=int, default=1333)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=0.01)
    parser.add_argument("--samples", type=int, default=512, help="regions an image that the second stage learns from")
    parser.add_argument("--anchors", type=float, default=4, help="the anchors' side, in strides of their level")
    parser.add_argument("--detections", type=int, default=100, help="of an image, at most")
    parser.add_argument("--masks", action="store_true", help="Mask R-CNN")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--json", help="write the numbers here")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data = DetectionData(
        arguments.data,
        arguments.batch,
        train_split=arguments.train,
        val_split=arguments.val,
        min_size=arguments.min_size,
        max_size=arguments.max_size,
        augment=Augment(scale=(1.0, 1.0), colour=0.0),
        masks=MASK_SIDE if arguments.masks else None,
        seed=arguments.seed,
        cache=True,
    )
    machine = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{machine}, torch {torch.__version__}; train {data.tables['train'].describe()}")
    build = Build(
        arguments.backbone, data.num_classes, arguments.head_width, arguments.anchors, arguments.samples,
        arguments.detections, arguments.masks,
    )  # fmt: skip
    results = {}
    for name, kind in (("torchvision", Peer), ("ours", Ours)):
        torch.manual_seed(arguments.seed)
        results[name] = train(kind(build), data, arguments, device)
    peer, ours = results["torchvision"], results["ours"]
    wall, cpu = (peer[key] / ours[key] for key in ("seconds", "cpu_seconds"))
    scores = ", ".join(f"{name} {ours[name]:.3f} beside {peer[name]:.3f}" for name in ("AP", "mask_AP") if name in ours)
    print(f"ours trains {wall:.2f} times as fast (CPU time: {cpu:.2f}); {scores}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
