"""`sightline benchmark lineage`: R-CNN, Fast R-CNN and Faster R-CNN on one data set, one backbone and one machine.

    sightline benchmark lineage --data raccoon/ --backbone mobilenet_v2_tf --backbone-weights mobilenet_v2_tfpad.pth
    sightline benchmark lineage --data VOC2007/ --backbone vgg16 --backbone-weights imagenet --size 600 --crop 224

Each is trained (validation and proposals are not timed), then run on the validation pictures one by one. Times with
proposals add what the proposer takes for a picture on one core. Beside them stand the ratios of the papers: VGG-16 on VOC
2007, Girshick 2015 (https://arxiv.org/abs/1504.08083, table 4), Ren et al. 2015 (https://arxiv.org/abs/1506.01497). What
the ratios should be is told by the operations of a picture: all pay for the head once a region, only R-CNN for the
backbone. A finished model is not trained again: the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from sightline.backbone import build_backbone
from sightline.backbone.model import answering
from sightline.datasets.augment import Augment
from sightline.datasets.data_module import DetectionData
from sightline.datasets.detection import DetectionDataset, loader_for, read_picture
from sightline.datasets.picture_data import default_workers
from sightline.datasets.propose import propose
from sightline.datasets.structures import Batch
from sightline.datasets.table import DataError, Table, counted
from sightline.detectors import Detector, fast_rcnn, faster_rcnn_c5, load, rcnn, save
from sightline.detectors.inference import usable_device
from sightline.detectors.proposers import proposer_named
from sightline.detectors.truncated_svd import truncate_head
from sightline.evaluation import DetectionCollector
from sightline.tools.benchmark import machine
from sightline.tools.command_options import OptionsParser
from sightline.tools.number_options import positive, whole
from sightline.training import DetectionTraining, StepDecay
from sightline.training.region_machines import fit_region_machines
from sightline.training.scoring import judge


@dataclass
class Row:
    """One detector's line of the table.

    Attributes:
        name: of the detector.
        train: seconds of training; None where nothing was trained.
        test: median seconds a picture, its proposals given.
        propose: median seconds a picture that its proposals take beforehand.
        gflops: of a picture, a multiplication and its addition counting two.
        AP, AP50: COCO's.
    """

    name: str
    train: float | None
    test: float
    propose: float
    gflops: float
    AP: float
    AP50: float

    @property
    def whole(self) -> float:
        """Seconds a picture, proposals included."""
        return self.test + self.propose


RCNN, FAST, TRUNCATED, FASTER = "R-CNN", "Fast R-CNN", "Fast R-CNN, truncated SVD", "Faster R-CNN"
# How many times faster than R-CNN: training, test, test with proposals; and mAP on VOC 2007, in percent.
PAPER = {
    RCNN: (1.0, 1.0, 1.0, 66.0),
    FAST: (8.8, 146.0, 25.0, 66.9),
    TRUNCATED: (None, 213.0, None, 66.6),
    FASTER: (None, None, 250.0, 69.9),
}


def main(argv: list[str] | None = None) -> int:
    """Runs the command; `argv` without "benchmark lineage". Returns the exit code."""
    arguments = _arguments(argv)
    study = Study(arguments)
    rows = [study.row(name) for name in PAPER]
    print(f"\n{about(study)}\n\n{text_table(rows)}")
    study.write(rows)
    return 0


class Study:
    """The data, the proposals and the models, made when they are first asked for."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.device = arguments, usable_device(arguments.device)
        self.output = Path(arguments.output)
        # What is mistyped is refused before data are read and proposals made, which may take hours.
        _check_ranks(arguments)
        build_backbone(arguments.backbone, norm="frozen", trainable_stages=arguments.trainable_stages)
        self.proposer = proposer_named(arguments.proposer, arguments.proposals)
        self.output.mkdir(parents=True, exist_ok=True)
        self._options = self._claimed()
        data = DetectionData(arguments.data, train_split=arguments.train_split, val_split=arguments.val_split)
        self.categories = data.categories
        self.train, self.val = (self._proposed(data.tables[split]) for split in ("train", "val"))

    def _claimed(self) -> dict[str, Any]:
        """The options, once it is seen that what lies in the folder is of the same: other rows must not stand in one table."""
        path = self.output / "options.json"
        mine = {name: value for name, value in vars(self.arguments).items() if name != "workers"}
        before = json.loads(path.read_text()) if path.exists() else mine
        if changed := [name for name in mine if before.get(name) != mine[name]]:
            raise DataError(
                f"{self.output} holds results of other options ({', '.join(changed)}): name another --output, or remove it"
            )
        return mine

    def _proposed(self, table: Table) -> Table:
        return propose(table, self.proposer, cache=self.output / "proposals", num_workers=self.arguments.workers)

    @cached_property
    def proposal_seconds(self) -> float:
        """The median time that a picture's proposals take in this process, over the first twenty."""
        times = []
        for image in map(read_picture, self.val.paths[:20]):
            started = time.perf_counter()
            self.proposer(image)
            times.append(time.perf_counter() - started)
        return statistics.median(times)

    def row(self, name: str) -> Row:
        """Trains the detector of that name, unless it was before, and measures it."""
        path = self.output / f"{name}.json"
        if path.exists():
            return Row(**json.loads(path.read_text()))
        model, seconds = self._trained(name)
        model.to(self.device).eval()
        own = model.proposer is None
        collector, times = detect_one_by_one(model, self.val)
        summary = judge(model, self.val, collector, seconds=sum(times)).result.summary()
        proposing = 0.0 if own else self.proposal_seconds
        flops = count_flops(model, self.val)
        row = Row(name, seconds, statistics.median(times), proposing, flops / 1e9, summary["AP"], summary["AP50"])
        path.write_text(json.dumps(asdict(row), indent=2))
        return row

    def _trained(self, name: str) -> tuple[Detector, float | None]:
        """The model of a row, and what its training took; read from disk where it is there."""
        if name == TRUNCATED:
            model, _ = self._trained(FAST)
            return truncate_head(model, self.arguments.svd), None
        checkpoint, seconds = self.output / f"{name}.ckpt", self.output / f"{name}.seconds"
        if seconds.exists():
            return load(checkpoint, device=self.device), float(seconds.read_text())
        seed_everything(self.arguments.seed, verbose=False)
        print(f"\n{name}", flush=True)
        started = time.perf_counter()
        model = self._fitted(name)
        took = time.perf_counter() - started
        (self.output / "options.json").write_text(json.dumps(self._options, indent=2))
        save(model, checkpoint)
        seconds.write_text(f"{took:.1f}")
        return model, took

    def _fitted(self, name: str) -> Detector:
        options, shared = self.arguments, self._shared_arguments()
        if name == RCNN:
            proposing = {"proposer": options.proposer, "proposals": options.proposals}
            context = round(16 / 227 * options.crop)  # the paper's share
            model = rcnn(**shared, **proposing, size=options.crop, context=context)
            self._fit(model, self.train, options.rcnn_epochs)
            features = self.output / "features"
            shutil.rmtree(features, ignore_errors=True)  # of a run that was stopped: they are part of what is timed
            print(fit_region_machines(model, self.train, cache=features, num_workers=options.workers))
            shutil.rmtree(features)
            return model
        if name == FAST:
            model = fast_rcnn(
                **shared, proposals=options.proposals, proposer=options.proposer, head_width=options.head_width
            )
            return self._fit(model, self.train, options.epochs)
        sampled = {"samples": 64}  # regions a picture, as many as of the others
        model = faster_rcnn_c5(**shared, **sampled, anchor_sizes=options.anchors, head_width=options.head_width)
        return self._fit(model, replace(self.train, regions=None), options.epochs)

    def _shared_arguments(self) -> dict:
        options = self.arguments
        return {
            "backbone": options.backbone,
            "num_classes": len(self.categories),
            "backbone_weights": options.backbone_weights,
            "norm": "frozen",
            "trainable_stages": options.trainable_stages,
        }

    def _fit(self, model: Detector, table: Table, epochs: int) -> Detector:
        options = self.arguments
        data = DetectionData(
            options.data, batch_size=2, min_size=options.size, max_size=options.max_size, num_workers=options.workers,
            augment=Augment(scale=(1.0, 1.0), colour=0.0), seed=options.seed,
        )  # fmt: skip
        data.tables = {"train": table}
        schedule = StepDecay(warmup_steps=min(100, epochs * len(table) // 8), milestones=[0.75])
        training = DetectionTraining(model, lambda parameters: _sgd(parameters, options.rate), schedule)
        trainer = Trainer(
            max_epochs=epochs, limit_val_batches=0, gradient_clip_val=10.0, accelerator=self.device.type, devices=1,
            precision="bf16-mixed" if self.device.type == "cuda" else "32-true", use_distributed_sampler=False,
            logger=False, enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=sys.stderr.isatty(),
        )  # fmt: skip
        trainer.fit(training, data)
        return model

    def write(self, rows: list[Row]) -> None:
        """All that is in the table, and how it came about, as lineage.json."""
        content = {"about": about(self), "rows": [asdict(row) for row in rows]}
        (self.output / "lineage.json").write_text(json.dumps(content, indent=2))


def _check_ranks(options: argparse.Namespace) -> None:
    if not all(1 <= rank <= options.head_width for rank in options.svd):
        raise DataError(
            f"--svd {' '.join(map(str, options.svd))}: ranks of layers of {options.head_width} units (--head-width) are from 1 "
            f"to {options.head_width}"
        )


def _sgd(parameters: Iterable, rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=5e-4)


# -- What is measured of a trained model --


def detect_one_by_one(model: Detector, table: Table) -> tuple[DetectionCollector, list[float]]:
    """What is found in each picture, and the seconds that each took, from pixels in the host's memory to boxes in it."""
    device = next(model.parameters()).device
    collector, times = DetectionCollector(), []
    for batch in tqdm(_one_by_one(model, table), desc="test", unit="picture", leave=False, disable=None):
        started = time.perf_counter()
        with answering(model):
            found = model.detect(*batch.to(device).inputs).to("cpu")
        times.append(time.perf_counter() - started)
        collector.update(found.to_original(batch.infos), [info.id for info in batch.infos])
    return collector, times


def _one_by_one(model: Detector, table: Table) -> Iterable[Batch]:
    """Pictures as the model wants them; with proposals if it does not propose itself."""
    if model.proposer is None:
        table = replace(table, regions=None)
    return loader_for(DetectionDataset(table, resize=model.resize), 1)


@torch.inference_mode()
def count_flops(model: Detector, table: Table) -> int:
    """Of the first picture, without proposing: matrix products and convolutions alone."""
    batch = next(iter(_one_by_one(model, table))).to(next(model.parameters()).device)
    with FlopCounterMode(display=False) as counter:
        model.detect(*batch.inputs)
    return counter.get_total_flops()


# -- What is shown --


def text_table(rows: list[Row]) -> str:
    """Ours, each ratio to R-CNN followed by the papers' in brackets."""
    first = rows[0]
    head = ["", "training s", "faster", "test s", "faster", "with proposals", "faster", "GFLOP", "fewer", "AP50", "AP"]
    lines = [head]
    for row in rows:
        training, test, whole, score = PAPER[row.name]
        lines.append([
            row.name,
            "-" if row.train is None else f"{row.train:.0f}",
            "-" if row.train is None else _ratio(first.train / row.train, training),
            f"{row.test:.3f}",
            _ratio(first.test / row.test, test),
            f"{row.whole:.3f}",
            _ratio(first.whole / row.whole, whole),
            f"{row.gflops:.1f}",
            f"{first.gflops / row.gflops:.1f}",
            f"{100 * row.AP50:.1f} ({score})",
            f"{100 * row.AP:.1f}",
        ])  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    return "\n".join("  ".join(line) for line in padded)


def _ratio(ours: float, paper: float | None) -> str:
    return f"{ours:.1f}" + (f" ({paper:g})" if paper else "")


def about(study: Study) -> str:
    """One paragraph: data, budget, machine."""
    options = study.arguments
    return (
        f"{options.data}: {counted(len(study.train), 'picture')} to train on, {len(study.val)} to test on, "
        f"short side {options.size}; "
        f"{options.backbone} ({options.backbone_weights or 'random weights'}), {options.proposer} of at most "
        f"{options.proposals}, R-CNN's crops {options.crop} pixels; {counted(options.epochs, 'epoch')}, "
        f"R-CNN {options.rcnn_epochs}, rate {options.rate:g}.\n{machine(study.device)}\n"
        "In brackets: the papers, VGG-16 on VOC 2007. GFLOP: of one picture, without proposing."
    )


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = OptionsParser(
        prog="sightline benchmark lineage",
        description=__doc__.split(":", 1)[1].strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", metavar="PATH", default="shapes", help="a data set (shapes: the built-in pictures)")
    add("--train-split", metavar="NAME", help="what it calls the part to train on")
    add("--val-split", metavar="NAME", help="what it calls the part to test on")
    add("--backbone", default="mobilenet_v2", help="with a classifier of the same name (mobilenet_v2)")
    add("--backbone-weights", metavar="FILE", help="a path, or imagenet")
    add("--trainable-stages", type=whole, metavar="N", help="of the backbone, from the last; all by default")
    add("--proposer", default="selective_search", help="selective_search, selective_search_quality, sliding_window")
    add("--proposals", type=positive, default=2000, metavar="K", help="a picture, at most (2000)")
    add("--size", type=positive, default=600, help="short side of the pictures (600)")
    add("--max-size", type=positive, default=1000, help="long side of the pictures, at most (1000)")
    add("--crop", type=positive, default=224, help="side of R-CNN's warped regions (224)")
    add("--anchors", type=float, nargs="+", default=[128, 256, 512], help="sides of Faster R-CNN's (128 256 512)")
    add("--head-width", type=positive, default=4096, help="of the fully connected layers (4096)")
    add(
        "--svd",
        type=positive,
        nargs=2,
        metavar=("FC6", "FC7"),
        default=[1024, 256],
        help="ranks of the truncated (1024 256)",
    )
    add("--epochs", type=positive, default=12, help="of Fast and Faster R-CNN (12)")
    add("--rcnn-epochs", type=positive, default=12, help="of R-CNN's fine-tuning (12)")
    add("--rate", type=float, default=0.005, help="learning rate, of 2 pictures a step (0.005)")
    add("--seed", type=whole, default=0)
    add("--workers", type=whole, default=default_workers(), help="processes that load pictures")
    add("--device", help="cuda, cuda:1, mps or cpu; by default the best there is")
    add("--output", metavar="FOLDER", default="runs/lineage", help="models and results (runs/lineage)")
    return parser.parse_args(argv)
