"""Matching against torchvision's Matcher (https://github.com/pytorch/vision, models/detection/_utils.py); sampling."""

import pytest
import torch
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from sightline.datasets.structures import Instances
from sightline.detectors.assignment import Matches, match, mean_over_images, sample
from sightline.detectors.matching import OBJECTS_AT_ONCE

FOREGROUND, BACKGROUND = 0.5, 0.3


def boxes(*shape, side=100.0):
    low = torch.rand(*shape, 2) * side
    return torch.cat([low, low + 5 + torch.rand(*shape, 2) * side / 2], dim=-1)


def around(objects, count):
    """Boxes near objects (B, N, 4), so that every degree of overlap occurs: (B, count, 4)."""
    picked = torch.randint(objects.shape[1], (objects.shape[0], count, 1)).expand(-1, -1, 4)
    low, high = (objects.gather(1, picked) + 12 * torch.randn(objects.shape[0], count, 4)).chunk(2, dim=-1)
    return torch.cat([low, torch.maximum(high, low + 1)], dim=-1)


def found(anchors, targets, *, low_quality=False):
    return match(anchors, targets, foreground_iou=FOREGROUND, background_iou=BACKGROUND, low_quality=low_quality)


def truth(*objects, labels=None, crowd=None):
    """One image's targets, as a batch of one."""
    labels = [0] * len(objects) if labels is None else labels
    values = torch.tensor(objects, dtype=torch.float32).view(1, -1, 4)
    return Instances(values, torch.tensor([labels]), crowd=None if crowd is None else torch.tensor([crowd]))


def as_torchvision(matches, image):
    """torchvision's numbers: the object, -1 for background, -2 for neither."""
    neither = torch.where(matches.background[image], -1, -2)
    return torch.where(matches.foreground[image], matches.idxs[image], neither)


# 40 objects are more than `OBJECTS_AT_ONCE`.
@pytest.mark.parametrize("low_quality", [False, True])
@pytest.mark.parametrize("number", [1, 5, 16, 17, 40])
def test_equal_to_torchvision(number, low_quality):
    assert OBJECTS_AT_ONCE < 17
    seen = torch.tensor([], dtype=torch.int64)
    for _ in range(5):
        objects = boxes(2, number)
        anchors = around(objects, 400)
        ours = found(anchors, Instances(objects, torch.zeros(2, number, dtype=torch.int64)), low_quality=low_quality)
        assert not (ours.foreground & ours.background).any()
        for i in range(2):
            peer = Matcher(FOREGROUND, BACKGROUND, allow_low_quality_matches=low_quality)
            expected = peer(box_iou(objects[i], anchors[i]))
            assert torch.equal(as_torchvision(ours, i), expected)
            seen = torch.cat([seen, expected.clamp(max=0).unique()])
    assert seen.unique().tolist() == [-2, -1, 0]  # every kind occurred


def test_anchors_shared_by_the_images_of_a_batch():
    objects = boxes(3, 4)
    targets = Instances(objects, torch.zeros(3, 4, dtype=torch.int64))
    anchors = around(objects[:1], 50)[0]
    together, own = (
        found(anchors, targets, low_quality=True),
        found(anchors.expand(3, -1, -1), targets, low_quality=True),
    )
    for value, expected in zip(together, own, strict=True):
        assert torch.equal(value, expected)


def test_low_quality_gives_every_overlapped_object_its_best_anchors_ties_included():
    objects = truth([0, 0, 100, 100], [300, 300, 310, 310], [900, 900, 910, 910])
    anchors = torch.tensor([[0.0, 0, 20, 20], [80, 80, 100, 100], [0, 0, 10, 20], [300, 300, 340, 340]])
    assert not found(anchors, objects).foreground.any()
    matches = found(anchors, objects, low_quality=True)
    # The third object overlaps nothing: torchvision would give it every anchor, we give it none.
    assert matches.foreground.tolist() == [[True, True, False, True]]
    assert matches.idxs[matches.foreground].tolist() == [0, 0, 1]


@pytest.mark.parametrize("garbage", [0.0, 37.0, -1e9, 1e30, torch.inf, torch.nan])
@pytest.mark.parametrize("low_quality", [False, True])
def test_padding_changes_nothing(garbage, low_quality):
    objects, labels = boxes(2, 5), torch.zeros(2, 5, dtype=torch.int64)
    anchors = around(objects, 200)
    expected = found(anchors, Instances(objects, labels), low_quality=low_quality)
    padding = torch.full((2, 30, 4), garbage)
    padding[:, :10] = anchors[:, :10]  # the best match there could be
    padded = Instances(torch.cat([objects, padding], 1), torch.cat([labels, -torch.ones(2, 30, dtype=torch.int64)], 1))
    ours = found(anchors, padded, low_quality=low_quality)
    for value, wanted in zip(ours, expected, strict=True):
        assert torch.equal(value, wanted)


@pytest.mark.parametrize("low_quality", [False, True])
@pytest.mark.parametrize("count", [0, 8])
def test_without_objects_all_is_background(count, low_quality):
    anchors = boxes(2, 30)
    targets = Instances(anchors[:, :count].clone(), -torch.ones(2, count, dtype=torch.int64))
    matches = found(anchors, targets, low_quality=low_quality)
    assert matches.background.all()
    assert not matches.foreground.any()


