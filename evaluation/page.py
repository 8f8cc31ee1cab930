"""What every report is made of: the page, its tables, pictures and charts as HTML that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path

import numpy as np
import torch

from ..datasets.structures import Instances
from .drawing import draw_comparison
from .records import Detections, Truth
from .training_curves import plot_training


@dataclass
class ReportInputs:
    """What a report may show besides scores; each part is left out where it is missing.

    Attributes:
        title: the heading.
        details: what was run on what, e.g. {"recipe": …, "data": …, "checkpoint": …}.
        load_image: from an image's row in the truth (or among the captions) to (H, W, 3) uint8 RGB; without it there are no
            pictures.
        image_names: I names or paths to call the images by; else their ids.
        metrics: the metrics.csv of Lightning's CSVLogger.
        pictures: how many images to show of the worst, and as many of all, evenly spread.
    """

    title: str = "Evaluation"
    details: Mapping[str, str] = field(default_factory=dict)
    load_image: Callable[[int], np.ndarray] | None = None
    image_names: Sequence[str] | None = None
    metrics: str | Path | None = None
    pictures: int = 8


def write_page(folder: Path, title: str, sections: Sequence[str]) -> Path:
    """Writes report.html from sections of HTML, leaving out those that are empty."""
    page = PAGE.replace("{title}", escape(title)).replace("{body}", "\n".join(filter(None, sections)))
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def heading(inputs: ReportInputs, counts: str) -> str:
    """The title, how much was scored, and the details."""
    details = "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in inputs.details.items())
    return f"<h1>{escape(inputs.title)}</h1><p class=lead>{counts}</p><dl>{details}</dl>"


def cards(numbers: Mapping[str, str]) -> str:
    """Large numbers side by side, from what each is to its text."""
    each = "".join(f"<div class=card><b>{value}</b><span>{text}</span></div>" for text, value in numbers.items())
    return f"<div class=cards>{each}</div>"


def training(inputs: ReportInputs, folder: Path) -> str:
    """The curves of a training, drawn into `folder`; nothing where there was none.

    Raises:
        DataError: the metrics file cannot be read.
    """
    if inputs.metrics is None:
        return ""
    path = folder / "training.png"
    plot_training(inputs.metrics, path)
    return f"<h2>Training</h2>{image(path)}"


@dataclass
class Pictures:
    """Truth beside prediction, picture by picture.

    Attributes:
        folder: where the pictures are drawn.
        inputs: how pictures are loaded, called, and how many are shown.
        truth, detections: all of the split.
        categories: C names.
        missed: (K,) bool, true objects drawn dashed.
        wrong: (D,) bool, detections drawn dashed.
        shown: (D,) bool, detections drawn at all.
    """

    folder: Path
    inputs: ReportInputs
    truth: Truth
    detections: Detections
    categories: Sequence[str]
    missed: np.ndarray
    wrong: np.ndarray
    shown: np.ndarray

    def section(self, mistakes: np.ndarray) -> str:
        """The images with most of (I,) mistakes, and some from all over the set."""
        images = len(self.truth.image_ids)
        if self.inputs.load_image is None or not images:
            return ""
        worst = [row for row in worst_first(mistakes)[: self.inputs.pictures] if mistakes[row]]
        spread = np.linspace(0, images - 1, self.inputs.pictures).astype(int)
        spread = [row for row in dict.fromkeys(spread.tolist()) if row not in worst]
        parts = ["<h2>Truth beside prediction</h2>"]
        for title, rows in (("The worst images", worst), ("Images from all over the set", spread)):
            if rows:
                parts.append(f"<h3>{title}</h3>" + "".join(map(self.picture, rows)))
        return "".join(parts)

    def picture(self, row: int) -> str:
        """One image's figure, or what is wrong with its file."""
        path = self.folder / f"image_{self.truth.image_ids[row]}.jpg"
        caption = f"<figcaption>{escape(self.name(row))}</figcaption>"
        try:
            pixels = self.inputs.load_image(row)
        except (OSError, ValueError) as error:
            return f"<figure><p class=note>cannot be read: {escape(str(error))}</p>{caption}</figure>"
        objects, found = (
            np.flatnonzero(self.truth.image == row),
            np.flatnonzero((self.detections.image == row) & self.shown),
        )
        truth, predictions = _instances(self.truth, objects), _instances(self.detections, found)
        predictions = replace(predictions, scores=torch.tensor(self.detections.scores[found]))
        missed, wrong = self.missed[objects], self.wrong[found]
        true_masks, found_masks = (
            None if record.masks is None else record.masks.select(rows)
            for record, rows in ((self.truth, objects), (self.detections, found))
        )
        draw_comparison(
            pixels, truth, predictions, self.categories, path, missed=missed, wrong=wrong, true_masks=true_masks,
            found_masks=found_masks,
        )  # fmt: skip
        return f"<figure>{image(path)}{caption}</figure>"

    def name(self, row: int) -> str:
        """What an image is called."""
        return str(self.inputs.image_names[row] if self.inputs.image_names else self.truth.image_ids[row])


