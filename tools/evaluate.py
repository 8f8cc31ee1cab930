"""`sightline evaluate`: scores a checkpoint on data, or any predictions against any truth.

sightline evaluate runs/shapes/1/checkpoints/best.ckpt --data shapes
sightline evaluate best.ckpt --data voc/ --split test --voc
sightline evaluate best.ckpt --data voc/ --largest 1         # a localizer of one object a picture
sightline evaluate best.ckpt --data voc/ --proposals voc_2007_test.mat     # a Fast R-CNN, by boxes made elsewhere
sightline evaluate best.ckpt --data classes/ --crops 10 --scales 224 256 384 480 640
sightline evaluate best.ckpt --ensemble other.ckpt third.ckpt
sightline evaluate best.ckpt --data coco/ --multiscale 0.75 1 1.25 --flip     # six looks at each picture
sightline evaluate best.ckpt --data aerial/ --tiles 640
sightline evaluate --predictions results.json --truth instances_val2017.json
sightline evaluate mask_rcnn.ckpt --data coco/                # AP of boxes and of masks
sightline evaluate --predictions results.json --truth instances_val2017.json --masks
sightline evaluate fcn8s.ckpt --data camvid/ --split test --flip --multiscale 0.75 1 1.25     # mean IoU, pixel accuracy
sightline evaluate --predictions label_maps/ --data camvid/ --split test --void-wrong
sightline evaluate captioner.ckpt --data flickr8k/ --split test --beam 5     # BLEU, ROUGE-L, CIDEr
sightline evaluate --captions results.json --truth captions_val2017.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Set
from pathlib import Path

from sightline.datasets.data_module import DetectionData
from sightline.datasets.detection import read_picture
from sightline.datasets.proposal_files import read_proposals
from sightline.datasets.table import DataError, Table
from sightline.detectors import Detector
from sightline.detectors.inference import usable_device
from sightline.detectors.tiling import Tiling
from sightline.evaluation import (
    ReportInputs,
    evaluate_coco,
    evaluate_instances,
    evaluate_regions,
    evaluate_voc,
    read_coco_truth,
    read_results,
    write_report,
    write_results,
)
from sightline.tools.checkpoints import add_options, add_tile_options, load_model, task_of, tiling_of
from sightline.tools.command_options import OptionsParser
from sightline.tools.evaluate_captions import evaluate_captioner, evaluate_results
from sightline.tools.evaluate_segmentation import evaluate_label_files, evaluate_segmenter
from sightline.tools.given_options import given_options, options
from sightline.tools.main import run
from sightline.tools.model_names import kind_of
from sightline.tools.number_options import positive, whole
from sightline.training import Crops, Scored, score, score_crops, score_tiled

MASKS = 28  # cells along a mask's side in which the built-in shapes' are drawn, which says that they are


def main(argv: list[str] | None = None) -> int:
    """Runs the command; `argv` without the command's name."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if sum(map(bool, (arguments.checkpoint, arguments.predictions, arguments.captions))) != 1:
        raise DataError(
            "name either a checkpoint with --data, or --predictions or --captions with --truth; "
            "see sightline evaluate --help"
        )
    given = given_options(parser, arguments)
    for file in filter(None, (arguments.json, arguments.save_predictions)):
        Path(file).parent.mkdir(parents=True, exist_ok=True)  # before the work, which may be long
    other = _way_of_others(arguments)
    if other is not None:
        other(arguments, given)
        return 0
    _require_of_boxes(given, arguments)
    arguments.batch = arguments.batch or 8
    if arguments.checkpoint:
        scored, names, table = _of_checkpoint(arguments)
    else:
        scored, names, table = _of_predictions(arguments)
    numbers = scored.to_dict()
    print(scored.result.table())
    print(_classes(numbers["per_class"]))
    if arguments.voc:
        numbers["voc"] = _voc(scored, names, eleven_point=arguments.voc == "2007")
        print("Pascal VOC   " + "   ".join(f"{name} {value:.3f}" for name, value in numbers["voc"].items()))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(numbers, indent=2) + "\n")
    if arguments.report:
        _report(Path(arguments.report), scored, table, arguments)
    return 0


def _voc(scored: Scored, names: list[str], *, eleven_point: bool) -> dict[str, float]:
    """Pascal VOC's mAP of boxes and, where there are masks, AP^r of regions."""
    parts = scored.truth, scored.detections, names
    regions = {} if scored.truth.masks is None else evaluate_regions(*parts, eleven_point=eleven_point).summary()
    return evaluate_voc(*parts, eleven_point=eleven_point).summary() | regions


