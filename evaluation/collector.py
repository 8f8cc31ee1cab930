"""Gathers a validation loop's detections, without a stall of the GPU until the end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..datasets.mask_encoding import from_compact
from ..datasets.run_lengths import RunLengths
from ..datasets.structures import Instances
from .records import Detections, Truth

# Values of masks that wait to be drawn at their pictures' resolution: 256 MB, after which there is a stall.
_WAITING = 1 << 26


class DetectionCollector:
    """Detections of many batches. `update` after each batch, `detections` once at the end.

    Example:
        collector = DetectionCollector()
        for batch in loader:
            found = model.detect(batch.images, batch.sizes)
            originals = [found[i].to_original(info) for i, info in enumerate(batch.infos)]
            collector.update(originals, [info.id for info in batch.infos])
        result = evaluate_coco(truth, collector.detections(truth), categories)
    """

    def __init__(self) -> None:
        self._chunks: list[Tensor] = []  # (n, 6 + 2P): box, score, label, landmarks; float32 holds labels up to 2^24
        self._ids: list[np.ndarray] = []  # (n,) image id of each row
        self._fresh: list[np.ndarray] = []  # (n,) bool, false for rows of an image that came before
        self._seen: dict[int, None] = {}
        self._drawn: list[RunLengths] = []  # of the first rows
        self._waiting: list[tuple[Tensor, Tensor, np.ndarray]] = []  # of the others: masks, boxes, pictures' sizes

    def update(
        self,
        instances: Instances | Sequence[Instances],
        image_ids: Sequence[int],
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        """Adds a batch. The tensors stay where they are, and are copied, so the caller may reuse its buffers.

        An image that came before is left out: samplers that spread images over processes repeat some to even them out.

        Args:
            instances: padded (B, N), or B single images, with scores, in pixels of the original pictures.
            image_ids: B ids, those of the data set's table.
            sizes: B (height, width) of the original pictures, in which masks are drawn; without sizes, masks are left out.

        Raises:
            ValueError: the counts differ, or there are no scores.
        """
        images = [instances] if isinstance(instances, Instances) else list(instances)
        batched = isinstance(instances, Instances) and instances.boxes.ndim == 3
        counts = [instances.boxes.shape[1]] * len(instances) if batched else [len(image) for image in images]
        image_ids = [int(i) for i in image_ids]
        if len(counts) != len(image_ids):
            raise ValueError(f"{len(counts)} images of detections, but {len(image_ids)} image ids")
        self._chunks.extend([_pack(image) for image in images])  # first, for it may raise
        if sizes is not None and images and images[0].masks is not None:
            self._keep_masks(images, np.repeat(np.array(sizes, np.int64).reshape(-1, 2), counts, axis=0))
        fresh = []
        for i in image_ids:
            fresh.append(i not in self._seen)
            self._seen[i] = None
        self._ids.append(np.repeat(np.array(image_ids, np.int64), counts))
        self._fresh.append(np.repeat(np.array(fresh, bool), counts))

    def _keep_masks(self, images: list[Instances], sizes: np.ndarray) -> None:
        """Masks are many numbers, and the few that their outlines come to take a stall: so they wait for one another."""
        side = images[0].masks.shape[-1]
        masks = torch.cat([image.masks.detach().reshape(-1, side, side) for image in images]).float()
        boxes = torch.cat([image.boxes.detach().reshape(-1, 4) for image in images]).float()
        known = torch.cat([image.labels.reshape(-1) for image in images]) >= 0
        self._waiting.append((masks, torch.where(known[:, None], boxes, 0), sizes))  # padding is drawn as nothing
        if sum(masks.numel() for masks, _, _ in self._waiting) > _WAITING:
            self._draw()

    def _draw(self) -> None:
        """Draws the masks that wait: a synchronisation."""
        for masks, boxes, sizes in self._waiting:
            self._drawn.append(from_compact(masks.cpu().numpy(), boxes.cpu().numpy(), sizes))
        self._waiting = []

    @property
    def image_ids(self) -> np.ndarray:
        """Ids of the images seen, those without detections too; `truth.only(collector.image_ids)` scores a part."""
        return np.array(list(self._seen), np.int64)

    def merge(self, others: Iterable[DetectionCollector]) -> DetectionCollector:
        """A collector with what this one and then the others hold, each image once, on the CPU."""
        merged = DetectionCollector()
        for part in (self, *others):
            part = part.cpu()
            known = list(merged._seen)
            merged._chunks += part._chunks
            merged._ids += part._ids
            merged._fresh += [fresh & ~np.isin(ids, known) for fresh, ids in zip(part._fresh, part._ids, strict=True)]
            merged._seen |= part._seen
            merged._drawn += part._drawn
        return merged

    def gather(self) -> DetectionCollector:
        """All processes' collectors merged, the same in each; call it in all. Itself where there is one process."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self
        parts: list = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, self.cpu())
        return parts[0].merge(parts[1:])

    def cpu(self) -> DetectionCollector:
        """The same in one piece on the CPU: the one synchronisation."""
        copy = DetectionCollector()
        copy._seen = dict(self._seen)
        self._draw()
        copy._drawn = [RunLengths.concatenate(self._drawn)] if self._drawn else []
        if self._chunks:
            copy._chunks = [torch.cat(self._chunks).cpu()]
            copy._ids, copy._fresh = [np.concatenate(self._ids)], [np.concatenate(self._fresh)]
        return copy

    def detections(self, truth: Truth) -> Detections:
        """All detections as columns, without padding; they stay in the order of arrival.

        Raises:
            ValueError: an image is not in the truth.
        """
        whole = self.cpu()
        if not whole._chunks:
            whole._chunks, whole._ids, whole._fresh = [torch.empty(0, 6)], [np.empty(0, np.int64)], [np.empty(0, bool)]
        table, ids, fresh = whole._chunks[0].numpy(), whole._ids[0], whole._fresh[0]
        unknown = self.image_ids[truth.rows_of(self.image_ids) < 0]
        if len(unknown):
            raise ValueError(
                f"detections for image id {unknown[0]}, which is not in the truth ({len(truth.image_ids)} images)"
            )
        keep = fresh & (table[:, 5] >= 0)
        image, table = truth.rows_of(ids[keep]), table[keep]
        landmarks = table[:, 6:].reshape(len(table), -1, 2) if table.shape[1] > 6 else None
        masks = whole._drawn[0].select(keep) if whole._drawn else None
        columns = (table[:, :4], table[:, 5].astype(np.int64), table[:, 4])
        return Detections(image, *columns, landmarks=landmarks, masks=masks)


def _pack(instances: Instances) -> Tensor:
    if instances.scores is None:
        raise ValueError("detections need scores; these Instances have none")
    columns = [instances.boxes, instances.scores.unsqueeze(-1), instances.labels.unsqueeze(-1)]
    columns += [] if instances.landmarks is None else [instances.landmarks.flatten(-2)]
    return torch.cat([column.detach().float() for column in columns], dim=-1).flatten(0, -2)
