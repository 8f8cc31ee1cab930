"""What `sightline inspect` says of a data set: sizes, objects or pixels by category, examples, statistics of the pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from sightline.captioning.vocabulary import split as words
from sightline.datasets import statistics
from sightline.datasets.caption_files import is_captioned, read_each
from sightline.datasets.data_module import Shapes
from sightline.datasets.folders import FolderSource
from sightline.datasets.images import write_image
from sightline.datasets.label_maps import find_masks, holds_masks
from sightline.datasets.readers import Source, find, raise_if_fatal, read
from sightline.datasets.segmentation_data import count_pixels
from sightline.datasets.shapes import shapes_table
from sightline.datasets.splits import without_unions
from sightline.datasets.table import DataError, Table, counted, nearest
from sightline.datasets.yolo import YoloFolder
from sightline.segmentation.losses import median_frequency
from sightline.tools.inspect_pictures import example_sheet


def tables_of(path: str, split: str | None = None) -> dict[str, Table]:
    """The parts of a data set by name; of one without parts, "all". Objects' come first, then label maps' beside them.

    Args:
        path: what `sightline check` understands, or "shapes".
        split: only this part.

    Raises:
        DataError: no data set, no such part, or wrong beyond repair.
    """
    if path == "shapes":
        many = Shapes()
        counts = {"train": many.train_images, "val": many.val_images, "test": many.val_images}
        return {name: shapes_table(name, counts.get(name, 0), many.size) for name in ([split] if split else counts)}
    where = Path(path).expanduser()
    if is_captioned(where) and not _has_objects(where):
        return _chosen(read_each(where), split, path)
    if holds_masks(where) and not _has_objects(where):
        return _chosen(_parts(find_masks(where)), split, path)
    if split is not None:
        return {split: read(path, split)}
    tables = _parts(find(path))
    if holds_masks(where):
        tables |= {f"{name}, label maps": table for name, table in _parts(find_masks(where)).items()}
    raise_if_fatal(*tables.values())
    return tables


def _has_objects(where: Path) -> bool:
    """Whether pictures with sentences or label maps have objects, too: then these are shown."""
    if where.is_file():
        return False
    try:
        source = find(where)
    except DataError:
        return False
    # What lies in labels/ may be masks, and a folder of pictures is one of class folders where nobody knows better.
    masks = isinstance(source, YoloFolder) and next(where.rglob("labels/**/*.txt"), None) is None
    return not (masks or isinstance(source, FolderSource))


def _parts(source: Source) -> dict[str, Table]:
    return {name or "all": source.read(name) for name in without_unions(source.splits) or [None]}


def _chosen(tables: dict[str, Table], split: str | None, path: str) -> dict[str, Table]:
    if split is not None and split not in tables:
        raise DataError(f"{path}: no split {split!r}; there are {', '.join(tables)}{nearest(split, tables)}")
    raise_if_fatal(*tables.values())
    return tables if split is None else {split: tables[split]}


def summary(table: Table, most: int = 20) -> str:
    """Sizes of pictures, objects by category and how large the boxes are; of label maps, pixels by category.

    Raises:
        DataError: a label map cannot be read; all are.
    """
    lines = []
    if len(table):
        for name, column in (("height", 0), ("width", 1)):
            lines.append(f"  pictures' {name:<7} {_spread(table.sizes[:, column])} pixels")
    objects = np.diff(table.offsets)
    if len(table.image):
        lines.append(f"  objects a picture {_spread(objects)}; none in {counted(int((objects == 0).sum()), 'picture')}")
        width, height = (table.boxes[:, 2:] - table.boxes[:, :2]).T
        lines.append(f"  boxes' side       {_spread(np.sqrt(width * height))} pixels (square root of the area)")
        lines.append(f"  boxes' shape      {_spread(width / height)} (width / height)")
        small, large = (table.area < 32**2).mean(), (table.area >= 96**2).mean()
        lines.append(f"  COCO's sizes      small {small:.0%}, medium {1 - small - large:.0%}, large {large:.0%}")
    if table.captions is not None:
        lines += _sentences(table.captions, most)
    if table.label_maps is not None:
        return "\n".join([*lines, *_pixels(table)])
    return "\n".join([*lines, *_categories(table, most)])


def _pixels(table: Table) -> Iterable[str]:
    """What of the pictures has a truth, and a line a category, in the data's order.

    `where present` is the share in pictures that have the category at all; by it goes the weight, see `median_frequency`.
    """
    counts, present = count_pixels(table)
    labelled, pixels = counts.sum(), table.sizes.astype(np.int64).prod(axis=1).sum()
    yield f"  pixels            {pixels:,}, of which {1 - labelled / max(pixels, 1):.1%} are void"
    if not labelled:
        return
    weights = median_frequency(torch.from_numpy(counts), torch.from_numpy(present)).tolist()
    width = max([8, *(len(name) for name in table.categories)])
    yield f"  {'category':<{width}} {'pixels':>14} {'share':>7} {'where present':>14} {'weight':>7}"
    for c, name in enumerate(table.categories):
        shares = f"{counts[c] / max(labelled, 1):>7.2%} {counts[c] / max(present[c], 1):>14.2%}"
        yield f"  {name:<{width}} {counts[c]:>14,} {shares} {weights[c]:>7.2f}"


def _sentences(captions: list[list[str]], most: int) -> Iterable[str]:
    """How many and how long they are, and of which words."""
    split = [words(sentence) for group in captions for sentence in group]
    counts = Counter(word for sentence in split for word in sentence)
    if not counts:
        return
    yield f"  sentences a picture {_spread(np.array([len(group) for group in captions]))}"
    yield f"  words a sentence    {_spread(np.array([len(sentence) for sentence in split]))}"
    often = ", ".join(
        f"{sum(count >= least for count in counts.values())} {least} times or more" for least in (2, 5, 10)
    )
    yield f"  different words     {len(counts)}; {often}"
    yield f"  the commonest       {', '.join(f'{word} ({count})' for word, count in counts.most_common(most))}"


def _spread(values: np.ndarray) -> str:
    low, middle, high = np.quantile(values, (0, 0.5, 1))
    return f"{low:.4g} to {high:.4g}, median {middle:.4g}"


def _categories(table: Table, most: int) -> Iterable[str]:
    """A line a category, the commonest first: objects and pictures."""
    counts = np.bincount(table.labels, minlength=len(table.categories))
    pairs = np.unique(np.stack([table.image, table.labels]), axis=1)
    pictures = np.bincount(pairs[1], minlength=len(table.categories))
    order = np.argsort(-counts, kind="stable")
    width = max([8, *(len(name) for name in table.categories)])
    if len(order):
        yield f"  {'category':<{width}} {'objects':>8} {'pictures':>9}"
    for c in order[:most].tolist():
        yield f"  {table.categories[c]:<{width}} {counts[c]:>8} {pictures[c]:>9}"
    if len(order) > most:
        yield f"  … and {len(order) - most} more with {counted(counts[order[most:]].sum(), 'object')}"


def draw_examples(table: Table, path: str) -> None:
    """Some pictures with their objects in one."""
    write_image(path, example_sheet(table))


def store_statistics(table: Table, path: str, size: tuple[int, int]) -> str:
    """Computes what `datasets.statistics` does of pictures brought to `size` (height, width), and says what it came to."""
    found = statistics.compute(table, size=size)
    found.save(path)
    mean, std = (", ".join(f"{value:.4f}" for value in values.tolist()) for values in (found.mean, found.std))
    return (
        f"statistics of {counted(found.count, 'picture')} at {size[0]}x{size[1]}: mean {mean}; std {std} (of 0..1); "
        f"{counted(len(found.values), 'principal component')}; written: {path}"
    )
