"""`sightline benchmark MODEL…`: accuracy and speed of several models in one table.

    sightline benchmark best.ckpt faster_rcnn torchvision:fasterrcnn_resnet50_fpn --size 800 1216 --batch 1 8
    sightline benchmark runs/a/best.ckpt runs/b/best.ckpt --data coco/ --split val --json table.json
    sightline benchmark faster_rcnn@coco torchvision:fasterrcnn_resnet50_fpn@coco --data coco/
    sightline benchmark mask_rcnn.ckpt torchvision:maskrcnn_resnet50_fpn@coco --data coco/     # AP of boxes and of masks
    sightline benchmark fcn32s.ckpt fcn8s.ckpt torchvision:fcn_resnet50 --data camvid/ --split test
    sightline benchmark captioner.ckpt other.ckpt --data flickr8k/ --split test --batch 1 32
    sightline benchmark lineage --help                          # R-CNN, Fast and Faster R-CNN, trained and timed
    sightline benchmark speed --help                            # how far from the backbone's own speed, training too

A MODEL is a checkpoint, or the name of a model of ours or of torchvision's. A name's weights are random, unless some
come after an "@" (a path or "coco"). Models with random weights, or without the data's categories, are timed and not
scored; mind that torchvision's need the less time the less they find.

How they are timed: the models take turns, round by round, so that a machine that slows down slows all of them; after a
warm-up, medians over the rounds. All get the same pictures, uint8 in the host's memory, and give final boxes. Stages
are timed in rounds of their own with a synchronisation after each, so that on a GPU they add up to a little more: input
(transfer and normalisation), backbone, neck (the pyramid), proposals, pooling (of regions), head (all the rest) and NMS
(suppression, wherever it happens). Masks are final within their boxes; nobody's are drawn at the picture's size before they
are scored.

Segmenters are timed from pixels to label maps, at the size that each brings the data's first picture to.

Captioners are timed from pixels to sentences' words, each with greedy search and with a beam of 5; their last stage, decoder,
is all after the backbone.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from sightline.backbone.precision import Precision, computed_in
from sightline.datasets.picture_data import default_workers
from sightline.datasets.table import DataError, Table
from sightline.detectors import Detector
from sightline.detectors.inference import usable_device
from sightline.tools import benchmark_measure
from sightline.tools.benchmark_detection import Row, time_models
from sightline.tools.benchmark_models import PEERS, build, has_weights, kind_of, peers
from sightline.tools.command_options import OptionsParser
from sightline.tools.evaluate import objects
from sightline.tools.main import run
from sightline.tools.model_names import MODELS, Kind
from sightline.tools.number_options import positive
from sightline.tools.peak_memory import memory_kind
from sightline.tools.stages import shown
from sightline.tools.timing import Timing, aligned, number
from sightline.training import score

COMMANDS = ("lineage", "speed")  # of their own, in place of models
SIZE = (800, 1216)  # height and width of timed pictures
ANSWERS: dict[Kind, str] = {"detector": "objects", "segmenter": "label maps", "captioner": "sentences"}
# Who compares what this module does not.
OTHERS: dict[Kind, str] = {"captioner": "benchmark_captions", "segmenter": "benchmark_segmentation"}


def main(argv: list[str] | None = None) -> int:
    """Runs the command; `argv` without the command's name, by default the process's. Returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in COMMANDS:
        return importlib.import_module(f"sightline.tools.benchmark_{argv[0]}").main(argv[1:])
    _check_command(argv)
    arguments = _arguments(argv)
    if (kind := _one_kind(arguments.models)) in OTHERS:
        return importlib.import_module(f"sightline.tools.{OTHERS[kind]}").compare(arguments)
    device = usable_device(arguments.device)
    models = {spec: build(spec, device) for spec in dict.fromkeys(arguments.models)}
    masks = any(model.task == "instance_segmentation" for model in models.values())
    table = objects(arguments.data, arguments.split, masks=masks) if arguments.data else None
    print(machine(device))
    about = {"memory": memory_kind(device), "size": arguments.size or SIZE}
    rows: list[Row] = []
    for batch_size in arguments.batch:
        rows += time_models(models, table, tuple(arguments.size or SIZE), batch_size, arguments.repeats)
        write_json(arguments, device, rows, about)
    for spec, model in models.items() if table is not None else ():
        score_models({spec: model}, table, rows)
        write_json(arguments, device, rows, about)
    print(f"{text_table(rows)}\nMiB: {memory_kind(device)}")
    return 0


