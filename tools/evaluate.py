"""`sightline evaluate`: scores a checkpoint on data, or any predictions against any truth.

sightline evaluate runs/shapes/1/checkpoints/best.ckpt --data shapes
sightline evaluate best.ckpt --data voc/ --split test --voc
sightline evaluate --predictions results.json --truth instances_val2017.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from sightline.datasets.data_module import DetectionData
from sightline.datasets.detection import read_picture
from sightline.datasets.table import DataError, Table
from sightline.detectors import load
from sightline.detectors.inference import usable_device
from sightline.evaluation import (
    ReportInputs,
    evaluate_coco,
    evaluate_voc,
    read_coco_truth,
    read_results,
    write_report,
    write_results,
)
from sightline.tools.main import run
from sightline.training import Scored, score


def main(argv: list[str] | None = None) -> int:
    """Runs the command; `argv` without the command's name."""
    arguments = _parser().parse_args(argv)
    if bool(arguments.checkpoint) == bool(arguments.predictions):
        raise DataError(
            "name either a checkpoint with --data, or --predictions with --truth; see sightline evaluate --help"
        )
    if arguments.checkpoint:
        scored, names, table = _of_checkpoint(arguments)
    else:
        scored, names, table = _of_predictions(arguments)
    numbers = scored.to_dict()
    print(scored.result.table())
    print(_classes(numbers["per_class"]))
    if arguments.voc:
        voc = evaluate_voc(scored.truth, scored.detections, names, eleven_point=arguments.voc == "2007").summary()
        numbers["voc"] = voc
        print("Pascal VOC   " + "   ".join(f"{name} {value:.3f}" for name, value in voc.items()))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(numbers, indent=2) + "\n")
    if arguments.report:
        _report(Path(arguments.report), scored, table, arguments)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sightline evaluate", description=__doc__.split("\n")[0], epilog=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("checkpoint", nargs="?", metavar="CHECKPOINT", help="a best.ckpt of `sightline train`")
    parser.add_argument("--data", default="shapes", metavar="PATH", help="data set in any known form (shapes)")
    parser.add_argument("--split", default="val", help="train, val, test, or the data set's own name for a part (val)")
    parser.add_argument("--predictions", metavar="FILE", help="COCO results json to score instead of a checkpoint")
    parser.add_argument("--truth", metavar="FILE", help="COCO json that the predictions are scored against")
    parser.add_argument(
        "--max-dets", type=int, nargs="+", default=[1, 10, 100], metavar="N", help="COCO's limits (1 10 100)"
    )
    parser.add_argument("--voc", nargs="?", const="area", choices=["area", "2007"], help="Pascal VOC's AP too")
    parser.add_argument("--json", metavar="FILE", help="write the numbers here")
    parser.add_argument("--save-predictions", metavar="FILE", help="write the detections as COCO results json")
    parser.add_argument("--report", metavar="FOLDER", help="write report.html with curves and pictures here")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="pictures at a time (8)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that load pictures (0)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps; by default the best there is")
    return parser


def _of_checkpoint(arguments: argparse.Namespace) -> tuple[Scored, list[str], Table]:
    model = load(arguments.checkpoint, device=usable_device(arguments.device))
    table = _table(arguments.data, arguments.split)
    if table.problems.counts:
        print(table.problems.summary(), file=sys.stderr)
    limits = tuple(arguments.max_dets)
    scored = score(model, table, batch_size=arguments.batch, num_workers=arguments.workers, max_dets=limits)
    if arguments.save_predictions:
        write_results(arguments.save_predictions, scored.detections, table.image_ids, table.category_ids)
    return scored, table.categories, table


def _table(path: str, split: str) -> Table:
    """A part of a data set, by its role or its own name."""
    tables = DetectionData(path).tables if path == "shapes" or split in ("train", "val", "test") else {}
    if split in tables:
        return tables[split]
    if path == "shapes":
        raise DataError(f"the built-in shapes have no part {split!r}; there are {', '.join(tables)}")
    from sightline.datasets.readers import read

    return read(path, split)


def _of_predictions(arguments: argparse.Namespace) -> tuple[Scored, list[str], None]:
    if not arguments.truth:
        raise DataError("--predictions needs --truth: the COCO json that they are scored against")
    truth, names, category_ids = read_coco_truth(arguments.truth)
    detections = read_results(arguments.predictions, truth, category_ids)
    result = evaluate_coco(truth, detections, names, max_dets=tuple(arguments.max_dets))
    return Scored(truth, detections, result, 0.0), names, None


def _classes(per_class: list[dict]) -> str:
    """A line a category, the commonest first."""
    width = max([8, *(len(row["category"]) for row in per_class)])
    lines = [f"\n{'category':<{width}} {'objects':>8} {'AP':>6} {'AP50':>6} {'AR':>6}"]
    for row in sorted(per_class, key=lambda row: -row["truths"]):
        if row["truths"]:
            lines.append(
                f"{row['category']:<{width}} {row['truths']:>8} {row['AP']:6.3f} {row['AP50']:6.3f} {row['AR']:6.3f}"
            )
    return "\n".join(lines)


def _report(folder: Path, scored: Scored, table: Table | None, arguments: argparse.Namespace) -> None:
    details = {"predictions": arguments.checkpoint or arguments.predictions, "truth": arguments.truth or arguments.data}
    inputs = ReportInputs(title="Evaluation", details=details)
    if table is not None:
        inputs.load_image, inputs.image_names = (lambda row: read_picture(table.paths[row])), table.paths
    print(f"report: {write_report(folder, scored.truth, scored.detections, scored.result, inputs)}")


if __name__ == "__main__":
    sys.exit(run("evaluate", sys.argv[1:]))
