"""Gathers the sentences that a captioner writes in a validation loop, without a stall of the GPU until the end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..datasets.structures import Captions


class CaptionCollector:
    """The best sentence about each picture of many batches. `update` after each batch, `sentences` once at the end.

    Example:
        collector = CaptionCollector()
        for batch in loader:
            captions = model.caption(batch.images, batch.sizes)
            collector.update(captions, [info.id for info in batch.infos])
        result = judge_captions(model.vocabulary, table, collector.gather())
    """

    def __init__(self) -> None:
        self._chunks: list[Tensor] = []  # (B, T) int64
        self._ids: list[int] = []

    def update(self, captions: Captions, image_ids: Sequence[int]) -> None:
        """Adds a batch. The tokens stay where they are, and are copied, so the caller may reuse their buffer.

        Args:
            captions: of B pictures, the best of the S sentences about each first.
            image_ids: B ids, those of the data set's table.

        Raises:
            ValueError: no batch of at least one sentence a picture, or the counts differ.
        """
        tokens = captions.tokens
        if tokens.ndim != 3 or not tokens.shape[1]:
            raise ValueError(
                f"tokens must be (B, S, T) with at least one sentence a picture, got {tuple(tokens.shape)}"
            )
        if len(tokens) != len(image_ids):
            raise ValueError(f"sentences about {len(tokens)} pictures, but {len(image_ids)} image ids")
        self._chunks.append(tokens[:, 0].detach().clone())
        self._ids += [int(i) for i in image_ids]

    def merge(self, others: Iterable[CaptionCollector]) -> CaptionCollector:
        """A collector with what this one and then the others hold, on the CPU."""
        merged = CaptionCollector()
        for part in (self, *others):
            merged._chunks += part.cpu()._chunks
            merged._ids += part._ids
        return merged

    def gather(self) -> CaptionCollector:
        """All processes' collectors merged, the same in each; call it in all. Itself where there is one process."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self
        parts: list = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, self.cpu())
        return parts[0].merge(parts[1:])

    def cpu(self) -> CaptionCollector:
        """The same in one piece on the CPU: the one synchronisation."""
        copy = CaptionCollector()
        copy._ids = list(self._ids)
        if self._chunks:
            longest = max(chunk.shape[1] for chunk in self._chunks)
            copy._chunks = [torch.cat([F.pad(chunk, (0, longest - chunk.shape[1])) for chunk in self._chunks]).cpu()]
        return copy

    def sentences(self) -> dict[int, list[int]]:
        """Each picture's sentence as numbers of words, padding behind it, in the order of arrival.

        Of a picture that came more than once, the first one: samplers that spread pictures over processes repeat some.
        """
        chunks, found = self.cpu()._chunks, {}
        rows = chunks[0].tolist() if chunks else []
        for image_id, row in zip(self._ids, rows, strict=True):
            found.setdefault(image_id, row)
        return found
