"""`sightline benchmark speed [MODEL…]`: how far models are from their backbone's own speed, ours beside torchvision's.

    sightline benchmark speed                                   # Faster R-CNN of both, batches of 1 and 8
    sightline benchmark speed faster_rcnn_mobilenet_v3 torchvision:fasterrcnn_mobilenet_v3_large_fpn --size 320 320 --training
    sightline benchmark speed faster_rcnn_mobilenet_v3 --size 320 320 --sweep objects --grid 0 8 64 --repeats 2
    sightline benchmark speed faster_rcnn torchvision:fasterrcnn_resnet50_fpn --compile --sweep batch size objects classes

Two commands make the whole table on a GPU, inference and training, bfloat16, compiled:

    sightline benchmark speed faster_rcnn torchvision:fasterrcnn_resnet50_fpn mask_rcnn torchvision:maskrcnn_resnet50_fpn \\
        torchvision:retinanet_resnet50_fpn torchvision:fcos_resnet50_fpn yolox_s --size 800 1216 --batch 1 8 \\
        --precision bfloat16 --compile --training --json detectors.json
    sightline benchmark speed fcn_resnet50 torchvision:fcn_resnet50 --size 520 520 --batch 8 16 \\
        --precision bfloat16 --compile --training --json segmenters.json

A MODEL is what `sightline benchmark` takes, a detector or a segmenter. Models and the floors under them take turns, round by
round, so that a machine that slows down slows all of them; after a warm-up, medians over the rounds.

Inference goes from uint8 pictures on the device to the answer there. The floor is the model's own backbone and neck alone on
the same normalised batch, in the same precision and memory format. "x floor" is how many times as long the whole takes,
"x faster" how many times as fast as the first of torchvision's models of the same task in the list. Masks stay within their
boxes on both sides.

Mind that torchvision's detectors take the less time the less they find, with random weights above all: ours always does the
same work.

Training is a step of it, in which all weights learn: forward, losses, backward, SGD. Its floor is forward and backward of
the backbone and neck, from the mean of every map. Both sides learn the same --objects random boxes a picture, models of
masks also their masks.

Without weights ours is built as torchvision's is then, with batch norms in place of frozen ones and without heads that
only help to learn. With --compile ours and all floors are compiled; torchvision's models cannot be, as a whole.

Stages are timed op by op in rounds of their own, with a synchronisation after each: data (JPEGs to a batch, by one process)
and transfer, each side in its own way; input (normalisation), backbone, neck (the pyramid), proposals, pooling (of regions),
head (all the rest) and NMS (suppression, wherever it happens).

A sweep measures inference and training against the batch (1 to 64), the size of square pictures (320 to 1600), the objects of
a picture (0 to 5,000; training alone) or the classes (1 to 1,200), draws time and memory, and fits the power of the work by
which they grow over the upper half of the grid: more than 1.1 is faster than linearly. Sizes count as pixels.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, get_args

import torch

from sightline.backbone.precision import Precision
from sightline.datasets.table import DataError
from sightline.detectors.inference import usable_device
from sightline.tools.benchmark import machine
from sightline.tools.benchmark_loading import STAGES as LOADING
from sightline.tools.benchmark_measure import Measured, Split, measure, measure_stages, pixels, write_json
from sightline.tools.benchmark_models import PEERS, has_weights, kind_of
from sightline.tools.benchmark_sweep import AXES, records, report, sweep, write
from sightline.tools.benchmark_work import Setting, built
from sightline.tools.command_options import OptionsParser
from sightline.tools.main import run
from sightline.tools.model_names import Kind
from sightline.tools.number_options import positive, whole
from sightline.tools.peak_memory import memory_kind
from sightline.tools.stages import shown
from sightline.tools.timing import aligned, number

R = TypeVar("R")
MODELS = ("faster_rcnn", "torchvision:fasterrcnn_resnet50_fpn")
OUTPUT = "runs/speed"


def main(argv: list[str] | None = None) -> int:
    """Runs the command; `argv` without "benchmark speed". Returns the exit code.

    Raises:
        DataError: options or models that do not go together.
    """
    arguments = _arguments(argv)
    arguments.models = list(dict.fromkeys(arguments.models or MODELS))
    kinds = {spec: kind_of(spec) for spec in arguments.models}
    _check(arguments, kinds)
    arguments.batch = list(dict.fromkeys(arguments.batch or ((1,) if arguments.sweep else (1, 8))))
    device = usable_device(arguments.device)
    setting = Setting(
        str(device),
        batch=arguments.batch[0],
        size=tuple(arguments.size),
        objects=arguments.objects if "detector" in kinds.values() else None,
        precision=arguments.precision,
        compiled=arguments.compile,
    )
    _require_models(arguments, setting)
    _require_files(arguments)
    about = f"{machine(device, arguments.precision)}{', compiled' if arguments.compile else ''}"
    print(about, flush=True)
    rows: list[dict] = []
    content = {"machine": about, "memory": memory_kind(device), "repeats": arguments.repeats, "rows": rows}
    try:
        for some in _sweeps(arguments, setting) if arguments.sweep else _tables(arguments, setting):
            rows += some
            if arguments.json:
                write_json(Path(arguments.json), content)
    except KeyboardInterrupt:
        written = f"; written: {arguments.json}" if arguments.json and rows else ""
        print(f"stopped after {len(rows)} rows{written}")
        return 130
    return 0


def _sweeps(arguments: argparse.Namespace, setting: Setting) -> Iterator[list[dict]]:
    """All that is asked for, one after another; each point is written, and handed on, as soon as it is measured."""
    folder = Path(arguments.output or OUTPUT)
    for name in dict.fromkeys(arguments.sweep):
        points: list[tuple[int, Measured]] = []
        files = f"written: {folder / f'{name}.png'}, {folder / f'{name}.json'}"
        with _shown(points, lambda found, name=name, files=files: f"{report(name, found)}\n{files}"):
            values = arguments.grid or AXES[name].grid
            for some in sweep(arguments.models, AXES[name], values, setting, arguments.repeats):
                points += some
                write(name, points, folder)
                yield records(name, some)


def _tables(arguments: argparse.Namespace, setting: Setting) -> Iterator[list[dict]]:
    """Answers, where it is asked for training, and the answers' stages, at every batch size, as soon as each is measured."""
    settings = [replace(setting, batch=batch) for batch in arguments.batch]
    for work in ("inference", "training") if arguments.training else ("inference",):
        rows: list[Measured] = []
        title = f"{work}, {pixels(work, setting)}"
        with _shown(rows, lambda found, title=title: f"{title}\n{text_table(found)}"):
            for each in settings:
                some = measure(arguments.models, work, each, arguments.repeats)
                rows += some
                yield [row.record() | {"faster": faster(row, some)} for row in some]
    splits: list[Split] = []
    with _shown(splits, lambda found: f"stages of inference in ms, op by op\n{stage_table(found)}"):
        for each in settings:
            some = measure_stages(arguments.models, each, arguments.repeats)
            splits += some
            yield [vars(split) for split in some]
    print(f"\nMiB: {memory_kind(torch.device(setting.device))}")


