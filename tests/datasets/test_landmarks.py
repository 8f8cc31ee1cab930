"""Landmarks from the file to the batch and back: they stay on their object, and bear the right names in a mirrored picture."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.datasets.augment import Albumentations, Augment, crop
from sightline.datasets.batching import Key
from sightline.datasets.coco import read_coco, write_coco
from sightline.datasets.detection import DetectionDataset
from sightline.datasets.landmarks import mirrored
from sightline.datasets.shapes import LANDMARKS, draw, shapes_table
from sightline.datasets.structures import ImageInfo, Instances, Sample
from sightline.datasets.table import Table
from sightline.datasets.transforms import flip, resize_to

NOTHING = {"flip": 0.0, "vertical_flip": 0.0, "scale": (1.0, 1.0), "colour": 0.0}
FLIPS = {(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)}


def make_sample(points=((10, 12, 25, 30), (50, 31, 89, 59))):
    """Two objects of two landmarks in a picture of 60 x 90, a bright pixel under each."""
    image = torch.zeros(3, 60, 90, dtype=torch.uint8)
    points = torch.tensor(points, dtype=torch.float32).view(2, 2, 2) + 0.5
    for x, y in points.view(-1, 2).long().tolist():
        image[:, y, x] = 255
    boxes = torch.cat([points.amin(1) - 0.5, points.amax(1) + 0.5], 1)
    return Sample(image, Instances(boxes, torch.tensor([0, 1]), landmarks=points), ImageInfo(1, "one.png", (60, 90)))


def rng(seed=0):
    return np.random.default_rng(seed)


def bright(sample):
    """The landmarks' places as the picture shows them, (x, y), in no order."""
    return {(x + 0.5, y + 0.5) for _, y, x in torch.nonzero(sample.image).tolist()}


def places(sample):
    known = sample.target.landmarks.view(-1, 2)
    return {tuple(point) for point in known[known.isfinite().all(1)].tolist()}


# -- Names --


@pytest.mark.parametrize(
    ("names", "flips", "order"),
    [
        (["top", "right", "bottom", "left"], {"flipped": True}, [0, 3, 2, 1]),
        (["top", "right", "bottom", "left"], {"upturned": True}, [2, 1, 0, 3]),
        (["top", "right", "bottom", "left"], {"flipped": True, "upturned": True}, [2, 3, 0, 1]),
        (["nose", "left_eye", "right_eye"], {"flipped": True}, [0, 2, 1]),
        (["nose", "left_eye", "right_eye"], {"upturned": True}, [0, 2, 1]),
        (["nose", "left_eye", "right_eye"], {"flipped": True, "upturned": True}, [0, 1, 2]),
        (["eye left", "hip-right", "eye right", "hip-left"], {"flipped": True}, [2, 3, 0, 1]),
        (["left_ear", "bright_spot", "right_of"], {"flipped": True}, [0, 1, 2]),  # without counterparts
        (["left", "right"], {}, [0, 1]),
    ],
)
def test_names_in_a_mirrored_picture(names, flips, order):
    assert mirrored(names, **flips) == order


# -- Types --


@pytest.mark.parametrize("shape", [(3, 2), (2, 4, 2), (3, 4, 3), (3, 4, 2, 1)], ids=str)
def test_instances_check_their_shape(shape):
    with pytest.raises(ValueError, match=r"landmarks must be \(3, 'P', 2\) to go with boxes \(3, 4\)"):
        Instances(torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64), landmarks=torch.zeros(shape))


