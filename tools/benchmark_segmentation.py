"""What `sightline benchmark` does with segmenters: accuracy and speed of each in one table."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from functools import partial

from sightline.backbone.model import answering
from sightline.datasets.batching import frame_multiple
from sightline.datasets.picture_data import default_workers
from sightline.datasets.structures import Batch, LabelMaps
from sightline.datasets.table import DataError, Table
from sightline.datasets.transforms import resize_shape
from sightline.detectors.inference import usable_device
from sightline.segmentation import Segmenter
from sightline.tools.benchmark import machine, write_json
from sightline.tools.benchmark_models import build, has_weights
from sightline.tools.evaluate_segmentation import labelled
from sightline.tools.stages import BACKBONE, INPUT, REST, device_of, time_jobs
from sightline.tools.timing import Timing, aligned, gflops, number, pictures
from sightline.training.segmentation_scoring import score_segmenter

SCORES = {"mean_IoU": "mean IoU", "pixel_accuracy": "pixel acc."}  # and what they are called in the table
STAGES = (INPUT, BACKBONE, REST)


@dataclass
class SegmentationRow(Timing):
    """One line of the table: a segmenter at one batch size.

    Attributes:
        size: (height, width) of the timed pictures.
        gflops: of one picture, see `timing.gflops`.
        scores: by name; empty where it was not scored.
    """

    size: tuple[int, int] = (0, 0)
    gflops: float = 0.0
    scores: dict[str, float] = field(default_factory=dict)


def compare(arguments: argparse.Namespace) -> int:
    """Times and, where there are data, scores the segmenters that `sightline benchmark` was given. Returns the exit code.

    Raises:
        DataError: pictures of no one size, or data without label maps.
    """
    device = usable_device(arguments.device)
    table = labelled(arguments.data, arguments.split) if arguments.data else None
    models = {spec: build(spec, device) for spec in dict.fromkeys(arguments.models)}
    sizes = {spec: own_size(spec, model, table, arguments.size) for spec, model in models.items()}
    print(machine(device))
    rows: list[SegmentationRow] = []
    for batch_size in arguments.batch:
        rows += time_segmenters(models, table, sizes, batch_size, arguments.repeats)
        write_json(arguments, device, rows, {})
    for spec, model in models.items() if table is not None else ():
        score_segmenters({spec: model}, table, rows)
        write_json(arguments, device, rows, {})
    print(text_table(rows))
    return 0


def own_size(spec: str, model: Segmenter, table: Table | None, size: list[int] | None) -> tuple[int, int]:
    """(height, width) of timed pictures: what was asked for, else what the model brings the table's first picture to.

    Raises:
        DataError: there is none, and the model takes pictures of any shape.
    """
    if size is not None:
        return size[0], size[1]
    if table is None and len(model.resize) == 2:
        raise DataError(f"{spec} takes pictures of any shape: say of which size to time it, --size 360 480 for example")
    shape = (0, 0) if table is None else table.sizes[0].tolist()
    return resize_shape(*shape, *model.resize)


def time_segmenters(
    models: dict[str, Segmenter],
    table: Table | None,
    sizes: dict[str, tuple[int, int]],
    batch_size: int,
    repeats: int,
) -> list[SegmentationRow]:
    """A row for each model; arguments as for `time_models`, with a size for each."""

    def job(spec: str, count: int) -> partial[LabelMaps]:
        multiple = frame_multiple(models[spec].resize)
        return partial(segment, models[spec], pictures(table, count, sizes[spec], multiple=multiple))

    jobs = {spec: (model, job(spec, batch_size)) for spec, model in models.items()}
    timings = time_jobs(jobs, repeats, f"batch {batch_size}")
    return [
        SegmentationRow(
            model=spec,
            batch=batch_size,
            times=times,
            stages=stages,
            parameters=sum(p.numel() for p in models[spec].parameters()),
            size=sizes[spec],
            gflops=gflops(job(spec, 1)),
        )
        for spec, (times, stages) in timings.items()
    ]


def segment(model: Segmenter, batch: Batch) -> LabelMaps:
    """The model as `sightline predict` runs it, on a batch in the host's memory."""
    with answering(model):
        return model.segment(*batch.to(device_of(model)).inputs)


def score_segmenters(models: dict[str, Segmenter], table: Table, rows: list[SegmentationRow]) -> None:
    """Fills in the rows' scores where a model has weights and knows the data's categories; else says why not."""
    for spec, model in models.items():
        if not has_weights(spec):
            print(f"{spec}: not scored, its weights are random; give it some: {spec.rstrip('@')}@WEIGHTS")
            continue
        mine = [row for row in rows if row.model == spec]
        options = {"batch_size": max(row.batch for row in mine), "num_workers": default_workers(), "boundary": False}
        try:
            summary = score_segmenter(model, table, **options).result.summary()
        except DataError as error:
            print(f"{spec}: not scored: {error}")
            continue
        for row in mine:
            row.scores = {score: summary[score] for score in SCORES}


def text_table(rows: list[SegmentationRow]) -> str:
    """The table for people; a dash where something was not measured."""
    lines = [["model", "pixels", "batch", *SCORES.values(), "images/s", "ms", *STAGES, "M params", "GFLOP"]]
    for row in rows:
        numbers = [number(row.scores.get(score), 3) for score in SCORES] + [number(row.rate, 1), number(row.ms, 1)]
        numbers += [number(row.stages.get(stage), 1) for stage in STAGES]
        numbers += [number(row.parameters / 1e6, 2), number(row.gflops, 1)]
        lines.append([row.model, "x".join(map(str, row.size)), str(row.batch), *numbers])
    return aligned(lines)
