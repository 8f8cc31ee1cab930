"""Counts label maps in a validation loop, without a stall of the GPU until the end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..datasets.structures import LabelMaps
from .segmentation import Areas, SegmentationResult
from .segmentation_counts import boundary_counts, pair_counts

HELD = (
    8_000_000  # numbers on the device (64 MB) after which they are fetched: of 11 categories, once in 55,000 pictures
)


class SegmentationCollector:
    """The pixel counts of many batches, picture by picture. `update` after each batch, `result` once at the end.

    Counts are integers, so the scores are the same to the last bit however pictures are spread over batches and processes.

    Example:
        collector = SegmentationCollector(len(categories))
        for batch in loader:
            found = model.segment(batch.images, batch.sizes)
            collector.update(found, batch.label_maps, [info.id for info in batch.infos])
        result = collector.gather().result(categories)

    Args:
        num_classes: C.
        boundary: count near contours too, for Boundary IoU. Its distance follows from the shape of the maps given, so these
            should then be whole pictures without padding.
    """

    def __init__(self, num_classes: int, *, boundary: bool = False) -> None:
        self.num_classes, self.boundary = num_classes, boundary
        self._chunks: list[Tensor] = []  # (n, L) int64, see `_counts`, of the last pictures
        self._held = 0  # how many numbers these are
        self._cells: list[
            np.ndarray
        ] = []  # (m, 3) int64 of those before: picture, place in its counts, and the number there
        self._packed = 0  # how many those before are
        self._seen: dict[int, None] = {}  # ids in the order of arrival

    @property
    def image_ids(self) -> np.ndarray:
        """Ids of the pictures seen, in the order of arrival."""
        return np.array(list(self._seen), np.int64)

    def update(self, found: LabelMaps, truth: LabelMaps, image_ids: Sequence[int]) -> None:
        """Adds a batch of B pictures. What is kept of it is small and stays on the device.

        A picture that came before is left out: samplers that spread pictures over processes repeat some.

        Args:
            found: (B, H, W), what was predicted.
            truth: (B, H, W), with -1 for void and padding.
            image_ids: B ids, those of the data set's table.

        Raises:
            ValueError: the shapes or counts differ.
        """
        labels = found.labels, truth.labels
        if labels[0].ndim != 3 or labels[0].shape != labels[1].shape or len(labels[0]) != len(image_ids):
            raise ValueError(
                f"expected label maps (B, H, W) of prediction and truth and B image ids, got {tuple(labels[0].shape)}, "
                f"{tuple(labels[1].shape)} and {len(image_ids)} ids"
            )
        rows = [row for row, image_id in enumerate(image_ids) if self._is_new(int(image_id))]
        if len(rows) < len(image_ids):  # not by an index, whose way to the GPU is a stall
            labels = [torch.stack([maps[row] for row in rows]) if rows else maps[:0] for maps in labels]
        self._chunks.append(self._counts(*(maps.detach() for maps in labels)))
        self._held += self._chunks[-1].numel()
        if self._held > HELD:
            self._pack()

    def _is_new(self, image_id: int) -> bool:
        before = len(self._seen)
        self._seen[image_id] = None
        return len(self._seen) > before

    def _counts(self, found: Tensor, truth: Tensor) -> Tensor:
        """(n, L) int64, all that is counted of each picture: `pair_counts` and then, flat, `boundary_counts`."""
        parts = [pair_counts(truth, found, self.num_classes)]
        parts += [boundary_counts(truth, found, self.num_classes).flatten(1)] if self.boundary else []
        return torch.cat(parts, dim=1)

    def _pack(self) -> None:
        """Fetches the last pictures' counts, and keeps those that are not 0, which are few of many categories' squares."""
        if self._chunks:
            counts = torch.cat(self._chunks).cpu().numpy()
            picture, place = np.nonzero(counts)
            self._cells.append(np.stack([picture + self._packed, place, counts[picture, place]], axis=1))
            self._packed, self._chunks, self._held = self._packed + len(counts), [], 0

    def cpu(self) -> SegmentationCollector:
        """The same on the CPU, small: the one synchronisation."""
        self._pack()
        copy = SegmentationCollector(self.num_classes, boundary=self.boundary)
        copy._cells, copy._packed, copy._seen = list(self._cells), self._packed, dict(self._seen)
        return copy

    def merge(self, others: Iterable[SegmentationCollector]) -> SegmentationCollector:
        """A collector with what this one and then the others hold, each picture once, on the CPU.

        Raises:
            ValueError: another counts other categories, or contours where this one does not.
        """
        merged = SegmentationCollector(self.num_classes, boundary=self.boundary)
        for part in (self, *others):
            if (part.num_classes, part.boundary) != (self.num_classes, self.boundary):
                raise ValueError(
                    f"counts of {part.num_classes} categories do not go with those of {self.num_classes}, or one "
                    "has those near contours and the other does not"
                )
            merged._add(part.cpu())
        return merged

    def _add(self, part: SegmentationCollector) -> None:
        """Takes in the pictures of another that are new here."""
        fresh = np.array([self._is_new(image_id) for image_id in part._seen], bool)
        place = np.where(fresh, np.cumsum(fresh) - 1 + self._packed, -1)
        for cells in part._cells:
            cells = cells[fresh[cells[:, 0]]]
            self._cells.append(np.column_stack([place[cells[:, 0]], cells[:, 1:]]))
        self._packed += int(fresh.sum())

    def gather(self) -> SegmentationCollector:
        """All processes' collectors merged, the same in each; call it in all. Itself where there is one process."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self
        parts: list = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, self.cpu())
        return parts[0].merge(parts[1:])

    def result(
        self, categories: Sequence[str], *, image_ids: Sequence[int] | None = None, void_is_wrong: bool = False
    ) -> SegmentationResult:
        """The scores of all pictures seen.

        Args:
            categories: C names.
            image_ids: the order in which pictures are listed, those that were not seen left out; ascending by default.
            void_is_wrong: see `SegmentationResult`.

        Raises:
            ValueError: another number of names, a label that is no category, or a picture seen that is not listed.
        """
        if len(categories) != self.num_classes:
            raise ValueError(f"{len(categories)} names for {self.num_classes} categories")
        whole = self.cpu()
        ids = whole._listed(image_ids)
        row_of = {image_id: row for row, image_id in enumerate(ids.tolist())}
        rows = np.array([row_of[image_id] for image_id in whole._seen], np.int64)
        cells = np.concatenate([np.zeros((0, 3), np.int64), *whole._cells])
        counts = _Counts(rows[cells[:, 0]], cells[:, 1], cells[:, 2], len(ids), self.num_classes)
        counts.check(ids)
        boundary = counts.boundary() if self.boundary else None
        pictures = counts.pictures(void_is_wrong=void_is_wrong)
        return SegmentationResult(list(categories), counts.matrix(), pictures, ids, boundary, void_is_wrong)

    def _listed(self, image_ids: Sequence[int] | None) -> np.ndarray:
        """(I,) int64, the ids seen in the order asked for."""
        ids = sorted(self._seen) if image_ids is None else [int(i) for i in image_ids if int(i) in self._seen]
        if missing := self._seen.keys() - set(ids):
            raise ValueError(f"picture {min(missing)} was counted, but is not among the {len(image_ids)} to be listed")
        return np.array(ids, np.int64)