def test_batches_are_padded_with_unknown_points():
    one = make_sample().target
    batch = Instances.collate([one, one[:1], one[:0]])
    assert batch.landmarks.shape == (3, 2, 2, 2)
    assert batch.landmarks[1, 1].isnan().all()
    assert torch.equal(batch[1].landmarks, one.landmarks[:1])
    assert one.to("meta").landmarks.is_meta
    with pytest.raises(ValueError, match="some images of the batch have landmarks and some have none"):
        Instances.collate([one, replace(one, landmarks=None)])


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("upturned", [False, True])
@pytest.mark.parametrize("flipped", [False, True])
def test_to_original_inverts_scale_and_flips(flipped, upturned, batched):
    original = make_sample().target
    points, boxes, scale = original.landmarks.clone(), original.boxes.clone(), torch.tensor([1.5, 2.5])
    if flipped:
        points[..., 0], boxes[:, 0::2] = 90 - points[..., 0], 90 - original.boxes[:, [2, 0]]
    if upturned:
        points[..., 1], boxes[:, 1::2] = 60 - points[..., 1], 60 - original.boxes[:, [3, 1]]
    points[1, 1] = torch.nan
    masks = torch.rand(2, 3, 3)
    found = Instances(boxes * scale.repeat(2), original.labels, masks=masks, landmarks=points * scale)
    info = ImageInfo(1, "one.png", (60, 90), (2.5, 1.5), flipped, upturned)
    back = Instances.collate([found]).to_original([info])[0] if batched else found.to_original(info)
    torch.testing.assert_close(back.boxes, original.boxes)
    torch.testing.assert_close(back.landmarks[0], original.landmarks[0])
    torch.testing.assert_close(back.landmarks[1, 0], original.landmarks[1, 0])
    assert back.landmarks[1, 1].isnan().all()
    turned = [axis for axis, done in ((-1, flipped), (-2, upturned)) if done]
    assert torch.equal(back.masks, masks.flip(turned))


def test_tables_select_and_check_them():
    table = shapes_table("train", 4, 64)
    first = table.offsets[2]
    np.testing.assert_array_equal(table.select([2]).landmarks, table.landmarks[first : table.offsets[3]])
    np.testing.assert_array_equal(table.select_objects(np.array([1])).landmarks, table.landmarks[[1]])
    assert len(table.largest(1).landmarks) == 4
    with pytest.raises(ValueError, match=r"landmarks must be \(\d+, 3, 2\), got"):
        replace(table, landmark_names=["a", "b", "c"])
    with pytest.raises(ValueError, match="landmarks must be"):
        replace(table, landmark_names=None)
    with pytest.raises(ValueError, match=r"landmarks must be .* got \(\)"):
        replace(table, landmarks=None)
    assert isinstance(replace(table, landmarks=None, landmark_names=None), Table)


# -- Changes --


def test_resizing():
    points = make_sample().target.landmarks
    assert torch.equal(resize_to(make_sample(), (120, 45)).target.landmarks, points * torch.tensor([0.5, 2]))


def test_points_stay_where_the_picture_shows_them():
    sample = make_sample()
    assert places(sample) == bright(sample)
    assert places(flip(sample)) == bright(flip(sample))
    assert torch.equal(flip(flip(sample)).target.landmarks, sample.target.landmarks)
    for horizontal, vertical in FLIPS:
        changed = Augment(**NOTHING | {"flip": horizontal, "vertical_flip": vertical})(sample, rng())
        assert places(changed) == bright(changed)
        assert (changed.info.flipped, changed.info.upturned) == (horizontal > 0, vertical > 0)


def test_a_point_outside_a_crop_is_not_known():
    cropped = crop(make_sample(), (5, 5), (35, 60))
    assert cropped.target.labels.tolist() == [0]
    assert places(cropped) == {(5.5, 7.5), (20.5, 25.5)}
    small = crop(make_sample(), (0, 0), (25, 90))
    assert places(small) == {(10.5, 12.5)}
    assert small.target.landmarks[0, 1].isnan().all()


def test_zoom_keeps_points_in_their_boxes():
    for seed in range(30):
        changed = Augment(scale=(0.5, 3.0), colour=0.0)(make_sample(), rng(seed)).target
        low, high = changed.boxes[:, None, :2], changed.boxes[:, None, 2:]
        inside = (changed.landmarks >= low - 1e-3) & (changed.landmarks <= high + 1e-3)
        assert (inside | changed.landmarks.isnan()).all()


def test_albumentations_leave_them_out():
    import albumentations as A

    changed = Albumentations([A.HorizontalFlip(p=1.0)])(make_sample(), rng())
    assert changed.target.landmarks is None
    assert len(changed.target) == 2


# -- Shapes and data sets --


def test_shapes_have_their_extreme_points():
    for index in range(20):
        picture = draw(3, index, 96)
        for mask, box, points in zip(picture.masks, picture.boxes, picture.landmarks, strict=True):
            (top, right, bottom, left), (x0, y0, x1, y1) = points, box
            assert (top[1], right[0], bottom[1], left[0]) == (y0, x1, y1, x0)
            inside = [(top[0], y0 + 0.5), (x1 - 0.5, right[1]), (bottom[0], y1 - 0.5), (x0 + 0.5, left[1])]
            assert all(mask[int(y), int(x)] for x, y in inside)
    table = shapes_table("train", 3, 96)
    assert table.landmark_names == list(LANDMARKS)
    np.testing.assert_array_equal(table.landmarks, np.concatenate([draw(0, i, 96).landmarks for i in range(3)]))