@contextmanager
def _shown(rows: list[R], text: Callable[[list[R]], str]) -> Iterator[None]:
    """At the end, the rows that are there by then are printed; also where Ctrl-C or an error is the end."""
    try:
        yield
    finally:
        if rows:
            print(f"\n{text(rows)}", flush=True)


def text_table(rows: Sequence[Measured]) -> str:
    """The table for people; a dash where something was not measured."""
    lines = [["model", "batch", "ms", "images/s", "floor ms", "x floor", "x faster", "MiB"]]
    for row in rows:
        numbers = [number(row.ms, 1), number(row.rate, 1), number(row.floor_ms, 1), number(row.to_floor, 2)]
        numbers += [number(faster(row, rows), 2), number(row.memory, 0)]
        lines.append([row.model, str(row.batch), *numbers])
    return aligned(lines)


def faster(row: Measured, rows: Sequence[Measured]) -> float | None:
    """How many times as fast as the first of torchvision's models of the same task and batch; None without any."""
    like = (row.task, row.work, row.setting)
    peers = [other for other in rows if other.peer and (other.task, other.work, other.setting) == like]
    return peers[0].ms / row.ms if peers else None


def stage_table(splits: Sequence[Split]) -> str:
    """Milliseconds of each stage; a dash where a model has none of that name."""
    stages = [*LOADING, *shown([split.stages for split in splits])]
    lines = [["model", "batch", *stages]]
    for split in splits:
        lines.append([split.model, str(split.batch), *(number(split.stages.get(stage), 1) for stage in stages)])
    return aligned(lines)


