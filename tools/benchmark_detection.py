"""What `sightline benchmark` times of detectors: pixels to objects, stage by stage, with operations and memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.utils import _pytree as pytree

from sightline.backbone.model import answering
from sightline.datasets.structures import Batch, Instances
from sightline.datasets.table import Table
from sightline.detectors import Detector
from sightline.tools import peak_memory
from sightline.tools.benchmark_models import build
from sightline.tools.stages import device_of, time_jobs
from sightline.tools.timing import Timing, gflops, pictures


@dataclass
class Row(Timing):
    """One line of the table: a detector at one batch size.

    Attributes:
        gflops: of one picture, see `timing.gflops`.
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
    memory = {spec: _peak_memory(spec, model, batches[spec]) for spec, model in models.items()}
    timings = time_jobs({spec: (models[spec], job) for spec, job in jobs.items()}, repeats, f"batch {batch_size}")
    return [
        Row(
            model=spec,
            batch=batch_size,
            times=timings[spec][0],
            stages=timings[spec][1],
            parameters=sum(p.numel() for p in model.parameters()),
            gflops=gflops(partial(detect, model, pictures(table, 1, size, model.proposer))),
            memory=memory[spec],
        )
        for spec, model in models.items()
    ]


def detect(model: Detector, batch: Batch) -> Instances:
    """The model as `sightline predict` runs it, on a batch in the host's memory."""
    with answering(model):
        return model.detect(*batch.to(device_of(model)).inputs)


def _peak_memory(spec: str, model: Detector, batch: Batch) -> float | None:
    """MiB, see `memory_kind`."""
    device = device_of(model)
    if device.type == "cuda":
        return peak_memory.allocated(model, partial(detect, model, batch))
    if device.type == "cpu":
        return peak_memory.resident(_alone, spec, pytree.tree_map_only(torch.Tensor, torch.Tensor.numpy, batch.inputs))
    return None


def _alone(spec: str, arrays: tuple) -> tuple[Detector, Callable[[], object]]:
    """What a process of its own does: the model, and how it detects."""
    images, sizes, *proposals = pytree.tree_map_only(np.ndarray, torch.from_numpy, arrays)
    model = build(spec, "cpu")
    return model, partial(detect, model, Batch(images, sizes, None, [], *proposals))