class _Counts(NamedTuple):
    """The numbers that are not 0 in the counts of I pictures.

    Attributes:
        row: (n,) int64, the picture.
        place: (n,) int64, where in its counts; see `SegmentationCollector._counts`.
        count: (n,) int64, the number there.
        rows: I.
        num_classes: C.
    """

    row: np.ndarray
    place: np.ndarray
    count: np.ndarray
    rows: int
    num_classes: int

    @property
    def square(self) -> int:
        """Cells of a confusion matrix, (C + 1)²: the first places."""
        return (self.num_classes + 1) ** 2

    def check(self, image_ids: np.ndarray) -> None:
        """Raises a ValueError where a label was no category; while counting, to look for it would have been a stall."""
        if (strays := self.place == self.square).any():
            first = int(np.flatnonzero(strays)[0])
            raise ValueError(
                f"picture {image_ids[self.row[first]]}: {self.count[first]} pixels of the truth or the prediction have a label "
                f"beyond 0..{self.num_classes - 1} ({self.num_classes} categories)"
            )

    def matrix(self) -> np.ndarray:
        """(C + 1, C + 1) int64, over all pictures."""
        inside = self.place < self.square
        matrix = np.zeros(self.square, np.int64)
        np.add.at(matrix, self.place[inside], self.count[inside])
        return matrix.reshape(self.num_classes + 1, -1)

    def pictures(self, *, void_is_wrong: bool) -> Areas:
        """(I, C), the areas in each picture."""
        true, found = np.divmod(self.place, self.num_classes + 1)
        labelled, named = true < self.num_classes, found < self.num_classes
        right = labelled & (true == found)
        judged = named & (labelled | (void_is_wrong & (self.place < self.square)))
        return Areas(self._sums(true, right), self._sums(true, labelled), self._sums(found, judged))

    def _sums(self, label: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """(I, C) int64, the chosen numbers added up by picture and label."""
        sums = np.zeros((self.rows, self.num_classes), np.int64)
        np.add.at(sums, (self.row[chosen], label[chosen]), self.count[chosen])
        return sums

    def boundary(self) -> Areas:
        """(C,), the areas near contours over all pictures."""
        behind = self.place > self.square
        sums = np.zeros(3 * self.num_classes, np.int64)
        np.add.at(sums, self.place[behind] - self.square - 1, self.count[behind])
        right, true, found = sums.reshape(3, -1)
        return Areas(right, true, found)