def _way_of_others(arguments: argparse.Namespace) -> Callable[[argparse.Namespace, Set[str]], None] | None:
    """What scores sentences or label maps; None for objects, which are scored here."""
    if arguments.captions:
        return evaluate_results
    if arguments.predictions:
        return evaluate_label_files if Path(arguments.predictions).is_dir() else None
    return {"captioner": evaluate_captioner, "segmenter": evaluate_segmenter}.get(kind_of(arguments.checkpoint))


# What goes with other answers than objects, and which.
OTHERS = {"beam": "captioners", "partial": "--captions", "void_wrong": "label maps"}


def _require_of_boxes(given: Set[str], arguments: argparse.Namespace) -> None:
    for name in sorted(given & OTHERS.keys()):
        what = arguments.checkpoint or arguments.predictions
        raise DataError(f"{options([name])} is for {OTHERS[name]}, and {what} is none of these: leave it out")
    if arguments.masks and arguments.checkpoint:
        raise DataError(
            f"--masks is for --predictions; whether {arguments.checkpoint} has masks to score, it knows: leave it out"
        )


def _parser() -> argparse.ArgumentParser:
    parser = OptionsParser(
        prog="sightline evaluate",
        description=__doc__.split(":", 1)[1].strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", nargs="?", metavar="CHECKPOINT", help="a best.ckpt of `sightline train`")
    parser.add_argument("--data", default="shapes", metavar="PATH", help="data set in any known form (shapes)")
    parser.add_argument("--split", default="val", help="train, val, test, or the data set's own name for a part (val)")
    parser.add_argument("--largest", type=positive, metavar="N", help="keep the N largest objects of a picture alone")
    add_options(parser)
    add_tile_options(parser)
    parser.add_argument("--crops", type=int, choices=[1, 10], help="classifiers: the mean over crops at each scale")
    parser.add_argument(
        "--scales", type=positive, nargs="+", metavar="N", help="of --crops: short sides in pixels (8/7 of a crop's)"
    )
    parser.add_argument("--crop", type=positive, metavar="N", help="of --crops: a crop's side (the model's, or 224)")
    parser.add_argument("--proposals", metavar="FILE", help="boxes made elsewhere, for models that do not propose")
    parser.add_argument("--proposal-cache", metavar="FOLDER", help="where the model's proposer keeps its boxes")
    parser.add_argument("--predictions", metavar="PATH", help="COCO results json, or folder of label maps, to score")
    parser.add_argument("--masks", action="store_true", help="of --predictions: score masks, too")
    parser.add_argument("--void-wrong", action="store_true", help="label maps: what is said of void pixels is wrong")
    parser.add_argument("--captions", metavar="FILE", help="COCO caption results json to score instead")
    parser.add_argument("--partial", action="store_true", help="of --captions: score the captioned pictures alone")
    parser.add_argument("--truth", metavar="FILE", help="COCO json that predictions or captions are scored against")
    parser.add_argument(
        "--max-dets", type=int, nargs="+", default=[1, 10, 100], metavar="N", help="COCO's limits (1 10 100)"
    )
    parser.add_argument(
        "--beam", type=positive, metavar="N", help="captioners: width of the search, 1 for greedy (the model's)"
    )
    parser.add_argument(
        "--voc", nargs="?", const="area", choices=["area", "2007"], help="Pascal VOC's AP, and AP^r of masks, too"
    )
    parser.add_argument("--json", metavar="FILE", help="write the numbers here")
    parser.add_argument("--save-predictions", metavar="FILE", help="write detections or captions as COCO results json")
    parser.add_argument("--report", metavar="FOLDER", help="write report.html with curves and pictures here")
    parser.add_argument(
        "--batch", type=positive, metavar="N", help="pictures, tiles or crops at a time (8; captioners: 32)"
    )
    parser.add_argument("--workers", type=whole, default=0, metavar="N", help="processes that load pictures (0)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps; by default the best there is")
    return parser


def _of_checkpoint(arguments: argparse.Namespace) -> tuple[Scored, list[str], Table]:
    if (arguments.scales or arguments.crop) and not arguments.crops:
        raise DataError("--scales and --crop say which crops to average; say how many, too: --crops 1 or --crops 10")
    model = load_model(arguments, usable_device(arguments.device))
    tiling = tiling_of(arguments, model)
    if arguments.crops and (arguments.multiscale or arguments.flip or arguments.upturn):
        raise DataError("--crops has its own scales and mirror images: leave out --multiscale, --flip and --upturn")
    if tiling and (arguments.proposals or arguments.proposal_cache):
        raise DataError("--tiles has proposals made for each tile: leave out --proposals and --proposal-cache")
    if arguments.voc and model.task not in ("detection", "instance_segmentation"):
        raise DataError(f"--voc scores detectors; {arguments.checkpoint} is made for {task_of(model)}: leave --voc out")
    if model.proposer is None and (arguments.proposals or arguments.proposal_cache):
        raise DataError(
            f"{arguments.checkpoint} takes no proposals (it finds its own): leave out --proposals and --proposal-cache"
        )
    table = objects(arguments.data, arguments.split, masks=model.task == "instance_segmentation")
    if arguments.largest is not None:
        table = table.largest(arguments.largest)
    if table.problems.counts:
        print(table.problems.summary(), file=sys.stderr)
    if arguments.proposals:
        table = read_proposals(arguments.proposals, table)
    scored = _scored(model, table, tiling, arguments)
    if arguments.save_predictions:
        write_results(arguments.save_predictions, scored.detections, table.image_ids, table.category_ids)
    return scored, table.categories, table


def _scored(model: Detector, table: Table, tiling: Tiling | None, arguments: argparse.Namespace) -> Scored:
    batch_size, workers = arguments.batch, arguments.workers
    if arguments.crops:
        crops = Crops.of(model, count=arguments.crops, scales=arguments.scales, size=arguments.crop)
        return score_crops(model, table, crops, batch_size=batch_size, num_workers=workers)
    options = {"batch_size": batch_size, "num_workers": workers, "max_dets": tuple(arguments.max_dets)}
    if tiling:
        return score_tiled(model, table, tiling, **options)
    return score(model, table, proposal_cache=arguments.proposal_cache, **options)


def objects(path: str, split: str, *, masks: bool) -> Table:
    """A part of a data set, by its role or its own name; of the built-in shapes, with masks if asked for."""
    data = DetectionData(path, masks=MASKS if masks else None)
    tables = data.tables if path == "shapes" or split in ("train", "val", "test") else {}
    if split in tables:
        return tables[split]
    if path == "shapes":
        raise DataError(f"the built-in shapes have no part {split!r}; there are {', '.join(tables)}")
    from sightline.datasets.readers import read

    return read(path, split)


def _of_predictions(arguments: argparse.Namespace) -> tuple[Scored, list[str], None]:
    if not arguments.truth:
        raise DataError("--predictions needs --truth: the COCO json that they are scored against")
    truth, names, category_ids = read_coco_truth(arguments.truth, masks=arguments.masks)
    detections = read_results(arguments.predictions, truth, category_ids, masks=arguments.masks)
    score_all = evaluate_instances if arguments.masks else evaluate_coco
    result = score_all(truth, detections, names, max_dets=tuple(arguments.max_dets))
    return Scored(truth, detections, result, 0.0), names, None


# Of each category those are printed that a task has.
COLUMNS = (
    "AP", "AP50", "AR", "mask_AP", "mask_AP50", "mask_AR", "top1_error", "localization_error", "IoU",
)  # fmt: skip


def _classes(per_class: list[dict]) -> str:
    """A line a category, the commonest first."""
    width = max([8, *(len(row["category"]) for row in per_class)])
    columns = [name for name in COLUMNS if per_class and name in per_class[0]]
    lines = [f"\n{'category':<{width}} {'objects':>8}" + "".join(f" {name:>6}" for name in columns)]
    for row in sorted(per_class, key=lambda row: -row["truths"]):
        if row["truths"]:
            numbers = "".join(f" {row[name]:{max(6, len(name))}.3f}" for name in columns)
            lines.append(f"{row['category']:<{width}} {row['truths']:>8}{numbers}")
    return "\n".join(lines)


def _report(folder: Path, scored: Scored, table: Table | None, arguments: argparse.Namespace) -> None:
    details = {"predictions": arguments.checkpoint or arguments.predictions, "truth": arguments.truth or arguments.data}
    inputs = ReportInputs(title="Evaluation", details=details)
    if table is not None:
        inputs.load_image, inputs.image_names = (lambda row: read_picture(table.paths[row])), table.paths
    print(f"report: {write_report(folder, scored.truth, scored.detections, scored.result, inputs)}")


if __name__ == "__main__":
    sys.exit(run("evaluate", sys.argv[1:]))
