"""How long work takes: jobs that take turns, the pictures they are given, and what of it stands in a table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from sightline.datasets.batching import STRIDE, collate
from sightline.datasets.detection import read_picture
from sightline.datasets.proposals import Proposer, as_instances
from sightline.datasets.shapes import shapes_table
from sightline.datasets.structures import Batch, ImageInfo, Instances, Sample
from sightline.datasets.table import Table
from sightline.datasets.transforms import from_hwc, resize_image, to_hwc

K = TypeVar("K", bound=Hashable)
WARM_UP = 2  # rounds before any is timed


@dataclass
class Timed:
    """Work of a model on batches of one size.

    Attributes:
        model: as on the command line.
        batch: how many pictures.
        times: ms of each round.
    """

    model: str
    batch: int
    times: list[float]

    @property
    def ms(self) -> float:
        """The median time of a batch."""
        return statistics.median(self.times)

    @property
    def rate(self) -> float:
        """Pictures a second."""
        return 1000 * self.batch / self.ms


@dataclass
class Timing(Timed):
    """How fast a model answers, from pixels (and proposals) in the host's memory to the final answer.

    Attributes:
        stages: median ms of each stage, see `stages.STAGES`.
        parameters: how many numbers.
    """

    stages: dict[str, float]
    parameters: int


def pictures(
    table: Table | None,
    number: int,
    size: tuple[int, int],
    proposer: Proposer | None = None,
    *,
    multiple: int = STRIDE,
) -> Batch:
    """The first `number` pictures of a data set, over again if need be, all brought to `size` (height, width).

    Without a data set they are drawn. A proposer adds its boxes; models that do not propose themselves get them with the
    pictures, and how long those took is not counted. The frame's sides are multiples of `multiple`.
    """
    table = table or shapes_table("val", number, min(size))
    frame = tuple(-(-side // multiple) * multiple for side in size)
    nothing = Instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    samples = []
    for i in range(number):
        image = resize_image(from_hwc(read_picture(table.paths[i % len(table)])), size)
        proposals = None if proposer is None else as_instances(proposer(to_hwc(image)))
        samples.append(Sample(image, nothing, ImageInfo(i, "", size), proposals))
    return collate(samples, frame)


def alternate(jobs: Mapping[K, Callable[[], object]], repeats: int, title: str) -> dict[K, list]:
    """What each job returned in each round; the jobs take turns, A B A B. Warm-up rounds are left out."""
    results: dict[K, list] = {name: [] for name in jobs}
    for i in tqdm(range(-WARM_UP, repeats), desc=title, unit="round", leave=False, disable=None):
        for name, job in jobs.items():
            result = job()
            if i >= 0:
                results[name].append(result)
    return results


def timed(job: Callable[[], object], device: torch.device) -> Callable[[], float]:
    """The same job; returns its milliseconds."""

    def work() -> float:
        started = now(device)
        job()
        return now(device) - started

    return work


def now(device: torch.device) -> float:
    """Milliseconds, once the device has done all it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return 1000 * time.perf_counter()


def gflops(job: Callable[[], object]) -> float:
    """How many billions of operations a job takes: matrix products and convolutions alone, a multiplication and its addition
    counting two."""
    with FlopCounterMode(display=False) as counter:
        job()
    return counter.get_total_flops() / 1e9


def aligned(lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """Rows of cells as a table for people, the first `left` columns to the left."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    sides = [str.ljust] * left + [str.rjust] * (len(widths) - left)
    padded = [[side(*cell) for side, cell in zip(sides, zip(line, widths, strict=True), strict=True)] for line in lines]
    return "\n".join("  ".join(line).rstrip() for line in padded)


def number(value: float | None, digits: int) -> str:
    """A number, or a dash where something was not measured."""
    return "-" if value is None else f"{value:.{digits}f}"
