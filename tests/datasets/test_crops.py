"""Random crops that keep their labels, and sets of crops equal to torchvision's."""

import pickle

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from sightline.datasets.crops import (
    IMAGENET_VALUES,
    IMAGENET_VECTORS,
    ScaleCrop,
    centre_crop,
    multi_scale_crops,
    shift_colour,
    ten_crop,
)
from sightline.datasets.statistics import compute
from sightline.datasets.structures import ImageInfo, Instances, Sample
from sightline.datasets.table import DataError
from sightline.datasets.transforms import flip, resize_image

PLAIN = {"flip": 0.0, "colour": 0.0, "lighting": 0.0}


def make_sample(height=60, width=90, boxes=None):
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    boxes = torch.tensor([[0, 0, width, height]] if boxes is None else boxes, dtype=torch.float32).reshape(-1, 4)
    target = Instances(boxes, torch.arange(len(boxes)), crowd=torch.zeros(len(boxes), dtype=torch.bool))
    return Sample(image, target, ImageInfo(1, "one.png", (height, width)))


def rng(seed=0):
    return np.random.default_rng(seed)


SHAPES = [(60, 90), (90, 60), (32, 32), (7, 300), (300, 7), (1, 1), (400, 500)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [(32, 32), (48, 20)])
def test_every_picture_comes_out_at_the_size_with_its_label(shape, size):
    """Also where the window lies wholly in one half, so that the picture's centre is outside."""
    augment = ScaleCrop(size=size, scale=(36, 200))
    for seed in range(40):
        changed = augment(make_sample(*shape), rng(seed))
        assert changed.image.shape == (3, *size)
        assert changed.image.dtype == torch.uint8
        assert changed.target.labels.tolist() == [0]
        torch.testing.assert_close(changed.target.boxes, torch.tensor([[0.0, 0, size[1], size[0]]]))


def test_a_label_of_the_whole_picture_survives_where_an_object_would_not():
    sample = make_sample(100, 100, boxes=[(0, 0, 100, 100), (0, 0, 99, 99), (0, 0, 99.7, 100)])
    kept = [ScaleCrop(size=(30, 30), scale=(100, 100))(sample, rng(seed)).target.labels.tolist() for seed in range(60)]
    assert all({0, 2} <= set(labels) for labels in kept)
    assert any(1 not in labels for labels in kept)


def test_boxes_stay_on_their_objects():
    """A bright rectangle on black, found again in the crop, is where its box says."""
    sample = make_sample(120, 160, boxes=[(60, 40, 100, 80)])
    sample.image.zero_()
    sample.image[:, 40:80, 60:100] = 255
    augment, seen = ScaleCrop(size=(64, 64), scale=(70, 150), colour=0.0, lighting=0.0), 0
    for seed in range(40):
        changed = augment(sample, rng(seed))
        if not len(changed.target):
            continue
        ys, xs = torch.nonzero(changed.image[0] > 127, as_tuple=True)
        found = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).float()
        torch.testing.assert_close(changed.target.boxes[0], found, atol=1.0, rtol=0)
        seen += 1
    assert seen > 20


def test_the_short_side_gets_lengths_from_the_whole_range():
    """A ramp over the picture's width tells by its slope in the crop how far it was scaled."""
    sample = make_sample(100, 200)
    sample.image[:] = torch.arange(200, dtype=torch.uint8)
    sides = []
    for seed in range(300):
        row = ScaleCrop(size=(50, 50), scale=(60, 100), **PLAIN)(sample, rng(seed)).image[0, 25].float()
        sides.append(100 * 40 / (row[45] - row[5]).item())
    assert min(sides) < 64
    assert max(sides) > 96
    assert 77 < np.mean(sides) < 83


def test_windows_lie_everywhere():
    sample = make_sample(40, 80)
    sample.image[:] = torch.arange(80, dtype=torch.uint8)
    lefts = {ScaleCrop((40, 40), (40, 40), **PLAIN)(sample, rng(seed)).image[0, 0, 0].item() for seed in range(400)}
    assert lefts == set(range(41))


def test_equal_seeds_give_equal_samples_and_others_differ():
    sample = make_sample()
    augment = ScaleCrop(size=(24, 24), scale=(30, 50))
    again = pickle.loads(pickle.dumps(augment))
    assert torch.equal(augment(sample, rng(3)).image, again(sample, rng(3)).image)
    assert len({augment(sample, rng(seed)).image.float().sum().item() for seed in range(10)}) == 10


def test_the_sample_that_came_in_stays_as_it_was():
    sample = make_sample()
    image, boxes = sample.image.clone(), sample.target.boxes.clone()
    for seed in range(10):
        ScaleCrop(size=(24, 24), scale=(30, 50))(sample, rng(seed))
    assert torch.equal(sample.image, image)
    assert torch.equal(sample.target.boxes, boxes)


