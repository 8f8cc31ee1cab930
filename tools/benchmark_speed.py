"""How fast models are: times by turns, stage by stage; of detectors with operations and memory too.

Models that do not propose themselves get their proposals with the pictures; how long those took is not counted.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from sightline.datasets.batching import STRIDE, collate
from sightline.datasets.detection import read_picture
from sightline.datasets.proposals import Proposer, as_instances
from sightline.datasets.shapes import shapes_table
from sightline.datasets.structures import Batch, ImageInfo, Instances, Sample
from sightline.datasets.table import Table
from sightline.datasets.transforms import from_hwc, resize_image, to_hwc
from sightline.detectors import Detector
from sightline.tools.benchmark_models import build

K = TypeVar("K", bound=Hashable)
WARM_UP = 2  # rounds before any is timed
STAGES = {"normalize": "input", "transform": "input", "backbone": "backbone", "rpn": "proposals"}  # by submodule
REST = "head"  # all after the last submodule of these


@dataclass
class Timing:
    """How fast a model is at one batch size.

    Attributes:
        times: ms of each round, from pixels (and proposals) in the host's memory to the final answer.
        stages: median ms of each stage.
        parameters: how many numbers.
    """

    model: str
    batch: int
    times: list[float]
    stages: dict[str, float]
    parameters: int

    @property
    def ms(self) -> float:
        """The median time of a batch."""
        return statistics.median(self.times)

    @property
    def rate(self) -> float:
        """Pictures a second."""
        return 1000 * self.batch / self.ms


@dataclass
class Row(Timing):
    """One line of the table: a detector at one batch size.

    Attributes:
        gflops: of one picture: matrix products and convolutions alone, a multiplication and its addition counting two.
        memory: peak in MiB, see `memory_kind`; None where it cannot be had.
        AP: COCO's, of boxes; None where it was not scored.
        mask_AP: the same of masks; None where there are none.
    """

    gflops: float
    memory: float | None
    AP: float | None = None
    mask_AP: float | None = None


def time_models(
    models: dict[str, Detector], table: Table | None, size: tuple[int, int], batch_size: int, repeats: int
) -> list[Row]:
    """A row for each model.

    Args:
        models: by the words that `build` makes them from, all on one device, in evaluation mode.
        table: where the pictures come from; None draws some.
        size: (height, width) that they are brought to.
        batch_size: how many at a time.
        repeats: timed rounds.
    """
    batches = {spec: pictures(table, batch_size, size, model.proposer) for spec, model in models.items()}
    jobs = {spec: partial(detect, model, batches[spec]) for spec, model in models.items()}
    timings = time_jobs({spec: (models[spec], job) for spec, job in jobs.items()}, repeats, f"batch {batch_size}")
    return [
        Row(
            model=spec,
            batch=batch_size,
            times=timings[spec][0],
            stages=timings[spec][1],
            parameters=sum(p.numel() for p in model.parameters()),
            gflops=gflops(partial(detect, model, pictures(table, 1, size, model.proposer))),
            memory=_peak_memory(spec, model, batches[spec]),
        )
        for spec, model in models.items()
    ]


def pictures(
    table: Table | None,
    number: int,
    size: tuple[int, int],
    proposer: Proposer | None = None,
    *,
    multiple: int = STRIDE,
) -> Batch:
    """The first `number` pictures of a data set, over again if need be, all brought to `size` (height, width).

    A proposer adds its boxes. The frame's sides are multiples of `multiple`.
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


@torch.inference_mode()
def detect(model: Detector, batch: Batch) -> Instances:
    """The model as `sightline predict` runs it, on a batch in the host's memory: bf16 on a GPU, float32 elsewhere."""
    device = _device(model)
    with torch.autocast(device.type, torch.bfloat16, device.type == "cuda"):
        return model.detect(*batch.to(device).inputs)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def time_jobs(
    jobs: Mapping[K, tuple[nn.Module, Callable[[], object]]], repeats: int, title: str
) -> dict[K, tuple[list[float], dict[str, float]]]:
    """The milliseconds of each round, and the median ones of each stage, of jobs that take turns.

    Args:
        jobs: a model, and what it is to do, by any name.
        repeats: timed rounds.
        title: of the bar.
    """
    times = alternate({name: _timed(*job) for name, job in jobs.items()}, repeats, title)
    staged = alternate({name: _staged(*job) for name, job in jobs.items()}, repeats, "its stages")
    medians = {
        name: {stage: statistics.median(r[stage] for r in rounds) for stage in rounds[0]}
        for name, rounds in staged.items()
    }
    return {name: (times[name], medians[name]) for name in jobs}


