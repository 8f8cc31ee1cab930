"""Training at several scales: pictures shrunk at random to one of a few short sides."""

from collections import Counter

import numpy as np
import pytest
import torch

from sightline.datasets.augment import Augment
from sightline.datasets.data_module import DetectionData, Shapes
from sightline.datasets.structures import ImageInfo, Instances, Sample
from sightline.datasets.table import DataError

SIDES = (20, 30, 45, 60)


def sizes_only(*sides):
    return Augment(flip=0.0, colour=0.0, short_sides=sides)


def make_sample(height=60, width=90):
    boxes = torch.tensor([[10.0, 10, 30, 25], [50, 30, 90, 60]])
    target, proposals = Instances(boxes, torch.tensor([0, 1])), Instances(boxes[:1] + 3, torch.tensor([0]))
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    return Sample(image, target, ImageInfo(1, "one.png", (height, width)), proposals)


def test_every_side_comes_equally_often_and_nothing_else():
    """Width follows by the ratio 3 to 2, rounded."""
    augment, sample = sizes_only(*SIDES), make_sample()
    seen = Counter(tuple(augment(sample, np.random.default_rng(i)).image.shape[1:]) for i in range(400))
    assert seen.keys() == {(20, 30), (30, 45), (45, 68), (60, 90)}
    assert all(70 <= count <= 130 for count in seen.values())


def test_objects_and_proposals_shrink_with_the_picture():
    sample = make_sample()
    half = sizes_only(30)(sample, np.random.default_rng(0))
    assert torch.equal(half.target.boxes, sample.target.boxes / 2)
    assert torch.equal(half.proposals.boxes, sample.proposals.boxes / 2)
    assert half.info.scale == (0.5, 0.5)


def test_the_zoom_is_off():
    """Nothing is cut off, however far the zoom would have gone."""
    augment = Augment(flip=0.0, colour=0.0, scale=(4.0, 8.0), short_sides=(60,))
    sample = make_sample()
    assert torch.equal(augment(sample, np.random.default_rng(0)).image, sample.image)


@pytest.mark.parametrize("shape", [(25, 90), (90, 25)])
def test_a_picture_held_back_by_its_long_side_does_not_grow(shape):
    changed = sizes_only(60)(make_sample(*shape), np.random.default_rng(0))
    assert tuple(changed.image.shape[1:]) == shape


def test_other_changes_stay_the_same():
    """The same mirrored pictures as with the zoom: sizes take the place of its random number."""
    plain, sized = Augment(scale=(1.0, 1.0), colour=0.0), Augment(colour=0.0, short_sides=(60,))
    sample = make_sample()
    for seed in range(20):
        one, other = plain(sample, np.random.default_rng(seed)), sized(sample, np.random.default_rng(seed))
        assert torch.equal(one.image, other.image)


@pytest.mark.parametrize("sides", [(), (0, 20), (-5,)])
def test_wrong_sides_are_named(sides):
    with pytest.raises(ValueError, match="short_sides must be numbers of pixels"):
        Augment(short_sides=sides)


def test_batches_fit_their_frames():
    data = DetectionData(
        "shapes",
        4,
        min_size=96,
        max_size=96,
        augment=sizes_only(48, 64, 96),
        num_workers=0,
        shapes=Shapes(train_images=24, val_images=4, size=64),
    )
    sides = set()
    for batch in data.train_dataloader():
        assert batch.images.shape == (4, 3, 96, 96)
        sides |= set(batch.sizes.flatten().tolist())
        limits = batch.sizes.flip(1).repeat(1, 2)[:, None]
        valid = batch.targets.labels >= 0
        assert (batch.targets.boxes <= limits + 1e-3)[valid].all()
    assert sides == {48, 64, 96}


def test_sides_beyond_the_pictures_are_an_error():
    with pytest.raises(DataError, match=r"min_size 128 .* short side of 200 .*--data.min_size 200"):
        DetectionData("shapes", augment=sizes_only(100, 200))
