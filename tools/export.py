"""`sightline export CHECKPOINT`: the model as one graph in a file, for runtimes other than ours.

sightline export best.ckpt                              # best.onnx, checked against the model
sightline export best.ckpt --size 480 640 --batch 8     # for eight pictures in frames of 480 x 640
sightline export best.ckpt --to torch                   # best.pt2, which torch.export.load reads
sightline export yolox_nano@yolox_nano.pth              # a name with weights
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sightline.backbone.model import Model
from sightline.captioning import Captioner
from sightline.datasets.batching import frame_for, frame_multiple
from sightline.datasets.images import read_image
from sightline.datasets.shapes import draw
from sightline.datasets.table import DataError, counted
from sightline.datasets.transforms import from_hwc, resize_image
from sightline.tools.checkpoints import load_mean
from sightline.tools.command_options import OptionsParser
from sightline.tools.evaluate_captions import beam
from sightline.tools.export_files import WAYS, agreement, answers_of, tensors, write
from sightline.tools.main import run
from sightline.tools.model_names import MODELS
from sightline.tools.number_options import positive

ENOUGH = 0.99  # of the model's answers; a few fall on the other side of a threshold, in another order of summing


def main(argv: list[str]) -> int:
    """Runs the command; returns 0, or 1 where the file does not answer as the model does.

    Raises:
        DataError: a model that is no single graph, a size that cannot be, or packages that are missing.
        WeightsError: the checkpoint cannot be loaded.
    """
    arguments = _parse(argv)
    path = _path(arguments)
    model = load_mean(arguments, torch.device("cpu"))
    _require_alone(model, arguments)
    images, sizes = _pictures(arguments, _frame(arguments, model), stretched=bool(model.resize[2:]))
    answers = answers_of(model, images, sizes)
    names = tensors(answers)
    if agreement(answers, [*names.values()])[0] == 0:  # nothing, or NaN alone
        raise DataError(
            "the model finds nothing in the picture that the file is checked with; name one where it does: --picture FILE"
        )
    frame = " x ".join(str(side) for side in images.shape[2:])
    work = f"{counted(len(images), 'picture')} in a frame of {frame}"
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    partial.touch()  # where nothing can be written, that is told now
    print(f"exporting for {work}; this can take minutes", file=sys.stderr)
    try:
        write(model, images, sizes, [*names], partial, arguments.to)
        alike, total = agreement(answers, WAYS[arguments.to].opened(partial)(images, sizes))
        if alike < ENOUGH * total:
            print(f"sightline export: the file gives only {alike} of the model's {total} answers", file=sys.stderr)
            return 1
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    print(f"{path}, {path.stat().st_size / 1e6:.1f} MB, for {work}; it gives {alike} of the model's {total} answers")
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = OptionsParser(
        prog="sightline export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a trained model, or a name with weights: NAME@WEIGHTS"
    )
    parser.add_argument("--to", choices=WAYS, default="onnx", help="ONNX, or torch.export's own format (onnx)")
    parser.add_argument("--output", metavar="FILE", help="beside the checkpoint, under its name, by default")
    parser.add_argument("--batch", type=positive, default=1, metavar="N", help="pictures at a time (1)")
    parser.add_argument(
        "--size",
        type=positive,
        nargs=2,
        metavar=("H", "W"),
        help="of the frame that pictures lie in (the model's, landscape)",
    )
    parser.add_argument("--average", nargs="+", metavar="OTHER", default=[], help="further checkpoints; mean weights")
    parser.add_argument(
        "--beam", type=positive, metavar="N", help="captioners: width of the search, 1 for greedy (the model's)"
    )
    parser.add_argument(
        "--picture", metavar="FILE", help="what the file is checked with, in place of one of the built-in shapes"
    )
    return parser.parse_args(argv)


def _path(arguments: argparse.Namespace) -> Path:
    """Where the file is to lie."""
    suffix = WAYS[arguments.to].suffix
    name, _, weights = arguments.checkpoint.partition("@")
    if name not in MODELS:  # a checkpoint, whose path may have an "@"
        name, weights = arguments.checkpoint, ""
    path = Path(arguments.output or Path(name).parent / f"{Path(name).stem}{suffix}")
    if arguments.output and path.suffix != suffix:
        raise DataError(f"{path} must end in {suffix}, as --to {arguments.to} writes it")
    if not path.parent.is_dir():
        raise DataError(f"{path}: there is no folder {path.parent}")
    if path.exists() and weights and Path(weights).exists() and path.samefile(weights):
        raise DataError(
            f"{path} holds the weights that are read: write to another file, --output {path.stem}_graph{suffix} say"
        )
    return path


def _require_alone(model: Model, arguments: argparse.Namespace) -> None:
    """Refuses what does not answer by itself, and options that mean nothing; makes the captioner's search the one wanted."""
    if isinstance(model, Captioner):
        if arguments.beam is not None:
            model.search = beam(model, arguments.beam)
    elif arguments.beam is not None:
        raise DataError(f"--beam is for captioners; {arguments.checkpoint} is none: leave it out")
    if model.task == "reconstruction":
        raise DataError(f"{arguments.checkpoint} is an autoencoder, which finds nothing")
    if getattr(model, "proposer", None) is not None:
        raise DataError(
            f"{arguments.checkpoint} looks where {type(model.proposer).__name__} says, which is no network and cannot be "
            "exported; models that propose themselves can: faster_rcnn, mask_rcnn, yolox"
        )


def _frame(arguments: argparse.Namespace, model: Model) -> tuple[int, int]:
    """(H, W): as asked for, or of the widest picture as the model is made for it."""
    wanted = frame_for(arguments.size or model.resize[:2], model.resize)
    if arguments.size and tuple(arguments.size) != wanted:
        raise DataError(
            f"--size {' '.join(map(str, arguments.size))}: this model's frames have sides of whole multiples of "
            f"{frame_multiple(model.resize)}, --size {wanted[0]} {wanted[1]} say"
        )
    if arguments.size and model.resize[2:] and tuple(arguments.size) != tuple(model.resize[:2]):
        raise DataError(
            f"{arguments.checkpoint} takes pictures of {model.resize[0]} x {model.resize[1]} alone: leave --size out"
        )
    return wanted


def _pictures(arguments: argparse.Namespace, frame: tuple[int, int], *, stretched: bool) -> tuple[Tensor, Tensor]:
    """(B, 3, H, W) uint8 and (B, 2): the picture, or built-in ones, as large as the frame holds, or stretched over it."""
    images = torch.zeros(arguments.batch, 3, *frame, dtype=torch.uint8)
    sizes = torch.empty(arguments.batch, 2, dtype=torch.int64)
    for i in range(arguments.batch):
        image = draw(0, i, min(frame)).image if arguments.picture is None else read_image(arguments.picture)
        scale = min(side / length for side, length in zip(frame, image.shape[:2], strict=True))
        shape = frame if stretched else tuple(max(1, int(length * scale)) for length in image.shape[:2])
        images[i, :, : shape[0], : shape[1]] = resize_image(from_hwc(np.ascontiguousarray(image)), shape)
        sizes[i] = torch.tensor(shape)
    return images, sizes


if __name__ == "__main__":
    sys.exit(run("export", sys.argv[1:]))