@pytest.mark.parametrize(("horizontal", "vertical"), sorted(FLIPS))
def test_a_mirrored_pictures_points_bear_their_new_names(horizontal, vertical):
    """Top is at the top of the box again, and left at its left."""
    augment = Augment(**NOTHING | {"flip": horizontal, "vertical_flip": vertical})
    dataset = DetectionDataset(shapes_table("train", 6, 64), resize=(96, 96), augment=augment)
    for index in range(6):
        target = dataset[Key(0, index, (96, 96))].target
        top, right, bottom, left = target.landmarks.unbind(1)
        extremes = torch.stack([left[:, 0], top[:, 1], right[:, 0], bottom[:, 1]], dim=1)
        torch.testing.assert_close(extremes, target.boxes)


def test_a_data_set_without_landmarks_has_none():
    table = replace(shapes_table("train", 2, 64), landmarks=None, landmark_names=None)
    dataset = DetectionDataset(table, resize=(64, 64), augment=Augment(flip=1.0))
    assert dataset[0].target.landmarks is None


# -- COCO --


def coco(tmp_path, categories, annotations):
    Image.fromarray(np.zeros((50, 60, 3), np.uint8)).save(tmp_path / "a.png")
    common = {"image_id": 1, "category_id": 1, "bbox": [5, 5, 30, 20], "iscrowd": 0}
    document = {
        "images": [{"id": 1, "file_name": "a.png", "height": 50, "width": 60}],
        "categories": categories,
        "annotations": [{"id": k + 1} | common | own for k, own in enumerate(annotations)],
    }
    (tmp_path / "data.json").write_text(json.dumps(document))
    return tmp_path / "data.json"


CAT = {"id": 1, "name": "cat", "keypoints": ["nose", "tail"]}
DOG = {"id": 2, "name": "dog"}


def test_coco_keypoints_are_read(tmp_path):
    rows = [{"keypoints": [6, 7, 2, 8.5, 9, 1]}, {"keypoints": [0, 0, 0, 8, 9, 2]}, {}, {"keypoints": [1, 2]}]
    table = read_coco(coco(tmp_path, [CAT, DOG], rows))
    assert table.landmark_names == ["nose", "tail"]
    nan = np.nan
    expected = [[[6, 7], [8.5, 9]], [[nan, nan], [8, 9]], [[nan, nan]] * 2, [[nan, nan]] * 2]
    np.testing.assert_array_equal(table.landmarks, np.array(expected, np.float32))
    assert table.problems.counts == {"keypoints are not x, y and visibility of 2 points (left out)": 1}
    assert "annotations[3]" in table.problems.summary()


@pytest.mark.parametrize("keypoints", [["tail", "nose"], ["nose"], "nose", ["nose", "nose"]], ids=str)
def test_keypoints_that_differ_are_left_alone(tmp_path, keypoints):
    table = read_coco(coco(tmp_path, [CAT, DOG | {"keypoints": keypoints}], [{"keypoints": [6, 7, 2, 8, 9, 1]}]))
    assert table.landmarks is None
    assert "not read" in table.problems.summary()


def test_coco_round_trip(tmp_path):
    table = shapes_table("val", 5, 64)
    table.landmarks[1, 2] = np.nan
    for row in range(5):
        table.paths[row] = str(tmp_path / f"{row}.png")
        Image.fromarray(draw(1, row, 64).image).save(table.paths[row])
    write_coco(table, tmp_path / "out.json")
    again = read_coco(tmp_path / "out.json")
    assert again.landmark_names == table.landmark_names
    np.testing.assert_array_equal(again.landmarks, table.landmarks)
    first = json.loads((tmp_path / "out.json").read_text())["annotations"][1]
    assert first["num_keypoints"] == 3
    assert first["keypoints"][6:9] == [0, 0, 0]


def test_coco_without_keypoints_writes_none(tmp_path):
    table = read_coco(coco(tmp_path, [DOG | {"id": 1}], [{}]))
    write_coco(table, tmp_path / "out.json")
    assert "keypoints" not in (tmp_path / "out.json").read_text()
