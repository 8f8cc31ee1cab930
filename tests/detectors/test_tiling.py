"""Large pictures in tiles: every object once, whatever borders run through it."""

import pytest
import torch
from torchvision.ops import box_iou

from sightline.datasets.masks import from_pixels, to_pixels
from sightline.datasets.structures import Instances
from sightline.detectors import classifier, faster_rcnn
from sightline.detectors.boxes import area
from sightline.detectors.inference import find
from sightline.detectors.model import Detector
from sightline.detectors.tile_merging import merge_tiles
from sightline.detectors.tiling import Tiling, find_tiled

# -- Where tiles lie --


@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5, 0.9])
@pytest.mark.parametrize(("height", "width"), [(640, 640), (641, 1000), (3000, 2171), (100, 1281), (50, 60)])
def test_tiles_cover_the_picture(height, width, overlap):
    tiles = Tiling(640, overlap).tiles(height, width)
    assert (tiles[:, 2:] - tiles[:, :2] == torch.tensor([min(width, 640), min(height, 640)])).all()
    assert tiles.amin(0)[:2].tolist() == [0, 0]
    assert tiles.amax(0)[2:].tolist() == [width, height]
    for axis, length in ((0, width), (1, height)):
        starts = tiles[:, axis].unique()
        assert len(starts) == 1 or starts.diff().max() <= round(640 * (1 - overlap))
        assert len(starts) == -(-max(length - 640, 0) // round(640 * (1 - overlap))) + 1  # and no more than it takes


@pytest.mark.parametrize(
    ("tile", "overlap", "message"),
    [(16, 0.2, "at least 32 pixels a side, got 16"), (640, 1.0, "from 0 to 0.9"), (640, -0.1, "got -0.1"),
     (640, float("nan"), "from 0 to 0.9")],
)  # fmt: skip
def test_tilings_that_cannot_be(tile, overlap, message):
    with pytest.raises(ValueError, match=message):
        Tiling(tile, overlap)


# -- An oracle, which knows the objects and sees of them what is in its tile --


def oracle(objects, tiles, *, visible=0.0, whole=False):
    """Objects cut to each tile, where more than a share of their area is visible; and the whole picture's, if asked."""
    found = []
    if whole:
        tiles = torch.cat([torch.tensor([[0, 0, *tiles[:, 2:].amax(0)]]), tiles])
    for x0, y0, x1, y1 in tiles.tolist():
        low, high = objects[:, :2].clamp(min=torch.tensor([x0, y0])), objects[:, 2:].clamp(max=torch.tensor([x1, y1]))
        parts = torch.cat([low, high], dim=1)
        seen = ((low < high).all(1)) & (area(parts) > visible * area(objects))
        parts = parts[seen] - torch.tensor([x0, y0, x0, y0])
        found.append(Instances(parts, torch.zeros(len(parts), dtype=torch.int64), torch.full((len(parts),), 0.8)))
    return found, tiles


def scattered(height, width, most, count=40):
    """Objects that do not meet, of sides from 4 to `most` pixels."""
    kept = torch.zeros(0, 4)
    for _ in range(20 * count):
        size = 4 + (most - 4) * torch.rand(2) ** 2
        corner = torch.rand(2) * (torch.tensor([width, height]) - size)
        box = torch.cat([corner, corner + size])[None]
        if len(kept) < count and not box_iou(box + torch.tensor([-4, -4, 4, 4]), kept).any():
            kept = torch.cat([kept, box])
    return kept


def assert_each_once(found, objects, least=0.99):
    overlap = box_iou(found.boxes, objects)
    assert len(found) == len(objects)
    assert overlap.amax(0).min() >= least
    assert sorted(overlap.argmax(0).tolist()) == list(range(len(objects)))


@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.25, 0.5])
@pytest.mark.parametrize("seed", range(6))
def test_objects_of_all_sizes_come_out_once(seed, overlap):
    """The largest reach over several tiles, and no one ever sees them whole."""
    torch.manual_seed(seed)
    objects, tiles = scattered(700, 900, 300), Tiling(200, overlap).tiles(700, 900)
    assert len(objects) > 10
    assert_each_once(merge_tiles(*oracle(objects, tiles)), objects)


@pytest.mark.parametrize("visible", [0.1, 0.3, 0.6])
@pytest.mark.parametrize("seed", range(6))
def test_with_the_whole_picture_small_parts_may_go_unseen(seed, visible):
    torch.manual_seed(seed)
    objects, tiles = scattered(700, 900, 300), Tiling(200, 0.2).tiles(700, 900)
    assert_each_once(merge_tiles(*oracle(objects, tiles, visible=visible, whole=True)), objects)


@pytest.mark.parametrize("visible", [0.1, 0.3, 0.6])
@pytest.mark.parametrize("seed", range(6))
def test_objects_no_larger_than_the_overlap_need_no_more_than_tiles(seed, visible):
    torch.manual_seed(seed)
    objects, tiles = scattered(700, 900, 50), Tiling(200, 0.25).tiles(700, 900)
    assert_each_once(merge_tiles(*oracle(objects, tiles, visible=visible)), objects)


