"""The report of a run: one HTML file that needs nothing else, with the charts and pictures beside it too."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np
import torch

from ..datasets.structures import Instances
from .coco import CocoResult
from .confidence import ImageErrors, confidence_curves, image_errors
from .confusion import confusion_matrix
from .drawing import draw_comparison
from .plots import plot_confidence, plot_confusion, plot_precision_recall
from .records import Detections, Truth
from .training_curves import plot_training


@dataclass
class ReportInputs:
    """What a report may show besides scores; each part is left out where it is missing.

    Attributes:
        title: the heading.
        details: what was run on what, e.g. {"recipe": …, "data": …, "checkpoint": …}.
        load_image: from an image's row in the truth to (H, W, 3) uint8 RGB; without it there are no pictures.
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


def write_report(
    folder: str | Path, truth: Truth, detections: Detections, result: CocoResult, inputs: ReportInputs | None = None
) -> Path:
    """Writes report.html, and its charts and pictures into report/.

    Args:
        folder: made if missing; an older report there is replaced.
        truth: K objects.
        detections: D detections.
        result: of `evaluate_coco` on these.
        inputs: title, pictures and the like.

    Returns:
        The path of report.html.

    Raises:
        DataError: the metrics file cannot be read.
    """
    return _Report(Path(folder), truth, detections, result, inputs or ReportInputs()).write()


class _Report:
    def __init__(
        self, folder: Path, truth: Truth, detections: Detections, result: CocoResult, inputs: ReportInputs
    ) -> None:
        self.folder, self.pictures = folder, folder / "report"
        self.truth, self.detections, self.result, self.inputs = truth, detections, result, inputs
        self.curves = confidence_curves(result, detections)
        self.score = self.curves.best_score
        self.errors = image_errors(truth, detections, result, self.score)

    def write(self) -> Path:
        self.pictures.mkdir(parents=True, exist_ok=True)
        sections = [
            self.heading(), self.headline(), self.charts(), self.confusion(), self.training(), self.categories(),
            self.worst_images(), self.comparisons(),
        ]  # fmt: skip
        title = escape(self.inputs.title)
        page = PAGE.replace("{title}", title).replace("{body}", "\n".join(filter(None, sections)))
        path = self.folder / "report.html"
        path.write_text(page, encoding="utf-8")
        return path

    def heading(self) -> str:
        counts = (
            f"{len(self.truth.image_ids):,} images, {len(self.truth.labels):,} objects, "
            f"{len(self.detections):,} detections, {len(self.result.categories):,} categories"
        )
        details = "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in self.inputs.details.items())
        return f"<h1>{escape(self.inputs.title)}</h1><p class=lead>{counts}</p><dl>{details}</dl>"

    def headline(self) -> str:
        summary = self.result.summary()
        large = "".join(
            f"<div class=card><b>{_percent(summary[name])}</b><span>{text}</span></div>"
            for name, text in (("AP", "AP, IoU .50 to .95"), ("AP50", "AP50"), ("AP75", "AP75"))
        )
        threshold = f"<div class=card><b>{self.score:.2f}</b><span>score threshold of the best F1</span></div>"
        names, values = zip(*summary.items(), strict=True)
        table = _table(names, [[_percent(value) for value in values]])
        note = f"Percent, COCO's rules, at most {self.result.max_dets[-1]} detections an image and category. "
        note += "A dash: no object to find."
        return f"<div class=cards>{large}{threshold}</div>{table}<p class=note>{note}</p>"

    def charts(self) -> str:
        first, second = self.pictures / "precision_recall.png", self.pictures / "confidence.png"
        plot_precision_recall(self.result, first)
        plot_confidence(self.curves, second)
        return f"<h2>Curves</h2><div class=pair>{_image(first)}{_image(second)}</div>"

    def confusion(self) -> str:
        path, names = self.pictures / "confusion.png", self.result.categories
        score = max(self.score, 1e-6)  # at threshold 0 nothing was measured, and nothing is left out
        matrix = confusion_matrix(self.truth, self.detections, len(names), score=score)
        plot_confusion(matrix, names, path)
        note = f"Detections of score {self.score:.2f} and above, matched to objects by place alone."
        return f"<h2>Confusion matrix</h2>{_image(path)}<p class=note>{note}</p>{_most_confused(matrix, names)}"

    def training(self) -> str:
        if self.inputs.metrics is None:
            return ""
        path = self.pictures / "training.png"
        plot_training(self.inputs.metrics, path)
        return f"<h2>Training</h2>{_image(path)}"

    def categories(self) -> str:
        known = ~np.isnan(self.curves.f1[:, 0])
        at = int(np.searchsorted(self.curves.scores, self.score))
        rows = []
        for c, record in enumerate(self.result.per_class()):
            measured = (self.curves.precision[c, at], self.curves.recall[c, at], self.curves.f1[c, at])
            numbers = [record["AP"], record["AP50"], record["AR"], *(measured if known[c] else (-1, -1, -1))]
            rows.append([escape(record["category"]), f"{record['truths']:,}", *map(_percent, numbers)])
        header = ("category", "objects", "AP", "AP50", "AR", "precision", "recall", "F1")
        note = f"Precision, recall and F1 in percent, at score {self.score:.2f} and IoU 0.5."
        return f"<h2>Categories</h2>{_table(header, rows, bars=2)}<p class=note>{note}</p>"

    def worst_images(self) -> str:
        rows = [row for row in _worst(self.errors)[:20] if self.errors.per_image[row]]
        if not rows:
            return "<h2>Worst images</h2><p>No mistake in any image.</p>"
        wrong = np.bincount(self.detections.image[self.errors.wrong], minlength=len(self.truth.image_ids))
        missed = np.bincount(self.truth.image[self.errors.missed], minlength=len(self.truth.image_ids))
        objects = np.bincount(self.truth.image, minlength=len(self.truth.image_ids))
        cells = [
            [escape(self.name(row)), str(self.truth.image_ids[row]), *(str(x[row]) for x in (objects, wrong, missed))]
            for row in rows
        ]
        note = f"Most wrong and missed objects first, at score {self.score:.2f} and IoU 0.5."
        table = _table(("image", "id", "objects", "wrong", "missed"), cells)
        return f"<h2>Worst images</h2>{table}<p class=note>{note}</p>"

    def comparisons(self) -> str:
        if self.inputs.load_image is None or not len(self.truth.image_ids):
            return ""
        worst = [row for row in _worst(self.errors)[: self.inputs.pictures] if self.errors.per_image[row]]
        spread = np.linspace(0, len(self.truth.image_ids) - 1, self.inputs.pictures).astype(int)
        spread = [row for row in dict.fromkeys(spread.tolist()) if row not in worst]
        parts = ["<h2>Truth beside prediction</h2>"]
        for title, rows in (("The worst images", worst), ("Images from all over the set", spread)):
            if rows:
                parts.append(f"<h3>{title}</h3>" + "".join(map(self.picture, rows)))
        return "".join(parts)

    def picture(self, row: int) -> str:
        path = self.pictures / f"image_{self.truth.image_ids[row]}.jpg"
        caption = f"<figcaption>{escape(self.name(row))}</figcaption>"
        try:
            image = self.inputs.load_image(row)
        except (OSError, ValueError) as error:
            return f"<figure><p class=note>cannot be read: {escape(str(error))}</p>{caption}</figure>"
        objects = np.flatnonzero(self.truth.image == row)
        found = (self.detections.image == row) & (self.detections.scores >= self.score) & self.result.considered
        found = np.flatnonzero(found)
        truth = Instances(torch.tensor(self.truth.boxes[objects]), torch.tensor(self.truth.labels[objects]))
        predictions = Instances(
            torch.tensor(self.detections.boxes[found]),
            torch.tensor(self.detections.labels[found]),
            torch.tensor(self.detections.scores[found]),
        )
        missed, wrong = self.errors.missed[objects], self.errors.wrong[found]
        draw_comparison(image, truth, predictions, self.result.categories, path, missed=missed, wrong=wrong)
        return f"<figure>{_image(path)}{caption}</figure>"

    def name(self, row: int) -> str:
        return str(self.inputs.image_names[row] if self.inputs.image_names else self.truth.image_ids[row])


