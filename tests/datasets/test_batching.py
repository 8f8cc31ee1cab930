"""Frames, batches and padding: everything comes as often as promised, for any number of processes."""

import itertools
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

from sightline.datasets.batching import BucketBatchSampler, Key, assign_frames, collate, frame_sizes
from sightline.datasets.structures import ImageInfo, Instances, Sample
from sightline.datasets.transforms import resize_shape


def photo_shapes(count=300, seed=0):
    """Sizes such as cameras make, resized to 800 / 1333."""
    rng = np.random.default_rng(seed)
    ratios = rng.choice([4 / 3, 3 / 2, 3 / 4, 2 / 3, 1.0, 16 / 9], count) * rng.uniform(0.97, 1.03, count)
    return np.array([resize_shape(600, int(600 * ratio), 800, 1333) for ratio in ratios])


def make_sampler(shapes, batch_size=4, **options):
    frames = frame_sizes(shapes)
    return BucketBatchSampler(frames, assign_frames(shapes, frames), batch_size, **options)


def test_frames_hold_every_picture_with_little_padding():
    shapes = photo_shapes()
    frames = frame_sizes(shapes)
    assert len(frames) <= 6
    assert (frames % 32 == 0).all()
    assert (np.diff(frames.prod(1)) >= 0).all()
    held = frames[assign_frames(shapes, frames)]
    assert (held >= shapes).all()
    assert 1 - shapes.prod(1).sum() / held.prod(1).sum() < 0.08


def test_frames_against_the_best_of_all_choices():
    """The greedy merge is near the optimum, found by trying every pair of frames over rounded sizes."""
    shapes = photo_shapes(60)
    rounded = np.unique(-(-shapes // 32) * 32, axis=0)
    heights, widths = np.unique(rounded[:, 0]), np.unique(rounded[:, 1])
    candidates = np.array(list(itertools.product(heights, widths)))
    best = np.inf
    for pair in itertools.combinations(candidates, 2):
        frames = np.array(sorted(pair, key=np.prod))
        if (shapes[:, None] <= frames).all(-1).any(1).all():
            best = min(best, frames[assign_frames(shapes, frames)].prod(1).sum())
    frames = frame_sizes(shapes, limit=2)
    assert frames[assign_frames(shapes, frames)].prod(1).sum() <= 1.05 * best


@pytest.mark.parametrize("limit", [1, 2, 6])
def test_frame_limit(limit):
    assert len(frame_sizes(photo_shapes(), limit)) <= limit


def test_one_size_is_one_frame():
    assert frame_sizes(np.full((9, 2), 100)).tolist() == [[128, 128]]


def test_a_picture_without_frame_is_named():
    with pytest.raises(ValueError, match="100, 90"):
        assign_frames(np.array([[10, 10], [100, 90]]), np.array([[64, 64]]))


def test_batches_share_a_frame_that_holds_them():
    shapes = photo_shapes()
    for batch in make_sampler(shapes, train=True):
        frames = {key.frame for key in batch}
        assert len(frames) == 1
        assert all((shapes[key.index] <= key.frame).all() for key in batch)


@pytest.mark.parametrize(("images", "batch_size"), [(300, 4), (7, 4), (3, 8), (64, 1), (50, 16)])
@pytest.mark.parametrize("world_size", [1, 3])
def test_training_batches_are_full_and_leave_nothing_out(images, batch_size, world_size):
    shapes = photo_shapes(images)
    seen, lengths = [], set()
    for rank in range(world_size):
        sampler = make_sampler(shapes, batch_size, train=True, rank=rank, world_size=world_size)
        batches = list(sampler)
        assert len(batches) == len(sampler) > 0
        assert all(len(batch) == batch_size for batch in batches)
        lengths.add(len(batches))
        seen += [key.index for batch in batches for key in batch]
    assert len(lengths) == 1, "processes have different numbers of batches"
    assert set(seen) == set(range(images))
    tops = 3  # frames that no other covers: landscape, portrait, square
    assert len(seen) < images + tops * batch_size * world_size


@pytest.mark.parametrize("world_size", [1, 2, 5])
@pytest.mark.parametrize("images", [1, 23, 300])
def test_evaluation_sees_every_picture_once(images, world_size):
    shapes = photo_shapes(images)
    samplers = [make_sampler(shapes, train=False, rank=rank, world_size=world_size) for rank in range(world_size)]
    batches = [list(sampler) for sampler in samplers]
    assert [len(b) for b in batches] == [len(sampler) for sampler in samplers]
    assert sorted(key.index for b in batches for batch in b for key in batch) == list(range(images))
    assert all(batch for b in batches for batch in b), "an empty batch"


@pytest.mark.parametrize("train", [True, False])
def test_two_processes_see_what_one_with_twice_the_batch_sees(train):
    shapes = photo_shapes()
    for epoch in range(2):
        parts = []
        for rank, world_size, batch_size in ((0, 2, 4), (1, 2, 4), (0, 1, 8)):
            sampler = make_sampler(shapes, batch_size, train=train, rank=rank, world_size=world_size, seed=5)
            sampler.set_epoch(epoch)
            parts.append(list(sampler))
        first, second, single = parts
        for step, batch in enumerate(single):
            halves = [half[step] for half in (first, second) if step < len(half)]
            assert batch == [*itertools.chain(*halves)] or not train
        if not train:  # short batches shift the steps, not the pictures
            assert sorted(itertools.chain(*first, *second)) == sorted(itertools.chain(*single))


def test_order_follows_from_seed_and_epoch():
    shapes = photo_shapes(40)

    def order(seed, epoch):
        sampler = make_sampler(shapes, train=True, seed=seed)
        sampler.set_epoch(epoch)
        return [[key.index for key in batch] for batch in sampler]

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)
    assert {key.epoch for batch in make_sampler(shapes, train=True) for key in batch} == {0}


def test_starting_within_an_epoch():
    sampler = make_sampler(photo_shapes(), train=True)
    sampler.set_epoch(3)
    whole = list(sampler)
    sampler.set_epoch(3, start_batch=5)
    sampler.set_epoch(3)  # Lightning announces the epoch again
    assert len(sampler) == len(whole)
    assert list(sampler) == whole[5:]
    assert list(sampler) == whole, "the start outlived its epoch"
    sampler.set_epoch(3, start_batch=5)
    sampler.set_epoch(4)
    assert len(list(sampler)) == len(sampler), "the start went over to another epoch"


def test_lightning_finds_the_sampler():
    sampler = make_sampler(photo_shapes(9), train=True)
    assert sampler.sampler is sampler


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"rank": 2, "world_size": 2}])
def test_impossible_arguments(bad):
    with pytest.raises(ValueError, match="batch_size >= 1"):
        make_sampler(photo_shapes(9), **{"batch_size": 2, "train": True, **bad})


