"""Sentences from text, a line each: the token files of Flickr8k and Flickr30k, CSV of picture and sentence, split lists.

    1000268201_693b08cb0e.jpg#0<TAB>A child in a pink dress .       a token file: picture, number, tab, sentence
    picture,sentence                                                CSV, with or without a line of column names
    2513260012_03d33305cf.jpg                                       a split list: a picture a line

Text is UTF-8. Every line of another form is fatal and named.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

from .caption_sentences import Sentences
from .table import DataError

SPLITS = {"train": "train", "restval": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val"}
SPLITS |= {"test": "test"}
_PICTURE = {"image", "picture", "photo", "file", "filename", "file_name", "image_name", "image_path", "path"}
_SENTENCE = {"caption", "sentence", "text", "comment", "description"}


def read_tokens(path: Path) -> Sentences:
    """The sentences of a token file; a number used twice for a picture is only warned of."""
    sentences, seen = Sentences(), set()
    for number, line in numbered_lines(path):
        found = re.fullmatch(r"(\S.*)#(\d+)\t(.*)", line, re.DOTALL)
        where = f"{path}:{number}"
        if not found:
            kind = "line is not PICTURE#NUMBER, a tab and a sentence"
            sentences.problems.add(kind, f"{where}: {line[:80]!r}", fatal=True)
            continue
        if found.group(1, 2) in seen:
            sentences.problems.warn("sentence number used twice (both kept)", f"{where}: {found[1]}#{found[2]}")
        seen.add(found.group(1, 2))
        sentences.add(found[1], found[3], where)
    return sentences


def read_csv(path: Path) -> Sentences:
    """The sentences of a table in text.

    Columns are parted by the first of comma, semicolon, tab and | in the file, and may be quoted. Where the first line
    names a column of pictures and one of sentences, these are read, and one named "split" where there is one; else the
    first column holds pictures and the second sentences.
    """
    text = "\n".join(line for _, line in numbered_lines(path, blank=True))
    delimiter = re.search(r"[,;\t|]", re.sub(r'^"[^"]*"', "", text))
    if delimiter is None:
        raise DataError(f"{path}: no commas (or tabs, ; or |) that part pictures from sentences")
    # Where columns are parted by | nobody quotes, and sentences begin with quotation marks.
    quoting = csv.QUOTE_NONE if delimiter[0] == "|" else csv.QUOTE_MINIMAL
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter[0], quoting=quoting)
    sentences, columns, end = Sentences(), None, 0
    try:
        for row in rows:
            first, end = end + 1, rows.line_num
            if columns is None and any(row):
                columns, named = _columns(row)
                if named:
                    continue
            if any(row):
                _add_row(sentences, row, columns, f"{path}:{first}")
    except csv.Error as error:
        raise DataError(f"{path}:{rows.line_num}: {error}") from error
    return sentences


def _columns(row: list[str]) -> tuple[tuple[int, int, int | None], bool]:
    """Where picture, sentence and split stand, and whether the row names its columns."""
    names = [name.strip().lower() for name in row]
    found = [next((i for i, name in enumerate(names) if name in known), None) for known in (_PICTURE, _SENTENCE)]
    if None in found:
        return (0, 1, None), False
    return (*found, names.index("split") if "split" in names else None), True


def _add_row(sentences: Sentences, row: list[str], columns: tuple[int, int, int | None], where: str) -> None:
    picture, sentence, split = columns
    if len(row) <= max(picture, sentence, split or 0) or not row[picture].strip():
        sentences.problems.add("line without picture and sentence", f"{where}: {str(row)[:80]}", fatal=True)
        return
    name = row[picture].strip()
    if split is not None:
        given = SPLITS.get(row[split].strip().lower())
        if given is None:
            known = ", ".join(SPLITS)
            sentences.problems.add(f"split is none of {known}", f"{where}: {row[split]!r}", fatal=True)
        elif sentences.split.setdefault(name, given) != given:
            sentences.problems.add("picture is in two splits", f"{where}: {name}", fatal=True)
    if "\n" in row[sentence]:  # right within quotation marks; one that is not closed takes in the rows behind it
        kind = "sentence of several lines (kept; is a quotation mark not closed?)"
        sentences.problems.warn(kind, f"{where}: {row[sentence][:80]!r}")
    sentences.add(name, row[sentence], where)


def read_list(path: Path) -> dict[str, str]:
    """The pictures that a split list names, each with its file and line; one named twice counts once."""
    pictures: dict[str, str] = {}
    for number, line in numbered_lines(path):
        pictures.setdefault(line.strip(), f"{path}:{number}")
    return pictures


def split_named(path: Path) -> str | None:
    """The split that a list's or table's name speaks of ("Flickr_8k.devImages.txt" is val), or None."""
    found = re.search(rf"(?:^|[._-])({'|'.join(SPLITS)})(?:[._-]?(?:images|captions))?$", path.stem.lower())
    return SPLITS[found[1]] if found else None


def numbered_lines(path: Path, *, blank: bool = False) -> Iterator[tuple[int, str]]:
    """The lines of a text file and their numbers, from 1, blank ones left out unless asked for.

    Raises:
        DataError: not there, or a line is no UTF-8.
    """
    try:
        data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    # Not str.splitlines, which also parts lines at characters that sentences hold (U+0085, U+2028).
    for number, line in enumerate(data.replace(b"\r\n", b"\n").split(b"\n"), 1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}:{number}: not UTF-8 ({line[:60]!r}); save the file as UTF-8") from error
        if blank or text.strip():
            yield number, text
