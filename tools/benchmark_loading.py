"""What comes before a model: a batch read from files into the host's memory, and its way to the device.

Ours is read, made into a batch and sent as `sightline train` does it, torchvision's as its data sets do it, by Pillow,
into the list of pictures that its detectors take. One process reads, on one core; as many as are asked for do so side by side.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.utils import _pytree as pytree
from torchvision.transforms.v2.functional import pil_to_tensor

from sightline.datasets.images import write_image
from sightline.datasets.shapes import shapes_table
from sightline.datasets.structures import Batch
from sightline.datasets.table import Table
from sightline.datasets.transforms import to_hwc
from sightline.tools import timing
from sightline.tools.benchmark_work import DRAWN, Setting

T = TypeVar("T", Batch, list)
OURS, THEIRS = "ours", "torchvision's"
STAGES = ("data", "transfer")


def time_loading(setting: Setting, repeats: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of the `STAGES` of a batch of JPEGs of the pictures' size, `OURS` and `THEIRS`."""
    device = torch.device(setting.device)
    with TemporaryDirectory() as folder:
        files = _written(Path(folder), setting)
        paths = [files.paths[i % len(files)] for i in range(setting.batch)]
        jobs = {}
        for side, read in {
            OURS: partial(timing.pictures, files, setting.batch, setting.size),
            THEIRS: lambda: [pil_to_tensor(Image.open(path).convert("RGB")) for path in paths],
        }.items():
            jobs[side, "data"] = read
            jobs[side, "transfer"] = partial(_sent, _pinned(read(), device), device)
        times = timing.alternate({name: timing.timed(job, device) for name, job in jobs.items()}, repeats, "loading")
    return {side: {stage: statistics.median(times[side, stage]) for stage in STAGES} for side in (OURS, THEIRS)}


def _written(folder: Path, setting: Setting) -> Table:
    """Pictures of the size asked for, as files."""
    table = shapes_table("val", min(setting.batch, DRAWN), min(setting.size))
    batch = timing.pictures(table, len(table), setting.size, multiple=1)
    paths = [str(folder / f"{i}.jpg") for i in range(len(table))]
    for path, image in zip(paths, batch.images, strict=True):
        write_image(path, to_hwc(image))
    return replace(table, paths=paths)


def _pinned(batch: T, device: torch.device) -> T:
    """In page-locked memory, where the device is a GPU."""
    return pytree.tree_map_only(Tensor, Tensor.pin_memory, batch) if device.type == "cuda" else batch


def _sent(batch: T, device: torch.device) -> T:
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device, non_blocking=True), batch)