def make_sample(height, width, objects, index=0):
    image = torch.randint(1, 256, (height, width, 3), dtype=torch.uint8).permute(2, 0, 1)
    target = Instances(torch.rand(objects, 4), torch.arange(objects), crowd=torch.zeros(objects, dtype=torch.bool))
    return Sample(image, target, ImageInfo(index, f"{index}.png", (height, width)))


def test_collate_pads_with_zeros_right_and_below():
    samples = [make_sample(30, 40, 3, 0), make_sample(64, 20, 0, 1)]
    batch = collate(samples, (64, 64))
    assert batch.images.shape == (2, 3, 64, 64)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.sizes.tolist() == [[30, 40], [64, 20]]
    for index, sample in enumerate(samples):
        height, width = sample.image.shape[1:]
        assert torch.equal(batch.images[index, :, :height, :width], sample.image)
        assert batch.images[index].count_nonzero() == sample.image.numel()
        assert torch.equal(batch.targets[index].boxes, sample.target.boxes)
        assert batch.infos[index] == sample.info


def test_collate_lets_go_of_pixels_that_stand_in_the_batch():
    class Made:
        """Samples made when asked for; counts those whose pixels are still held when the next is asked for."""

        held, seen = 0, ()

        def __len__(self):
            return 5

        def __getitem__(self, index):
            if index >= len(self):
                raise IndexError
            self.held = max(self.held, sum(image() is not None for image in self.seen))
            sample = make_sample(30, 40, 2, index)
            self.seen = (*self.seen, weakref.ref(sample.image))
            return sample

    made = Made()
    batch = collate(made, (32, 64))
    assert len(made.seen) == 5, "samples were made twice"
    assert made.held <= 1
    assert [info.id for info in batch.infos] == [0, 1, 2, 3, 4]
    assert batch.sizes.tolist() == [[30, 40]] * 5


@pytest.mark.parametrize(("objects", "padded"), [(0, 8), (1, 8), (8, 8), (9, 16), (64, 64), (93, 128)])
def test_target_counts_are_few(objects, padded):
    assert collate([make_sample(4, 4, objects), make_sample(4, 4, 0)], (32, 32)).targets.labels.shape == (2, padded)


def test_a_sample_larger_than_its_frame_is_named():
    with pytest.raises(ValueError, match=r"5\.png is 40x8"):
        collate([make_sample(40, 8, 1, 5)], (32, 32))


def test_keys_are_tuples():
    assert Key(1, 2, (3, 4)) == (1, 2, (3, 4))


def proposed(sample, count):
    boxes = torch.rand(count, 4)
    labels, scores = torch.zeros(count, dtype=torch.int64), torch.rand(count)
    return replace(sample, proposals=Instances(boxes, labels, scores))


@pytest.mark.parametrize(("counts", "padded"), [((0, 0), 250), ((1, 250), 250), ((251, 3), 500), ((2000, 1999), 2000)])
def test_proposals_are_padded_to_few_lengths(counts, padded):
    samples = [proposed(make_sample(4, 4, 2, i), count) for i, count in enumerate(counts)]
    batch = collate(samples, (32, 32))
    assert batch.proposals.boxes.shape == (2, padded, 4)
    assert (batch.proposals.labels >= 0).sum(1).tolist() == list(counts)
    for index, sample in enumerate(samples):
        for name in ("boxes", "labels", "scores"):
            assert torch.equal(getattr(batch.proposals[index], name), getattr(sample.proposals, name))
    assert batch.targets.labels.shape == (2, 8), "proposals change the objects' padding"


def test_a_batch_without_proposals():
    assert collate([make_sample(4, 4, 2), make_sample(4, 4, 2)], (32, 32)).proposals is None
