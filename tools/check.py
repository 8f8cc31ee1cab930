"""`sightline check DATA`: everything wrong with a data set, with file names and fixes.

    sightline check coco/
    sightline check data.yaml
    sightline check camvid/
    sightline check flickr8k/

Exit code 0 when a training could start, 1 when something has to be mended first.
"""

from __future__ import annotations

import sys

from sightline.datasets.checks import check
from sightline.tools.command_options import OptionsParser
from sightline.tools.main import run


def main(argv: list[str] | None = None) -> int:
    """Runs the command; `argv` without the command's name, by default the process's. Returns the exit code."""
    parser = OptionsParser(
        prog="sightline check",
        description="Finds everything wrong with a data set: bad annotations, broken pictures, copies across splits.",
        epilog="Exit code 0: a training could start. 1: something has to be mended first.",
    )
    parser.add_argument(
        "data",
        metavar="DATA",
        help="a file or folder: COCO, Pascal VOC, YOLO, DeepPCB, MNIST, class folders; masks of objects: numbered, or a "
        "file for each; label maps: CamVid, Pascal VOC, images/ and masks/; with sentences: COCO's captions, Karpathy's "
        "splits, token files, CSV",
    )
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")
    arguments = parser.parse_args(argv)
    problems = check(arguments.data, progress=not arguments.no_progress)
    print(problems.summary() or f"{arguments.data}: nothing is wrong")
    if problems.fatal:
        print("The data set cannot be trained on until the errors are mended.", file=sys.stderr)
    return 1 if problems.fatal else 0


if __name__ == "__main__":
    sys.exit(run("check", sys.argv[1:]))