def _check(arguments: argparse.Namespace, kinds: Mapping[str, Kind]) -> None:
    """Options that do not go together, before anything is built.

    Raises:
        DataError: says which.
    """
    models, sweeps = arguments.models, arguments.sweep or []
    if captioners := [spec for spec in models if kinds[spec] == "captioner"]:
        raise DataError(f"{captioners[0]} writes sentences: only detectors and segmenters are timed here")
    if arguments.compile and all(spec.startswith(PEERS) for spec in models):
        raise DataError(
            "--compile is for our models, and there are only torchvision's; name one of ours, faster_rcnn say"
        )
    if arguments.grid and len(set(sweeps)) != 1:
        raise DataError("--grid gives the values of one sweep: name it, --sweep batch say")
    if sweeps and arguments.training:
        raise DataError("--sweep measures training in any case: leave out --training")
    batches = f"--batch {' '.join(map(str, arguments.batch or ()))}"
    if set(sweeps) == {"batch"} and arguments.batch:
        raise DataError(f"{batches}: a sweep over the batch has its own; give them as --grid")
    if sweeps and len(set(arguments.batch or ())) > 1:
        raise DataError(f"{batches}: a sweep is at one of them; or --sweep batch")
    if arguments.output and not sweeps:
        raise DataError(f"--output {arguments.output} is for the files of a sweep: add --sweep, or take --json FILE")
    for name in sweeps:
        if wrong := [value for value in arguments.grid or () if value < AXES[name].least]:
            raise DataError(f"--grid {wrong[0]}: a sweep over the {name} starts from {AXES[name].least}")
    if "objects" in sweeps and (others := [spec for spec in models if kinds[spec] == "segmenter"]):
        raise DataError(f"--sweep objects: {others[0]} learns a label for each pixel, whatever the number of objects")
    if "classes" in sweeps and (known := [spec for spec in models if has_weights(spec)]):
        raise DataError(
            f"--sweep classes: {known[0]} knows its classes from its weights; name a model without any, {MODELS[0]} say"
        )


def _require_models(arguments: argparse.Namespace, setting: Setting) -> None:
    """Makes each model once: what is wrong with the last one is said before the first is measured.

    Raises:
        DataError, WeightsError: as `built`.
    """
    classes = 1 if "classes" in (arguments.sweep or ()) else None
    for spec in arguments.models:
        built(spec, replace(setting, device="cpu", classes=classes))


def _require_files(arguments: argparse.Namespace) -> None:
    """Sees to it that what is measured can be written; folders are made, files are left as they are.

    Raises:
        DataError: names the file.
    """
    files = [Path(arguments.json)] if arguments.json else []
    files += [Path(arguments.output or OUTPUT) / f"{name}.json" for name in arguments.sweep or ()]
    for path in files:
        known = path.exists()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("a").close()
        except OSError as error:
            raise DataError(f"{path} cannot be written ({error.strerror}): name another file") from error
        if not known:
            path.unlink()


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = OptionsParser(
        prog="sightline benchmark speed",
        description=__doc__.split(":", 1)[1].strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "models", metavar="MODEL", nargs="*", help=f"a checkpoint, NAME[@WEIGHTS] or torchvision:… ({' '.join(MODELS)})"
    )
    add("--size", type=positive, nargs=2, metavar=("H", "W"), default=(800, 1216), help="of the pictures (800 1216)")
    add("--batch", type=positive, nargs="+", metavar="B", help="pictures at a time (1 8; in a sweep 1)")
    add("--objects", type=whole, default=8, metavar="N", help="to learn from in each picture (8)")
    add("--training", action="store_true", help="time steps of training too")
    add("--precision", choices=get_args(Precision), default="auto", help="of both sides (auto: bfloat16 where it pays)")
    add("--compile", action="store_true", help="ours and the floors as compiled graphs")
    add("--repeats", type=positive, default=10, metavar="N", help="timed rounds (10)")
    add("--device", help="cuda, cuda:1, mps or cpu; by default the best there is")
    add("--json", metavar="FILE", help="write all that was measured here too, with every round's time")
    sweeps = parser.add_argument_group("cost against work")
    sweeps.add_argument("--sweep", choices=AXES, nargs="+", help="in place of the tables; the rest at one --batch")
    sweeps.add_argument("--grid", type=whole, nargs="+", metavar="VALUE", help="other values than the sweep's own")
    sweeps.add_argument("--output", metavar="FOLDER", help=f"of NAME.png and NAME.json ({OUTPUT})")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run("benchmark", ["speed", *sys.argv[1:]]))
