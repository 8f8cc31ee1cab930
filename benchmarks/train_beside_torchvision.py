"""Trains our Faster R-CNN and torchvision's on the same pictures, one after the other in one run: AP and seconds of training.

    python benchmarks/train_beside_torchvision.py BCCD --train trainval --val test --epochs 24 --min-size 480
    python benchmarks/train_beside_torchvision.py BCCD --train trainval --val test --epochs 16 --min-size 240 \\
        --backbone resnet10_narrow_fpn --head-width 256 --samples 128          # for a CPU

Both start from random weights on backbones of one kind, and get the same batches, augmentation, sizes, anchors, optimiser
and schedule; torchvision's model is handed the pictures already resized. Each is scored by the same code, which
equals pycocotools. Seconds are those of the training steps, loading included, without validation;
of the CPU's too, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

from sightline.backbone import Backbone, build_backbone
from sightline.datasets.augment import Augment
from sightline.datasets.data_module import DetectionData
from sightline.datasets.structures import Batch, Instances
from sightline.detectors import faster_rcnn
from sightline.evaluation import DetectionCollector, Truth, evaluate_coco
from sightline.training import StepDecay


class Ours(nn.Module):
    """Our model behind the two calls that this file makes."""

    def __init__(self, backbone: str, num_classes: int, head_width: int, samples: int) -> None:
        super().__init__()
        sizes = anchor_sizes(build_backbone(backbone))
        self.model = faster_rcnn(
            backbone, num_classes, norm="batch", anchor_sizes=sizes, head_width=head_width, samples=samples
        )

    def loss(self, batch: Batch) -> torch.Tensor:
        return sum(self.model.losses(self.model(batch.images, batch.sizes), batch.targets).values())

    def detect(self, batch: Batch) -> Instances:
        return self.model.detect(batch.images, batch.sizes)


class Peer(nn.Module):
    """torchvision's model, on a backbone of the same kind, behind the same calls."""

    def __init__(self, backbone: str, num_classes: int, head_width: int, samples: int, resize: tuple[int, int]) -> None:
        super().__init__()
        body = Named(build_backbone(backbone, norm="batch"))
        sizes = anchor_sizes(body.body)
        pooled = [str(i) for i, stride in enumerate(body.body.strides) if stride <= 32]
        self.model = FasterRCNN(
            body,
            min_size=resize[0],
            max_size=resize[1],
            rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
            box_roi_pool=MultiScaleRoIAlign(pooled, 7, 2),
            box_head=TwoMLPHead(body.out_channels * 49, head_width),
            box_predictor=FastRCNNPredictor(head_width, num_classes + 1),
            box_batch_size_per_image=samples,
        )

    def loss(self, batch: Batch) -> torch.Tensor:
        targets = []
        for i in range(len(batch)):
            own = batch.targets[i]
            targets.append({"boxes": own.boxes, "labels": own.labels + 1})
        return sum(self.model(self._pictures(batch), targets).values())

    def detect(self, batch: Batch) -> Instances:
        found = self.model(self._pictures(batch))
        return Instances.collate([Instances(f["boxes"], f["labels"] - 1, f["scores"]) for f in found], size=100)

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


def anchor_sizes(backbone: Backbone) -> tuple[tuple[int], ...]:
    """One size a level, four times its stride."""
    return tuple((4 * stride,) for stride in backbone.strides)


def train(model: Ours | Peer, data: DetectionData, epochs: int, rate: float, device: str) -> dict:
    """Trains with SGD and one drop of the rate at four fifths; AP after each quarter of the epochs."""
    model.to(device)
    loader, history, seconds, cpu_seconds = data.train_dataloader(), [], 0.0, 0.0
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=1e-4)
    total = epochs * len(loader)
    schedule = StepDecay(milestones=(0.8,), warmup_steps=min(100, total // 10))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule.factor(step, total))
    for epoch in range(epochs):
        model.train()
        loader.batch_sampler.set_epoch(epoch)
        started, cpu_started = time.perf_counter(), time.process_time()
        for batch in loader:
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                loss = model.loss(batch.to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            scheduler.step()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds += time.perf_counter() - started
        cpu_seconds += time.process_time() - cpu_started
        if (epoch + 1) % max(1, epochs // 4) == 0 or epoch + 1 == epochs:
            scores = evaluate(model, data, device)
            history.append({"epoch": epoch + 1, "seconds": round(seconds, 1), **scores})
            numbers = " ".join(f"{name} {value:.3f}" for name, value in scores.items())
            spent = f"{seconds:7.1f} s ({cpu_seconds:.1f} of CPU)"
            print(
                f"{type(model).__name__:<5} epoch {epoch + 1:>3}  {spent}  loss {loss.item():.3f}  {numbers}",
                flush=True,
            )
    return {"seconds": round(seconds, 1), "cpu_seconds": round(cpu_seconds, 1), "history": history, **scores}


@torch.inference_mode()
def evaluate(model: Ours | Peer, data: DetectionData, device: str) -> dict[str, float]:
    model.eval()
    collector, table = DetectionCollector(), data.tables["val"]
    for batch in data.val_dataloader():
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            found = model.detect(batch.to(device))
        collector.update(found.to_original(batch.infos), [info.id for info in batch.infos])
    truth = Truth.from_table(table)
    summary = evaluate_coco(truth, collector.detections(truth), table.categories).summary()
    return {name: round(summary[name], 4) for name in ("AP", "AP50", "AP75")}


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
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--json", help="write the numbers here")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data = DetectionData(
        arguments.data, arguments.batch, train_split=arguments.train, val_split=arguments.val, min_size=arguments.min_size,
        max_size=arguments.max_size, augment=Augment(scale=(1.0, 1.0), colour=0.0), seed=arguments.seed, cache=True,
    )  # fmt: skip
    machine = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{machine}, torch {torch.__version__}; train {data.tables['train'].describe()}")
    results = {}
    shape = (arguments.backbone, data.num_classes, arguments.head_width, arguments.samples)
    makers = {
        "torchvision": lambda: Peer(*shape, data.resize),
        "ours": lambda: Ours(*shape),
    }
    for name, make in makers.items():
        torch.manual_seed(arguments.seed)
        results[name] = train(make(), data, arguments.epochs, arguments.rate, device)
    peer, ours = results["torchvision"], results["ours"]
    wall, cpu = (peer[key] / ours[key] for key in ("seconds", "cpu_seconds"))
    print(f"ours trains {wall:.2f} times as fast (CPU time: {cpu:.2f}); AP {ours['AP']:.3f} beside {peer['AP']:.3f}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
