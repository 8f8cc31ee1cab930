"""`sightline propose DATA`: where objects may be, before any network says what they are, and how good such boxes are.

sightline propose voc/ --split trainval                                  # selective search, kept for Fast R-CNN's training
sightline propose voc/ --split test --method selective_search --method sliding_window --recall recall.png
sightline propose voc/ --split test --model faster_rcnn.ckpt --output proposals.npz
sightline propose voc/ --split test --proposals elsewhere.mat --proposals proposals.npz --limit 1000

Every --method, --model and --proposals is a row of the table and a curve of the chart. What a method proposes is kept on
disk and never computed twice; Ctrl-C loses only the pictures at work. See docs/proposals.md.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

from sightline.datasets.data_module import DetectionData
from sightline.datasets.proposal_files import write_proposals
from sightline.datasets.proposals import Regions
from sightline.datasets.readers import read
from sightline.datasets.table import DataError, Table, nearest
from sightline.detectors.proposers import PROPOSERS
from sightline.evaluation.recall import Coverage, cover
from sightline.evaluation.recall_plot import plot_recall
from sightline.tools.command_options import OptionsParser
from sightline.tools.main import run
from sightline.tools.number_options import positive, whole
from sightline.tools.propose_ways import WAYS, Answer

COUNTS = (100, 300, 1000, 2000)  # at which recall is told, as far as the limit goes
AVERAGED = 1000  # at which average recall is
PICTURES = (".png", ".jpg", ".jpeg")
LEGEND = """R@n: share of objects with an IoU of at least 0.5 with one of a picture's best n boxes
AR@n: its mean over IoU 0.5, 0.55 … 0.95; MABO: mean over categories of the average best IoU
seconds: a picture, on one process, of what was computed now"""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; `argv` without the command's name, by default the process's. Returns the exit code."""
    arguments = _parser().parse_args(argv)
    sources = list(dict.fromkeys(arguments.sources or [("method", "selective_search")]))
    _require_possible(arguments, sources)
    ways = {name: WAYS[kind](name, arguments) for kind, name in sources}
    table = _table(arguments.data, arguments.split)
    print(f"{arguments.split}: {table.describe()}")
    if table.problems.counts:
        print(table.problems.summary(), file=sys.stderr)
    answers = {name: way(table) for name, way in ways.items()}
    covered = {name: cover(answer.regions, table) for name, answer in answers.items()}
    print(_text(answers, covered, _counts(arguments.limit)))
    _write(arguments, table, answers, covered)
    return 0


def _require_possible(arguments: argparse.Namespace, sources: list[tuple[str, str]]) -> None:
    """What would otherwise be found wrong after the work."""
    if arguments.output and len(sources) > 1:
        names = ", ".join(name for _, name in sources)
        raise DataError(f"--output {arguments.output} holds one set of proposals, not those of {names}; name one")
    if arguments.recall and Path(arguments.recall).suffix.lower() not in PICTURES:
        raise DataError(
            f"--recall {arguments.recall}: draws a picture file; name one that ends in {', '.join(PICTURES)}"
        )
    for path in filter(None, (arguments.output, arguments.recall, arguments.json)):
        Path(path).parent.mkdir(parents=True, exist_ok=True)


def _table(path: str, split: str) -> Table:
    """A part of a data set, by its role or its own name."""
    if path != "shapes":
        return read(path, split)
    tables = DetectionData(path).tables
    if split not in tables:
        known = ", ".join(tables)
        raise DataError(f"the built-in shapes have no split {split!r}; there are {known}{nearest(split, tables)}")
    return tables[split]


# -- What is told of them --


def _counts(limit: int) -> list[int]:
    return [*(count for count in COUNTS if count < limit), limit]