def _instances(record: Truth | Detections, rows: np.ndarray) -> Instances:
    landmarks = None if record.landmarks is None else torch.tensor(record.landmarks[rows])
    return Instances(torch.tensor(record.boxes[rows]), torch.tensor(record.labels[rows]), landmarks=landmarks)


def worst_first(mistakes: np.ndarray) -> list[int]:
    """The images by their (I,) mistakes, most first."""
    return np.argsort(-mistakes, kind="stable").tolist()


def most_confused(matrix: np.ndarray, names: Sequence[str], *, counted: str = "times") -> str:
    """A table of the ten most frequent confusions of one category with another; the matrix has `counted` in its cells."""
    counts = matrix[: len(names), : len(names)] * ~np.eye(len(names), dtype=bool)
    order = np.argsort(-counts, axis=None, kind="stable")[:10]
    pairs = [divmod(int(i), len(names)) for i in order if counts.flat[i]]
    shown, totals = [escape(name) for name in names], matrix.sum(1)
    rows = [
        [f"{shown[t]} taken for {shown[p]}", f"{counts[t, p]:,}", percent(counts[t, p] / totals[t])] for t, p in pairs
    ]
    return table(("most often confused", counted, "percent of the true"), rows) if rows else ""


def percent(value: float) -> str:
    return "–" if np.isnan(value) or value < 0 else f"{100 * value:.1f}"  # noqa: RUF001


def image(path: Path) -> str:
    kind = "jpeg" if path.suffix == ".jpg" else "png"
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img alt="{escape(path.stem.replace("_", " "))}" src="data:image/{kind};base64,{data}">'


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, bars: int | None = None) -> str:
    """An HTML table of cells that are already escaped; `bars` is a column of percentages drawn as bars too."""
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = []
    for row in rows:
        cells = [
            f'<td style="--share:{cell}%" class=bar>{cell}</td>'
            if column == bars and cell[0].isdigit()
            else f"<td>{cell}</td>"
            for column, cell in enumerate(row)
        ]
        body.append(f"<tr>{''.join(cells)}</tr>")
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"


PAGE = """<!doctype html>
<html lang=en><head><meta charset=utf-8><meta name=viewport content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root { --ink: #1f2933; --muted: #52606d; --line: #d9dee5; --accent: #0b63b8; }
body { font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; color: var(--ink);
  max-width: 1180px; margin: 2.5rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.9rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .8rem; padding-top: 1.2rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; color: var(--muted); font-weight: 600; }
.lead { color: var(--muted); margin: .2rem 0 1rem; }
.note, figcaption { color: var(--muted); font-size: .85rem; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: .9rem; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
.cards { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.2rem 0; }
.card { border: 1px solid var(--line); border-radius: 8px; padding: .7rem 1.2rem; min-width: 9rem; }
.card b { display: block; font-size: 1.8rem; line-height: 1.2; color: var(--accent); }
.card span { color: var(--muted); font-size: .85rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; min-width: 60%; }
th, td { text-align: right; padding: .3rem .8rem; border-bottom: 1px solid var(--line); }
th { color: var(--muted); font-weight: 600; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; max-width: 30rem; }
.bar { min-width: 9rem; background: linear-gradient(90deg, #cfe1f2 var(--share), transparent 0); }
.said { display: grid; grid-template-columns: 16rem 1fr; gap: .2rem 1.4rem; }
.said p { margin: 0; font-size: 1.1rem; } .said ul { color: var(--muted); margin: .4rem 0; padding-left: 1.2rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(26rem, 1fr)); gap: 1rem; }
img { max-width: 100%; height: auto; }
figure { margin: 0 0 1.4rem; }
</style></head><body>
{body}
</body></html>
"""
