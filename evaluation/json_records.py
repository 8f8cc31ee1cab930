"""JSON files of records as COCO has them: read, and checked value by value with errors that name file and record."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from ..datasets.table import DataError


def load_json(path: Path) -> object:
    """A file's content.

    Raises:
        DataError: not there, or no JSON.
    """
    try:
        return json.loads(path.read_bytes())  # of bytes it also knows those with a mark at their beginning
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:
        raise DataError(f"{path}: is not JSON ({error}); was it written to the end?") from error


def column(path: Path, records: list, key: str) -> list:
    """The value of `key` in each record; a record that is no object or lacks it is a DataError."""
    try:
        return [record[key] for record in records]
    except (KeyError, TypeError):
        row = next(i for i, record in enumerate(records) if not isinstance(record, dict) or key not in record)
        raise DataError(f"{path}: record {row} has no {key!r}: {str(records[row])[:200]}") from None


def check(path: Path, values: list, key: str, good: Callable[[object], bool], expected: str) -> None:
    """Raises a DataError for the first value, one a record, that is not good."""
    for row, value in enumerate(values):
        if not good(value):
            raise DataError(f"{path}: record {row}: {key} must be {expected}, got {str(value)[:100]}")


def is_whole(value: object) -> bool:
    """Whether a value is a whole number that numpy can hold, written as 7 or as 7.0."""
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return whole and abs(value) < 2**63


def is_finite(value: object) -> bool:
    """Whether a value is a number that a float can hold, neither infinite nor nan."""
    return isinstance(value, (int, float)) and abs(value) <= sys.float_info.max


def kind(value: object) -> str:
    """What JSON calls a value."""
    return {dict: "object", list: "list", str: "string", type(None): "null"}.get(type(value), "number")
