"""Random changes: repeatable, true to their formulas, and kind to objects."""

import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from sightline.datasets.augment import Albumentations, Augment, crop, jitter_colour
from sightline.datasets.crops import ScaleCrop
from sightline.datasets.structures import ImageInfo, Instances, Sample
from sightline.datasets.transforms import flip

NOTHING = {"flip": 0.0, "vertical_flip": 0.0, "scale": (1.0, 1.0), "colour": 0.0}


def make_sample(height=60, width=90, boxes=((10, 10, 30, 25), (50, 30, 89.5, 59.25))):
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    target = Instances(boxes, torch.arange(len(boxes)), crowd=torch.zeros(len(boxes), dtype=torch.bool))
    return Sample(image, target, ImageInfo(1, "one.png", (height, width)))


def rng(seed=0):
    return np.random.default_rng(seed)


def same(one, other):
    return torch.equal(one.image, other.image) and torch.equal(one.target.boxes, other.target.boxes)


def test_equal_seeds_give_equal_samples_and_others_differ():
    augment, sample = Augment(), make_sample()
    assert same(augment(sample, rng(3)), augment(sample, rng(3)))
    assert len({augment(sample, rng(seed)).image.float().sum().item() for seed in range(10)}) == 10


def test_earlier_calls_do_not_matter():
    sample, fresh = make_sample(), Augment(colour=0.3)
    for seed in range(5):
        Augment(colour=0.3)(sample, rng(seed))
    used = pickle.loads(pickle.dumps(Augment(colour=0.3)))
    assert same(fresh(sample, rng(9)), used(sample, rng(9)))


def test_the_sample_that_came_in_stays_as_it_was():
    sample = make_sample()
    image, boxes = sample.image.clone(), sample.target.boxes.clone()
    for seed in range(10):
        Augment(vertical_flip=0.5)(sample, rng(seed))
    assert torch.equal(sample.image, image)
    assert torch.equal(sample.target.boxes, boxes)


def test_all_off_changes_nothing():
    sample = make_sample()
    assert same(Augment(**NOTHING)(sample, rng()), sample)


def test_flips():
    sample = make_sample()
    assert same(Augment(**{**NOTHING, "flip": 1.0})(sample, rng()), flip(sample))
    down = Augment(**{**NOTHING, "vertical_flip": 1.0})(sample, rng())
    assert torch.equal(down.image, sample.image.flip(1))
    x0, y0, x1, y1 = sample.target.boxes.unbind(1)
    assert torch.equal(down.target.boxes, torch.stack([x0, 60 - y1, x1, 60 - y0], 1))


def test_flip_comes_as_often_as_asked():
    sample, augment = make_sample(), Augment(**{**NOTHING, "flip": 0.3})
    flips = sum(augment(sample, rng(seed)).info.flipped for seed in range(400))
    assert 90 <= flips <= 150


def test_colour_changes_the_picture_and_not_the_boxes():
    sample = make_sample()
    changed = Augment(**{**NOTHING, "colour": 0.4})(sample, rng())
    assert torch.equal(changed.target.boxes, sample.target.boxes)
    assert changed.image.shape == sample.image.shape
    assert (changed.image != sample.image).any()


@pytest.mark.parametrize("strength", [0.2, 0.6, 1.0])
def test_jitter_is_albumentations_but_for_rounding(strength):
    import albumentations as A

    span = (1 - strength, 1 + strength)
    reference = A.Compose([A.ColorJitter(brightness=span, contrast=span, saturation=span, hue=(0, 0), p=1.0)])
    sample = make_sample()
    for seed in range(20):
        reference.set_random_seed(seed)
        expected = reference(image=np.ascontiguousarray(sample.image.permute(1, 2, 0).numpy()))["image"].astype(int)
        away = np.abs(jitter_colour(sample, strength, seed).image.permute(1, 2, 0).numpy() - expected)
        assert away.max() <= 6  # one step's rounding, as much larger as the next two make it
        assert (away <= 1).mean() > 0.9


def test_zoom_never_enlarges_and_never_loses_all_objects():
    sample, augment = make_sample(), Augment(scale=(0.5, 4.0))
    shapes = set()
    for seed in range(200):
        changed = augment(sample, rng(seed))
        height, width = changed.image.shape[1:]
        shapes.add((height, width))
        assert height <= 60
        assert width <= 90
        boxes = changed.target.boxes
        assert len(boxes) >= 1
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes >= -1e-4).all()
        assert (boxes <= torch.tensor([width, height, width, height]) + 1e-4).all()
    assert len(shapes) > 10


@pytest.mark.parametrize("factor", [0.6, 1.9])
def test_boxes_stay_on_their_objects(factor):
    """A bright rectangle on black, found again in the changed picture, is where its box says."""
    sample = make_sample(boxes=[(40, 20, 60, 44)])
    sample.image.zero_()
    sample.image[:, 20:44, 40:60] = 255
    augment = Augment(flip=0.5, vertical_flip=0.5, scale=(factor, factor), colour=0.0)
    for seed in range(20):
        changed = augment(sample, rng(seed))
        ys, xs = torch.nonzero(changed.image[0] > 127, as_tuple=True)
        found = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).float()
        torch.testing.assert_close(changed.target.boxes[0], found, atol=1.0, rtol=0)


