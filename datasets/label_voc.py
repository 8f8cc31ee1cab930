"""Pascal VOC's masks of categories (http://host.robots.ox.ac.uk/pascal/VOC): `JPEGImages/`, palette PNGs in
`SegmentationClass/`, lists in `ImageSets/Segmentation/`.

Masks are numbered 0 (background) to 20, and 255 is void. For a data set of one's own a file `categories.csv`, `.json` or
`.txt` in the folder names others; `classes.txt` there names those of boxes. Without lists all masks are one split.
"""

from __future__ import annotations

from functools import cached_property
from os import PathLike
from pathlib import Path

from .clean import read_lines
from .label_categories import find_legend
from .label_columns import Pairs, by_stem, mask_table, pair
from .label_files import default_colours
from .label_legend import Legend
from .table import DataError, Table
from .voc import CATEGORIES


class VocMaps:
    """A data set of that layout.

    Attributes:
        splits: the names `read` takes: the lists of which any picture has a mask; empty without lists.
    """

    def __init__(self, folder: str | PathLike) -> None:
        self.folder = Path(folder)
        lists = sorted((self.folder / "ImageSets" / "Segmentation").glob("[!.]*.txt"))
        self._lists = {path.stem: path for path in lists if any(stem in self._masks for stem in _stems(path))}
        self.splits = list(self._lists)
        names = ("background", *CATEGORIES)
        own = find_legend([self.folder], ("categories",))
        self._legend = own or Legend.of(names, default_colours(len(names)), coded=False)

    def read(self, split: str | None = None) -> Table:
        """One split, or all masks where there are no lists.

        Raises:
            DataError: no such split, or no picture of it has a mask. Smaller faults are in the table's `problems`.
        """
        if (split is None) != (not self.splits) or (split and split not in self.splits):
            raise DataError(f"{self.folder}: no split {split!r}; there are {', '.join(self.splits) or 'none'}")
        path = self._lists[split] if split else self.folder / "SegmentationClass"
        return mask_table(self._pairs(path, split), self._legend, str(path))

    def _pairs(self, path: Path, split: str | None) -> Pairs:
        if split is None:
            return pair(list(self._masks), self._pictures, self._masks, dict.fromkeys(self._masks, str(path)))
        stems = _stems(path)
        pairs = pair(
            list(stems), self._pictures, self._masks, {stem: f"{path}:{lines[0]}" for stem, lines in stems.items()}
        )
        for stem, lines in stems.items():
            for line in lines[1:]:
                pairs.problems.add("picture listed twice (kept once)", f"{path}:{line}: {stem}")
        return pairs

    @cached_property
    def _pictures(self) -> dict[str, list[str]]:
        return by_stem(self.folder / "JPEGImages")

    @cached_property
    def _masks(self) -> dict[str, list[str]]:
        return by_stem(self.folder / "SegmentationClass")


def is_voc_maps(folder: Path) -> bool:
    """Whether a folder is of this layout."""
    return all((folder / name).is_dir() for name in ("JPEGImages", "SegmentationClass"))


def _stems(path: Path) -> dict[str, list[int]]:
    """What a list names, each with the numbers of its lines."""
    found: dict[str, list[int]] = {}
    for number, line in enumerate(read_lines(path), 1):
        if line:
            found.setdefault(line.split()[0], []).append(number)
    return found
