"""The data set and its loader: the same samples whoever loads them, and errors that name the file."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.datasets import cache, detection
from sightline.datasets.augment import Augment
from sightline.datasets.batching import Key
from sightline.datasets.detection import DetectionDataset, loader_for
from sightline.datasets.proposals import Boxes, Regions
from sightline.datasets.shapes import draw, shapes_table
from sightline.datasets.table import DataError, Table


def make_dataset(count=14, *, augment=None, **options):
    return DetectionDataset(shapes_table("train", count, 48), resize=(64, 64), augment=augment, **options)


def file_table(paths, sizes):
    objects = len(paths)
    return Table(
        categories=["thing"],
        paths=[str(path) for path in paths],
        image_ids=np.arange(len(paths)) + 10,
        sizes=np.array(sizes),
        image=np.arange(objects),
        boxes=np.tile(np.array([[1, 2, 5, 8]], np.float32), (objects, 1)),
        labels=np.zeros(objects, np.int64),
        area=np.full(objects, 24.0),
        crowd=np.zeros(objects, bool),
        difficult=np.zeros(objects, bool),
        category_ids=np.array([1]),
    )


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name, (height, width) in {"a": (40, 60), "b": (60, 40), "c": (50, 50)}.items():
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(tmp_path / f"{name}.png")
    return tmp_path


def facts(loader):
    """What a pass through a loader gave, comparable."""
    return [([info.id for info in b.infos], b.images, b.targets.boxes, b.targets.labels) for b in loader]


def assert_same(one, other):
    assert len(one) == len(other) > 0
    for (ids, *tensors), (other_ids, *other_tensors) in zip(one, other, strict=True):
        assert ids == other_ids
        assert all(torch.equal(a, b) for a, b in zip(tensors, other_tensors, strict=True))


def test_a_sample_is_the_resized_picture_and_its_scaled_boxes():
    dataset = make_dataset()
    sample, picture = dataset[3], draw(0, 3, 48)
    assert sample.image.shape == (3, 64, 64)
    torch.testing.assert_close(sample.target.boxes, torch.from_numpy(picture.boxes) * np.float32(64 / 48))
    assert sample.target.labels.tolist() == picture.labels.tolist()
    assert not sample.target.crowd.any()
    back = sample.target.to_original(sample.info)
    torch.testing.assert_close(back.boxes, torch.from_numpy(picture.boxes), atol=1e-4, rtol=0)


def test_files_of_all_sizes(folder):
    table = file_table([folder / f"{name}.png" for name in "abc"], [(40, 60), (60, 40), (50, 50)])
    dataset = DetectionDataset(table, resize=(80, 100))
    assert [tuple(dataset[i].image.shape[1:]) for i in range(3)] == [(66, 100), (100, 66), (80, 80)]
    batches = list(loader_for(dataset, 2))
    assert sorted(info.id for batch in batches for info in batch.infos) == [10, 11, 12]
    for batch in batches:
        for size, info in zip(batch.sizes.tolist(), batch.infos, strict=True):
            assert size == list(dataset[info.id - 10].image.shape[1:])


def test_epochs_and_seeds_change_the_augmentation_and_nothing_else_does():
    dataset, frame = make_dataset(augment=Augment()), (64, 64)
    again, seeded = make_dataset(augment=Augment()), make_dataset(augment=Augment(), seed=1)
    for i in (2, 7):
        again[i]  # an access in between changes nothing
        first = dataset[Key(4, i, frame)].image
        assert torch.equal(first, again[Key(4, i, frame)].image)
        for other in (dataset[Key(5, i, frame)].image, seeded[Key(4, i, frame)].image):
            assert first.shape != other.shape or (first != other).any()
    assert torch.equal(dataset[2].image, dataset[Key(0, 2, frame)].image)


def test_worker_counts_give_equal_batches():
    dataset = make_dataset(augment=Augment())
    passes = []
    for workers in (0, 1, 2):
        loader = loader_for(dataset, 4, train=True, num_workers=workers)
        epochs = []
        for epoch in range(2):  # the workers of the second epoch are those of the first
            loader.batch_sampler.set_epoch(epoch)
            epochs += facts(loader)
        passes.append(epochs)
    assert_same(passes[0], passes[1])
    assert_same(passes[0], passes[2])
    half = len(passes[0]) // 2
    assert [ids for ids, *_ in passes[0][:half]] != [ids for ids, *_ in passes[0][half:]]


def test_two_processes_load_what_one_loads():
    dataset = make_dataset(16, augment=Augment())
    first, second = (loader_for(dataset, 2, train=True, rank=rank, world_size=2) for rank in (0, 1))
    single = loader_for(dataset, 4, train=True)
    for a, b, both in zip(first, second, single, strict=True):
        assert torch.equal(torch.cat([a.images, b.images]), both.images)
        assert a.infos + b.infos == both.infos


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_on_where_another_stopped(workers):
    dataset = make_dataset(augment=Augment())
    whole = loader_for(dataset, 4, train=True)
    whole.batch_sampler.set_epoch(2)
    expected = facts(whole)

    stopped = loader_for(dataset, 4, train=True, num_workers=workers)
    stopped.batch_sampler.set_epoch(2)
    batches = iter(stopped)
    next(batches), next(batches)
    state = stopped.state_dict()
    assert state == {"epoch": 2, "batch": 2, "global_batch": 4}, "prefetched batches count as handed out"

    resumed = loader_for(dataset, 4, train=True, num_workers=workers)
    resumed.load_state_dict(state)
    batches = iter(resumed)  # as Lightning does: first iter, then the epoch's announcement
    resumed.batch_sampler.set_epoch(2)
    assert_same([*facts(batches)], expected[2:])
    assert resumed.state_dict()["batch"] == len(resumed)
    resumed.batch_sampler.set_epoch(3)
    assert len(facts(resumed)) == len(resumed)


def test_another_batch_size_starts_the_epoch_anew():
    loader = loader_for(make_dataset(), 7, train=True)
    loader.load_state_dict({"epoch": 2, "batch": 2, "global_batch": 4})
    assert loader.batch_sampler.epoch == 2
    assert len(facts(loader)) == len(loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_cache_changes_no_picture(workers):
    plain, cached = make_dataset(augment=Augment()), make_dataset(augment=Augment(), cache=True)
    expected = facts(loader_for(plain, 4, num_workers=0))
    loader = loader_for(cached, 4, num_workers=workers)
    assert_same(facts(loader), expected)
    assert cached._cache.filled.all(), "what workers read does not reach the shared memory"
    assert_same(facts(loader), expected)


def test_cached_pictures_are_not_read_again(monkeypatch):
    dataset = make_dataset(2, cache=True)
    first = dataset[0].image
    monkeypatch.setattr(detection, "read_picture", lambda path: pytest.fail(f"{path} was read again"))
    image = dataset[0].image
    assert torch.equal(image, first)
    image.zero_()
    assert torch.equal(dataset[0].image, first), "the cache hands out its own memory"


def test_a_cache_too_large_says_so(monkeypatch):
    monkeypatch.setattr(cache, "_shared_memory_free", lambda: 1000)
    with pytest.raises(DataError, match="cache: false"):
        make_dataset(cache=True)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_is_named(folder, workers):
    (folder / "b.png").write_bytes(b"no picture")
    table = file_table([folder / "b.png"], [(60, 40)])
    with pytest.raises(DataError) as error:
        list(loader_for(DetectionDataset(table, resize=(64, 64)), 1, num_workers=workers))
    assert "b.png" in str(error.value)
    assert "Traceback" not in str(error.value)


def test_an_index_error_within_a_data_set_is_not_taken_for_its_end():
    def broken(sample, rng):
        raise IndexError("beyond the last row")

    with pytest.raises(IndexError, match="beyond the last row"):
        next(iter(loader_for(make_dataset(augment=broken), 2)))


def test_a_picture_of_another_size_is_named(folder):
    table = file_table([folder / "a.png"], [(60, 40)])
    with pytest.raises(DataError, match=r"a\.png.*40x60.*60x40"):
        DetectionDataset(table, resize=(64, 64))[0]


def test_an_empty_table_is_refused():
    with pytest.raises(DataError, match="no pictures"):
        make_dataset(0)


def test_the_dataset_reaches_spawned_workers():
    dataset = pickle.loads(pickle.dumps(make_dataset(augment=Augment())))
    assert torch.equal(dataset[1].image, make_dataset(augment=Augment())[1].image)


def test_indices_count_from_the_end_and_end():
    dataset = make_dataset(3)
    assert torch.equal(dataset[-1].image, dataset[2].image)
    with pytest.raises(IndexError):
        dataset[3]


def proposed(count=5, **options):
    """A data set with 0, 1, 2, … proposals a picture, and what they are."""
    rng = np.random.default_rng(0)
    pictures = [
        Boxes(np.sort(rng.random((i, 4)) * 48, 1).astype(np.float32), np.sort(rng.random(i))[::-1].astype(np.float32))
        for i in range(count)
    ]
    table = replace(shapes_table("train", count, 48), regions=Regions.of(pictures))
    return DetectionDataset(table, resize=(64, 64), **options), pictures


def test_a_sample_has_its_picture_s_proposals():
    dataset, pictures = proposed()
    for i, picture in enumerate(pictures):
        sample = dataset[i]
        torch.testing.assert_close(sample.proposals.boxes, torch.from_numpy(picture.boxes) * np.float32(64 / 48))
        assert sample.proposals.scores.tolist() == picture.scores.tolist()
        assert sample.proposals.labels.tolist() == [0] * i
    assert make_dataset(1)[0].proposals is None


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_have_proposals(workers):
    dataset, pictures = proposed(augment=Augment(scale=(1.0, 1.0), flip=1.0))
    seen = 0
    for batch in loader_for(dataset, 2, num_workers=workers):
        assert batch.proposals.labels.shape == (len(batch), 250)
        for i, info in enumerate(batch.infos):
            expected = pictures[info.id - 1]
            assert info.flipped
            back = batch.proposals[i].to_original(info)
            np.testing.assert_allclose(back.boxes, expected.boxes, atol=1e-4)
            assert back.scores.tolist() == expected.scores.tolist()
            seen += 1
    assert seen == 5


def test_proposals_change_no_picture_and_no_object():
    with_them, _ = proposed(14, augment=Augment())
    assert_same(facts(loader_for(with_them, 4)), facts(loader_for(make_dataset(augment=Augment()), 4)))