def _text(answers: dict[str, Answer], covered: dict[str, Coverage], counts: list[int]) -> str:
    """The table for people; a dash where there was no truth."""
    averaged = min(AVERAGED, counts[-1])
    lines = [["proposals", "boxes", "seconds", *(f"R@{count}" for count in counts), f"AR@{averaged}", "MABO"]]
    for name, answer in answers.items():
        coverage = covered[name]
        numbers = [*coverage.recall(counts)[0], *coverage.average_recall([averaged]), coverage.mabo()]
        shown = ["-" if math.isnan(number) else f"{number:.3f}" for number in numbers]
        lines.append([name, f"{_boxes(answer.regions):.0f}", answer.told, *shown])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    return "\n".join(["  ".join(line) for line in padded] + [LEGEND])


def _boxes(regions: Regions) -> float:
    return len(regions.boxes) / max(1, len(regions))


def _write(
    arguments: argparse.Namespace, table: Table, answers: dict[str, Answer], covered: dict[str, Coverage]
) -> None:
    """The files asked for."""
    if arguments.output:
        (answer,) = answers.values()
        write_proposals(arguments.output, replace(table, regions=answer.regions))
    if arguments.recall:
        plot_recall(covered, arguments.recall, count=min(AVERAGED, arguments.limit))
    if arguments.json:
        about = {name: getattr(arguments, name) for name in ("data", "split", "limit")}
        rows = [_record(name, answers[name], covered[name], arguments.limit) for name in answers]
        Path(arguments.json).write_text(json.dumps(about | {"rows": rows}, indent=2) + "\n", encoding="utf-8")
    for path in filter(None, (arguments.output, arguments.recall, arguments.json)):
        print(f"written: {path}")


def _record(name: str, answer: Answer, coverage: Coverage, limit: int) -> dict:
    """A row of the table with recall at every IoU, and each category's; null where there was no truth."""
    counts = _counts(limit)
    recall, average = coverage.recall(counts), coverage.average_recall(counts)
    numbers = {
        "name": name, "boxes": _boxes(answer.regions), "seconds": answer.seconds, "MABO": coverage.mabo(),
        "counts": counts, "ious": coverage.ious.round(2).tolist(), "recall": recall.tolist(), "AR": average.tolist(),
        "per_class": coverage.per_class(limit),
    }  # fmt: skip
    return _without_nan(numbers)


def _without_nan(value: object) -> object:
    """Nested lists and dictionaries with None for numbers that json does not have."""
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _parser() -> argparse.ArgumentParser:
    parser = OptionsParser(
        prog="sightline propose",
        description=__doc__.split(":", 1)[1].strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    add = parser.add_argument

    def source(kind: str, metavar: str, text: str) -> None:
        add(f"--{kind}", dest="sources", action="append", type=lambda name: (kind, name), metavar=metavar, help=text)

    add("data", metavar="DATA", help="data set in any known form, or shapes")
    add("--split", default="train", help="train, val, test, or the data set's own name for a part (train)")
    source("method", "NAME", f"propose by {', '.join(PROPOSERS)} (selective_search)")
    source("model", "CHECKPOINT", "propose by a trained Faster R-CNN")
    source("proposals", "FILE", "take those of a .npz, COCO results json or selective search's .mat")
    add("--limit", type=positive, default=2000, metavar="N", help="boxes a picture, at most (2000)")
    add("--cache", metavar="FOLDER", help="where methods keep their boxes (.sightline/proposals beside the pictures)")
    add("--output", metavar="FILE", help="write the boxes as .npz, to be read by --proposals and by trainings")
    add("--recall", metavar="FILE", help="draw recall against the number of boxes and the IoU, as .png or .jpg")
    add("--json", metavar="FILE", help="write the numbers here, each category's too")
    add("--workers", type=whole, metavar="N", help="processes; 0 works in this one (one a core; of models fewer)")
    add("--batch", type=positive, default=8, metavar="N", help="of --model: pictures at a time (8)")
    add("--device", help="of --model: cpu, cuda, cuda:1, mps; by default the best there is")
    return parser


if __name__ == "__main__":
    sys.exit(run("propose", sys.argv[1:]))
