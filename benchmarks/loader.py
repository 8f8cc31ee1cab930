"""Times our loading beside torchvision's v2 transforms, on the same pictures, in one process and one thread.

    python benchmarks/loader.py coco/ --split train
    python benchmarks/loader.py coco/ --split train --exact          # 640 x 640, whatever a picture's shape
    python benchmarks/loader.py coco/ --split train --workers 16     # and the whole loader, with so many processes

Both bring pictures to a short side of 640 pixels, or a long one of 1066, zoom them by 0.8 to 1.25 (cut out of what grows, so
that no picture is larger), mirror half of them, change brightness, contrast and saturation by up to 20 %, and pad batches to
the same frames of uint8. torchvision resizes and zooms in one step, with its antialiasing on, as it is by default; ours in
two, as the first is what a cache keeps. Times are the CPU's own, medians over rounds in which the ways take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import torch
import torchvision
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from sightline.datasets import detection
from sightline.datasets.augment import Augment
from sightline.datasets.batching import Key
from sightline.datasets.data_module import DetectionData
from sightline.datasets.detection import DetectionDataset, loader_for, start_worker
from sightline.datasets.mixing import Mixing
from sightline.datasets.table import Table
from sightline.datasets.transforms import Resize, resize_shape

STAGES = ("decode", "resize", "augment", "collate", "rest")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", help="data set in any known form, of JPEGs")
    parser.add_argument("--split", default="train")
    parser.add_argument("--pictures", type=int, default=128, help="at most; as many as fill batches")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, nargs=2, default=(640, 1066), metavar=("MIN", "MAX"))
    parser.add_argument("--exact", action="store_true", help="MIN x MIN, whatever a picture's shape")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=0, help="also time the whole loader with so many processes")
    parser.add_argument("--json", help="write the numbers here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    low, high = arguments.size
    resize: Resize = (low, low, True) if arguments.exact else (low, high)
    table = DetectionData(arguments.data).tables[arguments.split]
    table = table.select(np.arange(len(table))[: arguments.pictures])
    batches = list(loader_for(DetectionDataset(table, resize=resize), arguments.batch, train=True).batch_sampler)
    size = "x".join(str(int(side)) for side in np.median(table.sizes, axis=0))
    print(f"{table.describe()}, median {size}; torchvision {torchvision.__version__}, OpenCV {cv2.__version__}")
    watch = Stopwatch()
    functions = {name: watch.timed(stage, getattr(detection, name)) for name, stage in OURS.items()}
    sample = watch.timed("rest", DetectionDataset.__getitem__)
    with patch.multiple(detection, **functions), patch.object(DetectionDataset, "__getitem__", lambda *a: sample(*a)):
        results = measure(ways_of(table, resize, watch), batches, arguments.rounds, watch)
    print_table(results)
    if arguments.workers:
        dataset = DetectionDataset(table, resize=resize, augment=Augment())
        results["loader"] = found = scaling(dataset, batches, arguments.workers, arguments.rounds)
        print(
            "{workers} processes {together:.0f} pictures/s, one {alone:.0f}: efficiency {efficiency:.2f}".format(
                **found
            )
        )
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=2) + "\n")


OURS = {"annotated_picture": "decode", "resize_image": "resize", "collate": "collate"}  # functions of `detection`


class Stopwatch:
    """Sums the CPU's seconds of each stage."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)

    def timed(self, stage: str, function: Callable) -> Callable:
        """The function, with its time counted for `stage`, but for that of the stages within it."""

        def run(*arguments: Any, **options: Any) -> Any:
            started, before = time.process_time(), sum(self.seconds.values())
            result = function(*arguments, **options)
            within = sum(self.seconds.values()) - before
            self.seconds[stage] += time.process_time() - started - within
            return result

        return run


def ways_of(table: Table, resize: Resize, watch: Stopwatch) -> dict[str, Dataset]:
    """Data sets that make a batch of keys, by name."""
    augment, mixing = watch.timed("augment", Augment()), watch.timed("augment", Mixing())
    options = {
        "Sightline": {},
        "cache": {"cache": True},
        "masks of 28 x 28": {"masks": 28},
        "mosaic and mixup": {"mixing": mixing},
    }
    ours = {name: DetectionDataset(table, resize=resize, augment=augment, **extra) for name, extra in options.items()}
    peers = {"tensors": decode_tensor, "Pillow": decode_pillow}
    return ours | {f"torchvision v2, {name}": Peer(table, resize, watch, decode) for name, decode in peers.items()}


