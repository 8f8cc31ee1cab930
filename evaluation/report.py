"""The report of a run: one HTML file that needs nothing else, with the charts and pictures beside it too."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path

import numpy as np

from .coco import CocoResult
from .confidence import confidence_curves, image_errors
from .confusion import confusion_matrix
from .instances import InstanceResult
from .localization import LocalizationResult
from .localization_report import localization_sections
from .page import (
    Pictures,
    ReportInputs,
    cards,
    heading,
    image,
    most_confused,
    percent,
    table,
    training,
    worst_first,
    write_page,
)
from .plots import plot_confidence, plot_confusion, plot_precision_recall
from .records import Detections, Truth


def write_report(
    folder: str | Path,
    truth: Truth,
    detections: Detections,
    result: CocoResult | InstanceResult | LocalizationResult,
    inputs: ReportInputs | None = None,
) -> Path:
    """Writes report.html, and its charts and pictures into report/.

    Args:
        folder: made if missing; an older report there is replaced.
        truth: K objects.
        detections: D detections.
        result: of `evaluate_coco`, `evaluate_instances` or `evaluate_localization` on these.
        inputs: title, pictures and the like.

    Returns:
        The path of report.html.

    Raises:
        DataError: the metrics file cannot be read.
    """
    folder, inputs = Path(folder), inputs or ReportInputs()
    drawings = folder / "report"
    drawings.mkdir(parents=True, exist_ok=True)
    sections = SECTIONS[type(result)](drawings, truth, detections, result, inputs)
    counts = (
        f"{len(truth.image_ids):,} images, {len(truth.labels):,} objects, "
        f"{len(detections):,} detections, {len(result.categories):,} categories"
    )
    return write_page(folder, inputs.title, [heading(inputs, counts), *sections])


def coco_sections(
    folder: Path, truth: Truth, detections: Detections, result: CocoResult, inputs: ReportInputs
) -> list[str]:
    """What a report says of detections; charts and pictures are drawn into `folder`."""
    report = _Report(folder, truth, detections, result, inputs)
    return [
        report.headline(), report.charts(), report.confusion(), training(inputs, folder), report.categories(),
        report.worst_images(), report.pictures.section(report.errors.per_image),
    ]  # fmt: skip


def instance_sections(
    folder: Path, truth: Truth, detections: Detections, result: InstanceResult, inputs: ReportInputs
) -> list[str]:
    """What a report says of detections with masks: all of it by masks, and the headline by boxes too."""
    headline, *others = coco_sections(folder, truth, detections, result.masks, inputs)
    summary = result.boxes.summary()
    boxes = table(tuple(summary), [[*map(percent, summary.values())]])
    return [f"<h2>By masks</h2>{headline}", f"<h2>By boxes</h2>{boxes}", *others]


SECTIONS: dict[type, Callable[..., list[str]]] = {
    CocoResult: coco_sections,
    InstanceResult: instance_sections,
    LocalizationResult: localization_sections,
}


class _Report:
    def __init__(
        self, folder: Path, truth: Truth, detections: Detections, result: CocoResult, inputs: ReportInputs
    ) -> None:
        self.folder, self.truth, self.detections, self.result = folder, truth, detections, result
        self.curves = confidence_curves(result, detections)
        self.score = self.curves.best_score
        self.errors = image_errors(truth, detections, result, self.score)
        shown = (detections.scores >= self.score) & result.considered
        missed, wrong = self.errors.missed, self.errors.wrong
        self.pictures = Pictures(folder, inputs, truth, detections, result.categories, missed, wrong, shown)

    def headline(self) -> str:
        summary = self.result.summary()
        titles = (("AP", "AP, IoU .50 to .95"), ("AP50", "AP50"), ("AP75", "AP75"))
        large = {text: percent(summary[name]) for name, text in titles}
        large["score threshold of the best F1"] = f"{self.score:.2f}"
        note = f"Percent, COCO's rules, at most {self.result.max_dets[-1]} detections an image and category. "
        note += "A dash: no object to find."
        return f"{cards(large)}{table(tuple(summary), [[*map(percent, summary.values())]])}<p class=note>{note}</p>"

    def charts(self) -> str:
        first, second = self.folder / "precision_recall.png", self.folder / "confidence.png"
        plot_precision_recall(self.result, first)
        plot_confidence(self.curves, second)
        return f"<h2>Curves</h2><div class=pair>{image(first)}{image(second)}</div>"

    def confusion(self) -> str:
        path, names = self.folder / "confusion.png", self.result.categories
        score = max(self.score, 1e-6)  # at threshold 0 nothing was measured, and nothing is left out
        matrix = confusion_matrix(self.truth, self.detections, len(names), score=score)
        plot_confusion(matrix, names, path)
        note = f"Detections of score {self.score:.2f} and above, matched to objects by place alone."
        return f"<h2>Confusion matrix</h2>{image(path)}<p class=note>{note}</p>{most_confused(matrix, names)}"

    def categories(self) -> str:
        known = ~np.isnan(self.curves.f1[:, 0])
        at = int(np.searchsorted(self.curves.scores, self.score))
        rows = []
        for c, record in enumerate(self.result.per_class()):
            measured = (self.curves.precision[c, at], self.curves.recall[c, at], self.curves.f1[c, at])
            numbers = [record["AP"], record["AP50"], record["AR"], *(measured if known[c] else (-1, -1, -1))]
            rows.append([escape(record["category"]), f"{record['truths']:,}", *map(percent, numbers)])
        header = ("category", "objects", "AP", "AP50", "AR", "precision", "recall", "F1")
        note = f"Precision, recall and F1 in percent, at score {self.score:.2f} and IoU 0.5."
        return f"<h2>Categories</h2>{table(header, rows, bars=2)}<p class=note>{note}</p>"

    def worst_images(self) -> str:
        rows = [row for row in worst_first(self.errors.per_image)[:20] if self.errors.per_image[row]]
        if not rows:
            return "<h2>Worst images</h2><p>No mistake in any image.</p>"
        wrong = np.bincount(self.detections.image[self.errors.wrong], minlength=len(self.truth.image_ids))
        missed = np.bincount(self.truth.image[self.errors.missed], minlength=len(self.truth.image_ids))
        objects = np.bincount(self.truth.image, minlength=len(self.truth.image_ids))
        cells = [
            [
                escape(self.pictures.name(row)),
                str(self.truth.image_ids[row]),
                *(str(x[row]) for x in (objects, wrong, missed)),
            ]
            for row in rows
        ]
        note = f"Most wrong and missed objects first, at score {self.score:.2f} and IoU 0.5."
        columns = table(("image", "id", "objects", "wrong", "missed"), cells)
        return f"<h2>Worst images</h2>{columns}<p class=note>{note}</p>"
