"""Mosaic, copy-paste and mixup: every object where its box says, the same for an equal generator, in a frame's size."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sightline.datasets.augment import Augment
from sightline.datasets.batching import Key
from sightline.datasets.detection import DetectionDataset, loader_for
from sightline.datasets.masks import from_pixels, to_pixels
from sightline.datasets.mixing import Mixing
from sightline.datasets.pasting import paste
from sightline.datasets.perspective import FILL
from sightline.datasets.proposals import Boxes, Regions
from sightline.datasets.readers import read
from sightline.datasets.shapes import draw, shapes_table
from sightline.datasets.structures import ImageInfo, Instances, Sample
from sightline.datasets.table import DataError

OFF = {"mosaic": 0.0, "mixup": 0.0, "copy_paste": 0.0, "degrees": 0.0, "translate": 0.0, "scale": (1.0, 1.0)}
OFF |= {"shear": 0.0, "flip": 0.0, "hue": 0.0, "saturation": 1.0, "value": 1.0}
WILD = {
    "mosaic": 1.0,
    "degrees": 20.0,
    "translate": 0.2,
    "scale": (0.3, 1.6),
    "shear": 8.0,
    "perspective": 0.3,
    "flip": 0.5,
}
COLOURS = np.array([(c & 1, c >> 1 & 1, c >> 2) for c in range(1, 8)], np.uint8) * 255  # an object's, by its label
FRAME = (120, 160)
SIDE = 56


def rng(seed=0):
    return np.random.default_rng(seed)


def rectangle(label, seed=0, size=(120, 160), crowd=False):
    """One rectangle in its colour on black."""
    generator = np.random.default_rng([label, seed])
    y, x = generator.integers(0, np.array(size) - 60).tolist()
    height, width = generator.integers(20, 60, 2).tolist()
    image = np.zeros((*size, 3), np.uint8)
    image[y : y + height, x : x + width] = COLOURS[label]
    boxes = torch.tensor([[x, y, x + width, y + height]], dtype=torch.float32)
    target = Instances(boxes, torch.tensor([label]), crowd=torch.tensor([crowd]))
    return Sample(torch.from_numpy(image).permute(2, 0, 1), target, ImageInfo(label, f"{label}.png", size))


def figure(label, seed=0, size=128):
    """One object of the shapes in its colour on black, with its mask."""
    picture = draw(7, 10 * seed + label, size)
    largest = picture.masks.sum((1, 2)).argmax()
    mask, box = picture.masks[largest], picture.boxes[largest]
    image = (mask[..., None] * COLOURS[label]).astype(np.uint8)
    target = Instances(
        torch.from_numpy(box)[None],
        torch.tensor([label]),
        masks=torch.from_numpy(from_pixels(mask, box, SIDE))[None],
        crowd=torch.tensor([False]),
    )
    return Sample(torch.from_numpy(image).permute(2, 0, 1), target, ImageInfo(label, f"{label}.png", (size, size)))


def others(make, seed=0):
    """Pictures 1, 2, ... in this order, so that every colour comes once."""
    labels = iter(range(1, 7))
    return lambda _: make(next(labels), seed)


def pixels_of(sample, label):
    """(H, W) bool, where a picture shows the object's colour; bilinear edges count from half on."""
    image = sample.image.permute(1, 2, 0).numpy().astype(int)
    return np.abs(image - COLOURS[label]).max(-1) < 128


def extents(mask):
    ys, xs = np.nonzero(mask)
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], np.float32)