class Peer(Dataset):
    """The same with torchvision.

    Args:
        table: the pictures and their boxes.
        resize: as of `DetectionDataset`.
        watch: of the stages.
        decode: a picture's path to what v2 takes.
    """

    def __init__(self, table: Table, resize: Resize, watch: Stopwatch, decode: Callable[[str], Any]) -> None:
        self.table, self.offsets = table, table.offsets
        change = v2.Compose([
            v2.RandomHorizontalFlip(0.5),
            v2.ColorJitter(0.2, 0.2, 0.2),
            v2.SanitizeBoundingBoxes(),
            v2.ToImage(),
        ])  # fmt: skip
        self.decode, self.resize = watch.timed("decode", decode), watch.timed("resize", Zoom(resize))
        self.augment, self.collate = watch.timed("augment", change), watch.timed("collate", padded)

    def __getitems__(self, keys: list[Key]) -> tuple[Tensor, list[dict]]:
        return self.collate([self.augment(*self.resize(*self._sample(key.index))) for key in keys], keys[0].frame)

    def _sample(self, index: int) -> tuple[Any, dict]:
        image, rows = self.decode(self.table.paths[index]), slice(*self.offsets[index : index + 2].tolist())
        size = tuple(self.table.sizes[index].tolist())
        boxes = tv_tensors.BoundingBoxes(torch.from_numpy(self.table.boxes[rows]), format="XYXY", canvas_size=size)
        return image, {"boxes": boxes, "labels": torch.from_numpy(self.table.labels[rows])}


def decode_tensor(path: str) -> tv_tensors.Image:
    mode = torchvision.io.ImageReadMode.RGB
    return tv_tensors.Image(torchvision.io.decode_image(path, mode, apply_exif_orientation=True))


def decode_pillow(path: str) -> Image.Image:
    with Image.open(path) as picture:
        return ImageOps.exif_transpose(picture).convert("RGB")


class Zoom(v2.Transform):
    """Resizing and `Augment`'s zoom in one step, then a window no larger than the picture would be without zoom."""

    def __init__(self, resize: Resize) -> None:
        super().__init__()
        self.resize = resize

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        shape = resize_shape(*v2.query_size(flat_inputs), *self.resize)
        factor = 0.8 * (1.25 / 0.8) ** torch.rand(()).item()
        size = [max(1, round(side * factor)) for side in shape]
        window = [min(pair) for pair in zip(size, shape, strict=True)]
        corner = [int(torch.randint(a - b + 1, ())) for a, b in zip(size, window, strict=True)]
        return {"size": size, "window": [*corner, *window]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        inpt = v2.functional.resize(inpt, params["size"])
        return v2.functional.crop(inpt, *params["window"])


def padded(samples: list[tuple[Tensor, dict]], frame: tuple[int, int]) -> tuple[Tensor, list[dict]]:
    """A batch (B, 3, H, W) of uint8 and its targets."""
    images = torch.zeros(len(samples), 3, *frame, dtype=torch.uint8)
    for row, (image, _) in zip(images, samples, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return images, [target for _, target in samples]


def measure(ways: dict[str, Dataset], batches: list[list[Key]], rounds: int, watch: Stopwatch) -> dict[str, dict]:
    """Median milliseconds a picture of each way and stage; the ways take turns, after one round to warm up."""
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    pictures = sum(map(len, batches))
    for epoch in range(rounds + 1):
        keys = [[key._replace(epoch=epoch) for key in batch] for batch in batches]
        for name, way in ways.items():
            watch.seconds, started = dict.fromkeys(STAGES, 0.0), time.process_time()
            for batch in keys:
                way.__getitems__(batch)
            total = time.process_time() - started
            spent = watch.seconds | {"total": total}
            spent["rest"] += total - sum(watch.seconds.values())
            seen[name].append({stage: seconds / pictures * 1e3 for stage, seconds in spent.items()})
    medians = {
        name: {stage: statistics.median(row[stage] for row in rows[1:]) for stage in rows[0]}
        for name, rows in seen.items()
    }
    first = medians["Sightline"]["total"]
    return {
        name: row | {"pictures/s": 1e3 / row["total"], "ratio": row["total"] / first} for name, row in medians.items()
    }


def print_table(results: dict[str, dict]) -> None:
    columns = (*STAGES, "total")
    print(f"| | pictures/s | {' | '.join(f'{c}, ms' for c in columns)} | time / ours |\n|{'---|' * (len(columns) + 3)}")
    for name, row in results.items():
        cells = [f"{row['pictures/s']:.0f}", *(f"{row[column]:.2f}" for column in columns), f"{row['ratio']:.2f}"]
        print(f"| {name} | {' | '.join(cells)} |")


def scaling(dataset: DetectionDataset, batches: list[list[Key]], workers: int, rounds: int) -> dict[str, float]:
    """Pictures a second by the clock on the wall, of processes with their queues, beside those of this process alone."""
    keys = batches * -(-8 * workers // len(batches))  # long enough that the queues' first filling hardly counts
    dataset.warm_up()

    def speed(num_workers: int, keys: list[list[Key]]) -> float:
        loader = DataLoader(
            dataset, batch_sampler=keys, collate_fn=lambda batch: batch, num_workers=num_workers,
            persistent_workers=num_workers > 0, pin_memory=torch.cuda.is_available(), worker_init_fn=start_worker,
        )  # fmt: skip
        times = []
        for _ in range(rounds + 1):
            started = time.perf_counter()
            pictures = sum(len(batch) for batch in loader)
            times.append(time.perf_counter() - started)
        return pictures / statistics.median(times[1:])

    alone, together = speed(0, batches), speed(workers, keys)
    return {"workers": workers, "together": together, "alone": alone, "efficiency": together / alone / workers}


if __name__ == "__main__":
    main()
