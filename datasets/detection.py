"""A table of annotated pictures as a torch data set, and the loader that turns it into batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from .batching import BucketBatchSampler, Key, assign_frames, collate, frame_for, frame_multiple, frame_sizes
from .cache import Cache
from .images import read_image
from .landmarks import mirrored
from .mixing import Mixing
from .mnist import read_mnist
from .outlines import Outlines
from .proposals import as_instances
from .shapes import read_shapes
from .structures import Batch, ImageInfo, Instances, Sample
from .table import DataError, Table
from .transforms import Resize, from_hwc, resize_image, resize_instances, resize_shape

T = TypeVar("T")


class DetectionDataset(Dataset):
    """The pictures of a table as samples, resized and, for training, changed at random.

    Randomness follows from (seed, epoch, index) alone, so the results depend on no worker count and no process.
    `dataset[i]` is picture i as in epoch 0; asked for a list of keys, a data set makes the batch.

    Raises:
        DataError: the table is empty; on access, a picture cannot be read, or its size is not the one annotated.
    """

    def __init__(
        self,
        table: Table,
        *,
        resize: Resize,
        augment: Callable[[Sample, np.random.Generator], Sample] | None = None,
        mixing: Mixing | None = None,
        first_plain: int | None = None,
        masks: int | None = None,
        seed: int = 0,
        cache: bool = False,
    ) -> None:
        """
        Args:
            table: the annotations.
            resize: (min_size, max_size) of the short and the long side in pixels, or (height, width, True) for exactly
                that size, see `transforms.resize_shape`.
            augment: a random change that makes no picture larger, such as `augment.Augment()`, or that brings original
                pictures to its `size` (height, width) itself, such as `crops.ScaleCrop()`; None for evaluation.
            mixing: strong changes that make one picture of several and fill its batch's frame, instead of `augment`.
            first_plain: the epoch from which on there is no mixing, but `augment`; None for never.
            masks: cells along each side of the objects' masks; None for boxes only.
            seed: of the random changes.
            cache: keep the pictures, resized, in memory shared by all workers; for sets that fit there.
        """
        if not len(table):
            raise DataError("there are no pictures in this data set or split")
        # Packed or left out: workers would copy those many small objects page by page.
        self._masks, self._outlines = masks, None if masks is None else Outlines(table)
        self.table = replace(table, segmentations=None, captions=None)
        if mixing is not None and table.regions is not None:
            raise DataError("proposals cannot follow pictures that are mixed: leave out mixing (data.mixing: null)")
        self.augment, self.mixing, self.first_plain, self.seed = augment, mixing, first_plain, seed
        self._offsets, self._resize = table.offsets, resize
        size = getattr(augment, "size", None)  # of what comes out, where that is the same for all
        if size is None:
            self.shapes = np.array([resize_shape(*size, *resize) for size in table.sizes.tolist()])  # (I, 2)
            self.out_shapes, self.frame_multiple = self.shapes, frame_multiple(resize)
        else:  # it cuts from the original pictures: resized before, they would be blurred twice
            self.shapes, self.out_shapes = table.sizes, np.tile(np.array(size), (len(table), 1))
            self.frame_multiple = 1
        self._cache = Cache(self.shapes) if cache else None

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, key: Key | int) -> Sample:
        epoch, index, frame = (0, range(len(self))[key], None) if isinstance(key, int) else key
        sample, rng = self._sample(index), np.random.Generator(np.random.Philox([self.seed, epoch, index]))
        if self.mixing is not None and (self.first_plain is None or epoch < self.first_plain):
            return self._mixed(sample, frame or frame_for(self.shapes[index].tolist(), self._resize), rng)
        return sample if self.augment is None else self._renamed(self.augment(sample, rng))

    def _mixed(self, sample: Sample, frame: tuple[int, int], rng: np.random.Generator) -> Sample:
        names = self.table.landmark_names
        mirror = None if names is None else mirrored(names, flipped=True)
        return self.mixing(sample, self._another, frame, rng, mirror=mirror)

    def _another(self, rng: np.random.Generator) -> Sample:
        """Any picture, unchanged."""
        return self._sample(int(rng.integers(len(self))))

    def _renamed(self, sample: Sample) -> Sample:
        """The sample with its landmarks under the names that they bear in a mirrored picture."""
        info, points = sample.info, sample.target.landmarks
        if points is None or not (info.flipped or info.upturned):
            return sample
        order = mirrored(self.table.landmark_names, flipped=info.flipped, upturned=info.upturned)
        return replace(sample, target=replace(sample.target, landmarks=points[:, order]))

    def __getitems__(self, keys: list[Key]) -> Batch:
        """The batch for keys that share a frame; a `DataLoader` calls this once per batch."""
        return collate(Subset(self, keys), keys[0].frame)

    def warm_up(self) -> None:
        """Changes one picture by `augment`, whether or not epoch 0 would: that imports what it needs."""
        self.augment(self._sample(0), np.random.Generator(np.random.Philox(self.seed)))

    def target(self, index: int) -> Instances:
        """Picture `index`'s objects in its original pixels; always with `crowd`: all batches have the same fields."""
        rows = slice(*self._offsets[index : index + 2].tolist())
        columns = (self.table.boxes[rows], self.table.labels[rows], self.table.crowd[rows])
        boxes, labels, crowd = (torch.from_numpy(column.copy()) for column in columns)
        points = self.table.landmarks
        landmarks = None if points is None else torch.from_numpy(points[rows].copy())
        return Instances(boxes, labels, masks=self._masks_of(rows), crowd=crowd, landmarks=landmarks)

    def _masks_of(self, rows: slice) -> Tensor | None:
        if self._outlines is None:
            return None
        every = range(rows.start, rows.stop)
        return torch.from_numpy(self._outlines.masks(every, self.table.boxes[rows], self._masks))

    def info(self, index: int) -> ImageInfo:
        """Where picture `index` comes from, and its scale before any random change."""
        size, shape = (tuple(array[index].tolist()) for array in (self.table.sizes, self.shapes))
        scale = (shape[0] / size[0], shape[1] / size[1])
        return ImageInfo(int(self.table.image_ids[index]), self.table.paths[index], size, scale)

    def _sample(self, index: int) -> Sample:
        info, shape = self.info(index), tuple(self.shapes[index].tolist())
        sample = Sample(self._image(index), self.target(index), info, self._proposals(index))
        return sample.moved(sample.image, lambda instances: resize_instances(instances, info.size, shape))

    def _proposals(self, index: int) -> Instances | None:
        """Picture `index`'s proposals in its original pixels, if the table has any."""
        return None if self.table.regions is None else as_instances(self.table.regions[index])

    def _image(self, index: int) -> Tensor:
        if self._cache is None:
            return self._read(index)
        if not self._cache.filled[index]:
            self._cache.put(index, self._read(index))
        return self._cache.get(index)

    def _read(self, index: int) -> Tensor:
        return resize_image(annotated_picture(self.table, index), tuple(self.shapes[index].tolist()))