def iou(one, other):
    return (one & other).sum() / (one | other).sum()


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({}, 0.01),
        ({"flip": 1.0}, 0.01),
        ({"translate": 0.4}, 1.0),
        ({"scale": (0.2, 3.0)}, 1.0),
        ({"mosaic": 1.0}, 0.01),
        ({"mosaic": 1.0, "scale": (0.2, 2.0), "flip": 0.5, "translate": 0.2}, 1.0),
        ({"degrees": 30.0, "shear": 10.0}, 3.0),
        ({"perspective": 0.4}, 3.0),
        (WILD, 3.0),
    ],
    ids=str,
)
def test_boxes_enclose_their_colours(options, tolerance):
    """Within a pixel; sharp corners of turned rectangles fill less than half of their last ones."""
    mixing, found = Mixing(**OFF | options), 0
    for seed in range(25):
        mixed = mixing(rectangle(0, seed), others(rectangle, seed), FRAME, rng(seed))
        assert mixed.image.shape == (3, *FRAME)
        for label, box in zip(mixed.target.labels.tolist(), mixed.target.boxes.numpy(), strict=True):
            shown = pixels_of(mixed, label)
            np.testing.assert_allclose(box, extents(shown), atol=tolerance)
            found += 1
    assert found >= 15


def test_what_has_no_box_is_hardly_there():
    mixing = Mixing(**OFF | {"mosaic": 1.0, "flip": 0.5})
    for seed in range(25):
        mixed = mixing(rectangle(0, seed), others(rectangle, seed), FRAME, rng(seed))
        for label in set(range(4)) - set(mixed.target.labels.tolist()):
            box = rectangle(label, seed).target.boxes[0]
            assert pixels_of(mixed, label).sum() < 0.27 * (box[2:] - box[:2]).prod()


@pytest.mark.parametrize("options", [{}, {"mosaic": 1.0}, WILD, WILD | {"copy_paste": 1.0}], ids=str)
def test_masks_are_their_colours(options):
    mixing, agreement = Mixing(**OFF | {"flip": 0.5} | options), []
    for seed in range(30):
        mixed = mixing(figure(0, seed), others(figure, seed), (128, 128), rng(seed))
        shown = to_pixels(mixed.target.masks, mixed.target.boxes, (128, 128)).numpy()
        for label, box, mask in zip(mixed.target.labels.tolist(), mixed.target.boxes.numpy(), shown, strict=True):
            colour = pixels_of(mixed, label)
            if colour.sum() >= 150:
                agreement.append(iou(mask, colour))
                np.testing.assert_allclose(box, extents(colour), atol=4)
    assert len(agreement) > 20
    assert np.median(agreement) > 0.95
    assert np.quantile(agreement, 0.03) > 0.88


def test_mosaic_is_four_pictures_around_a_point():
    samples = [rectangle(label) for label in range(4)]
    for k, sample in enumerate(samples):
        sample.image[:] = 10 * (k + 1)
    for seed in range(10):
        rest = iter(samples[1:])
        image = Mixing(**OFF | {"mosaic": 1.0})(samples[0], lambda _, rest=rest: next(rest), FRAME, rng(seed)).image[0]
        x, y = int((image[0] == 10).sum()), int((image[:, 0] == 10).sum())
        expected = torch.full(FRAME, 40)
        expected[:y, :x], expected[:y, x:], expected[y:, :x] = 10, 20, 30
        assert torch.equal(image, expected.to(torch.uint8))


def test_a_picture_smaller_than_the_frame_lies_in_its_middle():
    sample = rectangle(0, size=(80, 100))
    mixed = Mixing(**OFF)(sample, None, FRAME, rng())
    assert torch.equal(mixed.image[:, 20:100, 30:130], sample.image)
    mixed.image[:, 20:100, 30:130] = FILL
    assert (mixed.image == FILL).all()


def test_everything_off_changes_nothing():
    sample = rectangle(3)
    mixed = Mixing(**OFF)(sample, None, FRAME, rng())
    assert torch.equal(mixed.image, sample.image)
    assert torch.equal(mixed.target.boxes, sample.target.boxes)
    assert mixed.info == sample.info


