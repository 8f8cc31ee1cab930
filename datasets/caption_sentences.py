"""Sentences as a reader gathers them, and the `Table` of captioned pictures that they make."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from .clean import Objects, Pictures, clean_table
from .table import DataError, Problems, Table


@dataclass
class Sentences:
    """Sentences gathered from a file, cleaned.

    Attributes:
        of: picture to its sentences, both in the file's order; all have at least one.
        where: picture to the file and line that first names it.
        split: picture to its split, where the file says so.
        ids: picture to its id, where the file says so; of some pictures alone they are not used.
        problems: what was found wrong.
    """

    of: dict[str | int, list[str]] = field(default_factory=dict)
    where: dict[str | int, str] = field(default_factory=dict)
    split: dict[str | int, str] = field(default_factory=dict)
    ids: dict[str | int, int] = field(default_factory=dict)
    problems: Problems = field(default_factory=Problems)

    def add(self, picture: str | int, text: str, where: str) -> None:
        """Takes a sentence, its white space made single spaces; `where` names file and line."""
        sentence = " ".join(text.split())
        if not any(letter.isalnum() for letter in sentence):
            self.problems.add("empty sentence (left out)", f"{where}: {text[:80]!r}")
            return
        if "\ufffd" in sentence:
            self.problems.warn("sentence with letters lost by a wrong decoding (kept)", f"{where}: {sentence[:80]!r}")
        group = self.of.setdefault(picture, [])
        self.where.setdefault(picture, where)
        if sentence in group:
            self.problems.warn("sentence twice for one picture (kept)", f"{where}: {sentence[:80]!r}")
        group.append(sentence)


def captioned_table(path: Path, pictures: Pictures, captions: list[list[str]], problems: Problems) -> Table:
    """The `Table` of pictures and their sentences, without objects; `path` is the file to blame where there is nothing.

    Raises:
        DataError: not one picture is left.
    """
    if not pictures.paths:
        raise DataError(f"{path}: not one picture with a sentence\n{problems.summary()}")
    # What `clean_table` notes, that there are no objects, is put aside.
    nothing = Objects(np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0, np.int64), where=str)
    table = clean_table(str(path), [], pictures, nothing, Problems())
    return replace(table, captions=captions, problems=problems)


def leave_out(problems: Problems, where: list[str]) -> None:
    """Notes pictures that have no sentence; `where` says which, each with its file."""
    problems.add_rows("picture without a sentence (left out)", np.arange(len(where)), where.__getitem__)