def test_crop_keeps_what_has_its_centre_inside():
    boxes = [(0, 0, 20, 20), (5, 5, 40, 40), (30, 30, 60, 60), (-4, 12, 16, 32)]
    cropped = crop(make_sample(boxes=boxes), (10, 10), (30, 30))
    assert cropped.image.shape == (3, 30, 30)
    assert cropped.target.labels.tolist() == [0, 1]
    assert cropped.target.boxes.tolist() == [[0, 0, 10, 10], [0, 0, 30, 30]]


def test_crop_keeps_any_part_of_a_crowd():
    sample = make_sample(boxes=[(30, 30, 60, 60), (50, 50, 60, 60)])
    sample.target.crowd[:] = True
    cropped = crop(sample, (0, 0), (40, 40))
    assert cropped.target.boxes.tolist() == [[30, 30, 40, 40]]
    assert cropped.target.crowd.tolist() == [True]


def test_pictures_without_objects():
    changed = Augment(scale=(2.0, 2.0))(make_sample(boxes=[]), rng())
    assert changed.target.boxes.shape == (0, 4)
    assert changed.image.shape == (3, 60, 90)


@pytest.mark.parametrize("bad", [{"flip": 1.5}, {"colour": -0.1}, {"scale": (0.0, 1.0)}, {"scale": (2.0, 1.0)}])
def test_bad_options_are_named(bad):
    (name,) = bad
    with pytest.raises(ValueError, match=f"augment.{name} must"):
        Augment(**bad)


def test_any_albumentations_transform():
    import albumentations as A

    sample = make_sample(boxes=[(10, 10, 30, 25), (50, 30, 50, 40), (60, 5, 80, 55)])  # the second has no area
    sample.target.crowd[2] = True
    augment = Albumentations([A.HorizontalFlip(p=1.0), A.RandomBrightnessContrast(p=1.0)])
    changed = augment(sample, rng(1))
    assert changed.target.labels.tolist() == [0, 2]
    assert changed.target.crowd.tolist() == [False, True]
    expected = flip(sample).target.boxes[[0, 2]]
    torch.testing.assert_close(changed.target.boxes, expected, atol=1e-3, rtol=0)
    assert same(changed, augment(sample, rng(1)))
    assert not same(changed, augment(sample, rng(2)))


def test_albumentations_may_not_enlarge():
    import albumentations as A

    with pytest.raises(ValueError, match=r"one\.png"):
        Albumentations([A.Resize(100, 100)])(make_sample(), rng())


def test_importing_leaves_albumentations_alone():
    code = "import sys, sightline.datasets.augment; sys.exit('albumentations' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def with_proposals(sample):
    """The same boxes as proposals, in another order, as labels 0 with scores and without crowds."""
    boxes = sample.target.boxes.flip(0)
    proposals = Instances(boxes, torch.zeros(len(boxes), dtype=torch.int64), torch.arange(len(boxes)).flip(0).float())
    return replace(sample, proposals=proposals)


CHANGES = {
    "nothing": Augment(**NOTHING),
    "flip": Augment(**{**NOTHING, "flip": 1.0}),
    "upside down": Augment(**{**NOTHING, "vertical_flip": 1.0}),
    "larger": Augment(**{**NOTHING, "scale": (1.7, 1.9)}),
    "smaller": Augment(**{**NOTHING, "scale": (0.6, 0.7)}),
    "colour": Augment(**{**NOTHING, "colour": 0.5}),
    "all": Augment(flip=0.5, vertical_flip=0.5, scale=(0.5, 2.0)),
    "scale and crop": ScaleCrop((40, 40), (50, 90), lighting=0.5),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_proposals_go_where_objects_go(change):
    """Equal boxes stay equal; objects are known by their labels, proposals by their scores."""
    corners = torch.rand(20, 2, 2) * torch.tensor([90, 60])
    boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
    sample = with_proposals(make_sample(boxes=boxes.tolist()))
    lost = 0
    for seed in range(20):
        changed = change(sample, rng(seed))
        target, proposals = changed.target, changed.proposals
        assert proposals.scores.tolist() == target.labels.flip(0).tolist(), "others are lost, or their order"
        assert torch.equal(proposals.boxes, target.boxes.flip(0))
        assert proposals.labels.eq(0).all()
        alone = change(replace(sample, proposals=None), rng(seed))
        assert same(changed, alone), "proposals change what happens to the picture"
        assert alone.proposals is None
        lost += len(boxes) - len(proposals)
    assert (lost > 0) == (change in [CHANGES[name] for name in ("larger", "all", "scale and crop")])


def test_a_crop_may_leave_no_proposal():
    sample = replace(make_sample(), proposals=make_sample(boxes=[(70, 40, 90, 60)]).target)
    cropped = crop(sample, (0, 0), (40, 40))
    assert len(cropped.target) == 1
    assert cropped.proposals.boxes.shape == (0, 4)


def test_albumentations_refuses_proposals():
    import albumentations as A

    with pytest.raises(ValueError, match="does not change proposals"):
        Albumentations([A.HorizontalFlip(p=1.0)])(with_proposals(make_sample()), rng())