def test_mixup_is_the_mean_of_two_with_the_objects_of_both():
    one, other = rectangle(0), rectangle(1)
    mixed = Mixing(**OFF | {"mixup": 1.0})(one, lambda _: other, FRAME, rng())
    mean = (one.image.float() + other.image.float()) / 2
    assert (mixed.image.float() - mean).abs().max() <= 0.5
    assert mixed.target.boxes.tolist() == one.target.boxes.tolist() + other.target.boxes.tolist()
    assert mixed.target.labels.tolist() == [0, 1]


def pasted(source, ground):
    """With every object of the source on it."""

    class Always:
        def random(self, count):
            return np.zeros(count)

    return paste(source, ground, Always())


def at(label, *box, masks=False, crowd=False, size=(60, 80)):
    """A rectangle at a place."""
    x0, y0, x1, y1 = box
    image = np.zeros((*size, 3), np.uint8)
    image[y0:y1, x0:x1] = COLOURS[label]
    target = Instances(
        torch.tensor([box], dtype=torch.float32),
        torch.tensor([label]),
        masks=torch.ones(1, SIDE, SIDE) if masks else None,
        crowd=torch.tensor([crowd]),
    )
    return Sample(torch.from_numpy(image).permute(2, 0, 1), target, ImageInfo(label, "", size))


@pytest.mark.parametrize("masks", [False, True])
def test_pasting_covers(masks):
    """A quarter of the left object is covered from the left: with masks its box begins where it is seen."""
    mixed = pasted(at(1, 0, 0, 20, 60, masks=masks), at(0, 10, 10, 50, 50, masks=masks))
    assert mixed.target.labels.tolist() == [0, 1]
    assert mixed.target.boxes.tolist() == [[20 if masks else 10, 10, 50, 50], [0, 0, 20, 60]]
    assert pixels_of(mixed, 1)[:, :20].all()
    assert pixels_of(mixed, 0)[10:50, 20:50].all()
    if masks:
        assert (mixed.target.masks[0] == 1).all()


def test_a_hole_in_the_middle_is_one_in_the_mask_and_leaves_the_box():
    mixed = pasted(at(1, 25, 25, 35, 35, masks=True), at(0, 10, 10, 50, 50, masks=True))
    assert mixed.target.boxes[0].tolist() == [10, 10, 50, 50]
    shown = to_pixels(mixed.target.masks, mixed.target.boxes, (60, 80)).numpy()
    assert iou(shown[0], pixels_of(mixed, 0)) > 0.99


@pytest.mark.parametrize("masks", [False, True])
def test_what_is_covered_almost_wholly_goes(masks):
    mixed = pasted(at(1, 0, 0, 45, 60, masks=masks), at(0, 10, 10, 50, 50, masks=masks))
    assert mixed.target.labels.tolist() == [1]
    crowd = pasted(at(1, 0, 0, 45, 60, masks=masks), at(0, 10, 10, 50, 50, masks=masks, crowd=True))
    assert crowd.target.labels.tolist() == [0, 1], "of a crowd any part stays"
    gone = pasted(at(1, 0, 0, 60, 60, masks=masks), at(0, 10, 10, 50, 50, masks=masks, crowd=True))
    assert gone.target.labels.tolist() == [1]


def test_crowds_are_not_pasted():
    ground = at(0, 10, 10, 50, 50)
    assert pasted(at(1, 0, 0, 20, 60, crowd=True), ground) is ground


def test_what_lies_in_a_pasted_box_comes_along():
    source = at(1, 10, 10, 50, 50)
    inner = Instances(
        torch.tensor([[20.0, 20, 30, 30], [45, 45, 80, 60]]),
        torch.tensor([2, 3]),
        crowd=torch.zeros(2, dtype=torch.bool),
    )
    source = replace(source, target=Instances.concatenate([source.target, inner]))

    class First:
        def random(self, count):
            return np.arange(count) * 0.5

    assert paste(source, at(0, 60, 0, 70, 10), First()).target.labels.tolist() == [0, 1, 2]


