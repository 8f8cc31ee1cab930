"""The pictures that `sightline inspect` draws: examples of a data set, histograms of activations, heat over a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from sightline.backbone.activations import ActivationReport, LayerActivations
from sightline.datasets.detection import read_picture
from sightline.datasets.segmentation_dataset import annotated_map
from sightline.datasets.structures import Instances
from sightline.datasets.table import DataError, Table
from sightline.evaluation import Truth, draw_labels, label_colours, label_legend, with_legend
from sightline.evaluation.drawing import annotate, colour_of
from sightline.evaluation.label_drawing import Swatch
from sightline.evaluation.mask_drawing import paint_masks
from sightline.evaluation.plots import ACCENT, INK, MUTED, save_figure
from sightline.evaluation.sentence_band import Note, with_band

TILE, GAP, COLUMNS = 320, 8, 4  # pixels of a tile's side, pixels between tiles, tiles beside each other
FINE, WRONG = ACCENT, "#b0122b"
NAMED = 24  # objects in a tile; more names would hide it
PANELS = 60  # more layers than that are thinned out evenly


def example_sheet(table: Table, count: int = 12) -> np.ndarray:
    """Pictures of a data set, spread evenly over it, with their objects, tinted by category above what the colours mean, or
    above the first sentence about them.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        DataError: no pictures, or one cannot be read.
    """
    if not len(table):
        raise DataError("there are no pictures to show")
    rows = np.linspace(0, len(table) - 1, min(count, len(table))).round().astype(int).tolist()
    if table.label_maps is not None:
        return _tinted_sheet(table, rows)
    return _sheet([_tile(table, row) for row in rows])


def _tinted_sheet(table: Table, rows: Sequence[int]) -> np.ndarray:
    colours = label_colours(table.categories, table.colours or ())
    tiles, shown = [], []
    for row in rows:
        image, labels = read_picture(table.paths[row]), annotated_map(table, row)
        size = _tile_size(image)
        labels = np.asarray(Image.fromarray(labels.astype(np.int32)).resize(size, Image.Resampling.NEAREST))
        tiles.append(draw_labels(np.asarray(Image.fromarray(image).resize(size)), labels, colours))
        shown.append(np.unique(labels))
    labels = np.concatenate(shown)
    legend = label_legend(labels, table.categories, colours) + [Swatch("void", None)] * bool((labels < 0).any())
    return with_legend(_sheet(tiles), legend)


def _sheet(tiles: Sequence[np.ndarray]) -> np.ndarray:
    """Tiles beside and below each other."""
    columns = min(COLUMNS, len(tiles))
    lines = math.ceil(len(tiles) / columns)
    side = TILE + GAP
    sheet = np.full((lines * side + GAP, columns * side + GAP, 3), 255, np.uint8)
    for i, tile in enumerate(tiles):
        y, x = GAP + i // columns * side, GAP + i % columns * side
        y, x = y + (TILE - tile.shape[0]) // 2, x + (TILE - tile.shape[1]) // 2
        sheet[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
    return sheet


def _tile(table: Table, row: int) -> np.ndarray:
    image = read_picture(table.paths[row])
    size, ratio = _tile_size(image), TILE / max(image.shape[:2])
    if table.segmentations is not None:
        masks = Truth.from_table(table.select(np.array([row])), masks=True).masks
        colours = [colour_of(label) for label in table.labels[table.image == row].tolist()]
        image = paint_masks(image, masks, colours)
    objects = slice(*table.offsets[row : row + 2].tolist())
    boxes, labels = torch.from_numpy(table.boxes[objects] * ratio), torch.from_numpy(table.labels[objects])
    tile = np.asarray(Image.fromarray(image).resize(size))
    tile = annotate(tile, Instances(boxes, labels), table.categories, named=len(boxes) <= NAMED)
    if table.captions is None or not table.captions[row]:
        return tile
    captioned = Image.fromarray(with_band(tile, [Note(table.captions[row][0])]))
    captioned.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
    return np.asarray(captioned)


def _tile_size(image: np.ndarray) -> tuple[int, int]:
    """The (width, height) of a picture's tile."""
    ratio = TILE / max(image.shape[:2])
    return max(1, round(image.shape[1] * ratio)), max(1, round(image.shape[0] * ratio))


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A picture in gray with heat over it, the stronger the more it hides.

    Args:
        image: (H, W, 3) uint8 RGB.
        heat: (h, w) float in 0..1 of the whole picture, at any resolution.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    size = image.shape[1::-1]
    heat = np.asarray(Image.fromarray(heat.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)).clip(0, 1)
    gray = image.astype(np.float32).mean(2, keepdims=True).repeat(3, 2)
    colours = 255 * colormaps["inferno"](heat)[..., :3]
    share = 0.75 * heat[..., None] ** 0.5
    return (gray * (1 - share) + colours * share).round().astype(np.uint8)


def plot_activations(report: ActivationReport, path: str, *, title: str) -> None:
    """A histogram for every layer, in the order they run; layers that are not fine stand out.

    Args:
        report: of at least one layer.
        path: the PNG.
        title: above all.
    """
    layers = report.layers
    if len(layers) > PANELS:
        layers = [layers[i] for i in np.linspace(0, len(layers) - 1, PANELS).round().astype(int)]
    columns = min(6, len(layers))
    lines = math.ceil(len(layers) / columns)
    figure = Figure(figsize=(2.3 * columns, 1.75 * lines + 0.6), layout="constrained")
    figure.suptitle(title, color=INK, fontsize=13)
    for i, layer in enumerate(layers):
        _panel(figure.add_subplot(lines, columns, i + 1), layer)
    save_figure(figure, path)


def _panel(axes: Axes, layer: LayerActivations) -> None:
    colour = FINE if layer.verdict == "fine" else WRONG
    low, high = layer.minimum, layer.maximum
    if math.isfinite(low) and high > low:
        edges = np.linspace(low, high, len(layer.histogram) + 1)
        axes.stairs(layer.histogram, edges, fill=True, color=colour)
        axes.ticklabel_format(axis="x", scilimits=(-2, 3))
    else:
        axes.text(0.5, 0.4, f"all {low:.3g}", ha="center", color=colour, transform=axes.transAxes)
        axes.set_xticks([])
    axes.set_title(f"{layer.name or layer.kind}  {layer.verdict}\nstd {layer.std:.2g}", fontsize=7.5, color=colour)
    axes.set_yticks([])
    axes.tick_params(labelsize=6.5, colors=MUTED)
    axes.xaxis.get_offset_text().set_fontsize(6.5)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
