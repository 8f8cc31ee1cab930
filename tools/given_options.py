"""Which options were given, and whether they mean anything: one that would change nothing is a misunderstanding."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Set

from sightline.datasets.table import DataError


def given_options(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> set[str]:
    """The names of the options that are not as they are by default."""
    return {name for name, value in vars(arguments).items() if value != parser.get_default(name)}


def options(names: Iterable[str]) -> str:
    """Names of options as they are written: "--beam, --region-way"."""
    return ", ".join(f"--{name.replace('_', '-')}" for name in sorted(names))


def require_known(given: Set[str], known: Set[str], why: str) -> None:
    """
    Raises:
        DataError: an option is given that means nothing; `why` comes first.
    """
    if useless := given - known:
        raise DataError(f"{why}: leave out {options(useless)}")
