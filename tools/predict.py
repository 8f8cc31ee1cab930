"""`sightline predict CHECKPOINT SOURCE…`: finds objects in images, folders, patterns, videos and cameras, names every pixel
of them, or describes them.

    sightline predict best.ckpt street.jpg
    sightline predict best.ckpt clip.mp4 --every 5 --json found.json --csv found.csv
    sightline predict best.ckpt "in/*.png" --classes person car --score 0.7 --no-pictures --csv found.csv
    sightline predict best.ckpt --ensemble other.ckpt --out both street.jpg
    sightline predict best.ckpt street.jpg --flip --multiscale 1 1.5    # four looks at each picture
    sightline predict best.ckpt --tiles 640 aerial/                     # small objects in large pictures
    sightline predict best.ckpt clip.mp4 --track --mot tracks.txt       # which car is which, from frame to frame
    sightline predict best.ckpt 0 --compile                              # a camera, until Ctrl-C; faster, once it runs
    sightline predict mask_rcnn.ckpt street.jpg --json found.json --polygons --masks numbered/   # objects with masks
    sightline predict fcn8s.ckpt street.jpg clip.mp4 --masks labels/     # a category for every pixel, drawn and as PNG
    sightline predict captioner.ckpt street.jpg --attention              # a sentence, and what was looked at for each word
    sightline predict captioner.ckpt clip.mp4 --count 3 --json said.json
    sightline predict captioner.ckpt street.jpg --regions detector.ckpt  # a sentence for each object, too

Annotated pictures and videos go to `predictions/` or `--out FOLDER`. In the json, a list of COCO's results, `image_id`
counts pictures and frames from 1 in the order they are read, and `category_id` is the label plus one; the file's, the
category's name and the frame's number stand beside them. A classifier's answer is a box around the whole picture; its
best one is given whatever its score. Memory stays the same however long a video is.

With --track objects keep a number while they are followed: drawn, and in the files (`track_id` in the json, `track` in
the csv). A folder of pictures counts as a video then; numbers go on from one video to the next.

Masks of objects stand in the json as `segmentation`: COCO's run lengths, or polygons. With --masks each picture and frame
has a gray PNG of 16 bits in that folder, too, in which every pixel has the number of its object (of its track, else its place
in the json), 0 for none.

A segmenter's pictures are tinted by category, above what the colours mean. With --masks each picture and frame has a PNG of
the categories' numbers, as `sightline evaluate --predictions FOLDER` takes it. The json is COCO's results of stuff
segmentation, with a record for every category in a picture; the csv has its pixels and their share.

A captioner writes sentences under the pictures. In the json each picture has its best one as `caption`, as `sightline
evaluate --captions` takes it, with its log probability as `score`, and further ones under `others`; what was said of the
detector's boxes stands under `regions`. The csv has a row a sentence. Panels of --attention go to OUT/attention/.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch

from sightline.datasets.sources import Frame, Frames, frames, is_video
from sightline.datasets.structures import Instances
from sightline.datasets.table import DataError, counted, nearest
from sightline.datasets.transforms import from_hwc
from sightline.detectors import Detector
from sightline.detectors.compiled import compile_detect
from sightline.detectors.inference import find, usable_device
from sightline.detectors.tiling import find_tiled
from sightline.detectors.video_tracking import VideoTracker, video_of
from sightline.tools.checkpoints import add_options, add_tile_options, load_model, task_of, tiling_of
from sightline.tools.command_options import OptionsParser
from sightline.tools.given_options import given_options, options
from sightline.tools.main import run
from sightline.tools.model_names import kind_of
from sightline.tools.picture_files import PictureFiles
from sightline.tools.predict_captions import FOR_CAPTIONERS, add_caption_options, predict_captions
from sightline.tools.predict_segmentation import predict_label_maps
from sightline.tools.prediction_files import AnnotatedPictures, CocoResults, CsvTable, MotText, NumberedPictures
from sightline.tools.prediction_loop import Course, each_picture

Writer = AnnotatedPictures | CocoResults | CsvTable | MotText | NumberedPictures


def main(argv: list[str] | None = None) -> int:
    """Runs the command; `argv` without the command's name, by default the process's. Returns the exit code."""
    arguments, given = _arguments(argv)
    other = {"captioner": predict_captions, "segmenter": predict_label_maps}.get(kind_of(arguments.checkpoint))
    if other is not None:
        return other(arguments, given)
    if given & FOR_CAPTIONERS:
        raise DataError(f"{arguments.checkpoint} writes no sentences: leave out {options(given & FOR_CAPTIONERS)}")
    arguments.score = 0.5 if arguments.score is None else arguments.score
    pictures = frames(arguments.sources, arguments.every)
    model = load_model(arguments, usable_device(arguments.device))
    if model.task != "instance_segmentation" and (useless := given & {"masks", "polygons"}):
        raise DataError(
            f"{arguments.checkpoint} finds no masks, it is made for {task_of(model)}: leave out {options(useless)}"
        )
    if arguments.compile:
        compile_detect(model)
    tiling = tiling_of(arguments, model)
    look = partial(find_tiled, **asdict(tiling)) if tiling else find
    wanted = labels_of(arguments.classes, model.categories)
    tracker = VideoTracker(arguments.score, arguments.every) if arguments.track else None
    score = tracker.low if tracker else arguments.score
    with ExitStack() as files:
        writers = [files.enter_context(writer) for writer in _writers(arguments, pictures, model.categories)]
        tally = predict(model, pictures, writers, score=score, wanted=wanted, tracker=tracker, look=look)
    if pictures.problems.counts:
        print(pictures.problems.summary(), file=sys.stderr)
    written = [] if arguments.no_pictures else [arguments.out]
    written += [file for file in (arguments.masks, arguments.json, arguments.csv, arguments.mot) if file]
    print(f"{tally.line(model.categories)}; written: {', '.join(written)}")
    return 130 if tally.stopped else 0


@dataclass
class Tally(Course):
    """What a run came to.

    Attributes:
        labels: how many objects of each label were found.
        tracks: how many of them were different ones; None where nobody tracked.
    """

    labels: Counter[int] = field(default_factory=Counter)
    tracks: int | None = None

    def line(self, names: Sequence[str], most: int = 8) -> str:
        """The summary in one line."""
        kinds = [f"{names[label]} {count}" for label, count in self.labels.most_common(most)]
        kinds += ["…"] if len(self.labels) > most else []
        found = counted(self.labels.total(), "object") + (f" ({', '.join(kinds)})" if kinds else "")
        found += "" if self.tracks is None else f" of {counted(self.tracks, 'track')}"
        return self.summary(f"{found} ")


def predict(
    model: Detector,
    pictures: Frames,
    writers: Sequence[Writer],
    *,
    score: float = 0.5,
    wanted: torch.Tensor | None = None,
    tracker: VideoTracker | None = None,
    look: Callable[..., Instances] = find,
) -> Tally:
    """Looks at one picture after the other and hands it, with what was found, to the writers.

    Args:
        model: a trained detector.
        pictures: where they come from.
        writers: what is done with them.
        score: the least score of a detection.
        wanted: the labels to look for; None for all.
        tracker: follows objects from frame to frame; None for nobody.
        look: how the model looks at a picture: called as `find` is.
    """
    tally = Tally()

    def turn(number: int, frame: Frame) -> dict[str, int]:
        found = look(model, from_hwc(frame.image), score=score)
        if wanted is not None:
            found = found[torch.isin(found.labels, wanted)]
        if tracker is not None:
            found = tracker.update(frame.name, frame.fps, found)
            tally.tracks = tracker.count
        for writer in writers:
            writer.write(number, frame, found)
        tally.labels.update(found.labels.tolist())
        return {"objects": tally.labels.total()}

    each_picture(pictures, turn, tally)
    return tally


def labels_of(names: Sequence[str] | None, categories: Sequence[str]) -> torch.Tensor | None:
    """The labels of these categories, None for None.

    Raises:
        DataError: the model does not know one of them.
    """
    if names is None:
        return None
    for name in names:
        if name not in categories:
            known = ", ".join(categories[:20]) + (f", … ({len(categories)} in all)" if len(categories) > 20 else "")
            raise DataError(f"the model knows no class {name!r}{nearest(name, categories)} (it knows {known})")
    return torch.tensor([label for label, name in enumerate(categories) if name in names])


def _writers(arguments: argparse.Namespace, pictures: Frames, names: Sequence[str]) -> Iterator[Writer]:
    if not arguments.no_pictures:
        yield AnnotatedPictures(arguments.out, names, pictures.items, every=arguments.every)
    if arguments.masks:
        yield NumberedPictures(PictureFiles(arguments.masks, pictures.items, suffix=".png"))
    if arguments.json:
        yield CocoResults(arguments.json, names, polygons=arguments.polygons)
    if arguments.csv:
        yield CsvTable(arguments.csv, names, tracked=arguments.track)
    if arguments.mot:
        if len({video_of(str(item), is_video=is_video(item)) for item in pictures.items}) > 1:
            raise DataError(f"--mot {arguments.mot}: such a file is of one video; name one source, or take --csv")
        yield MotText(arguments.mot)


def _arguments(argv: list[str] | None) -> tuple[argparse.Namespace, set[str]]:
    """The options, and the names of those that were given."""
    parser = OptionsParser(
        prog="sightline predict",
        description=__doc__.split(":", 1)[1].strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a best.ckpt that `sightline train` wrote")
    parser.add_argument(
        "sources", metavar="SOURCE", nargs="+", help="a picture, folder, pattern, video, stream or camera's number"
    )
    add_options(parser)
    add_tile_options(parser)
    parser.add_argument("--out", metavar="FOLDER", default="predictions", help="for annotated pictures (predictions)")
    parser.add_argument("--no-pictures", action="store_true", help="draw nothing; needs --json, --csv or --masks")
    parser.add_argument("--masks", metavar="FOLDER", help="for PNGs that number every pixel's category, or its object")
    parser.add_argument("--json", metavar="FILE", help="all detections, label maps or sentences as COCO's results")
    parser.add_argument("--polygons", action="store_true", help="of --json: masks as polygons in place of run lengths")
    parser.add_argument("--csv", metavar="FILE", help="the same as a table, one row a box, category or sentence")
    parser.add_argument("--score", type=float, help="the least score of a detection, 0 to 1 (0.5)")
    parser.add_argument(
        "--track", action="store_true", help="follow objects through a video; then --score is of a good detection"
    )
    parser.add_argument("--mot", metavar="FILE", help="the tracks of one video as MOTChallenge's text; with --track")
    parser.add_argument("--classes", metavar="NAME", nargs="+", help="look for these alone")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="of a video, only every N-th frame (1)")
    parser.add_argument("--device", help="cuda, cuda:1, mps or cpu; by default the best there is")
    parser.add_argument(
        "--compile", action="store_true", help="compile a detector first: half a minute, for many pictures of one size"
    )
    add_caption_options(parser)
    arguments = parser.parse_args(argv)
    if arguments.score is not None and not 0 <= arguments.score <= 1:
        parser.error(f"--score must be from 0 to 1, got {arguments.score}")
    if arguments.mot and not arguments.track:
        parser.error("--mot writes tracks; add --track")
    if arguments.polygons and not arguments.json:
        parser.error("--polygons says how masks stand in the json; add --json FILE")
    if (
        arguments.masks
        and not arguments.no_pictures
        and Path(arguments.masks).resolve() == Path(arguments.out).resolve()
    ):
        parser.error(
            f"--masks and --out are both {arguments.masks}, where one would write over the other: name two folders"
        )
    if arguments.no_pictures and not (arguments.masks or arguments.json or arguments.csv or arguments.mot):
        parser.error("with --no-pictures nothing would be written; add --json FILE or --csv FILE")
    return arguments, given_options(parser, arguments)


if __name__ == "__main__":
    sys.exit(run("predict", sys.argv[1:]))
