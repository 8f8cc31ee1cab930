"""Sentences that name their pictures, and a folder somewhere in which those lie: the tables that these two make."""

from __future__ import annotations

import os
import unicodedata
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from .caption_lines import SPLITS
from .caption_sentences import Sentences, captioned_table
from .clean import Pictures, measure
from .images import pictures_below
from .table import DataError, Problems, Table


def by_split(path: Path, sentences: Sentences, pictures: Index) -> dict[str, Table]:
    """The tables of the splits that a file names; "train" where it names none."""
    tables = {}
    for split in dict.fromkeys(SPLITS.values()):
        if names := [name for name in sentences.of if sentences.split.get(name, "train") == split]:
            tables[split] = text_table(path, names, sentences, pictures)
            sentences = replace(sentences, problems=Problems())  # told once, with the first split
    if not tables:
        raise DataError(f"{path}: not one sentence in it\n{sentences.problems.summary()}")
    return tables


def text_table(path: Path, names: list[str], sentences: Sentences, pictures: Index) -> Table:
    """The table of these pictures, in this order."""
    problems, paths, kept, ids = sentences.problems, [], [], []
    for name in names:
        found = pictures.find(name, problems)
        if found is None:
            problems.add("picture is missing", f"{sentences.where[name]}: {name}", fatal=True)
        else:
            paths.append(found)
            kept.append(sentences.of[name])
            ids.append(sentences.ids.get(name))
    numbered = all(name in sentences.ids for name in sentences.of)  # across the splits, as one data set
    return captioned_table(path, Pictures(paths, measure(paths, problems), ids if numbered else None), kept, problems)


class Index:
    """Where the pictures of a data set lie: at the path that a name is, or else anywhere below its folder.

    Names are compared with their letters composed (NFC): macOS takes them apart in folders, text seldom does.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, name: str, problems: Problems) -> str | None:
        """The file of a name, which may have folders before it; None where there is none."""
        name = name.replace("\\", "/")
        if os.path.isfile(exact := os.path.join(self.folder, name)):
            return exact
        name = unicodedata.normalize("NFC", name)
        found = self._by_name.get(name.rpartition("/")[2], [])
        if len(found) > 1:
            found = [path for path in found if path.replace("\\", "/").endswith(f"/{name}")]
            if len(found) > 1:
                problems.warn("one name for several files (the first is taken)", ", ".join(found[:3]))
        return found[0] if found else None

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for path in pictures_below(self.folder):
            found.setdefault(unicodedata.normalize("NFC", os.path.basename(path)), []).append(path)
        return found
