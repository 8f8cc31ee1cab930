"""`sightline predict` of a segmenter: a category for every pixel of pictures and video."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np

from sightline.datasets.sources import Frame, Frames, frames
from sightline.datasets.transforms import from_hwc
from sightline.detectors.inference import usable_device
from sightline.evaluation import label_colours
from sightline.segmentation import Segmenter
from sightline.segmentation.inference import segment
from sightline.tools.checkpoints import load_segmenter
from sightline.tools.given_options import require_known
from sightline.tools.picture_files import PictureFiles
from sightline.tools.prediction_loop import Course, each_picture
from sightline.tools.segmentation_prediction_files import LabelPictures, LabelResults, ShareTable, TintedPictures

Writer = TintedPictures | LabelPictures | LabelResults | ShareTable

# The options that mean something, of all that `sightline predict` has.
FOR_SEGMENTERS = {
    "checkpoint", "sources", "out", "no_pictures", "json", "polygons", "csv", "masks", "every", "device", "precision",
    "average", "multiscale", "flip", "tiles", "overlap",
}  # fmt: skip


@dataclass
class Tally(Course):
    """What a run came to.

    Attributes:
        pixels: (C,) int64, how many of each category.
    """

    pixels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def line(self, names: Sequence[str], most: int = 8) -> str:
        """The summary in one line, with the categories that cover most."""
        order = np.argsort(-self.pixels, kind="stable")
        order = order[self.pixels[order] > 0]
        shares = [f"{names[label]} {self.pixels[label] / self.pixels.sum():.1%}" for label in order[:most]]
        shares += ["…"] if len(order) > most else []
        return self.summary(f"{', '.join(shares)}, " if shares else "")


def predict_label_maps(arguments: argparse.Namespace, given: Set[str]) -> int:
    """Runs the command for a segmenter; `given` names the options that were not left out. Returns the exit code.

    Raises:
        DataError: an option that means nothing to a segmenter.
    """
    require_known(given, FOR_SEGMENTERS, f"{arguments.checkpoint} names every pixel")
    pictures = frames(arguments.sources, arguments.every)
    model = load_segmenter(arguments, usable_device(arguments.device))
    with ExitStack() as files:
        writers = [files.enter_context(writer) for writer in _writers(arguments, pictures, model)]
        tally = label(model, pictures, writers)
    if pictures.problems.counts:
        print(pictures.problems.summary(), file=sys.stderr)
    written = [] if arguments.no_pictures else [arguments.out]
    written += [path for path in (arguments.masks, arguments.json, arguments.csv) if path]
    print(f"{tally.line(model.categories)}; written: {', '.join(written)}")
    return 130 if tally.stopped else 0


def label(model: Segmenter, pictures: Frames, writers: Sequence[Writer]) -> Tally:
    """Names the pixels of one picture after the other, and hands it with its label map to the writers.

    Args:
        model: a trained segmenter.
        pictures: where they come from.
        writers: what is done with them.
    """
    tally = Tally(pixels=np.zeros(len(model.categories), np.int64))

    def turn(number: int, frame: Frame) -> dict[str, int]:
        labels = segment(model, from_hwc(frame.image)).labels.numpy()
        for writer in writers:
            writer.write(number, frame, labels)
        tally.pixels += np.bincount(labels.ravel(), minlength=len(tally.pixels))
        return {"categories": int((tally.pixels > 0).sum())}

    each_picture(pictures, turn, tally)
    return tally


def _writers(arguments: argparse.Namespace, pictures: Frames, model: Segmenter) -> Iterator[Writer]:
    names, colours = model.categories, label_colours(model.categories, model.colours)
    if not arguments.no_pictures:
        files = PictureFiles(arguments.out, pictures.items, every=arguments.every)
        yield TintedPictures(files, names, colours)
    if arguments.masks:
        files = PictureFiles(arguments.masks, pictures.items, suffix=".png")
        yield LabelPictures(files, [tuple(colour) for colour in colours.tolist()])
    if arguments.json:
        yield LabelResults(arguments.json, names, polygons=arguments.polygons)
    if arguments.csv:
        yield ShareTable(arguments.csv, names)