def test_flips():
    sample = make_sample(30, 30)
    always, never = (ScaleCrop((20, 20), (25, 30), flip=p, colour=0.0, lighting=0.0) for p in (1.0, 0.0))
    for seed in range(5):
        assert torch.equal(always(sample, rng(seed)).image, flip(never(sample, rng(seed))).image)


def test_lighting_is_the_papers():
    """AlexNet, section 4.1: to each pixel [p1 p2 p3] [a1 l1, a2 l2, a3 l3]^T is added, a drawn once a picture."""
    sample = make_sample(30, 30)
    sample.image[:] = 128
    augment = ScaleCrop((30, 30), (30, 30), **{**PLAIN, "lighting": 0.1})
    shifts = []
    for seed in range(2000):
        image = augment(sample, rng(seed)).image
        assert (image == image[:, :1, :1]).all()
        shifts.append((image[:, 0, 0].double() - 128) / 255)
    vectors, values = torch.tensor(IMAGENET_VECTORS).double(), torch.tensor(IMAGENET_VALUES).double()
    expected = (vectors * (0.1 * values) ** 2) @ vectors.T
    rounding = torch.eye(3) / 12 / 255**2
    torch.testing.assert_close(torch.stack(shifts).T.cov() - rounding, expected, atol=2e-5, rtol=0)


def test_imagenet_vectors_are_orthonormal():
    vectors = torch.tensor(IMAGENET_VECTORS)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(3), atol=1e-3, rtol=0)


def test_colours_are_clipped_not_wrapped():
    image = torch.tensor([0, 100, 250], dtype=torch.uint8).expand(3, 1, 3)
    shifted = shift_colour(image, np.array([0.1, -0.1, 0.0]))
    assert shifted[:, 0].tolist() == [[26, 126, 255], [0, 74, 224], [0, 100, 250]]


def test_lighting_from_a_file(real_data, tmp_path):
    from sightline.datasets.readers import read

    table = read(real_data("raccoon")).select(np.arange(8))
    compute(table, size=16).save(tmp_path / "rgb.npz")
    compute(table, size=16, gray=True).save(tmp_path / "gray.npz")
    sample, plain = make_sample(), ScaleCrop((24, 24), (30, 50), **PLAIN)(make_sample(), rng())
    rgb = ScaleCrop((24, 24), (30, 50), **{**PLAIN, "lighting": 1.0}, statistics=str(tmp_path / "rgb.npz"))
    assert (rgb(sample, rng()).image != plain.image).any()
    for name, message in (("gray.npz", "gray pictures"), ("none.npz", "no such file")):
        with pytest.raises(DataError, match=message):
            ScaleCrop(statistics=str(tmp_path / name))(sample, rng())


@pytest.mark.parametrize(
    "bad", [{"flip": 1.5}, {"colour": -0.1}, {"lighting": 2.0}, {"scale": (0, 9)}, {"scale": (9, 8)}, {"size": (0, 9)}]
)
def test_bad_options_are_named(bad):
    (name,) = bad
    with pytest.raises(ValueError, match=f"crop.{name} must"):
        ScaleCrop(**bad)


@pytest.mark.parametrize("shape", [(40, 60), (41, 60), (40, 61), (43, 59), (20, 33), (20, 20), (21, 21)])
@pytest.mark.parametrize("size", [20, (17, 20), (20, 13)])
def test_crops_equal_torchvision(shape, size):
    """https://docs.pytorch.org/vision/stable/generated/torchvision.transforms.v2.TenCrop.html"""
    image = make_sample(*shape).image
    pair = [size, size] if isinstance(size, int) else list(size)
    assert torch.equal(ten_crop(image, size), torch.stack(tv.ten_crop(image, pair)))
    assert torch.equal(centre_crop(image, size), tv.center_crop(image, pair))


def test_too_small_a_picture_is_refused():
    for function in (ten_crop, centre_crop):
        with pytest.raises(ValueError, match=r"\(19, 30\) holds no crop of \(20, 20\)"):
            function(make_sample(19, 30).image, 20)


def test_multi_scale_crops():
    image = make_sample(50, 80).image
    crops = multi_scale_crops(image, scales=(24, 30, 49), size=24)
    assert crops.shape == (30, 3, 24, 24)
    for number, shape in enumerate([(24, 38), (30, 48), (49, 78)]):
        expected = tv.ten_crop(resize_image(image, shape), [24, 24])
        assert torch.equal(crops[10 * number : 10 * number + 10], torch.stack(expected))
    assert multi_scale_crops(image).shape == (50, 3, 224, 224)


@pytest.mark.parametrize("side", [23, 49, 111])
def test_multi_scale_crops_of_any_size(side):
    """Scaling a side to itself must not round below the crop."""
    assert multi_scale_crops(make_sample(side, 3 * side).image, (10, 97), (97, 60)).shape == (20, 3, 97, 60)