def test_inputs_stay_as_they_were():
    mixing, samples = Mixing(**WILD, copy_paste=1.0), [figure(label) for label in range(7)]
    before = [(s.image.clone(), s.target.map(torch.clone)) for s in samples]
    for seed in range(5):
        rest = iter(samples[1:])
        mixing(samples[0], lambda _, rest=rest: next(rest), FRAME, rng(seed))
    for sample, (image, target) in zip(samples, before, strict=True):
        assert torch.equal(sample.image, image)
        assert torch.equal(sample.target.boxes, target.boxes)
        assert torch.equal(sample.target.masks, target.masks)


def test_probabilities_are_kept():
    dark = rectangle(0)
    dark.image[:] = 0
    mixing = Mixing(**OFF | {"mixup": 0.3})
    bright = replace(dark, image=torch.full_like(dark.image, 200))
    shares = [mixing(dark, lambda _: bright, FRAME, rng(seed)).image.max() > 0 for seed in range(300)]
    assert 65 <= sum(shares) <= 115


@pytest.mark.parametrize(
    "options",
    [
        {"mosaic": 1.5}, {"mixup": -0.1}, {"copy_paste": 2}, {"degrees": -1}, {"translate": 1.1}, {"scale": (0.0, 1.0)},
        {"scale": (2.0, 1.0)}, {"shear": 70}, {"perspective": 0.6}, {"flip": 2}, {"hue": 200}, {"saturation": 0.9},
        {"value": 0.0}, {"value": float("nan")},
    ],
    ids=str,
)  # fmt: skip
def test_attributes_out_of_range_are_named(options):
    with pytest.raises(ValueError, match=f"mixing.{next(iter(options))} must"):
        Mixing(**options)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (31, 17), (300, 7)], ids=str)
@pytest.mark.parametrize("count", [0, 1])
def test_odd_pictures(size, count):
    """Of a pixel, without objects, larger than the frame: the frame comes out."""
    image = torch.full((3, *size), 200, dtype=torch.uint8)
    boxes = torch.tensor([[0.0, 0, size[1], size[0]]])[:count]
    target = Instances(boxes, torch.zeros(count, dtype=torch.int64), masks=torch.ones(count, 7, 7))
    sample = Sample(image, target, ImageInfo(1, "", size))
    for seed in range(20):
        mixed = Mixing(**WILD, copy_paste=0.7, mixup=0.7)(sample, lambda _: sample, (33, 47), rng(seed))
        assert mixed.image.shape == (3, 33, 47)
        assert mixed.target.boxes.isfinite().all()
        assert (mixed.target.boxes[:, 2:] > mixed.target.boxes[:, :2]).all()


def test_only_crowds():
    mixing = Mixing(**OFF | {"mosaic": 1.0, "copy_paste": 1.0})
    for seed in range(5):
        mixed = mixing(rectangle(0, crowd=True), lambda _: rectangle(1, crowd=True), FRAME, rng(seed))
        assert mixed.target.crowd.all()


# -- In the data set --


def dataset(count=8, **options):
    return DetectionDataset(shapes_table("train", count, 48, masks=True), resize=(64, 64), **options)


def same(one, other):
    fields = ("boxes", "labels", "masks", "crowd", "landmarks")
    return torch.equal(one.image, other.image) and all(
        (getattr(one.target, name) is None and getattr(other.target, name) is None)
        or torch.equal(getattr(one.target, name).nan_to_num(-1), getattr(other.target, name).nan_to_num(-1))
        for name in fields
    )


def test_a_frame_is_filled_and_a_picture_alone_takes_its_own():
    table = shapes_table("train", 4, 48)
    mixed = DetectionDataset(table, resize=(50, 50), mixing=Mixing())
    assert mixed[1].image.shape == (3, 64, 64)
    assert mixed[Key(0, 1, (96, 160))].image.shape == (3, 96, 160)
    exact = DetectionDataset(table, resize=(50, 70, True), mixing=Mixing())
    assert exact[1].image.shape == (3, 50, 70)
    for batch in loader_for(mixed, 2, train=True):
        assert (batch.sizes == torch.tensor(batch.images.shape[2:])).all()