# name: objects in a picture of 360 x 360, which has nine tiles of 200 at 0, 80 and 160
LAYOUTS = {
    "two tiles": [[50, 20, 250, 70]],
    "four tiles": [[60, 70, 330, 300]],
    "all tiles": [[1, 1, 359, 359]],
    "side by side, cut by one border": [[100, 20, 260, 60], [100, 70, 260, 110]],
    "one within another": [[20, 20, 340, 340], [100, 100, 140, 140]],
    "ends at a border": [[100, 20, 200, 60], [160, 100, 300, 190]],
    "a tile's whole": [[0, 0, 200, 200], [205, 205, 360, 360]],
}


@pytest.mark.parametrize("objects", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_layouts(objects):
    objects = torch.tensor(objects, dtype=torch.float32)
    assert_each_once(merge_tiles(*oracle(objects, Tiling(200, 0.5).tiles(360, 360))), objects)


def one_each(*rows):
    """Tiles of 100 beside each other, overlapping by 20, each with rows of box, label and score."""
    tiles = torch.tensor([[80 * i, 0, 80 * i + 100, 100] for i in range(len(rows))])
    parts = [torch.tensor(part, dtype=torch.float32).reshape(-1, 6) for part in rows]
    return [Instances(part[:, :4], part[:, 4].long(), part[:, 5]) for part in parts], tiles


def rows_of(found):
    columns = [found.boxes, found.labels[:, None], found.scores[:, None]]
    return [[round(value, 3) for value in row] for row in torch.cat(columns, dim=1).tolist()]


# name: what is found in each tile, and what remains. Tile 1 begins at x = 80.
RULES = {
    "parts are joined, the surest's score": (
        ([[40, 10, 100, 50, 0, 0.6]], [[0, 12, 30, 50, 0, 0.9]]),
        [[40, 10, 110, 50, 0, 0.9]],
    ),
    "other labels are other objects": (
        ([[40, 10, 100, 50, 0, 0.6]], [[0, 10, 30, 50, 1, 0.9]]),
        [[80, 10, 110, 50, 1, 0.9], [40, 10, 100, 50, 0, 0.6]],
    ),
    "parts that disagree in common": (
        ([[40, 10, 100, 50, 0, 0.6]], [[0, 40, 30, 90, 0, 0.9]]),
        [[80, 40, 110, 90, 0, 0.9], [40, 10, 100, 50, 0, 0.6]],
    ),
    "an unsure box joins nothing": (
        ([[40, 10, 100, 50, 0, 0.9]], [[0, 10, 80, 50, 0, 0.2]]),
        [[40, 10, 100, 50, 0, 0.9], [80, 10, 160, 50, 0, 0.2]],
    ),
    "the surest of two parts": (
        ([[40, 10, 100, 50, 0, 0.8]], [[0, 10, 30, 50, 0, 0.8], [0, 10, 99, 70, 0, 0.7]]),
        [[40, 10, 110, 50, 0, 0.8], [80, 10, 179, 70, 0, 0.7]],
    ),
    "the better of two whole ones": (
        ([[81, 10, 95, 50, 0, 0.6]], [[2, 10, 16, 50, 0, 0.7]]),
        [[82, 10, 96, 50, 0, 0.7]],
    ),
    "a part in a whole one of half its score": (
        ([[85, 10, 100, 50, 0, 0.9]], [[5, 10, 40, 50, 0, 0.5]]),
        [[85, 10, 120, 50, 0, 0.5]],
    ),
    "a part in one of less": (
        ([[85, 10, 100, 50, 0, 0.9]], [[5, 10, 40, 50, 0, 0.4]]),
        [[85, 10, 100, 50, 0, 0.9], [85, 10, 120, 50, 0, 0.4]],
    ),
    "nothing": (([], []), []),
    "nothing in one tile": (([], [[5, 10, 40, 50, 0, 0.4]]), [[85, 10, 120, 50, 0, 0.4]]),
}


@pytest.mark.parametrize(("found", "expected"), RULES.values(), ids=RULES.keys())
def test_rules(found, expected):
    """A third tile, in which nothing is, makes tile 1's right border an inner one."""
    merged = merge_tiles(*one_each(*found, []))
    assert rows_of(merged) == [pytest.approx(row, abs=1e-3) for row in expected]


def test_many_boxes_are_merged_in_blocks(monkeypatch):
    objects, tiles = scattered(700, 900, 300), Tiling(200, 0.25).tiles(700, 900)
    expected = merge_tiles(*oracle(objects, tiles))
    monkeypatch.setattr("sightline.detectors.tile_merging.BLOCK", 3)
    assert torch.equal(merge_tiles(*oracle(objects, tiles)).boxes, expected.boxes)


# -- With pixels --


class ColourFinder(Detector):
    """In each channel the box around the bright pixels, unless there are few."""

    def __init__(self):
        super().__init__(mean=(0.5,) * 3, std=(0.5,) * 3, num_classes=3)
        self.layer, self.resize, self.seen = torch.nn.Linear(1, 1), (96, 96), []

    def forward(self, images, sizes):
        self.seen.append(tuple(images.shape))
        return images > 127

    def decode(self, bright, sizes):
        edges = []
        for along in (bright.any(dim=2), bright.any(dim=3)):
            edges += [along.int().argmax(-1), along.shape[-1] - along.flip(-1).int().argmax(-1)]
        boxes = torch.stack([edges[0], edges[2], edges[1], edges[3]], dim=-1).float()
        labels = torch.where(bright.sum(dim=(2, 3)) > 20, torch.arange(3), -1)
        return Instances(boxes, labels, torch.where(labels >= 0, 0.9, 0.0))


def test_find_tiled():
    """Objects in one tile, in two and in four, and one so small that the whole picture does not show it."""
    image, truth = (
        torch.zeros(3, 330, 250, dtype=torch.uint8),
        [[60, 30, 140, 60], [50, 60, 140, 130], [200, 300, 206, 305]],
    )
    for channel, (x0, y0, x1, y1) in enumerate(truth):
        image[channel, y0:y1, x0:x1] = 255
    model = ColourFinder().train()
    found = find_tiled(model, image, tile=96, overlap=0.25, batch_size=5)
    assert sorted(found.labels.tolist()) == [0, 1, 2]
    boxes = found.boxes[found.labels.argsort()]
    assert (
        box_iou(boxes, torch.tensor(truth).float()).diag().min() > 0.85
    )  # the whole picture is seen at a third of its size
    assert model.seen == [(1, 3, 96, 96), *[(5, 3, 96, 96)] * 4]
    assert model.training
    assert 2 not in find(model, image).labels
    assert not len(find_tiled(model, image, tile=96, score=0.95))


class DiscFinder(ColourFinder):
    """A `ColourFinder` that gives masks: which pixels of the box are bright."""

    task = "instance_segmentation"

    def decode(self, bright, sizes):
        found = super().decode(bright, sizes)
        masks = torch.zeros(*found.labels.shape, 28, 28)
        for i, k in (found.labels >= 0).nonzero().tolist():
            masks[i, k] = torch.from_numpy(from_pixels(bright[i, k].numpy(), found.boxes[i, k].numpy(), 28))
        found.masks = masks
        return found


@pytest.mark.parametrize("overlap", [0.0, 0.25])
def test_masks_of_tiles_are_joined_where_they_lie(overlap):
    """Discs in one tile, in two and in four: as whole as where nothing is cut."""
    rows, columns = torch.meshgrid(torch.arange(330) + 0.5, torch.arange(250) + 0.5, indexing="ij")
    discs = [((x, y), r) for x, y, r in ((40, 40, 25), (90, 150, 30), (140, 240, 60))]
    bright = torch.stack([(columns - x) ** 2 + (rows - y) ** 2 < r**2 for (x, y), r in discs])
    image = 255 * bright.to(torch.uint8)
    model = DiscFinder()
    tiled = find_tiled(model, image, tile=96, overlap=overlap)
    model.resize = (330, 250)  # the picture as it is, in one piece
    whole = find(model, image)
    assert sorted(tiled.labels.tolist()) == sorted(whole.labels.tolist()) == [0, 1, 2]
    shown, expected = (
        to_pixels(found.masks, found.boxes, (330, 250))[found.labels.argsort()] for found in (tiled, whole)
    )
    for masks in (shown, expected):
        assert ((masks & bright).sum((1, 2)) / (masks | bright).sum((1, 2))).min() > 0.9
    assert ((shown & expected).sum((1, 2)) / (shown | expected).sum((1, 2))).min() > 0.9


def test_masks_of_nothing():
    found = find_tiled(DiscFinder(), torch.zeros(3, 200, 200, dtype=torch.uint8), tile=96)
    assert found.masks.shape == (0, 28, 28)


@torch.inference_mode()
def test_a_picture_no_larger_than_a_tile_is_looked_at_once():
    small = {"norm": "group", "anchor_sizes": ((16,), (32,), (64,), (96,)), "proposals": 20, "head_width": 16}
    model = faster_rcnn("resnet10_narrow_fpn", 3, **small)
    model.resize = (64, 96)
    image = torch.randint(0, 256, (3, 70, 100), dtype=torch.uint8)
    expected, found = find(model, image, score=0), find_tiled(model, image, tile=100, score=0)
    assert len(expected) > 0
    assert torch.equal(found.boxes, expected.boxes)


def test_models_that_answer_for_the_whole_picture():
    with pytest.raises(ValueError, match="made for classification"):
        find_tiled(classifier("lenet", 3), torch.zeros(3, 64, 64, dtype=torch.uint8), tile=32)
