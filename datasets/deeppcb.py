"""DeepPCB's own form (Tang et al. 2019, https://arxiv.org/abs/1902.06197): six kinds of defects on circuit boards.

`trainval.txt` and `test.txt` list a picture and a text file a line; the picture listed as `x.jpg` is `x_test.jpg` or
`x_test.png` (the defect-free `x_temp` beside it is not used), and the text holds `x0 y0 x1 y1 type` an object, type
1..6. What is fatal: a line of another form, an unknown type, a listed file that is not there. What is repaired: see
`clean`.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import numpy as np

from .clean import UNKNOWN_CATEGORY, Objects, Pictures, clean_table, measure, read_lines
from .table import DataError, Problems, Table

CATEGORIES = ("open", "short", "mousebite", "spur", "copper", "pin-hole")


class DeepPcbFolder:
    """DeepPCB's folder, or the one above its `PCBData/`.

    Attributes:
        splits: the names `read` takes: "trainval", "test".
    """

    def __init__(self, folder: str | PathLike) -> None:
        self.folder = find_lists(Path(folder))
        if self.folder is None:
            raise DataError(f"{folder}: no trainval.txt and test.txt beside group*/ folders, as DeepPCB has them")
        self.splits = [name for name in ("trainval", "test") if (self.folder / f"{name}.txt").is_file()]

    def read(self, split: str | None = None) -> Table:
        """One split, or all of them in one table; faults are in the table's `problems`."""
        if split is not None and split not in self.splits:
            raise DataError(f"{self.folder}: no split {split!r}; there are {', '.join(self.splits)}")
        problems = Problems()
        pairs = [pair for name in ([split] if split else self.splits) for pair in self._pairs(name, problems)]
        paths = [str(picture) for picture, _ in pairs]
        objects = _objects([text for _, text in pairs], problems)
        pictures = Pictures(paths, measure(paths, problems))
        return clean_table(str(self.folder), list(CATEGORIES), pictures, objects, problems)

    def _pairs(self, split: str, problems: Problems) -> list[tuple[Path, Path]]:
        pairs = []
        path = self.folder / f"{split}.txt"
        for number, line in enumerate(read_lines(path), 1):
            names = line.split()
            if not names:
                continue
            if len(names) != 2:
                problems.add("line does not list a picture and a text file", f"{path}:{number}: {line!r}", fatal=True)
                continue
            stem = self.folder / names[0].rpartition(".")[0]
            picture = next((p for p in (Path(f"{stem}_test.png"), Path(f"{stem}_test.jpg")) if p.is_file()), None)
            if picture is None:
                problems.add("picture is missing", f"{path}:{number}: no {stem}_test.png or .jpg", fatal=True)
            else:
                pairs.append((picture, self.folder / names[1]))
        return pairs


def find_lists(folder: Path) -> Path | None:
    """The folder of DeepPCB's lists, given it or the one above; None where there is none."""
    for candidate in (folder, folder / "PCBData"):
        lists = any((candidate / f"{name}.txt").is_file() for name in ("trainval", "test"))
        if lists and next(candidate.glob("group*"), None):
            return candidate
    return None


def _objects(texts: list[Path], problems: Problems) -> Objects:
    rows = [(image, number, values) for image, path in enumerate(texts) for number, values in _lines(path, problems)]
    values = np.array([values for *_, values in rows], np.float64).reshape(-1, 5)
    return Objects(
        image=np.array([image for image, *_ in rows], np.int64),
        boxes=values[:, :4],
        labels=values[:, 4].astype(np.int64) - 1,
        where=lambda k: f"{texts[rows[k][0]]}:{rows[k][1]}",
    )


def _lines(path: Path, problems: Problems) -> list[tuple[int, list[float]]]:
    try:
        lines = read_lines(path)
    except DataError as error:
        problems.add("annotation file cannot be read", str(error), fatal=True)
        return []
    found = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            values = [float(text) for text in line.replace(",", " ").split()]
        except ValueError:
            values = []
        if len(values) != 5:
            problems.add("line is not five numbers", f"{path}:{number}: {line!r}", fatal=True)
        elif values[4] not in range(1, len(CATEGORIES) + 1):
            where = f"{path}:{number}: type {values[4]:g}, expected 1 to {len(CATEGORIES)}"
            problems.add(UNKNOWN_CATEGORY, where, fatal=True)
        else:
            found.append((number, values))
    return found
