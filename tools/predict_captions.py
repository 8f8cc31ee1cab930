"""`sightline predict` of a captioner: sentences about pictures and, on demand, about what a detector finds in them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sightline.captioning import Captioner
from sightline.captioning.inference import Said, caption
from sightline.captioning.regions import WAYS, Way, describe
from sightline.captioning.search import Beam, Greedy, Sampling
from sightline.datasets.sources import Frame, Frames, frames
from sightline.datasets.structures import Instances
from sightline.datasets.table import DataError, counted
from sightline.datasets.transforms import from_hwc
from sightline.detectors import Detector
from sightline.detectors.inference import find, usable_device
from sightline.tools.caption_prediction_files import (
    AttentionPictures,
    CaptionedPictures,
    CaptionResults,
    CaptionTable,
    Told,
)
from sightline.tools.checkpoints import load_mean
from sightline.tools.given_options import options
from sightline.tools.model_names import trained
from sightline.tools.number_options import positive
from sightline.tools.picture_files import PictureFiles
from sightline.tools.prediction_loop import Course, each_picture

Writer = CaptionedPictures | AttentionPictures | CaptionResults | CaptionTable

FOR_CAPTIONERS = {"beam", "count", "sample", "temperature", "nucleus", "attention", "regions", "region_way"}
FOR_BOTH = {"checkpoint", "sources", "out", "no_pictures", "json", "csv", "every", "device", "precision", "average"}
# What an option goes with; without it, it would mean nothing.
NEEDS = {"temperature": "sample", "nucleus": "sample", "region_way": "regions", "score": "regions"}
LINES, REGION_LINES = 2, 6  # of the band under a video: for each sentence about the frame, and for all its objects


def add_caption_options(parser: argparse.ArgumentParser) -> None:
    """The options that `predict_captions` reads beside those for all models."""
    group = parser.add_argument_group("captioners")
    group.add_argument("--beam", type=positive, metavar="N", help="width of the search, 1 for greedy (the model's)")
    group.add_argument("--count", type=positive, metavar="N", help="sentences a picture, best first (1)")
    group.add_argument("--sample", action="store_true", help="draw words by chance in place of a search")
    group.add_argument(
        "--temperature", type=float, metavar="T", help="of --sample: below 1 likely words become likelier (1)"
    )
    group.add_argument(
        "--nucleus", type=float, metavar="P", help="of --sample: only the likeliest words, of P together, 0 to 1 (1)"
    )
    group.add_argument("--attention", action="store_true", help="draw what was looked at for each word, in panels")
    group.add_argument("--regions", metavar="DETECTOR", help="describe what this checkpoint finds, too; see --score")
    group.add_argument(
        "--region-way", choices=[*WAYS], help="of --regions: look at crops, or at the picture's map (crop)"
    )


@dataclass
class Tally(Course):
    """What a run came to.

    Attributes:
        sentences: of all pictures and objects.
        last: the latest picture's.
    """

    sentences: int = 0
    last: Sequence[str] = ()

    def line(self) -> str:
        """The summary in one line; of a single picture, its sentences before it."""
        summary = self.summary(f"{counted(self.sentences, 'sentence')} ")
        return "\n".join([*self.last, summary]) if self.pictures == 1 else summary


@dataclass(frozen=True)
class RegionFinder:
    """Where the boxes come from that are described.

    Attributes:
        detector: finds them.
        score: the least score of a detection.
        way: how the captioner sees a box, see `captioning.regions`.
    """

    detector: Detector
    score: float = 0.5
    way: Way = "crop"

    def __call__(self, model: Captioner, image: torch.Tensor) -> tuple[Instances, list[Said]]:
        """A picture's objects, and what is said of each."""
        found = find(self.detector, image, score=self.score)
        return found, describe(model, image, found.boxes, self.way)


