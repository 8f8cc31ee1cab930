"""What `sightline evaluate` does with segmenters and with label maps in files: scores and a report."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Set
from pathlib import Path

from sightline.datasets.detection import read_picture
from sightline.datasets.segmentation_data import SegmentationData
from sightline.datasets.table import DataError, Table, nearest
from sightline.detectors.inference import usable_device
from sightline.evaluation import ReportInputs
from sightline.tools.checkpoints import load_segmenter
from sightline.tools.given_options import require_known
from sightline.training.label_file_scoring import score_label_files
from sightline.training.segmentation_scoring import ScoredLabelMaps, score_segmenter

# The options that mean something, of all that `sightline evaluate` has.
FOR_BOTH = {"data", "split", "void_wrong", "json", "report"}
FOR_FILES = {"predictions"} | FOR_BOTH
FOR_SEGMENTERS = {
    "checkpoint", "average", "multiscale", "flip", "tiles", "overlap", "batch", "workers", "device", "precision",
} | FOR_BOTH  # fmt: skip
BATCH = 8
ROLES = ("train", "val", "test")
COLUMNS = ("IoU", "accuracy", "precision", "boundary_IoU")


def evaluate_segmenter(arguments: argparse.Namespace, given: Set[str]) -> None:
    """Scores what a segmenter takes a data set's pixels for; `given` names the options that were not left out.

    Raises:
        DataError: an option that means nothing here, or data without label maps.
    """
    if "save_predictions" in given:
        raise DataError(
            f"{arguments.checkpoint} gives label maps, which no results json holds: leave out --save-predictions; "
            "sightline predict writes them with --masks FOLDER"
        )
    require_known(given, FOR_SEGMENTERS, f"{arguments.checkpoint} names every pixel")
    model = load_segmenter(arguments, usable_device(arguments.device))
    table = labelled(arguments.data, arguments.split)
    options = {"batch_size": arguments.batch or BATCH, "num_workers": arguments.workers}
    _show(score_segmenter(model, table, void_is_wrong=arguments.void_wrong, **options), arguments)


def evaluate_label_files(arguments: argparse.Namespace, given: Set[str]) -> None:
    """Scores a folder of label maps, whoever made them, against a data set's; `given` as above.

    Raises:
        DataError: an option that means nothing here, data without label maps, or files that do not go with them.
    """
    require_known(given, FOR_FILES, f"--predictions {arguments.predictions} is a folder of label maps")
    if "data" not in given:
        raise DataError(
            f"--predictions {arguments.predictions} is a folder of label maps: say with --data what they are scored against"
        )
    table = labelled(arguments.data, arguments.split)
    _show(score_label_files(arguments.predictions, table, void_is_wrong=arguments.void_wrong), arguments)


def labelled(path: str, split: str) -> Table:
    """A part of a data set of pictures with label maps, by its role or its own name; what was mended in it is printed.

    Raises:
        DataError: no such data set, or no such part of it.
    """
    if path == "shapes" and split not in ROLES:
        raise DataError(
            f"the built-in shapes have no part {split!r}; there are {', '.join(ROLES)}{nearest(split, ROLES)}"
        )
    tables = SegmentationData(path).tables
    table = tables[split] if split in tables else SegmentationData(path, val_split=split).tables["val"]
    if table.problems.counts:
        print(table.problems.summary(), file=sys.stderr)
    return table


def _show(scored: ScoredLabelMaps, arguments: argparse.Namespace) -> None:
    numbers = scored.to_dict()
    print(f"{scored.result.table()}\n{_classes(numbers['per_class'])}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    if arguments.report:
        details = {"predictions": arguments.checkpoint or arguments.predictions}
        details["data"] = f"{arguments.data}, {arguments.split}"
        paths = scored.table.paths
        inputs = ReportInputs("Evaluation", details, lambda row: read_picture(paths[row]), paths)
        print(f"report: {scored.write_report(arguments.report, inputs)}")


def _classes(per_class: list[dict]) -> str:
    """A line a category, in the data's order; a dash where the truth has none of it."""
    width = max([8, *(len(row["category"]) for row in per_class)])
    columns = [name for name in COLUMNS if per_class and name in per_class[0]]
    lines = [f"\n{'category':<{width}} {'pixels':>12}" + "".join(f" {name:>9}" for name in columns)]
    for row in per_class:
        numbers = (f"{row[name]:.3f}" if row[name] >= 0 else "-" for name in columns)
        cells = "".join(f" {number:>{max(9, len(name))}}" for name, number in zip(columns, numbers, strict=True))
        lines.append(f"{row['category']:<{width}} {row['truths']:>12,}{cells}")
    return "\n".join(lines)
