"""Numbers on the command line, as `argparse` types. (A module `numbers` is the standard library's.)"""

from __future__ import annotations

import argparse


def whole(text: str) -> int:
    """A whole number from 0.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    return _at_least(0, text)


def positive(text: str) -> int:
    """A whole number from 1.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    return _at_least(1, text)


def scale(text: str) -> float:
    """A number, of an option that takes several; which they may be depends on the model.

    Raises:
        argparse.ArgumentTypeError: it is none: such an option takes all words up to the next one, pictures too.
    """
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number; what is no scale must come before this option"
        ) from None


def _at_least(least: int, text: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be a whole number from {least}, got {text!r}")
    return int(text)
