"""Label maps of a table: a mask file for each picture, decoded when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .clean import measure
from .images import pictures_below
from .label_files import read_mask, read_mask_header
from .label_legend import Legend
from .table import DataError, Problems, Table

NO_MASK = "picture without a mask (left out)"
BAD_MASK = "mask cannot be used"
WRONG_SIZE = "mask is not of its picture's size"


@dataclass(frozen=True)
class MaskFiles:
    """A `LabelColumn` of I mask files that one legend explains."""

    paths: list[str]
    legend: Legend

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> np.ndarray:
        path = self.paths[row]
        return self.legend.labels(read_mask(path), path)

    def select(self, rows: np.ndarray) -> MaskFiles:
        return MaskFiles([self.paths[row] for row in rows], self.legend)


@dataclass
class Pairs:
    """Pictures of a split, each with its mask, and what was wrong with others."""

    pictures: list[str] = field(default_factory=list)
    masks: list[str] = field(default_factory=list)
    problems: Problems = field(default_factory=Problems)


def pair(
    stems: Sequence[str], pictures: dict[str, list[str]], masks: dict[str, list[str]], where: dict[str, str]
) -> Pairs:
    """The pictures and masks of these stems, in this order.

    A picture without a mask is left out and counted, for there is nothing to learn from it. A mask without its picture is
    fatal, and so are two of one stem.

    Args:
        stems: of pictures, masks or both.
        pictures, masks: from stem to files, by `by_stem`.
        where: for each stem the file or line that speaks of it.
    """
    pairs = Pairs()
    for stem in stems:
        for kind, files in (("pictures", pictures.get(stem, [])), ("masks", masks.get(stem, []))):
            if len(files) > 1:
                pairs.problems.add(f"two {kind} of one name", " and ".join(files[:2]), fatal=True)
        if stem not in masks:
            pairs.problems.add(NO_MASK, pictures.get(stem, [where[stem]])[0])
        elif stem not in pictures:
            pairs.problems.add("picture is missing", f"{where[stem]}: {stem}, of mask {masks[stem][0]}", fatal=True)
        else:
            pairs.pictures.append(pictures[stem][0])
            pairs.masks.append(masks[stem][0])
    return pairs


def by_stem(folder: Path) -> dict[str, list[str]]:
    """From path below a folder, without suffix, to the pictures so named; sorted. Hidden files and folders are passed over."""
    found: dict[str, list[str]] = {}
    for path in pictures_below(folder):
        found.setdefault(Path(path).relative_to(folder).with_suffix("").as_posix(), []).append(path)
    return dict(sorted(found.items()))


def mask_table(pairs: Pairs, legend: Legend, where: str) -> Table:
    """The table of a split; masks are read no further than their headers.

    Raises:
        DataError: there is no picture with a mask; `where` is to blame.
    """
    if not pairs.pictures:
        raise DataError(f"{where}: the data set is empty, no picture has a mask\n{pairs.problems.summary()}".rstrip())
    sizes = measure(pairs.pictures, pairs.problems)
    _compare(pairs, sizes)
    none, count = np.zeros(0, np.int64), len(pairs.pictures)
    return Table(
        categories=list(legend.categories),
        paths=pairs.pictures,
        image_ids=np.arange(1, count + 1),
        sizes=sizes,
        image=none,
        boxes=np.zeros((0, 4), np.float32),
        labels=none,
        area=np.zeros(0),
        crowd=np.zeros(0, bool),
        difficult=np.zeros(0, bool),
        category_ids=np.arange(1, len(legend.categories) + 1),
        label_maps=MaskFiles(pairs.masks, legend),
        colours=None if legend.colours is None else list(legend.colours),
        problems=pairs.problems,
    )


def _compare(pairs: Pairs, sizes: np.ndarray) -> None:
    """Notes masks of another kind, or of another size than their pictures; both are fatal."""

    def look(path: str) -> tuple[int, int] | DataError:
        try:
            return read_mask_header(path).size
        except DataError as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(look, pairs.masks))
    for row, (mask, size) in enumerate(zip(pairs.masks, found, strict=True)):
        (height, width), picture = sizes[row].tolist(), pairs.pictures[row]
        if isinstance(size, DataError):
            pairs.problems.add(BAD_MASK, str(size), fatal=True)
        elif size != (height, width) and height > 0:  # a picture that cannot be read has been noted
            turned = ", perhaps once its EXIF rotation is applied" if size == (width, height) else ""
            where = f"{mask}: {size[1]}x{size[0]}, but {picture} is {width}x{height} (width x height){turned}"
            pairs.problems.add(WRONG_SIZE, where, fatal=True)
