"""Boxes of a picture described one by one."""

import numpy as np
import pytest
import torch

from sightline.captioning import regions
from sightline.captioning.inference import caption
from sightline.captioning.regions import WAYS, describe
from sightline.datasets.transforms import from_hwc

QUARTERS = torch.tensor([[0.0, 0, 48, 32], [48, 0, 96, 32], [0, 32, 48, 64], [48, 32, 96, 64]])


@pytest.fixture
def quarters():
    """(3, 64, 96): red, green, blue and green."""
    image = np.zeros((64, 96, 3), np.uint8)
    image[:32, :48], image[:32, 48:] = (200, 10, 10), (10, 200, 10)
    image[32:, :48], image[32:, 48:] = (10, 10, 200), (10, 200, 10)
    return from_hwc(image)


@pytest.mark.parametrize("way", WAYS)
def test_each_box_has_its_own_sentence(namer, quarters, way):
    found = describe(namer(), quarters, QUARTERS, way)
    assert [said.sentences[0] for said in found] == [f"{name} picture" for name in ("red", "green", "blue", "green")]
    for said in found:
        assert said.grid == (4, 6)
        assert said.captions.attention.shape == (2, 3, 24)
        np.testing.assert_allclose(said.extent, (32, 48), rtol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_the_whole_picture_as_a_box_is_the_picture(namer, way):
    image = torch.randint(0, 256, (3, 32, 48), dtype=torch.uint8)
    model = namer()
    (said,), whole = describe(model, image, torch.tensor([[0.0, 0, 48, 32]]), way), caption(model, image)
    assert said.sentences == whole.sentences
    torch.testing.assert_close(said.captions.scores, whole.captions.scores)
    torch.testing.assert_close(said.captions.attention, whole.captions.attention)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("resize", [(32, 48, True), (40, 96), (30, 44, True)], ids=str)
def test_chunks_change_nothing(namer, quarters, monkeypatch, way, resize):
    model = namer()
    model.resize = resize
    corners = torch.rand(7, 2, 2).sort(1).values * torch.tensor([96.0, 64.0])
    boxes = torch.cat([corners[:, 0], corners[:, 1]], 1)
    together = describe(model, quarters, boxes, way)
    monkeypatch.setattr(regions, "CHUNK", 3)
    parts = describe(model, quarters, boxes, way)
    alone = [describe(model, quarters, box[None], way)[0] for box in boxes]
    for one, other, third in zip(together, parts, alone, strict=True):
        assert one.sentences == other.sentences == third.sentences
        assert one.extent == other.extent == third.extent
        torch.testing.assert_close(one.captions.scores, other.captions.scores)
        torch.testing.assert_close(one.captions.scores, third.captions.scores)


def test_a_region_is_sampled_as_a_slow_loop_does(namer, quarters):
    """RoIAlign with one sample in each cell of the region: bilinear between the centres of the map's cells."""
    model = namer()
    x0, y0, x1, y1 = box = 11.0, 5.0, 71.0, 50.0
    given = []
    model.search = lambda decoder, annotations: given.append(annotations) or regions_search(decoder, annotations)
    regions_search = namer().search
    describe(model, quarters, torch.tensor([box]), "roi")
    whole = torch.nn.functional.avg_pool2d(
        torch.nn.functional.interpolate(quarters[None].float(), (32, 48), mode="bilinear") / 255, 8
    )[0]
    expected = torch.zeros(3, 4, 6)
    for row in range(4):
        for column in range(6):
            # In cells of the map, each 8 pixels of a picture half as large; -0.5, as a cell's centre is its place.
            y = (y0 + (row + 0.5) * (y1 - y0) / 4) / 2 / 8 - 0.5
            x = (x0 + (column + 0.5) * (x1 - x0) / 6) / 2 / 8 - 0.5
            top, left = int(np.floor(y)), int(np.floor(x))
            for i, j in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
                weight = (1 - abs(y - i)) * (1 - abs(x - j))
                expected[:, row, column] += weight * whole[:, min(max(i, 0), 3), min(max(j, 0), 5)]
    torch.testing.assert_close(given[0].maps[0], expected, atol=4e-3, rtol=0)
    assert given[0].valid.all()


def test_padding_of_the_frame_is_no_part_of_a_region(namer):
    """In a frame of 64 pixels of which the picture takes 40: a box at its edge sees the edge, not what is beside it."""
    model, given = namer(), []
    model.resize = (32, 96)
    search = model.search
    model.search = lambda decoder, annotations: given.append(annotations) or search(decoder, annotations)
    describe(model, torch.full((3, 64, 80), 200, dtype=torch.uint8), torch.tensor([[70.0, 0, 80, 64]]), "roi")
    torch.testing.assert_close(given[0].maps, torch.full((1, 3, 4, 5), 200 / 255))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("box", "colour"),
    [
        ((-50.0, -50, 40, 30), "red"),
        ((60.0, 5, 500, 20), "green"),
        ((5.0, 40, 5, 60), "blue"),  # no width
        ((40.0, 60, 5, 40), "blue"),  # turned round
        ((-30.0, 50, -20, 60), "blue"),  # outside
        ((200.0, 200, 300, 300), "green"),
    ],
    ids=str,
)
def test_boxes_are_clipped_to_the_picture(namer, quarters, way, box, colour):
    (said,) = describe(namer(), quarters, torch.tensor([box]), way)
    assert said.sentences[0] == f"{colour} picture"
    assert all(side >= 1 for side in said.extent)


@pytest.mark.parametrize("way", WAYS)
def test_no_boxes(namer, quarters, way):
    model = namer()
    assert describe(model, quarters, torch.zeros(0, 4), way) == []
    assert model.decoder.seen == []


def test_nothing_given_is_changed(namer, quarters):
    image, boxes = quarters.clone(), QUARTERS - 20
    for way in WAYS:
        describe(namer(), quarters, boxes, way)
    assert torch.equal(image, quarters)
    assert torch.equal(boxes, QUARTERS - 20)


@pytest.mark.parametrize(
    ("boxes", "way", "message"),
    [
        (torch.zeros(4), "crop", r"boxes must be \(N, 4\)"),
        (torch.tensor([[0.0, 0, torch.nan, 5]]), "roi", "finite"),
        (QUARTERS, "pool", "by crop or roi, got 'pool'"),
    ],
    ids=["shape", "nan", "way"],
)
def test_mistakes(namer, quarters, boxes, way, message):
    with pytest.raises(ValueError, match=message):
        describe(namer(), quarters, boxes, way)
