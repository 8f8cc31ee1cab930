"""What a report says of models that give one answer a picture, or a fixed number: classifiers and localizers."""

from __future__ import annotations

from html import escape
from pathlib import Path

import numpy as np

from .localization import TITLES, LocalizationResult
from .page import Pictures, ReportInputs, cards, image, most_confused, percent, table, training, worst_first
from .plots import plot_confusion
from .records import Detections, Truth

HEADLINE = {"top1_error": "top-1 error", "localization_error": "localization error", "IoU": "mean IoU"}


def localization_sections(
    folder: Path, truth: Truth, detections: Detections, result: LocalizationResult, inputs: ReportInputs
) -> list[str]:
    """All of a report but its heading; charts and pictures are drawn into `folder`."""
    missed, wrong = np.zeros(len(truth.labels), bool), result.considered & ~result.right
    missed[result.rows[~result.found[1]]] = True
    mistakes = np.bincount(truth.image[missed], minlength=len(truth.image_ids))
    pictures = Pictures(
        folder, inputs, truth, detections, result.categories, missed=missed, wrong=wrong, shown=result.considered
    )
    return [
        _headline(result), _confusion(folder, result), training(inputs, folder), _categories(result),
        _worst_images(truth, result, mistakes, pictures), pictures.section(mistakes),
    ]  # fmt: skip


def _headline(result: LocalizationResult) -> str:
    summary = result.summary()
    large = {title: percent(summary[name]) for name, title in HEADLINE.items() if name in summary}
    rows = [[escape(TITLES[name]), name, percent(value)] for name, value in summary.items()]
    note = "All in percent. A picture of n objects has its n best-scored answers looked at."
    return f"{cards(large)}{table(('measure', 'name', 'percent'), rows)}<p class=note>{note}</p>"


def _confusion(folder: Path, result: LocalizationResult) -> str:
    path, names = folder / "confusion.png", result.categories
    matrix = answer_matrix(result)
    plot_confusion(matrix, names, path, title="Confusion of the best answers")
    note = "Each object with the answer that overlaps it most; the last column: no answer."
    return f"<h2>Confusion matrix</h2>{image(path)}<p class=note>{note}</p>{most_confused(matrix, names)}"


def answer_matrix(result: LocalizationResult) -> np.ndarray:
    """(C, C + 1) int64 counts of (true category, answer); the last column is for no answer."""
    matrix = np.zeros((len(result.categories), len(result.categories) + 1), np.int64)
    np.add.at(matrix, (result.labels, result.answer), 1)  # answer -1 is the last column
    return matrix


def _categories(result: LocalizationResult) -> str:
    columns = HEADLINE if result.places else {"top1_error": HEADLINE["top1_error"]}
    rows = [
        [escape(record["category"]), f"{record['truths']:,}", *(percent(record[name]) for name in columns)]
        for record in result.per_class()
    ]
    return f"<h2>Categories</h2>{table(('category', 'objects', *columns.values()), rows, bars=2)}"


def _worst_images(truth: Truth, result: LocalizationResult, mistakes: np.ndarray, pictures: Pictures) -> str:
    """Those with most objects not found, of equal ones those whose answers overlap least."""
    images = len(truth.image_ids)
    image_of = truth.image[result.rows]
    objects = np.bincount(image_of, minlength=images)
    unnamed = np.bincount(image_of[~result.named[1]], minlength=images)
    overlap = np.bincount(image_of, result.overlap, minlength=images) / np.maximum(objects, 1)
    rows = [row for row in worst_first(mistakes - overlap)[:20] if mistakes[row]]
    if not rows:
        return "<h2>Worst images</h2><p>No mistake in any image.</p>"
    cells = [
        [
            escape(pictures.name(row)),
            *(str(x[row]) for x in (truth.image_ids, objects, mistakes, unnamed)),
            percent(overlap[row]),
        ]
        for row in rows
    ]
    header = ("image", "id", "objects", "not found", "class wrong", "mean IoU")
    return f"<h2>Worst images</h2>{table(header, cells)}"
