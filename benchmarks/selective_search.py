"""Selective search beside OpenCV contrib's and a sliding window: recall of true objects, boxes and seconds a picture.

    python benchmarks/selective_search.py data/coco --split val --pictures 60 --plot recall.png
    python benchmarks/selective_search.py data/coco --split val --opencv venv/bin/python    # whose cv2 has ximgproc

All see the same pictures, reduced to the same size, in one thread; seconds are the CPU's. OpenCV's runs in an interpreter
of its own, because the package that has it (opencv-contrib-python-headless) writes the same `cv2` as the one that
Sightline stands on.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from matplotlib.figure import Figure

from sightline.datasets.images import read_image
from sightline.datasets.proposals import Boxes, Proposer, Regions
from sightline.datasets.readers import read
from sightline.datasets.table import Table
from sightline.detectors.selective_search import SelectiveSearch, reduce
from sightline.detectors.sliding_window import SlidingWindow
from sightline.evaluation.plots import COLOURS, dress_axes, save_figure
from sightline.evaluation.recall import proposal_recall

COUNTS = (100, 300, 500, 1000, 2000)
ALL = 10**6
IOU = 0.5
# Arguments: a mode, then a folder of 0.npy, 1.npy, ... (H, W, 3) uint8 RGB; adds 0.npz, 1.npz, ... with boxes and seconds.
OPENCV = """
import pathlib, sys, time
import cv2, numpy
cv2.setNumThreads(1)
mode, folder = sys.argv[1], pathlib.Path(sys.argv[2])
for path in sorted(folder.glob("*.npy")):
    image = numpy.ascontiguousarray(numpy.load(path)[..., ::-1])
    start = time.process_time()
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(image)
    search.switchToSelectiveSearchFast() if mode == "fast" else search.switchToSelectiveSearchQuality()
    boxes = search.process()
    numpy.savez(path.with_suffix(".npz"), boxes=boxes, seconds=time.process_time() - start)
"""


class Row(NamedTuple):
    """What one way found: its boxes in the original pictures, and mean seconds of CPU a picture."""

    name: str
    regions: Regions
    seconds: float


def main() -> None:
    arguments = parse()
    cv2.setNumThreads(1)
    table = read(arguments.data, arguments.split)
    chosen = np.unique(np.linspace(0, len(table) - 1, min(arguments.pictures, len(table))).astype(int))
    table = table.select(chosen)
    pictures = [reduce(read_image(path), arguments.side) for path in table.paths]
    modes = ["fast"] if arguments.fast_only else ["fast", "quality"]
    rows = [ours(f"ours, {mode}", SelectiveSearch(mode, ALL, side=arguments.side), pictures, table) for mode in modes]
    if arguments.opencv:
        rows += [opencv(mode, arguments.opencv, pictures, table) for mode in modes]
    rows.append(sliding_window(pictures, table))
    print(f"{len(table)} pictures, {(~table.crowd).sum()} objects, longer side at most {arguments.side} pixels")
    print_table(rows, table)
    if arguments.plot:
        plot(rows, table, arguments.plot)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="a data set in any format that is read")
    parser.add_argument("--split", help="of a data set that has several")
    parser.add_argument("--pictures", type=int, default=60, help="evenly chosen from all")
    parser.add_argument("--side", type=int, default=500, help="pixels of the longer side after reduction")
    parser.add_argument("--opencv", metavar="PYTHON", help="an interpreter whose cv2 has ximgproc")
    parser.add_argument("--fast-only", action="store_true", help="leave out the quality modes, several times as slow")
    parser.add_argument("--plot", metavar="FILE", help="recall against the number of boxes, as a PNG")
    return parser.parse_args()


def ours(name: str, proposer: Proposer, pictures: list[np.ndarray], table: Table) -> Row:
    proposer(pictures[0])  # imports
    start = time.process_time()
    found = [proposer(picture) for picture in pictures]
    return Row(name, in_originals(found, pictures, table), (time.process_time() - start) / len(pictures))


def sliding_window(pictures: list[np.ndarray], table: Table) -> Row:
    return ours("sliding window", SlidingWindow(COUNTS[-1]), pictures, table)


def opencv(mode: str, python: str, pictures: list[np.ndarray], table: Table) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        for row, picture in enumerate(pictures):
            np.save(f"{folder}/{row}.npy", picture)
        subprocess.run([python, "-c", OPENCV, mode, folder], check=True)
        results = [dict(np.load(f"{folder}/{row}.npz")) for row in range(len(pictures))]
    found = []
    for result in results:
        corners = result["boxes"].astype(np.float32).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]  # from xywh
        found.append(Boxes(corners, -np.arange(len(corners), dtype=np.float32)))
    seconds = float(np.mean([result["seconds"] for result in results]))
    return Row(f"OpenCV, {mode}", in_originals(found, pictures, table), seconds)


def in_originals(found: list[Boxes], pictures: list[np.ndarray], table: Table) -> Regions:
    scales = [
        np.tile(size[::-1] / picture.shape[1::-1], 2) for size, picture in zip(table.sizes, pictures, strict=True)
    ]
    return Regions.of([Boxes(of.boxes * scale, of.scores) for of, scale in zip(found, scales, strict=True)])


def print_table(rows: list[Row], table: Table) -> None:
    print(f"{f'recall at IoU {IOU}':<20}" + "".join(f"{count:>7}" for count in COUNTS) + "    all   boxes  seconds")
    for row in rows:
        recalls = "".join(f"{recall:7.3f}" for recall in proposal_recall(row.regions, table, (*COUNTS, ALL), iou=IOU))
        print(f"{row.name:<20}{recalls}{len(row.regions.boxes) / len(table):8.0f}{row.seconds:9.2f}")


def plot(rows: list[Row], table: Table, path: str | Path) -> None:
    figure = Figure(figsize=(7.6, 4.8), layout="constrained")
    axes = figure.add_subplot()
    dress_axes(axes, f"Objects found at IoU {IOU}", "boxes a picture, best first", "recall")
    counts = np.unique(np.geomspace(10, 10_000, 60).astype(int))
    for row, colour in zip(rows, COLOURS, strict=False):
        end = np.diff(row.regions.offsets).mean()  # beyond its mean number a way has no more to give
        shown = counts[counts <= end]
        style = "--" if row.name.startswith("OpenCV") else "-"
        axes.plot(shown, proposal_recall(row.regions, table, shown, iou=IOU), style, color=colour, label=row.name)
    axes.set_xscale("log")
    axes.set_ylim(0, 1.02)
    axes.legend(frameon=False, fontsize=9)
    save_figure(figure, path)


if __name__ == "__main__":
    main()
