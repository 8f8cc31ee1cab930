"""Scoring on pictures that are not what their annotations say: whole or in tiles, it stops and names the file."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from sightline.datasets.table import DataError
from sightline.detectors.tiling import Tiling
from sightline.training import score, score_tiled


@pytest.mark.parametrize("judge", [score, partial(score_tiled, tiling=Tiling(32))], ids=["whole", "tiles"])
def test_a_picture_of_another_size(tiny_detector, tiny_data, judge):
    data, detector = tiny_data(), tiny_detector()
    detector.categories, table = data.categories, data.tables["val"]
    detector.resize = (64, 64)
    judge(detector, table, progress=False)
    with pytest.raises(DataError, match=r"shapes:\S+: the picture is 64x64 pixels .* annotations are for 80x64"):
        judge(detector, replace(table, sizes=table.sizes + np.array([16, 0])), progress=False)