def _timed(model: nn.Module, job: Callable[[], object]) -> Callable[[], float]:
    """The same job; returns its milliseconds."""

    def work() -> float:
        started = _now(_device(model))
        job()
        return _now(_device(model)) - started

    return work


def _staged(model: nn.Module, job: Callable[[], object]) -> Callable[[], dict[str, float]]:
    """The same job; returns the milliseconds of each stage, from the end of the one before to its own end."""
    stages = {**dict(model.named_children()), **dict(getattr(model, "network", model).named_children())}

    def work() -> dict[str, float]:
        marks: list[tuple[str, float]] = []

        def mark(stage: str) -> None:
            marks.append((stage, _now(_device(model))))

        with ExitStack() as hooks:
            for name, module in stages.items():
                if name in STAGES:
                    hook = module.register_forward_hook(lambda *_, stage=STAGES[name]: mark(stage))
                    hooks.callback(hook.remove)
            mark("start")
            job()
            mark(REST)
        starts = [time for _, time in marks[:-1]]
        times: dict[str, float] = {}
        for (stage, end), start in zip(marks[1:], starts, strict=True):  # some networks come by a stage again
            times[stage] = times.get(stage, 0.0) + end - start
        return times

    return work


def _now(device: torch.device) -> float:
    """Milliseconds, once the device has done all it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return 1000 * time.perf_counter()


def gflops(job: Callable[[], object]) -> float:
    """How many milliards of operations a job takes, see `Row`."""
    with FlopCounterMode(display=False) as counter:
        job()
    return counter.get_total_flops() / 1e9


def _peak_memory(spec: str, model: Detector, batch: Batch) -> float | None:
    """MiB, see `memory_kind`."""
    device = _device(model)
    if device.type == "cuda":
        own = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
        others = torch.cuda.memory_allocated(device) - own
        torch.cuda.reset_peak_memory_stats(device)
        detect(model, batch)
        return (torch.cuda.max_memory_allocated(device) - others) / 2**20
    if device.type == "cpu" and Path("/proc/self/status").exists():
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            inputs = pytree.tree_map_only(torch.Tensor, torch.Tensor.numpy, batch.inputs)
            return process.submit(_alone, spec, inputs).result()
    return None


def _alone(spec: str, arrays: tuple) -> float:
    """MiB by which this process, which does nothing else, grows at most. (Its `ru_maxrss` starts from the parent's.)"""
    before = _status("VmRSS")
    images, sizes, *proposals = pytree.tree_map_only(np.ndarray, torch.from_numpy, arrays)
    detect(build(spec, "cpu"), Batch(images, sizes, None, [], *proposals))
    return _status("VmHWM") - before


def _status(name: str) -> float:
    """One of Linux's figures on this process, in MiB."""
    return int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0]) / 1024


def memory_kind(device: torch.device) -> str:
    """What the figure on memory means."""
    if device.type == "cuda":
        return "the most that PyTorch had allocated on the GPU for this model (max_memory_allocated)"
    return "by how much the resident memory of a process grew at most that built and ran this model alone (peak RSS)"


def aligned(lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """Rows of cells as a table for people, the first `left` columns to the left."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    sides = [str.ljust] * left + [str.rjust] * (len(widths) - left)
    padded = [[side(*cell) for side, cell in zip(sides, zip(line, widths, strict=True), strict=True)] for line in lines]
    return "\n".join("  ".join(line).rstrip() for line in padded)


def number(value: float | None, digits: int) -> str:
    """A number, or a dash where something was not measured."""
    return "-" if value is None else f"{value:.{digits}f}"