class TestCrowds:
    crowd = (0, 0, 100, 100)
    # itself; inside; exactly half inside; three fifths inside; outside
    anchors = torch.tensor(
        [[0.0, 0, 100, 100], [10, 10, 20, 20], [60, 0, 140, 10], [40, 0, 140, 10], [200, 200, 210, 210]]
    )

    @pytest.mark.parametrize("low_quality", [False, True])
    def test_are_never_matched_and_what_lies_mostly_inside_is_ignored(self, low_quality):
        matches = found(self.anchors, truth(self.crowd, crowd=[True]), low_quality=low_quality)
        assert not matches.foreground.any()
        assert matches.background.tolist() == [[False, False, False, False, True]]

    def test_less_than_half_inside_is_background(self):
        matches = found(torch.tensor([[61.0, 0, 141, 10]]), truth(self.crowd, crowd=[True]))
        assert matches.background.all()

    def test_an_object_inside_a_crowd_is_learnt(self):
        targets = truth((10, 10, 20, 20), self.crowd, crowd=[False, True])
        matches = found(self.anchors, targets, low_quality=True)
        assert matches.foreground.tolist() == [[False, True, False, False, False]]
        assert matches.idxs[0, 1] == 0

    def test_no_crowds_is_the_same_as_none(self):
        objects = boxes(1, 20)
        anchors = around(objects, 100)
        labels = torch.zeros(1, 20, dtype=torch.int64)
        without = found(anchors, Instances(objects, labels), low_quality=True)
        none = found(anchors, Instances(objects, labels, crowd=torch.zeros(1, 20, dtype=torch.bool)), low_quality=True)
        assert all(torch.equal(a, b) for a, b in zip(without, none, strict=True))

    def test_padding_marked_as_crowd_hides_nothing(self):
        matches = found(self.anchors, truth(self.crowd, labels=[-1], crowd=[True]))
        assert matches.background.all()

    def test_many_crowds(self):
        """More than are looked at together."""
        crowds = boxes(1, 40)
        anchors = around(crowds, 300)
        ours = found(anchors, Instances(crowds, torch.zeros(1, 40, dtype=torch.int64), crowd=torch.ones(1, 40).bool()))
        for anchor, background in zip(anchors[0], ours.background[0], strict=True):
            low, high = torch.maximum(anchor[:2], crowds[0, :, :2]), torch.minimum(anchor[2:], crowds[0, :, 2:])
            shares = (high - low).clamp(min=0).prod(dim=1) / (anchor[2:] - anchor[:2]).prod()
            assert background == (shares.max() < 0.5)


def matches_of(foreground, background, total, batch=1):
    """The first anchors foreground, the next background, the rest neither."""
    place = torch.arange(total).expand(batch, -1)
    is_foreground = place < foreground
    return Matches(torch.zeros_like(place), is_foreground, (place < foreground + background) & ~is_foreground)


# name: (foreground, background, anchors), (number, share), (foreground, background) drawn
DRAWS = {
    "enough of both": ((100, 500, 700), (64, 0.25), (16, 48)),
    "little foreground": ((3, 500, 700), (64, 0.25), (3, 61)),
    "no foreground": ((0, 500, 700), (64, 0.25), (0, 64)),
    "little background": ((100, 10, 700), (64, 0.25), (16, 10)),
    "no background": ((100, 0, 700), (64, 0.5), (32, 0)),
    "neither": ((0, 0, 700), (64, 0.25), (0, 0)),
    "fewer anchors than asked for": ((2, 8, 12), (64, 0.25), (2, 8)),
    "share of few": ((5, 5, 10), (2, 0.25), (1, 1)),
    "one anchor": ((1, 0, 1), (512, 0.25), (1, 0)),
}


@pytest.mark.parametrize("name", DRAWS)
def test_counts(name):
    counts, (number, share), expected = DRAWS[name]
    matches = matches_of(*counts, batch=3)
    drawn = sample(matches, number, share)
    assert drawn.idxs.shape == drawn.foreground.shape == drawn.valid.shape == (3, min(number, counts[2]))
    assert drawn.foreground.sum(1).tolist() == [expected[0]] * 3
    assert drawn.valid.sum(1).tolist() == [sum(expected)] * 3
    assert not (drawn.foreground & ~drawn.valid).any()
    for i in range(3):
        idxs, valid = drawn.idxs[i], drawn.valid[i]
        assert len(idxs[valid].unique()) == valid.sum()  # none twice
        assert torch.equal(matches.foreground[i][idxs[valid]], drawn.foreground[i][valid])
        assert (matches.foreground | matches.background)[i][idxs[valid]].all()  # never an ignored one


def test_every_anchor_is_as_likely():
    """4000 draws of 6 of 20 foreground and 18 of 40 background: 1200 +- 29 and 1800 +- 31 times each."""
    drawn = sample(matches_of(20, 40, 70, batch=4000), 24, 0.25)
    times = torch.bincount(drawn.idxs[drawn.valid], minlength=70)
    assert (times[:20] - 1200).abs().max() < 5 * 29
    assert (times[20:60] - 1800).abs().max() < 5 * 31
    assert times[60:].sum() == 0


def test_the_seed_decides():
    matches, draws = matches_of(100, 500, 700), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(sample(matches, 64, 0.5).idxs)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_mean_over_images_by_hand():
    """(1 + 2) / 3 and 5 / 1; a third image without samples counts as zero: (1 + 5 + 0) / 3."""
    losses = torch.tensor([[1.0, 2.0, 90.0], [5.0, 80.0, 70.0], [60.0, 50.0, torch.nan]])
    counted = torch.tensor([[True, True, False], [True, False, False], [False] * 3])
    valid = torch.tensor([[True, True, True], [True, False, False], [False] * 3])
    assert mean_over_images(losses, counted, valid).item() == pytest.approx(2.0)


def test_one_process_with_both_images_equals_the_mean_of_two_with_one_each():
    losses, valid = torch.rand(2, 10), torch.rand(2, 10) < 0.5
    alone = [mean_over_images(losses[i : i + 1], valid[i : i + 1], valid[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(mean_over_images(losses, valid, valid), torch.stack(alone).mean())
