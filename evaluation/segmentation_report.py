"""What a report says of label maps: their scores, what was taken for what, and the worst pictures with their errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from .label_drawing import draw_label_comparison, label_colours
from .page import ReportInputs, cards, heading, image, most_confused, percent, table, training, write_page
from .plots import plot_confusion
from .segmentation import SegmentationResult

Maps = Callable[[int], tuple[np.ndarray, np.ndarray]]


def write_segmentation_report(
    folder: str | Path,
    result: SegmentationResult,
    inputs: ReportInputs | None = None,
    *,
    maps: Maps | None = None,
    colours: Sequence[Sequence[int]] = (),
) -> Path:
    """Writes report.html, and its charts and pictures into report/.

    Args:
        folder: made if missing; an older report there is replaced.
        result: of `SegmentationCollector.result`.
        inputs: title, pictures and the like; `load_image` and `image_names` go by the result's order of pictures.
        maps: from a picture's row in the result to its true and its predicted labels, (H, W) integers each, at the
            picture's resolution; without it there are no pictures.
        colours: C (red, green, blue) of the data; empty where they have none.

    Returns:
        The path of report.html.

    Raises:
        DataError: the metrics file cannot be read.
    """
    folder, inputs = Path(folder), inputs or ReportInputs()
    drawings = folder / "report"
    drawings.mkdir(parents=True, exist_ok=True)
    counts = (
        f"{len(result.image_ids):,} images, {int(result.areas.true.sum()):,} pixels with a truth, "
        f"{len(result.categories):,} categories"
    )
    pictures = _Pictures(drawings, result, inputs, maps, label_colours(result.categories, colours))
    sections = [
        heading(inputs, counts), _headline(result), _confusion(drawings, result), training(inputs, drawings),
        _categories(result), *pictures.sections(),
    ]  # fmt: skip
    return write_page(folder, inputs.title, sections)


def _headline(result: SegmentationResult) -> str:
    summary = result.summary()
    titles = {"mean_IoU": "mean IoU", "pixel_accuracy": "pixel accuracy", "boundary_IoU": "Boundary IoU"}
    large = {text: percent(summary[name]) for name, text in titles.items() if name in summary}
    small = {"mean accuracy": "mean_accuracy", "frequency-weighted IoU": "frequency_weighted_IoU"}
    large |= {text: percent(summary[name]) for text, name in small.items()}
    return f"{cards(large)}<p class=note>Percent. {result.rule}</p>"


def _confusion(folder: Path, result: SegmentationResult) -> str:
    """Every category's pixels: as what they were predicted, in percent."""
    path, labelled = folder / "confusion.png", result.matrix[:-1]
    if not labelled[:, -1].any():  # every pixel was given a category, as is usual
        labelled = labelled[:, :-1]
    shares = np.rint(100 * labelled / np.maximum(labelled.sum(1, keepdims=True), 1)).astype(np.int64)
    plot_confusion(shares, result.categories, path, title="Percent of each category's pixels")
    pairs = most_confused(labelled, result.categories, counted="pixels")
    return f"<h2>Confusion matrix</h2>{image(path)}{pairs}"


def _categories(result: SegmentationResult) -> str:
    records, titles = result.per_class(), ["IoU", "accuracy", "precision", "boundary_IoU"]
    titles = [title for title in titles if result.boundary is not None or title != "boundary_IoU"]
    pixels = max(1, int(result.areas.true.sum()))
    rows = [
        [escape(record["category"]), percent(record["truths"] / pixels), *(percent(record[title]) for title in titles)]
        for record in records
    ]
    header = ("category", "share of pixels", *(title.replace("boundary_", "Boundary ") for title in titles))
    note = (
        "Accuracy is the share of a category's pixels that are right, precision the share of those predicted as it. "
        "Percent; a dash: the truth has no such pixel, or none was predicted."
    )
    return f"<h2>Categories</h2>{table(header, rows, bars=2)}<p class=note>{note}</p>"


@dataclass
class _Pictures:
    """Pictures with their true and predicted categories.

    Attributes:
        folder: where they are drawn.
        result: their scores.
        inputs: how pictures are loaded, called, and how many are shown.
        maps: see `write_segmentation_report`.
        colours: (C, 3) uint8.
    """

    folder: Path
    result: SegmentationResult
    inputs: ReportInputs
    maps: Maps | None
    colours: np.ndarray

    def sections(self) -> list[str]:
        """The worst pictures as a list, and drawn, and some from all over the set."""
        order = [row for row in self.result.worst().tolist() if not np.isnan(self.result.picture_iou[row])]
        if not order:
            return []
        shown = order[: self.inputs.pictures]
        spread = np.linspace(0, len(self.result.image_ids) - 1, self.inputs.pictures).astype(int).tolist()
        others = [row for row in dict.fromkeys(spread) if row not in shown]
        parts = ["<h2>The worst pictures</h2>", self.listed(order[:20])]
        if self.inputs.load_image is not None and self.maps is not None:
            parts += map(self.figure, shown)
            parts += ["<h2>Pictures from all over the set</h2>", *map(self.figure, others)] if others else []
        return parts

    def listed(self, rows: Sequence[int]) -> str:
        """A table of pictures with their scores."""
        cells = [[self.name(row), str(self.result.image_ids[row]), *self.scores(row)] for row in rows]
        note = "The least mean IoU first; the mean is over the categories that the picture has."
        return f"{table(('image', 'id', 'mean IoU', 'pixel accuracy'), cells)}<p class=note>{note}</p>"

    def scores(self, row: int) -> list[str]:
        """A picture's mean IoU and pixel accuracy in percent."""
        return [percent(values[row]) for values in (self.result.picture_iou, self.result.picture_accuracy)]

    def figure(self, row: int) -> str:
        """One picture with its label maps, or what is wrong with its files."""
        iou, accuracy = self.scores(row)
        caption = f"<figcaption>{self.name(row)}: mean IoU {iou}, pixel accuracy {accuracy}</figcaption>"
        try:
            drawn = draw_label_comparison(
                self.inputs.load_image(row), *self.maps(row), self.result.categories, self.colours
            )
        except (OSError, ValueError) as error:
            return f"<figure><p class=note>cannot be shown: {escape(str(error))}</p>{caption}</figure>"
        path = self.folder / f"image_{self.result.image_ids[row]}.jpg"
        Image.fromarray(drawn).save(path, quality=88)
        return f"<figure>{image(path)}{caption}</figure>"

    def name(self, row: int) -> str:
        """What a picture is called, as HTML."""
        names: Sequence[int | str] = self.inputs.image_names or self.result.image_ids.tolist()
        return escape(str(names[row]))
