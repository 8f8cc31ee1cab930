"""What `sightline evaluate` does with captioners and with captions: scores, a file of what was written, a report."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Set
from dataclasses import replace
from pathlib import Path

from sightline.captioning import Captioner
from sightline.captioning.search import Beam
from sightline.datasets.caption_data import CaptionData
from sightline.datasets.detection import read_picture
from sightline.datasets.table import DataError, Table, nearest
from sightline.detectors.inference import usable_device
from sightline.evaluation import (
    CaptionResult,
    ReportInputs,
    evaluate_captions,
    read_caption_results,
    read_caption_truth,
    write_caption_report,
    write_caption_results,
)
from sightline.tools.checkpoints import load_mean
from sightline.tools.given_options import require_known
from sightline.training.caption_scoring import score_captions

# The options that mean something, of all that `sightline evaluate` has.
FOR_CAPTIONERS = {
    "checkpoint", "average", "data", "split", "beam", "json", "save_predictions", "report", "batch", "workers", "device",
    "precision",
}  # fmt: skip
FOR_RESULTS = {"captions", "truth", "partial", "json", "report"}
BATCH = 32


def evaluate_captioner(arguments: argparse.Namespace, given: Set[str]) -> None:
    """Scores what a captioner writes about a data set's pictures; `given` names the options that were not left out.

    Raises:
        DataError: an option that means nothing here, or data without sentences.
    """
    require_known(given, FOR_CAPTIONERS, f"{arguments.checkpoint} is a captioner")
    model = load_mean(arguments, usable_device(arguments.device))
    model.precision = arguments.precision
    table = captioned(arguments.data, arguments.split)
    if table.problems.counts:
        print(table.problems.summary(), file=sys.stderr)
    search = None if arguments.beam is None else beam(model, arguments.beam)
    options = {"batch_size": arguments.batch or BATCH, "num_workers": arguments.workers}
    scored = score_captions(model, table, search=search, **options)
    if arguments.save_predictions:
        write_caption_results(arguments.save_predictions, scored.captions)
    details = {
        "captioner": ", ".join([arguments.checkpoint, *arguments.average]),
        "data": f"{arguments.data}, {arguments.split}",
    }
    details["search"] = repr(search or model.search)
    _write(arguments, scored.result, scored.to_dict(), report_inputs(table, details))


def evaluate_results(arguments: argparse.Namespace, given: Set[str]) -> None:
    """Scores a file of captions against the truth in another; `given` as above.

    Raises:
        DataError: an option that means nothing here, or files that cannot be read or do not go together.
    """
    require_known(given, FOR_RESULTS, "--captions has no boxes and no model, only sentences")
    if not arguments.truth:
        raise DataError("--captions needs --truth: the COCO captions json that they are scored against")
    references = read_caption_truth(arguments.truth)
    captions = read_caption_results(arguments.captions, references, partial=arguments.partial)
    result = evaluate_captions({image: references[image] for image in captions}, captions)
    details = {"captions": arguments.captions, "truth": arguments.truth}
    _write(arguments, result, result.to_dict(), ReportInputs(title="Evaluation", details=details))


def captioned(path: str, split: str) -> Table:
    """A part of a data set of captioned pictures.

    Raises:
        DataError: no such data set, or no such part of it.
    """
    tables = CaptionData(path).tables
    if split not in tables:
        raise DataError(f"{path} has no part {split!r}; there are {', '.join(tables)}{nearest(split, tables)}")
    return tables[split]


def beam(model: Captioner, width: int) -> Beam:
    """Beam search of a width, in all else the model's own where it has one; as many words as that takes in any case."""
    own = model.search if isinstance(model.search, Beam) else Beam(most=model.search.most)
    return replace(own, width=width)


def report_inputs(table: Table, details: dict[str, str]) -> ReportInputs:
    """What a report shows of a table's pictures, all of which were captioned."""
    return ReportInputs(
        title="Evaluation",
        details=details,
        load_image=lambda row: read_picture(table.paths[row]),
        image_names=table.paths,
    )


def _write(arguments: argparse.Namespace, result: CaptionResult, numbers: dict, inputs: ReportInputs) -> None:
    print(result.table())
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    if arguments.report:
        print(f"report: {write_caption_report(arguments.report, result, inputs)}")
