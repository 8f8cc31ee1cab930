"""The proposers by name."""

import numpy as np
import pytest

from sightline.detectors.proposers import PROPOSERS, proposer_named
from sightline.detectors.selective_search import SelectiveSearch
from sightline.detectors.sliding_window import SlidingWindow

KNOWN = {
    "selective_search": SelectiveSearch(mode="fast", limit=50),
    "selective_search_quality": SelectiveSearch(mode="quality", limit=50),
    "selective_search_regions": SelectiveSearch(mode="fast", limit=50, masks=28),
    "sliding_window": SlidingWindow(limit=50),
}


def test_names():
    assert list(PROPOSERS) == list(KNOWN)
    assert len({made.key for made in PROPOSERS.values()}) == len(PROPOSERS)


@pytest.mark.parametrize("name", KNOWN)
def test_by_name(name):
    assert proposer_named(name, 50) == KNOWN[name]
    assert proposer_named(name) == PROPOSERS[name]
    found = proposer_named(name, 50)(np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8))
    assert 1 <= len(found.boxes) <= 50


def test_wrong_names_and_limits():
    with pytest.raises(ValueError, match=r"no proposer 'selective_serach'.*did you mean 'selective_search'"):
        proposer_named("selective_serach")
    with pytest.raises(ValueError, match="at least 1"):
        proposer_named("sliding_window", 0)
