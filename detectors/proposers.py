"""The proposers by name."""

from __future__ import annotations

from dataclasses import replace

from ..datasets.proposals import Proposer
from ..datasets.table import nearest
from .selective_search import SelectiveSearch
from .sliding_window import SlidingWindow

PROPOSERS: dict[str, Proposer] = {
    "selective_search": SelectiveSearch(mode="fast"),
    "selective_search_quality": SelectiveSearch(mode="quality"),
    "selective_search_regions": SelectiveSearch(mode="fast", masks=28),
    "sliding_window": SlidingWindow(),
}


def proposer_named(name: str, limit: int = 2000) -> Proposer:
    """The proposer of that name, with at most `limit` boxes a picture.

    Raises:
        ValueError: no such name (the message has the nearest), or a limit below 1.
    """
    if name not in PROPOSERS:
        raise ValueError(f"no proposer {name!r}; there are {', '.join(PROPOSERS)}{nearest(name, PROPOSERS)}")
    return replace(PROPOSERS[name], limit=limit)
