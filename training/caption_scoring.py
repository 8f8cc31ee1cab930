"""A trained captioner's scores on a data set: what `evaluate`, `benchmark` and the end of a training call."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..backbone.model import answering, evaluating
from ..captioning import Captioner
from ..captioning.decoder import Annotations, Decoder
from ..captioning.vocabulary import Vocabulary
from ..datasets.caption_dataset import CaptionDataset
from ..datasets.detection import Loader, loader_for
from ..datasets.structures import Batch, Captions
from ..datasets.table import DataError, Table
from ..evaluation import CaptionCollector, CaptionResult, ReportInputs, evaluate_captions
from ..evaluation.caption_report import write_caption_report

Search = Callable[[Decoder, Annotations], Captions]


@dataclass
class ScoredCaptions:
    """Scores, and what they were computed from.

    Attributes:
        result: the scores; its pictures are in the table's order.
        seconds: wall-clock time of loading and captioning.
    """

    result: CaptionResult
    seconds: float

    @property
    def captions(self) -> dict[int, str]:
        """Each picture's caption by its id: what `write_caption_results` writes."""
        return dict(zip(self.result.image_ids, self.result.captions, strict=True))

    def to_dict(self) -> dict:
        """The summary (BLEU-1, …, CIDEr-D, exact) at the top, then "seconds" and "per_image": a results.json."""
        numbers = self.result.to_dict()
        pictures = numbers.pop("per_image")
        return numbers | {"seconds": round(self.seconds, 2), "per_image": pictures}

    def write_report(self, folder: str | os.PathLike, inputs: ReportInputs) -> Path:
        """Writes report.html with curves and pictures into a folder; returns its path."""
        return write_caption_report(folder, self.result, inputs)


def score_captions(
    model: Captioner,
    table: Table,
    *,
    search: Search | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    maps: np.ndarray | None = None,
    progress: bool = True,
) -> ScoredCaptions:
    """Writes a sentence about every picture of a data set, and scores them.

    Args:
        model: a captioner.
        table: pictures with sentences.
        search: how sentences are found; None for the model's own way.
        batch_size: pictures at a time.
        num_workers: processes that load pictures.
        maps: (I, C, h, w) float16, what the model's backbone makes of the pictures, where that is known: they are not read.
        progress: show a bar.

    Raises:
        DataError: a picture has no sentence, or cannot be read.
    """
    sentences_of(table)  # raises before the work, not after it
    dataset = CaptionDataset(table, encode=model.vocabulary.encode, resize=model.resize, maps=maps)
    loader = loader_for(dataset, batch_size, num_workers=num_workers)
    started = time.perf_counter()
    collector = caption_all(model, loader, search=search, progress=progress)
    seconds = time.perf_counter() - started
    return ScoredCaptions(judge_captions(model.vocabulary, table, collector), seconds)


@torch.inference_mode()
def caption_all(
    model: Captioner, loader: Loader, *, search: Search | None = None, progress: bool = True
) -> CaptionCollector:
    """The best sentence about each picture of a loader, by the model's own search unless another is given."""
    device = next(model.parameters()).device
    collector, find = CaptionCollector(), search or model.search
    with evaluating(model):
        for batch in tqdm(loader, desc="caption", unit="batch", disable=None if progress else True, leave=False):
            with answering(model):
                annotations = annotated(model, batch.to(device))
            collector.update(find(model.decoder, annotations), [info.id for info in batch.infos])
    return collector


def annotated(model: Captioner, batch: Batch) -> Annotations:
    """What a model's backbone makes of a batch's pictures, or made of them beforehand."""
    if batch.maps is not None:
        return model.annotate(batch.maps, batch.sizes)
    return model(batch.images, batch.sizes)


def judge_captions(vocabulary: Vocabulary, table: Table, collector: CaptionCollector) -> CaptionResult:
    """Scores the sentences that were written about a table's pictures, or about some of them.

    Args:
        vocabulary: the model's.
        table: pictures with sentences.
        collector: of all processes.

    Raises:
        DataError: the pictures have no sentences; nothing was written about any of them, or something about another.
    """
    truth, written = sentences_of(table), collector.sentences()
    if unknown := [image_id for image_id in written if image_id not in truth]:
        raise DataError(f"a sentence about picture {unknown[0]}, of which the data set of {len(truth)} has none")
    if not written:
        raise DataError("no sentence was written that could be scored")
    kept = {image_id: group for image_id, group in truth.items() if image_id in written}
    return evaluate_captions(kept, {image_id: vocabulary.decode(written[image_id]) for image_id in kept})


def sentences_of(table: Table) -> dict[int, list[str]]:
    """The sentences of a table's pictures by id.

    Raises:
        DataError: there are none.
    """
    groups = [[]] * len(table) if table.captions is None else table.captions
    found = {int(i): group for i, group in zip(table.image_ids, groups, strict=True) if group}
    if not found:
        raise DataError(f"the data set's {len(table)} pictures have no sentences that captions could be scored against")
    return found