def test_samples_follow_from_seed_epoch_and_index():
    options, frame = {"mixing": Mixing(copy_paste=0.5), "masks": 14}, (64, 64)
    first, again, seeded = dataset(**options), dataset(**options, cache=True), dataset(**options, seed=1)
    for index in (0, 5):
        again[index]
        sample = first[Key(4, index, frame)]
        assert same(sample, again[Key(4, index, frame)])
        assert not torch.equal(sample.image, first[Key(5, index, frame)].image)
        assert not torch.equal(sample.image, seeded[Key(4, index, frame)].image)


def test_worker_counts_and_epochs_that_turn_plain():
    """The workers stay from epoch to epoch: they see from a key that mixing is over."""
    mixed = dataset(augment=Augment(), mixing=Mixing(), first_plain=1, masks=7)
    plain, passes = dataset(augment=Augment(), masks=7), []
    for workers in (0, 2):
        loader, batches = loader_for(mixed, 4, train=True, num_workers=workers), []
        for epoch in range(2):
            loader.batch_sampler.set_epoch(epoch)
            batches += list(loader)
        passes.append(batches)
    reference = loader_for(plain, 4, train=True)
    reference.batch_sampler.set_epoch(1)
    for one, other in zip(*passes, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets.boxes, other.targets.boxes)
        assert torch.equal(one.targets.masks, other.targets.masks)
    assert all(torch.equal(a.images, b.images) for a, b in zip(passes[0][2:], reference, strict=True))
    assert not any(
        torch.equal(a.images, b.images) for a, b in zip(passes[0][:2], loader_for(plain, 4, train=True), strict=True)
    )


def test_one_picture_is_mixed_with_itself():
    single = dataset(1, mixing=Mixing(copy_paste=1.0))
    assert single[0].image.shape == (3, 64, 64)


def test_landmarks_move_with_their_pictures_and_change_names_in_a_mirror():
    """The shapes' are on their boxes' edges: left stays left."""
    for flip in (0.0, 1.0):
        mixed, found = dataset(mixing=Mixing(**OFF | {"mosaic": 1.0, "flip": flip})), 0
        for index in range(8):
            target = mixed[index].target
            x0, y0, x1, y1 = target.boxes.unbind(1)
            top, right, bottom, left = target.landmarks.unbind(1)
            for points, axis, edge in ((top, 1, y0), (right, 0, x1), (bottom, 1, y1), (left, 0, x0)):
                known = points.isfinite().all(1)
                torch.testing.assert_close(points[known, axis], edge[known], atol=1e-3, rtol=0)
                found += int(known.sum())
        assert found > 30


def test_proposals_are_refused():
    table = shapes_table("train", 2, 48)
    regions = Regions.of([Boxes(np.zeros((1, 4), np.float32), np.ones(1, np.float32))] * 2)
    with pytest.raises(DataError, match=r"data\.mixing"):
        DetectionDataset(replace(table, regions=regions), resize=(64, 64), mixing=Mixing())


def test_real_pictures(real_data):
    mixed = DetectionDataset(
        read(real_data("coco"), "val").select(np.arange(12)), resize=(256, 256), mixing=Mixing(copy_paste=1.0), masks=28
    )
    for index in range(12):
        sample = mixed[index]
        height, width = sample.image.shape[1:]
        assert (sample.target.boxes >= 0).all()
        assert (sample.target.boxes <= torch.tensor([width, height, width, height])).all()
        assert sample.target.masks.shape == (len(sample.target), 28, 28)
        assert ((sample.target.masks >= 0) & (sample.target.masks <= 1)).all()
