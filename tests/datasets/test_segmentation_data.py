"""Label maps as batches: picture and map changed alike, padding, caches, counts, and data for Lightning."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningCLI

from sightline.datasets.batching import Key, collate
from sightline.datasets.detection import loader_for
from sightline.datasets.label_columns import MaskFiles
from sightline.datasets.label_files import write_label_map
from sightline.datasets.label_legend import Legend
from sightline.datasets.label_objects import semantic_table
from sightline.datasets.picture_data import Shapes
from sightline.datasets.segmentation_augment import SegmentationAugment, resize_labels
from sightline.datasets.segmentation_data import SegmentationData
from sightline.datasets.segmentation_dataset import SegmentationDataset
from sightline.datasets.shapes import shapes_table
from sightline.datasets.structures import ImageInfo, Instances, LabelMaps, Sample
from sightline.datasets.table import DataError

SMALL = Shapes(train_images=10, val_images=4, size=48)
PLAIN = {"flip": 0.0, "colour": 0.0}


def sample_of(labels):
    """A picture whose gray is 100 times its label."""
    labels = torch.as_tensor(np.asarray(labels, np.int16))
    image = (labels.clamp(min=0) * 100).to(torch.uint8).expand(3, -1, -1).contiguous()
    empty = Instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    return Sample(image, empty, ImageInfo(1, "x.png", tuple(labels.shape)), label_map=LabelMaps(labels))


def split_in_two(height, width, *, vertical=True):
    labels = np.zeros((height, width), np.int16)
    if vertical:
        labels[:, width // 2 :] = 1
    else:
        labels[height // 2 :] = 1
    return labels


def rng(seed=0):
    return np.random.Generator(np.random.Philox(seed))


def dataset_of(count=6, size=48, **options):
    table = semantic_table(shapes_table("train", count, size, masks=True), "shapes")
    return SegmentationDataset(table, **{"resize": (size, size), **options})


# -- Random changes --


@pytest.mark.parametrize("shape", [(7, 9), (14, 18), (3, 4), (21, 5), (1, 1)])
def test_labels_are_those_beneath_the_centres(shape):
    labels = torch.from_numpy(np.random.default_rng(0).integers(-1, 5, (7, 9)).astype(np.int16))
    resized = resize_labels(labels, shape)
    assert (resized.shape, resized.dtype) == (shape, torch.int16)
    for y in range(shape[0]):
        for x in range(shape[1]):
            assert resized[y, x] == labels[int((y + 0.5) * 7 / shape[0]), int((x + 0.5) * 9 / shape[1])]


@pytest.mark.parametrize("vertical", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_picture_and_map_stay_aligned(seed, vertical):
    """An edge in the picture is where it is in the map, to half a pixel, at every scale and place."""
    sample = sample_of(split_in_two(120, 160, vertical=vertical))
    augment = SegmentationAugment(scale=(0.3, 3.0), crop=(90, 110), flip=0.5, colour=0)
    changed = augment(sample, (120, 160), rng(seed))
    gray, labels = changed.image[0].float() / 100, changed.label_map.labels.float()
    assert gray.shape == labels.shape
    axis = 1 if vertical else 0
    # The first moments of both edges: bilinear interpolation spreads an edge evenly to both sides.
    assert (gray.sum(axis) - labels.sum(axis)).abs().max() <= 0.51
    assert ((gray > 0.5) != (labels > 0.5)).float().mean() <= 1 / min(labels.shape)


@pytest.mark.parametrize("factor", [0.25, 0.5, 1.0, 1.7, 2.0])
@pytest.mark.parametrize("crop", [(30, 50), (200, 40), None])
def test_sizes_that_come_out(factor, crop):
    augment = SegmentationAugment(scale=(factor, factor), crop=crop, **PLAIN)
    changed = augment(sample_of(split_in_two(60, 80)), (90, 100), rng())
    limit = crop or (90, 100)
    expected = tuple(min(round(factor * side), most) for side, most in zip((90, 100), limit, strict=True))
    assert tuple(changed.image.shape[1:]) == tuple(changed.label_map.labels.shape) == expected


def test_without_changes_the_sample_stays():
    sample = sample_of(np.random.default_rng(0).integers(-1, 3, (20, 30)))
    changed = SegmentationAugment(scale=(1, 1), **PLAIN)(sample, (20, 30), rng())
    assert torch.equal(changed.image, sample.image)
    assert torch.equal(changed.label_map.labels, sample.label_map.labels)


def test_flipping_mirrors_both():
    sample = sample_of(np.random.default_rng(0).integers(0, 3, (20, 30)))
    changed = SegmentationAugment(scale=(1, 1), flip=1, colour=0)(sample, (20, 30), rng())
    assert torch.equal(changed.image, sample.image.flip(-1))
    assert torch.equal(changed.label_map.labels, sample.label_map.labels.flip(-1))
    assert changed.info.flipped
    assert not sample.info.flipped


def test_colour_changes_the_picture_alone():
    sample = sample_of(split_in_two(20, 30))
    changed = SegmentationAugment(scale=(1, 1), flip=0, colour=0.4)(sample, (20, 30), rng())
    assert not torch.equal(changed.image, sample.image)
    assert torch.equal(changed.label_map.labels, sample.label_map.labels)


def test_windows_lie_everywhere_and_scales_spread():
    labels = np.arange(40 * 40).reshape(40, 40)
    augment = SegmentationAugment(scale=(1, 1), crop=(10, 10), **PLAIN)
    corners = [divmod(int(augment(sample_of(labels), (40, 40), rng(k)).label_map.labels[0, 0]), 40) for k in range(400)]
    assert {min(c) for c in zip(*corners, strict=True)} == {0}
    assert {max(c) for c in zip(*corners, strict=True)} == {30}
    augment = SegmentationAugment(scale=(0.5, 2), crop=(500, 500), **PLAIN)
    heights = [augment(sample_of(labels), (40, 40), rng(k)).image.shape[1] for k in range(200)]
    assert 20 <= min(heights) < 22 < 76 < max(heights) <= 80
    assert 70 <= sum(height < 40 for height in heights) <= 130  # log-uniform: half of them shrink


@pytest.mark.parametrize(
    "bad", [{"scale": (0, 1)}, {"scale": (2, 1)}, {"crop": (0, 5)}, {"flip": 1.1}, {"colour": -0.1}]
)  # fmt: skip
def test_impossible_changes_are_named(bad):
    with pytest.raises(ValueError, match=rf"augment\.{next(iter(bad))}"):
        SegmentationAugment(**bad)


# -- Samples and batches --


@pytest.mark.parametrize("size", [24, 60])
def test_training_resizes_as_evaluation_does(size):
    """Pictures four times too large, and a little too small."""
    plain = SegmentationAugment(scale=(1, 1), **PLAIN)
    trained, evaluated = (dataset_of(2, 96, resize=(size, size), augment=augment) for augment in (plain, None))
    for one, other in zip(trained, evaluated, strict=True):
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.label_map.labels, other.label_map.labels)


def test_evaluation_resizes_both():
    whole = dataset_of()
    assert torch.equal(whole[2].label_map.labels, torch.from_numpy(whole.table.label_maps[2]))
    half = dataset_of(resize=(24, 24))
    assert half[2].image.shape == (3, 24, 24)
    assert torch.equal(half[2].label_map.labels, resize_labels(whole[2].label_map.labels, (24, 24)))
    assert half[2].info.scale == (0.5, 0.5)


def test_batches_are_padded_with_void():
    dataset = dataset_of(augment=SegmentationAugment(scale=(0.5, 0.9)))
    batch = dataset.__getitems__([Key(0, index, (64, 64)) for index in range(4)])
    assert batch.targets is None
    assert (batch.label_maps.labels.shape, batch.label_maps.labels.dtype) == ((4, 64, 64), torch.int16)
    for row, (height, width) in enumerate(batch.sizes.tolist()):
        sample = dataset[Key(0, row, (64, 64))]
        assert torch.equal(batch.label_maps.labels[row, :height, :width], sample.label_map.labels)
        assert torch.equal(batch.images[row, :, :height, :width], sample.image)
        outside = torch.ones(64, 64, dtype=torch.bool)
        outside[:height, :width] = False
        assert (batch.label_maps.labels[row][outside] == -1).all()
        assert (batch.images[row][:, outside] == 0).all()
    assert len({tuple(size) for size in batch.sizes.tolist()}) > 1


def test_collating_samples_with_and_without_maps():
    sample = sample_of(split_in_two(4, 4))
    assert collate([replace(sample, label_map=None)], (4, 4)).label_maps is None
    with pytest.raises(ValueError, match="some have none"):
        collate([sample, replace(sample, label_map=None)], (4, 4))


@pytest.mark.parametrize("augment", [None, SegmentationAugment(), SegmentationAugment(crop=(32, 40))])
def test_a_cache_changes_nothing(augment):
    plain, cached = dataset_of(augment=augment), dataset_of(augment=augment, cache=True)
    for epoch in (0, 1, 0):
        for index in range(len(plain)):
            key = Key(epoch, index, (48, 48))
            assert torch.equal(plain[key].image, cached[key].image)
            assert torch.equal(plain[key].label_map.labels, cached[key].label_map.labels)
    sample = cached[1]
    sample.label_map.labels.fill_(7)
    assert not (cached[1].label_map.labels == 7).any()


def test_changes_follow_from_seed_epoch_and_index_alone():
    dataset = dataset_of(augment=SegmentationAugment())
    keys = [Key(epoch, index, (48, 48)) for epoch in range(2) for index in range(4)]
    first = {key: dataset[key].image for key in keys}
    again = pickle.loads(pickle.dumps(dataset))
    assert all(torch.equal(again[key].image, first[key]) for key in reversed(keys))
    assert not torch.equal(*(again[Key(epoch, 0, (48, 48))].image[:, :9, :9] for epoch in range(2)))
    other = dataset_of(augment=SegmentationAugment(), seed=1)
    assert any(other[key].image.shape != first[key].shape for key in keys)


def test_crops_come_in_one_frame():
    dataset = dataset_of(count=9, augment=SegmentationAugment(crop=(33, 41)))
    for batch in loader_for(dataset, 4, train=True):
        assert batch.images.shape == (4, 3, 33, 41)
        assert batch.label_maps.labels.shape == (4, 33, 41)


def test_what_is_no_data_for_it(tmp_path):
    with pytest.raises(DataError, match="have no label maps"):
        SegmentationDataset(shapes_table("train", 2, 32), resize=(32, 32))
    table = semantic_table(shapes_table("train", 2, 32, masks=True), "shapes")
    with pytest.raises(DataError, match="no pictures in this data set"):
        SegmentationDataset(table.select([]), resize=(32, 32))
    write_label_map(tmp_path / "map.png", np.zeros((5, 6)))
    maps = MaskFiles([str(tmp_path / "map.png")] * 2, Legend.of(table.categories))
    with pytest.raises(DataError, match=r"label map is 5x6 pixels \(height x width\), the picture 32x32"):
        SegmentationDataset(replace(table, label_maps=maps), resize=(32, 32))[0]


# -- For Lightning --


def make_data(**options):
    options = {"batch_size": 4, "min_size": 48, "max_size": 48, "num_workers": 0, "shapes": SMALL, **options}
    return SegmentationData(**options)


def test_built_in_shapes():
    data = make_data()
    assert data.categories == ["background", "circle", "square", "triangle", "star", "cross", "ring"]
    assert (data.num_classes, data.colours) == (7, None)
    assert {split: len(table) for split, table in data.tables.items()} == {"train": 10, "val": 4, "test": 4}
    batch = next(iter(data.val_dataloader()))
    assert batch.label_maps.labels.shape == (4, 64, 64)
    assert batch.label_maps.labels.max() > 0
    assert data.train_dataloader().dataset.augment is data.augment
    assert data.val_dataloader().dataset.augment is None
    assert data.frames.tolist() == [[64, 64]]
    with pytest.raises(DataError, match="fixed splits"):
        _ = make_data(train_split="trainval").tables


def test_workers_change_nothing():
    alone, several = (list(make_data(num_workers=workers).train_dataloader()) for workers in (0, 2))
    for mine, theirs in zip(alone, several, strict=True):
        assert torch.equal(mine.images, theirs.images)
        assert torch.equal(mine.label_maps.labels, theirs.label_maps.labels)


def test_a_bad_mask_stops_with_a_plain_message(tmp_path):
    for k in range(4):
        for folder in ("images", "masks"):
            write_label_map(tmp_path / folder / f"p{k}.png", np.full((8, 8), k))
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    data = make_data(path=str(tmp_path), num_workers=1, batch_size=2)
    with pytest.raises(DataError, match=r"^[^\n]*p3\.png: value 3 at row 0, column 0[^\n]*$"):
        [*data.train_dataloader(), *data.val_dataloader()]


def test_pixel_counts_equal_a_loop():
    data = make_data()
    table = data.tables["train"]
    counts, present = data.pixel_counts()
    assert counts.sum() == 10 * 48 * 48
    for label in range(7):
        maps = [table.label_maps[row] for row in range(10)]
        assert counts[label] == sum((labels == label).sum() for labels in maps)
        assert present[label] == sum(labels.size for labels in maps if (labels == label).any())


def test_void_counts_nowhere(tmp_path):
    for k, labels in enumerate([[[0, 1, -1, -1]], [[0, 0, 0, -1]], [[-1, -1, -1, -1]]]):
        write_label_map(tmp_path / "train" / f"{k}.png", np.array(labels))
        write_label_map(tmp_path / "trainannot" / f"{k}.png", np.array(labels))
        write_label_map(tmp_path / "val" / f"{k}.png", np.array(labels))
        write_label_map(tmp_path / "valannot" / f"{k}.png", np.array(labels))
    (tmp_path / "classes.txt").write_text("a\nb\nc")
    counts, present = make_data(path=str(tmp_path)).pixel_counts()
    assert counts.tolist() == [4, 1, 0]
    assert present.tolist() == [5, 2, 0]


def test_options_from_the_command_line():
    options = [
        "--data.augment.crop=[20,30]",
        "--data.augment.scale=[0.7,1.5]",
        "--data.path=x",
        "--data.shapes.size=32",
    ]
    data = LightningCLI(
        LightningModule, SegmentationData, run=False, args=options, save_config_callback=None
    ).datamodule
    assert data.augment == SegmentationAugment(scale=(0.7, 1.5), crop=(20, 30))
    assert (data.path, data.shapes.size) == ("x", 32)
    options = ["--data.augment=null"]
    data = LightningCLI(
        LightningModule, SegmentationData, run=False, args=options, save_config_callback=None
    ).datamodule
    assert data.augment is None


def test_real_camvid(real_data):
    data = make_data(path=str(real_data("camvid")), min_size=360, max_size=480, exact=False)
    batch = next(iter(data.train_dataloader()))
    assert batch.images.shape == (4, 3, 384, 480)
    assert batch.label_maps.labels.min() == -1
    assert batch.label_maps.labels.max() <= 10
    exact = make_data(path=str(real_data("camvid")), min_size=360, max_size=480, exact=True)
    val = exact.val_dataloader()
    batch = next(iter(val))
    assert batch.images.shape == (4, 3, 360, 480)
    assert np.array_equal(batch.label_maps.labels[0].numpy(), exact.tables["val"].label_maps[0])
