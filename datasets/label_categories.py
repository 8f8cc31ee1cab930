"""The small file beside masks that names their categories, colours and void: text, CSV or json.

    classes.txt                         a name a line, the first is number 0; or lines as in CSV
    categories.csv                      name,red,green,blue, with or without a line of column names
    categories.json                     ["sky", ...], [{"name": "sky", "colour": [128, 128, 128]}, ...] or {"sky": [128, ...]}

The order is that of the numbers. A category called void, ignore, unlabelled or unlabeled keeps its number, or its colour,
and is not one.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from .clean import read_lines
from .coco import read_json
from .label_files import Colour
from .label_legend import Legend, is_void
from .table import DataError

NAMES = ("categories", "classes", "class_dict", "labels")
_HEADERS = ({"name", "class", "category", "label"}, {"r", "red"}, {"g", "green"}, {"b", "blue"})


def find_legend(folders: Iterable[Path], names: Sequence[str] = NAMES) -> Legend | None:
    """What the first such file in these folders says; None where there is none.

    Raises:
        DataError: it is of another form.
    """
    for folder in folders:
        for name in names:
            for suffix in (".csv", ".json", ".txt"):
                if (folder / f"{name}{suffix}").is_file():
                    return read_legend(folder / f"{name}{suffix}")
    return None


def read_legend(path: Path) -> Legend:
    """What a file of categories says.

    Raises:
        DataError: it cannot be read, is of another form, names nothing but void, or a category or colour twice.
    """
    rows = _json_rows(path) if path.suffix.lower() == ".json" else _text_rows(path)
    names = [name for _, name, _ in rows]
    colours = [colour for _, _, colour in rows]
    if all(is_void(name) for name in names):
        raise DataError(f"{path}: names no category")
    if any(colours) and not all(colours):
        where, name = next((where, name) for where, name, colour in rows if not colour)
        raise DataError(f"{where}: {name!r} has no colour, and others have one; give one to all or to none")
    for what, values in (("name", names), ("colour", colours if all(colours) else [])):
        for number, value in enumerate(values):
            if value in values[:number]:
                raise DataError(f"{rows[number][0]}: {what} {value!r} is that of {names[values.index(value)]!r}, too")
    return Legend.of(names, colours if all(colours) else None)


_Row = tuple[str, str, Colour | None]  # where it stands, the name, the colour


def _text_rows(path: Path) -> list[_Row]:
    """Lines of a name, or of a name and three numbers."""
    lines = read_lines(path)
    rows = [(f"{path}:{number}", _cells(line)) for number, line in enumerate(lines, 1) if line]
    if rows and len(rows[0][1]) > 1 and all(c.lower() in h for c, h in zip(rows[0][1], _HEADERS, strict=False)):
        rows = rows[1:]
    return [(where, cells[0], _colour(cells[1:], where)) for where, cells in rows]


def _cells(line: str) -> list[str]:
    """The cells of a line of CSV."""
    return [cell.strip() for cell in next(csv.reader(io.StringIO(line)))]


def _colour(cells: Sequence[Any], where: str) -> Colour | None:
    """Three numbers from 0 to 255, or nothing."""
    try:
        numbers = tuple(int(cell) for cell in cells)
    except (TypeError, ValueError):
        numbers = (-1,)
    if numbers and (len(numbers) != 3 or not all(0 <= number <= 255 for number in numbers)):
        raise DataError(f"{where}: {list(cells)} is no colour of three numbers from 0 to 255 (red, green, blue)")
    return numbers or None


def _json_rows(path: Path) -> list[_Row]:
    """A list of names or of objects with a name, or an object from names to colours."""
    document = read_json(path)
    if isinstance(document, dict):
        document = [{"name": name, "colour": colour} for name, colour in document.items()]
    rows: list[_Row] = []
    for number, entry in enumerate(document if isinstance(document, list) else [None]):
        entry, where = {"name": entry} if isinstance(entry, str) else entry, f"{path}: entry {number} from 0"
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not name:
            raise DataError(f"{where} is neither a name nor an object with a name: {str(entry)[:80]}")
        colour = entry.get("colour", entry.get("color")) or ()
        rows.append((where, name, _colour(colour if isinstance(colour, list | tuple) else [colour], where)))
    return rows


def write_categories(folder: str | PathLike, names: Sequence[str], colours: Sequence[Colour] | None = None) -> None:
    """Writes categories.csv beside the masks of a folder, which `find_legend` reads back equal."""
    rows = [[name, *colour] for name, colour in zip(names, colours or [()] * len(names), strict=True)]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / "categories.csv").write_text(text.getvalue(), encoding="utf-8")
