"""Pictures with label maps as a torch data set: samples and batches, changed at random for training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .batching import Key
from .cache import Cache
from .detection import DetectionDataset
from .segmentation_augment import SegmentationAugment, resize_labels
from .structures import Batch, Instances, LabelMaps, Sample
from .table import DataError, Table
from .transforms import Resize, from_hwc, to_hwc


class SegmentationDataset(DetectionDataset):
    """The pictures of a table with their label maps; see `DetectionDataset`, which brings the pictures. There are no objects.

    In evaluation both are resized, pictures bilinearly, maps to the nearest label. To be changed at random they are given
    whole: resized before, they would be resampled twice.

    Raises:
        DataError: the table is empty or has no label maps; on access, a picture or map cannot be read, a pixel is of no
            category, or a size is not the one stated.
    """

    def __init__(
        self,
        table: Table,
        *,
        resize: Resize,
        augment: SegmentationAugment | None = None,
        seed: int = 0,
        cache: bool = False,
    ) -> None:
        """
        Args:
            table: I pictures with `label_maps`.
            resize: see `DetectionDataset`; the random scale is relative to this.
            augment: random changes; None for evaluation.
            seed: of the random changes.
            cache: keep decoded pictures and maps in memory shared by all workers; for sets that fit there.
        """
        if table.label_maps is None:
            raise DataError("these pictures have no label maps: read them with `label_maps.read_label_maps`")
        super().__init__(table, resize=resize, seed=seed)
        self.augment, self._evaluated = augment, self.shapes
        if augment is not None:
            self.shapes = table.sizes
        if augment is not None and augment.crop is not None:
            self.out_shapes, self.frame_multiple = np.tile(np.array(augment.crop), (len(table), 1)), 1
        self._cache = Cache(self.shapes) if cache else None
        self._label_cache = Cache(self.shapes, channels=2) if cache else None  # 16 bits, in two of 8

    def __getitem__(self, key: Key | int) -> Sample:
        epoch, index, _ = (0, range(len(self))[key], None) if isinstance(key, int) else key
        if self.augment is None:
            return self._sample(index)
        return self._changed(index, np.random.Generator(np.random.Philox([self.seed, epoch, index])))

    def __getitems__(self, keys: list[Key]) -> Batch:
        """The batch for keys that share a frame."""
        return replace(super().__getitems__(keys), targets=None)

    def warm_up(self) -> None:
        """See `DetectionDataset.warm_up`."""
        self._changed(0, np.random.Generator(np.random.Philox(self.seed)))

    def target(self, index: int) -> Instances:
        """No objects."""
        return Instances(torch.zeros((0, 4)), torch.zeros(0, dtype=torch.int64))

    def _changed(self, index: int, rng: np.random.Generator) -> Sample:
        return self.augment(self._sample(index), tuple(self._evaluated[index].tolist()), rng)

    def _sample(self, index: int) -> Sample:
        labels = LabelMaps(self._labels(index))
        return Sample(self._image(index), self.target(index), self.info(index), label_map=labels)

    def _labels(self, index: int) -> Tensor:
        """(H, W) int16 of the shape that the picture comes in."""
        if self._label_cache is None:
            return self._read_labels(index)
        if not self._label_cache.filled[index]:
            pairs = self._read_labels(index).numpy()[..., None].view(np.uint8)
            self._label_cache.put(index, from_hwc(pairs))
        return torch.from_numpy(to_hwc(self._label_cache.get(index)).view(np.int16)[..., 0])

    def _read_labels(self, index: int) -> Tensor:
        return resize_labels(torch.from_numpy(annotated_map(self.table, index)), tuple(self.shapes[index].tolist()))


def annotated_map(table: Table, index: int) -> np.ndarray:
    """(H, W) int16, the label map of picture `index` of a table, at its original resolution.

    Raises:
        DataError: it cannot be read, a pixel is of no category, or its size is not the picture's.
    """
    labels, size = table.label_maps[index], tuple(table.sizes[index].tolist())
    if labels.shape != size:
        raise DataError(
            f"{table.paths[index]}: its label map is {labels.shape[0]}x{labels.shape[1]} pixels (height x width), the picture "
            f"{size[0]}x{size[1]}; correct the map or remove the picture"
        )
    return labels
