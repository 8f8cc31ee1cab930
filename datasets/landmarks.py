"""Which landmark is which in a mirrored picture."""

from __future__ import annotations

import re
from collections.abc import Sequence

_OTHER = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}


def mirrored(names: Sequence[str], *, flipped: bool = False, upturned: bool = False) -> list[int]:
    """The row that each landmark's place is filled from: `landmarks[:, mirrored(names, flipped=True)]`.

    A name that is only "left", "right", "top" or "bottom" means a place in the picture: left and right change when it is
    flipped, top and bottom when it is turned upside down. "left_eye" and "right_eye" are sides of a body, whose mirror
    image has them exchanged, whichever way it was mirrored. A name without its counterpart keeps its place.

    Args:
        names: P names, unique.
        flipped: mirrored left to right.
        upturned: mirrored top to bottom.
    """
    changed = {"left": flipped, "right": flipped, "top": upturned, "bottom": upturned}
    row_of = {name: row for row, name in enumerate(names)}

    def counterpart(name: str) -> str:
        if name in changed:
            return _OTHER[name] if changed[name] else name
        side = re.compile(r"(?<![a-z])(left|right)(?![a-z])")
        return side.sub(lambda found: _OTHER[found[0]], name) if flipped != upturned else name

    return [row_of.get(counterpart(name), row) for row, name in enumerate(names)]