def _check_command(argv: Sequence[str]) -> None:
    """Looks at the first word before the options are read, for a command has others than models have.

    Raises:
        DataError: it is nothing that is known or there, and the nearest of all names is a command's.
    """
    word = argv[0] if argv else ""
    close = difflib.get_close_matches(word, [*COMMANDS, *MODELS, *(PEERS + peer for peer in peers())], n=1)
    if close and close[0] in COMMANDS and not (Path(word).suffix or Path(word).exists()):
        raise DataError(f"no checkpoint, no model and no command {word!r}; did you mean {close[0]!r}?")


def _one_kind(specs: Sequence[str]) -> Kind:
    """What all of these models are.

    Raises:
        DataError: they are of different kinds.
    """
    first, *others = [(spec, kind_of(spec)) for spec in specs]
    for spec, kind in others:
        if kind != first[1]:
            raise DataError(
                f"{first[0]} gives {ANSWERS[first[1]]} and {spec} {ANSWERS[kind]}: no table compares the two, time them apart"
            )
    return first[1]


def score_models(models: dict[str, Detector], table: Table, rows: list[Row]) -> None:
    """Fills in the rows' AP where a model has weights and knows the data's categories; else says why not."""
    for spec, model in models.items():
        mine = [row for row in rows if row.model == spec]
        if not has_weights(spec):
            print(f"{spec}: not scored, its weights are random; give it some: {spec.rstrip('@')}@WEIGHTS")
            continue
        try:
            batch_size = max(row.batch for row in mine)
            scored = score(model, table, batch_size=batch_size, num_workers=default_workers())
        except DataError as error:
            print(f"{spec}: not scored: {error}")
            continue
        summary = scored.result.summary()
        if model.task not in ("detection", "instance_segmentation"):
            print(f"{spec}: " + "   ".join(f"{name} {value:.3f}" for name, value in summary.items()))
        for row in mine:
            row.AP, row.mask_AP = summary.get("AP"), summary.get("mask_AP")


def text_table(rows: list[Row]) -> str:
    """The table for people; a dash where something was not measured."""
    stages = shown([row.stages for row in rows])
    scores = ["AP"] + ["mask_AP"] * any(row.mask_AP is not None for row in rows)
    lines = [["model", "batch", *(name.replace("_", " ") for name in scores), "images/s", "ms", *stages]]
    lines[0] += ["M params", "GFLOP", "MiB"]
    for row in rows:
        numbers = [number(getattr(row, name), 3) for name in scores] + [number(row.rate, 1), number(row.ms, 1)]
        numbers += [number(row.stages.get(stage), 1) for stage in stages]
        numbers += [number(row.parameters / 1e6, 2), number(row.gflops, 1), number(row.memory, 0)]
        lines.append([row.model, str(row.batch), *numbers])
    return aligned(lines)


def machine(device: torch.device, precision: Precision = "auto") -> str:
    """One line: what it ran on, and in which numbers."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{_processor()} ({device.type})"
    kind = str(computed_in(device, precision)).removeprefix("torch.")
    python = platform.python_version()
    return f"{name}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}, Python {python}, {kind}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    name = text.partition("model name")[2].partition("\n")[0].strip("\t :")
    return name or platform.processor() or platform.machine()


def write_json(arguments: argparse.Namespace, device: torch.device, rows: Sequence[Timing], about: dict) -> None:
    """The table so far, how it was made, and every round's time, where a file is asked for: Ctrl-C then loses none of it."""
    if not arguments.json:
        return
    about = {"machine": machine(device)} | about
    about |= {name: getattr(arguments, name) for name in ("repeats", "data", "split")}
    content = about | {"rows": [vars(row) | {"ms": row.ms, "images_per_second": row.rate} for row in rows]}
    path = Path(arguments.json)
    path.parent.mkdir(parents=True, exist_ok=True)
    benchmark_measure.write_json(path, content)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = OptionsParser(
        prog="sightline benchmark",
        description=__doc__.split(":", 1)[1].strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("models", metavar="MODEL", nargs="+", help="a checkpoint, NAME[@WEIGHTS] or torchvision:NAME[@WEIGHTS]")
    add("--data", metavar="PATH", help="a data set, or shapes: to score on, and to take pictures from")
    add("--split", default="val", help="of that data set (val)")
    add(
        "--size",
        type=positive,
        nargs=2,
        metavar=("H", "W"),
        help="of timed pictures (800 1216; segmenters and captioners: their own)",
    )
    add("--batch", type=positive, nargs="+", default=[1], metavar="B", help="pictures at a time (1)")
    add("--repeats", type=positive, default=10, metavar="N", help="timed rounds (10)")
    add("--device", help="cuda, cuda:1, mps or cpu; by default the best there is")
    add("--json", metavar="FILE", help="write the table here too, with every round's time")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run("benchmark", sys.argv[1:]))
