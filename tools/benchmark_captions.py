"""What `sightline benchmark` does with captioners: accuracy and speed of each, greedy and with a beam, in one table."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from functools import partial

import torch

from sightline.backbone.model import answering
from sightline.captioning import Captioner
from sightline.captioning.search import Beam, Greedy
from sightline.datasets.picture_data import default_workers
from sightline.datasets.structures import Batch, Captions
from sightline.datasets.table import DataError, Table
from sightline.detectors.inference import usable_device
from sightline.tools import model_names
from sightline.tools.benchmark import machine, write_json
from sightline.tools.evaluate_captions import captioned
from sightline.tools.stages import REST, device_of, time_jobs
from sightline.tools.timing import Timing, aligned, number, pictures
from sightline.training.caption_scoring import Search, score_captions

SCORES = ("BLEU-4", "CIDEr-D")
STAGES = ("input", "backbone", "decoder")


@dataclass
class CaptionRow(Timing):
    """One line of the table: a captioner at one batch size with one way of finding sentences.

    Attributes:
        search: a name of `searches`.
        scores: by name; empty where it was not scored.
    """

    search: str = "greedy"
    scores: dict[str, float] = field(default_factory=dict)


def compare(arguments: argparse.Namespace) -> int:
    """Times and, where there are data, scores the captioners that `sightline benchmark` was given. Returns the exit code.

    Raises:
        DataError: pictures of no one size, or data without sentences.
    """
    device = usable_device(arguments.device)
    table = captioned(arguments.data, arguments.split) if arguments.data else None
    models = {spec: model_names.build(spec, device) for spec in dict.fromkeys(arguments.models)}
    sizes = {spec: own_size(spec, model, arguments.size) for spec, model in models.items()}
    print(machine(device))
    rows: list[CaptionRow] = []
    for batch_size in arguments.batch:
        rows += time_captioners(models, table, sizes, batch_size, arguments.repeats)
        write_json(arguments, device, rows, {"size": sizes})
    for spec, model in models.items() if table is not None else ():
        score_captioners({spec: model}, table, rows)
        write_json(arguments, device, rows, {"size": sizes})
    print(text_table(rows))
    return 0


def searches(model: Captioner) -> dict[str, Search]:
    """The ways of finding sentences that are compared, each of as many words as the model's own way takes."""
    return {"greedy": Greedy(model.search.most), "beam 5": Beam(5, model.search.most)}


def own_size(spec: str, model: Captioner, size: list[int] | None) -> tuple[int, int]:
    """(height, width) of timed pictures: what was asked for, else what the model's pictures are brought to.

    Raises:
        DataError: these are of no one size.
    """
    if size is None and len(model.resize) == 2:
        raise DataError(f"{spec} takes pictures of any shape: say of which size to time it, --size 224 224 for example")
    height, width = size or model.resize[:2]
    return height, width


def time_captioners(
    models: dict[str, Captioner],
    table: Table | None,
    sizes: dict[str, tuple[int, int]],
    batch_size: int,
    repeats: int,
) -> list[CaptionRow]:
    """Two rows for each model, one for each way of finding sentences; arguments as for `time_models`."""
    batches = {spec: pictures(table, batch_size, sizes[spec]) for spec in models}
    jobs = {
        (spec, name): (model, partial(caption, model, batches[spec], search))
        for spec, model in models.items()
        for name, search in searches(model).items()
    }
    rows = []
    for (spec, name), (times, stages) in time_jobs(jobs, repeats, f"batch {batch_size}").items():
        stages["decoder"] = stages.pop(REST)
        parameters = sum(p.numel() for p in models[spec].parameters())
        rows.append(CaptionRow(spec, batch_size, times, stages, parameters, name))
    return rows


@torch.inference_mode()
def caption(model: Captioner, batch: Batch, search: Search) -> Captions:
    """The model as `score_captions` runs it, on a batch in the host's memory."""
    with answering(model):
        annotations = model(*batch.to(device_of(model)).inputs)
    return search(model.decoder, annotations)


def score_captioners(models: dict[str, Captioner], table: Table, rows: list[CaptionRow]) -> None:
    """Fills in the rows' scores where a model has weights; else says why not."""
    for spec, model in models.items():
        if not model_names.has_weights(spec):
            print(f"{spec}: not scored, its weights are random; give it some: {spec.rstrip('@')}@WEIGHTS")
            continue
        for name, search in searches(model).items():
            mine = [row for row in rows if (row.model, row.search) == (spec, name)]
            batch_size = max(row.batch for row in mine)
            options = {"search": search, "batch_size": batch_size, "num_workers": default_workers()}
            summary = score_captions(model, table, **options).result.summary()
            for row in mine:
                row.scores = {score: summary[score] for score in SCORES}


def text_table(rows: list[CaptionRow]) -> str:
    """The table for people; a dash where something was not measured."""
    lines = [["model", "search", "batch", *SCORES, "images/s", "ms", *STAGES, "M params"]]
    for row in rows:
        numbers = [number(row.scores.get(score), 3) for score in SCORES] + [number(row.rate, 1), number(row.ms, 1)]
        numbers += [number(row.stages.get(stage), 1) for stage in STAGES] + [number(row.parameters / 1e6, 2)]
        lines.append([row.model, row.search, str(row.batch), *numbers])
    return aligned(lines, left=2)