def annotated_picture(table: Table, index: int) -> Tensor:
    """(3, H, W) uint8 RGB, picture `index` of a table.

    Raises:
        DataError: it cannot be read, or its size is not the one annotated.
    """
    path, size = table.paths[index], tuple(table.sizes[index].tolist())
    image = read_picture(path)
    if image.shape[:2] != size:
        raise DataError(
            f"{path}: the picture is {image.shape[0]}x{image.shape[1]} pixels (height x width), but its "
            f"annotations are for {size[0]}x{size[1]}; correct the annotations or remove the picture"
        )
    return from_hwc(image)


def read_picture(path: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a picture file, or of what is in no file of its own (`shapes:…`, `mnist:…`)."""
    if path.startswith("shapes:"):
        return read_shapes(path)
    if path.startswith("mnist:"):
        return read_mnist(path)
    return read_image(path)


def has_file(path: str) -> bool:
    """Whether a picture is a file of its own, and not one of `shapes:…` or `mnist:…`."""
    return not path.startswith(("shapes:", "mnist:"))


class Loader(DataLoader):
    """A `DataLoader` of batches that can stop anywhere and go on from there: `state_dict` says how far it is.

    It starts when the first batch is asked for, not when `iter` is called: Lightning calls `iter` before it announces
    the epoch, and a resumed run would begin with the pictures of epoch 0.

    Attributes:
        wait: when the batch that was last handed out had been asked for, and when it was there; both by
            `time.perf_counter`. None before the first.
    """

    batch_sampler: BucketBatchSampler
    wait: tuple[float, float] | None = None
    _position: tuple[int, int] = (0, 0)  # the epoch that was last iterated, and how many of its batches were handed out

    def __iter__(self) -> Iterator[Batch]:
        epoch, done = self.batch_sampler.epoch, self.batch_sampler.start_batch
        self._position, asked = (epoch, done), time.perf_counter()
        for batch in with_plain_errors(super().__iter__()):
            done += 1
            self._position, self.wait = (epoch, done), (asked, time.perf_counter())
            yield batch
            asked = time.perf_counter()

    def state_dict(self) -> dict[str, int]:
        """The position: epoch, batches handed out, and the pictures of a global batch that these numbers suppose."""
        epoch, batch = self._position
        return {"epoch": epoch, "batch": batch, "global_batch": self.batch_sampler.global_batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Lets the next run through that epoch start at the next batch; with another batch size, at the first."""
        same = state["global_batch"] == self.batch_sampler.global_batch
        self.batch_sampler.set_epoch(state["epoch"], state["batch"] if same else 0)
        self._position = (state["epoch"], self.batch_sampler.start_batch)


def loader_for(
    dataset: DetectionDataset,
    batch_size: int,
    *,
    train: bool = False,
    frames: np.ndarray | None = None,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Loader:
    """Batches of a data set: shuffled and full for training, or each picture exactly once for evaluation.

    Args:
        dataset: the samples.
        batch_size: pictures in a batch of this process.
        train: see `BucketBatchSampler`.
        frames: (F, 2) sizes that pictures are padded to, from `frame_sizes`; by default the data set's own.
        num_workers: processes that load; 0 loads in this one.
        rank: this process among those that train together.
        world_size: how many those are.
    """
    if num_workers > 0 and dataset.augment is not None:
        dataset.warm_up()  # what augmentation imports on first use is imported once, here, not by every worker
    frames = frame_sizes(dataset.out_shapes, multiple=dataset.frame_multiple) if frames is None else frames
    membership = assign_frames(dataset.out_shapes, frames)
    sampler = BucketBatchSampler(
        frames, membership, batch_size, train=train, seed=dataset.seed, rank=rank, world_size=world_size
    )
    return Loader(
        dataset,
        batch_sampler=sampler,
        collate_fn=_as_it_is,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=start_worker,
    )


def with_plain_errors(batches: Iterable[T]) -> Iterator[T]:
    """The batches of a `DataLoader`; a `DataError` in one of its workers arrives as it was raised there.

    As torch hands it on, its message is that process's whole traceback.
    """
    try:
        yield from batches
    except DataError as error:
        raise DataError(str(error).rpartition("DataError: ")[2].strip()) from None


def _as_it_is(batch: Batch) -> Batch:
    return batch


def start_worker(_: int) -> None:
    """What a worker of any `DataLoader` of pictures does first: its `worker_init_fn`."""
    cv2.setNumThreads(0)  # OpenCV's threads do not survive a fork, and would fight with those of the other workers
