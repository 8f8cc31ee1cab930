"""Samples to batches: a few fixed frames for pictures of all shapes, which pictures share a batch, and the padding.

Letters: I images, F frames, B pictures of a batch, G of a global batch (B times the processes), H, W pixels of a frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler

from .structures import Batch, Instances, LabelMaps, Sample
from .transforms import Resize, to_hwc


class Key(NamedTuple):
    """What a sampler asks a data set for: one picture, as it is in one epoch, for a batch of one frame."""

    epoch: int
    index: int
    frame: tuple[int, int]  # (H, W) of its batch


STRIDE = 32  # what a frame's sides are multiples of: the largest stride of the usual networks


def frame_for(shape: Sequence[int], resize: Resize) -> tuple[int, int]:
    """The frame (H, W) of one picture that reaches the network as `shape`: without padding where `resize` is exact."""
    multiple = frame_multiple(resize)
    return -(-shape[0] // multiple) * multiple, -(-shape[1] // multiple) * multiple


def frame_multiple(resize: Resize) -> int:
    """What the sides of frames are multiples of, for pictures brought to size by `resize`."""
    return 1 if len(resize) == 3 and resize[2] else STRIDE


def frame_sizes(shapes: np.ndarray, limit: int = 6, multiple: int = STRIDE) -> np.ndarray:
    """Few frames that hold all pictures with little padding.

    Starting from every picture's own size rounded up, the two frames whose union adds least padding are merged until
    few enough are left.

    Args:
        shapes: (I, 2), (height, width) as they reach the network, at least one.
        limit: frames at most; a compiled network is specialised to each.
        multiple: what a frame's sides are multiples of.

    Returns:
        (F, 2) int64, F <= limit, ascending by area.
    """
    frames, counts = np.unique(-(-shapes // multiple) * multiple, axis=0, return_counts=True)
    while len(frames) > limit:
        union = np.maximum(frames[:, None], frames[None])
        areas, union_areas = frames.prod(-1), union.prod(-1)
        added = counts[:, None] * (union_areas - areas[:, None]) + counts[None] * (union_areas - areas[None])
        one, other = np.unravel_index(np.where(np.tri(len(frames), dtype=bool), np.inf, added).argmin(), added.shape)
        rest = np.delete(np.arange(len(frames)), [one, other])
        counts = np.append(counts[rest], counts[one] + counts[other])
        frames = np.concatenate([frames[rest], union[one, other][None]])
    frames = np.unique(frames, axis=0)
    return frames[np.argsort(frames.prod(-1), kind="stable")]


def assign_frames(shapes: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """(I,) index of the smallest frame that holds each picture.

    Args:
        shapes: (I, 2), (height, width).
        frames: (F, 2), ascending by area.

    Raises:
        ValueError: a picture is larger than every frame.
    """
    fits = (shapes[:, None] <= frames[None]).all(-1)
    if not fits.any(1).all():
        raise ValueError(f"no frame of {frames.tolist()} holds a picture of {shapes[~fits.any(1)][0].tolist()}")
    return fits.argmax(1)


class BucketBatchSampler(Sampler[list[Key]]):
    """Batches of pictures that share a frame, the same for any number of processes.

    A global batch is formed first, and each process takes its contiguous slice: two processes with batch B see at every
    step exactly what one process with batch 2B sees. Pictures that do not fill a batch move up to a larger frame that
    holds theirs, if there is one. What is then left over

    - is filled up, in training, with pictures of the same frame: every batch is full, every process has equally many,
      and no picture is ever left out (a few come twice in an epoch);
    - makes short batches in evaluation, so that every picture comes exactly once over all processes.

    Training batches come in an order that follows from (seed, epoch). Evaluation goes from the largest frame to the
    smallest, so that what does not fit into memory fails at once.
    """

    def __init__(
        self,
        frames: np.ndarray,
        membership: np.ndarray,
        batch_size: int,
        *,
        train: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """
        Args:
            frames: (F, 2), (height, width), ascending by area.
            membership: (I,), each picture's frame.
            batch_size: B, of one process.
            train: shuffled and full, or in order and exactly once.
            seed: of the shuffle.
            rank: this process, 0..world_size - 1.
            world_size: processes.
        """
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"need batch_size >= 1 and 0 <= rank < world_size, got {batch_size}, {rank}, {world_size}")
        self.frames, self.membership, self.train, self.seed = frames, membership, train, seed
        self.global_batch, self.rank, self.world_size = batch_size * world_size, rank, world_size
        self.epoch = self.start_batch = 0
        self._length = len(self._slices(0))

    @property
    def sampler(self) -> BucketBatchSampler:
        """Itself: Lightning announces epochs to `dataloader.batch_sampler.sampler`."""
        return self

    def set_epoch(self, epoch: int, start_batch: int | None = None) -> None:
        """Chooses the epoch that the next iteration runs through.

        Args:
            epoch: from 0.
            start_batch: how many of its batches the next iteration skips (later ones skip none). None keeps what was
                asked for this epoch before, so that Lightning's announcing an epoch does not undo a resumed position.
        """
        if start_batch is not None:
            self.start_batch = start_batch
        elif epoch != self.epoch:
            self.start_batch = 0
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self._length

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, start, self.start_batch = self.epoch, self.start_batch, 0
        for frame, indices in self._slices(epoch)[start:]:
            yield [Key(epoch, index, frame) for index in indices]

    def _slices(self, epoch: int) -> list[tuple[tuple[int, int], list[int]]]:
        """This process's part of every global batch: its frame and its pictures."""
        slices = []
        for frame, members in self._global_batches(epoch):
            mine = np.array_split(members, self.world_size)[self.rank]
            if len(mine):
                slices.append((tuple(self.frames[frame].tolist()), mine.tolist()))
        return slices

    def _global_batches(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, epoch])))
        order = np.arange(len(self.membership))
        groups = self._groups(rng.permutation(order) if self.train else order)
        if self.train:
            groups = [np.resize(group, -(-len(group) // self.global_batch) * self.global_batch) for group in groups]
        batches = [
            (frame, group[start : start + self.global_batch])
            for frame, group in reversed(list(enumerate(groups)))
            for start in range(0, len(group), self.global_batch)
        ]
        return [batches[k] for k in rng.permutation(len(batches))] if self.train else batches

    def _groups(self, order: np.ndarray) -> list[np.ndarray]:
        """F groups of pictures, where only frames that no other frame covers keep an unfilled batch."""
        groups = [order[self.membership[order] == frame] for frame in range(len(self.frames))]
        for frame, shape in enumerate(self.frames):
            larger = [f for f in range(frame + 1, len(groups)) if (self.frames[f] >= shape).all()]
            if larger:
                full = len(groups[frame]) // self.global_batch * self.global_batch
                groups[larger[0]] = np.concatenate([groups[larger[0]], groups[frame][full:]])
                groups[frame] = groups[frame][:full]
        return groups


_NO_PIXELS = torch.empty(3, 0, 0, dtype=torch.uint8)


def collate(samples: Sequence[Sample], frame: tuple[int, int]) -> Batch:
    """Samples padded right and below to `frame` (H, W): images, whose memory is channels-last, with 0, label maps with -1.

    The targets' N is a power of two, at least 8, so that a compiled network meets few shapes.

    Args:
        samples: each is asked for once, in order, and its pixels are let go of once they stand in the batch: where samples are
            made when asked for, the next one finds memory that is at hand.
        frame: (H, W).

    Raises:
        ValueError: a sample is larger than the frame, or some have a label map and some have none.
    """
    # An array, as torch's copy of a small picture spends its time waking threads.
    images, sizes, placed = np.zeros((len(samples), *frame, 3), np.uint8), [], []
    for i, image in enumerate(images):
        sample = samples[i]  # `iter` would take an IndexError out of a data set for the end
        height, width = sample.image.shape[1:]
        if height > frame[0] or width > frame[1]:
            raise ValueError(f"{sample.info.path} is {height}x{width}, too large for its frame {frame[0]}x{frame[1]}")
        image[:height, :width] = to_hwc(sample.image)
        sizes.append((height, width))
        placed.append(replace(sample, image=_NO_PIXELS))
    most = max(len(sample.target) for sample in placed)
    targets = Instances.collate([sample.target for sample in placed], size=max(8, 1 << (most - 1).bit_length()))
    infos, proposals = [sample.info for sample in placed], _collate_proposals(placed)
    images = torch.from_numpy(images).permute(0, 3, 1, 2)
    return Batch(images, torch.tensor(sizes), targets, infos, proposals, label_maps=_collate_label_maps(placed, frame))


def _collate_proposals(samples: Sequence[Sample]) -> Instances | None:
    """Their number is rounded up to a multiple of 250, so that a compiled network meets few shapes."""
    if any(sample.proposals is None for sample in samples):
        return None
    most = max(len(sample.proposals) for sample in samples)
    return Instances.collate([sample.proposals for sample in samples], size=max(1, -(-most // 250)) * 250)


def _collate_label_maps(samples: Sequence[Sample], frame: tuple[int, int]) -> LabelMaps | None:
    if all(sample.label_map is None for sample in samples):
        return None
    if any(sample.label_map is None for sample in samples):
        raise ValueError("some images of the batch have a label map and some have none")
    labels = np.full((len(samples), *frame), -1, np.int16)
    for row, sample in zip(labels, samples, strict=True):
        height, width = sample.label_map.labels.shape
        row[:height, :width] = sample.label_map.labels.numpy()
    return LabelMaps(torch.from_numpy(labels))
