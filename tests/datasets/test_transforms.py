"""Geometry against torchvision's detection transform, and properties of flips.

Reference: torchvision.models.detection.transform.GeneralizedRCNNTransform,
https://github.com/pytorch/vision/blob/main/torchvision/models/detection/transform.py
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.models.detection.transform import GeneralizedRCNNTransform, _resize_image_and_masks

from sightline.datasets.structures import ImageInfo, Instances, Sample
from sightline.datasets.transforms import (
    flip,
    flip_instances,
    from_hwc,
    resize,
    resize_exact,
    resize_image,
    resize_shape,
    resize_to,
    to_hwc,
)


def make_sample(height=37, width=53, count=5):
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    corners = torch.rand(count, 2, 2) * torch.tensor([width, height])
    boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
    target = Instances(boxes, torch.arange(count), crowd=torch.arange(count) == 2)
    return Sample(image, target, ImageInfo(7, "seven.jpg", (height, width)))


def torchvision_transform(min_size, max_size):
    return GeneralizedRCNNTransform(min_size, max_size, [0.0] * 3, [1.0] * 3).eval()


@pytest.mark.parametrize(("min_size", "max_size"), [(800, 1333), (640, 640), (480, 801), (128, 256), (333, 1000)])
def test_resize_shape_is_torchvisions(min_size, max_size):
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 5000, (80, 2)).tolist() + [[480, w] for w in range(760, 840)] + [[3000, 1]]
    for height, width in sizes:
        if min(height, width) * max_size < max(height, width):
            continue  # torchvision rounds these to nothing, and fails
        image = torch.zeros(1, 1, 1).expand(1, height, width)
        expected = tuple(_resize_image_and_masks(image, min_size, max_size)[0].shape[1:])
        assert resize_shape(height, width, min_size, max_size) == expected, (height, width)


def test_without_sizes_a_picture_stays_as_it_is():
    assert resize_shape(37, 101) == (37, 101)
    image = torch.zeros(3, 37, 101, dtype=torch.uint8)
    nothing = Instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    resized = resize(Sample(image, nothing, ImageInfo(1, "x", (37, 101))), *())
    assert resized.image is image
    assert resized.info.scale == (1.0, 1.0)


def test_a_thread_of_a_picture_keeps_a_pixel():
    assert resize_shape(1, 3000, 800, 1333) == (1, 1333)


@pytest.mark.parametrize(("height", "width"), [(37, 53), (91, 40), (64, 64), (200, 333)])
def test_resize_is_torchvisions(height, width):
    sample = make_sample(height, width)
    image, target = sample.image.float() / 255, {"boxes": sample.target.boxes}
    with torch.no_grad():
        images, (target,) = torchvision_transform(80, 133)([image], [target])
    expected_height, expected_width = images.image_sizes[0]
    expected = images.tensors[0, :, :expected_height, :expected_width]

    resized = resize(sample, 80, 133)
    assert torch.equal(resized.target.boxes, target["boxes"]), "boxes differ in some bit"
    assert resized.image.dtype == torch.uint8
    assert (resized.image.float() - expected * 255).abs().max() <= 1
    torch.testing.assert_close(resize_exact(sample.image, 80, 133) / 255, expected, atol=1e-5, rtol=0)
    assert resized.info.scale == (expected_height / height, expected_width / width)


def test_resizing_twice_multiplies_scales():
    sample = resize_to(resize_to(make_sample(40, 60), (80, 90)), (20, 30))
    assert sample.info.scale == pytest.approx((0.5, 0.5))


@pytest.mark.parametrize("flips", [0, 1])
def test_boxes_map_back_to_the_original(flips):
    sample = make_sample()
    changed = resize(sample, 101, 400)
    for _ in range(flips):
        changed = flip(changed)
    back = changed.target.to_original(changed.info)
    torch.testing.assert_close(back.boxes, sample.target.boxes, atol=1e-4, rtol=0)


def test_flip_is_the_formula_and_twice_is_the_identity():
    sample = make_sample()
    sample.target.boxes.mul_(4).round_().div_(4)  # quarters are exact in float32
    once, twice = flip(sample), flip(flip(sample))
    assert torch.equal(once.image, sample.image.flip(-1))
    x0, y0, x1, y1 = sample.target.boxes.unbind(1)
    assert torch.equal(once.target.boxes, torch.stack([53 - x1, y0, 53 - x0, y1], 1))
    assert torch.equal(twice.image, sample.image)
    assert torch.equal(twice.target.boxes, sample.target.boxes)
    assert once.info.flipped
    assert twice.info == sample.info


def test_flip_mirrors_compact_masks_and_takes_batches():
    instances = Instances(torch.rand(2, 3, 4), torch.zeros(2, 3, dtype=torch.long), masks=torch.rand(2, 3, 5, 5))
    flipped = flip_instances(instances, 10)
    assert torch.equal(flipped.masks, instances.masks.flip(-1))
    assert torch.equal(flipped.boxes[..., 1::2], instances.boxes[..., 1::2])


def test_nothing_is_changed_in_place_and_empty_pictures_pass():
    sample = make_sample(count=0)
    before = sample.image.clone()
    assert flip(resize(sample, 20, 30)).target.boxes.shape == (0, 4)
    assert torch.equal(sample.image, before)


def test_memory_layouts():
    image = torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8)
    assert torch.equal(from_hwc(to_hwc(image)), image)
    hwc = np.zeros((4, 5, 3), np.uint8)
    assert np.shares_memory(to_hwc(from_hwc(hwc)), hwc), "a picture in OpenCV's layout is copied"


@pytest.mark.parametrize("shape", [(31, 45), (13, 20)])
def test_resizing_knows_no_memory_layout(shape):
    """A crop, a copy of it and one laid out channel by channel give one picture."""
    whole = torch.randint(0, 256, (40, 60, 3), dtype=torch.uint8).permute(2, 0, 1)
    part = whole[:, 5:31, 7:50]
    expected = resize_image(part.clone(memory_format=torch.contiguous_format), shape)
    assert torch.equal(resize_image(part, shape), expected)
    assert torch.equal(resize_image(part.permute(1, 2, 0).contiguous().permute(2, 0, 1), shape), expected)


def test_proposals_are_resized_and_flipped_as_objects_are():
    sample = make_sample()
    sample = replace(sample, proposals=replace(sample.target, crowd=None)[torch.tensor([3, 1])])
    for change in (flip, lambda one: resize(one, 80, 133), lambda one: resize_to(one, (20, 90))):
        changed = change(sample)
        assert torch.equal(changed.proposals.boxes, changed.target.boxes[[3, 1]])
        assert not torch.equal(changed.proposals.boxes, sample.proposals.boxes)
        back = changed.proposals.to_original(changed.info)
        torch.testing.assert_close(back.boxes, sample.proposals.boxes, atol=1e-4, rtol=0)
