"""What `sightline predict` leaves behind of a captioner, each written picture by picture: nothing grows with a video's length.

All are context managers with one verb, `write(number, frame, told)`, like those of `prediction_files.py`.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from sightline.captioning.inference import Said
from sightline.datasets.sources import Frame
from sightline.datasets.structures import Instances
from sightline.datasets.table import DataError
from sightline.evaluation.attention_panels import attention_panels
from sightline.evaluation.drawing import annotate, colour_of
from sightline.evaluation.sentence_band import Note, with_band
from sightline.tools.picture_files import PictureFiles
from sightline.tools.prediction_files import JsonList, create, rows


class Told(NamedTuple):
    """Everything about one picture.

    Attributes:
        said: of the picture as a whole.
        found: N objects that a detector found, in the picture's pixels; None where none was asked.
        regions: what was said of each of them.
    """

    said: Said
    found: Instances | None = None
    regions: Sequence[Said] = ()


class CaptionedPictures:
    """Pictures and videos with their sentences in a band below, see `PictureFiles`.

    Objects have numbered boxes, and their best sentences stand with the numbers below the picture's own.
    """

    def __init__(self, files: PictureFiles, lines: int) -> None:
        """`lines` is how many there are under a video, all of whose frames must be of one height."""
        self._files, self._lines = files, lines

    def write(self, number: int, frame: Frame, told: Told) -> None:
        first, *others = told.said.sentences
        notes = [Note(first), *(Note(sentence, weak=True) for sentence in others)]
        image = frame.image
        if told.found is not None:
            marks = [str(i + 1) for i in range(len(told.found))]
            numbered = replace(told.found, labels=torch.arange(len(marks)), scores=None, ids=None)
            image = annotate(image, numbered, marks)
            each = enumerate(zip(marks, told.regions, strict=True))
            notes += [Note(said.sentences[0], mark, colour_of(i)) for i, (mark, said) in each]
        self._files.add(frame, with_band(image, notes, lines=self._lines if frame.is_video else None))

    def __enter__(self) -> CaptionedPictures:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()


class AttentionPictures:
    """A picture for each picture or frame, with a panel for each word of its best sentence; see `attention_panels`."""

    def __init__(self, files: PictureFiles, checkpoint: str) -> None:
        """`checkpoint` is the captioner's name, for what is said when it does not attend."""
        self._files, self._checkpoint = files, checkpoint

    def write(self, number: int, frame: Frame, told: Told) -> None:
        """
        Raises:
            DataError: the sentences came without attention.
        """
        said = told.said
        if said.captions.attention is None:
            raise DataError(
                f"{self._checkpoint} writes its sentences without attention, so there is none to draw: leave --attention "
                "out, or take a captioner that attends, such as show_attend_tell"
            )
        words = said.words[0]
        attention = said.captions.attention[0, : len(words)].unflatten(1, said.grid).numpy()
        sheet = attention_panels(frame.image, words, attention, extent=said.extent, title=said.sentences[0])
        self._files.add_alone(frame, sheet)

    def __enter__(self) -> AttentionPictures:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()


class CaptionResults:
    """A results.json as COCO's caption scorer takes it: a list of {image_id, caption}, one a picture.

    Pictures and frames are numbered from 1 in the order they were read: that is `image_id`. Beside them stand the
    caption's log probability as `score`, `file_name`, of a video `frame`, `others` with {caption, score} of further
    sentences, best first, and `regions` with {bbox, category, detection_score, caption, score} of objects.
    """

    def __init__(self, path: str | os.PathLike, names: Sequence[str] = ()) -> None:
        """`names` are the categories of objects."""
        self._names, self._list = names, JsonList(path)

    def write(self, number: int, frame: Frame, told: Told) -> None:
        (_, score, sentence), *others = _ranked(told.said)
        record: dict[str, Any] = {"image_id": number, "caption": sentence, "score": score, "file_name": frame.name}
        record |= {"frame": frame.index} if frame.is_video else {}
        record |= {"others": [{"caption": sentence, "score": score} for _, score, sentence in others]} if others else {}
        record |= {} if told.found is None else {"regions": self._regions(told)}
        self._list.add(record)

    def _regions(self, told: Told) -> list[dict[str, Any]]:
        records = []
        for (label, detection_score, box), said in zip(rows(told.found), told.regions, strict=True):
            x0, y0, x1, y1 = box
            _, score, sentence = _ranked(said)[0]
            place = {"bbox": [round(side, 3) for side in (x0, y0, x1 - x0, y1 - y0)], "category": self._names[label]}
            records.append(place | {"detection_score": detection_score, "caption": sentence, "score": score})
        return records

    def __enter__(self) -> CaptionResults:
        return self

    def __exit__(self, *_: object) -> None:
        self._list.close()


class CaptionTable:
    """One row a sentence: file, frame (0 for a picture), rank from 1, log probability and the sentence.

    Where there are objects, further columns have their category and corners x0, y0, x1, y1 in pixels, empty in the rows
    of whole pictures.
    """

    HEADER = ("file", "frame", "rank", "log_probability", "sentence")
    OF_OBJECTS = ("category", "x0", "y0", "x1", "y1")

    def __init__(self, path: str | os.PathLike, names: Sequence[str] | None = None) -> None:
        """`names` are the categories of objects; None where nobody looks for any."""
        self._names, self._file = names, create(path)
        self._table = csv.writer(self._file)
        self._table.writerow(self.HEADER if names is None else (*self.HEADER, *self.OF_OBJECTS))

    def write(self, number: int, frame: Frame, told: Told) -> None:
        self._add(frame, told.said, [] if self._names is None else [""] * len(self.OF_OBJECTS))
        if told.found is not None:
            for (label, _, box), said in zip(rows(told.found), told.regions, strict=True):
                self._add(frame, said, [self._names[label], *(round(side, 3) for side in box)])

    def _add(self, frame: Frame, said: Said, of_object: list) -> None:
        for rank, score, sentence in _ranked(said):
            self._table.writerow([frame.name, frame.index, rank, score, sentence, *of_object])

    def __enter__(self) -> CaptionTable:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _ranked(said: Said) -> list[tuple[int, float, str]]:
    """Rank, log probability and text of each sentence."""
    scores = [round(score, 6) for score in said.captions.scores.tolist()]
    return list(zip(range(1, len(scores) + 1), scores, said.sentences, strict=True))