def predict_captions(arguments: argparse.Namespace, given: Set[str]) -> int:
    """Runs the command for a captioner; `given` names the options that were not left out. Returns the exit code."""
    check_options(arguments.checkpoint, given)
    pictures = frames(arguments.sources, arguments.every)
    device = usable_device(arguments.device)
    model = load_mean(arguments, device)
    model.precision = arguments.precision
    model.search = search_of(arguments, model.search)
    regions = _region_finder(arguments, device)
    with ExitStack() as files:
        writers = [files.enter_context(writer) for writer in _writers(arguments, pictures, model, regions)]
        tally = tell(model, pictures, writers, regions)
    if pictures.problems.counts:
        print(pictures.problems.summary(), file=sys.stderr)
    written = [] if arguments.no_pictures else [arguments.out]
    written += [file for file in (arguments.json, arguments.csv) if file]
    print(f"{tally.line()}; written: {', '.join(written)}")
    return 130 if tally.stopped else 0


def check_options(checkpoint: str, given: Set[str]) -> None:
    """
    Raises:
        DataError: options that mean nothing to a captioner, or that contradict each other.
    """
    for name, other in NEEDS.items():
        if name in given and other not in given:
            raise DataError(f"{checkpoint} is a captioner, for which {options([name])} goes with {options([other])}")
    if others := given - FOR_CAPTIONERS - FOR_BOTH - set(NEEDS):
        raise DataError(f"{checkpoint} is a captioner and takes no {options(others)}: leave it out")
    for one, other in (("sample", "beam"), ("attention", "no_pictures")):
        if {one, other} <= given:
            raise DataError(f"{options([one])} and {options([other])} contradict each other: leave one out")


def search_of(arguments: argparse.Namespace, search: Beam | Greedy | Sampling) -> Beam | Greedy | Sampling:
    """How sentences are found: as `search`, the model's own, where nothing else was asked.

    Raises:
        ValueError: numbers that cannot be.
    """
    count = arguments.count or 1
    if arguments.sample:
        asked = {"temperature": arguments.temperature, "nucleus": arguments.nucleus}
        asked = {name: value for name, value in asked.items() if value is not None}
        return Sampling(count=count, most=search.most, **asked)
    if arguments.beam is None and arguments.count is None:
        return search
    beam = search if isinstance(search, Beam) else Beam(most=search.most)
    return replace(beam, width=arguments.beam or max(beam.width, count), count=count)


def _region_finder(arguments: argparse.Namespace, device: torch.device) -> RegionFinder | None:
    if not arguments.regions:
        return None
    detector = trained(arguments.regions, device)
    detector.precision = arguments.precision
    if detector.task not in ("detection", "instance_segmentation", "localization"):
        raise DataError(
            f"--regions {arguments.regions} finds no objects, it is made for {detector.task}; name a detector"
        )
    score = 0.5 if arguments.score is None else arguments.score
    return RegionFinder(detector, score, arguments.region_way or "crop")


def tell(model: Captioner, pictures: Frames, writers: Sequence[Writer], regions: RegionFinder | None = None) -> Tally:
    """Describes one picture after the other and hands it, with what was said, to the writers.

    Args:
        model: a trained captioner.
        pictures: where they come from.
        writers: what is done with them.
        regions: finds objects that are described, too; None for nobody.
    """
    tally = Tally()

    def turn(number: int, frame: Frame) -> dict[str, int]:
        image = from_hwc(frame.image)
        told = Told(caption(model, image), *(regions(model, image) if regions else ()))
        for writer in writers:
            writer.write(number, frame, told)
        tally.sentences += sum(len(said.sentences) for said in (told.said, *told.regions))
        tally.last = told.said.sentences
        return {"sentences": tally.sentences}

    each_picture(pictures, turn, tally)
    return tally


def _writers(
    arguments: argparse.Namespace, pictures: Frames, model: Captioner, regions: RegionFinder | None
) -> Iterator[Writer]:
    names = regions.detector.categories if regions else None
    if not arguments.no_pictures:
        lines = LINES * getattr(model.search, "count", 1) + (REGION_LINES if regions else 0)
        yield CaptionedPictures(PictureFiles(arguments.out, pictures.items, every=arguments.every), lines)
    if arguments.attention:
        yield AttentionPictures(PictureFiles(Path(arguments.out, "attention"), pictures.items), arguments.checkpoint)
    if arguments.json:
        yield CaptionResults(arguments.json, names or ())
    if arguments.csv:
        yield CaptionTable(arguments.csv, names)