def _most_confused(matrix: np.ndarray, names: Sequence[str]) -> str:
    """A table of the ten most frequent confusions of one category with another."""
    counts = matrix[:-1, :-1] * ~np.eye(len(names), dtype=bool)
    order = np.argsort(-counts, axis=None, kind="stable")[:10]
    pairs = [divmod(int(i), len(names)) for i in order if counts.flat[i]]
    shown, totals = [escape(name) for name in names], matrix.sum(1)
    rows = [
        [f"{shown[t]} taken for {shown[p]}", str(counts[t, p]), _percent(counts[t, p] / totals[t])] for t, p in pairs
    ]
    return _table(("most often confused", "times", "percent of the true"), rows) if rows else ""


def _worst(errors: ImageErrors) -> list[int]:
    return np.argsort(-errors.per_image, kind="stable").tolist()


def _percent(value: float) -> str:
    return "–" if np.isnan(value) or value < 0 else f"{100 * value:.1f}"  # noqa: RUF001


def _image(path: Path) -> str:
    kind = "jpeg" if path.suffix == ".jpg" else "png"
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img alt="{escape(path.stem.replace("_", " "))}" src="data:image/{kind};base64,{data}">'


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, bars: int | None = None) -> str:
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
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(26rem, 1fr)); gap: 1rem; }
img { max-width: 100%; height: auto; }
figure { margin: 0 0 1.4rem; }
</style></head><body>
{body}
</body></html>
"""
