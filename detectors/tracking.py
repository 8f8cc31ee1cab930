"""Which detections are one object in the frames of a video: ByteTrack (Zhang et al. 2022,
https://arxiv.org/abs/2110.06864).

An object half hidden keeps its box and loses its score. Trackers that look at good detections alone then lose it, and
give it a new id when it comes out again; ByteTrack looks at every box. In each frame (section 3, algorithm 1)

    all tracks are moved on to where they should be by now                            (`kalman.py`)
    1. tracks, lost ones too, are paired with detections of high score                 by IoU
    2. tracks still without one, unless lost, are paired with detections of low score  by IoU
    3. unconfirmed tracks are paired with the high detections that are left            by IoU
    high detections left over begin tracks, unconfirmed until they are found again in the next frame
    tracks that were not found are lost, and forgotten after a while

Pairs are those of the greatest total IoU (the Hungarian method). As in the authors' implementation, and not in the
paper's algorithm, a lost track cannot be found by a low score: most such boxes are background, and its place is vague;
and its size stands still. Ours: pairs are within a category; an id is given when a track is confirmed, so that the last
id is the number of objects; what comes back are the detector's boxes, not the filter's.

Letters: T tracks, N detections.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from ..datasets.structures import Instances
from . import kalman
from .boxes import iou
from .kalman import Motion

UNCONFIRMED = 0  # the id of tracks that have none yet
LOW_SCORE = 0.1  # the paper's: below it, boxes are noise


class Tracker:
    """Gives ids to the detections of one video, frame by frame; the defaults are the paper's (section 4.1) or its authors'.

        tracker = Tracker()
        for found in model.predict("clip.mp4", score=tracker.low):
            found = tracker.update(found)

    Time counts updates: where only every fifth frame of a video is looked at, five frames are one step.

    Args:
        high: the least score of a detection of stage 1.
        low: the least score of one of stage 2.
        new: the least score of one that begins a track.
        overlap: the least IoU of a pair in stages 1 and 3.
        low_overlap: the same in stage 2; higher, since boxes of low score are not trusted far.
        patience: updates for which a track is kept without being found.

    Attributes:
        count: ids given so far.

    Raises:
        ValueError: not 0 <= low <= high <= new <= 1.
    """

    def __init__(
        self,
        *,
        high: float = 0.6,
        low: float = LOW_SCORE,
        new: float = 0.7,
        overlap: float = 0.2,
        low_overlap: float = 0.5,
        patience: int = 30,
    ) -> None:
        if not 0 <= low <= high <= new <= 1:
            raise ValueError(f"scores must be 0 <= low <= high <= new <= 1, got low {low}, high {high}, new {new}")
        self.high, self.low, self.new, self.patience = high, low, new, patience
        self.overlap, self.low_overlap = overlap, low_overlap
        self.count = 0
        self._tracks: Tracks | None = None  # before the first frame

    def update(self, found: Instances) -> Instances:
        """The objects of the next frame.

        Args:
            found: N detections with scores down to `low`, in any order; none at all is fine.

        Returns:
            Those that belong to a confirmed track, in the order and with the boxes (and masks, landmarks) of the
            detector, and `ids` (int64, from 1; never given twice). An object's first frame is missing, as it is not
            confirmed then, unless that is the video's first.

        Raises:
            ValueError: `found` is a batch, or has no scores.
        """
        order, boxes, labels, scores = _columns(found)
        first, tracks = self._tracks is None, _moved(self._tracks or Tracks.at(boxes[:0], labels[:0]))

        track = self._associate(tracks, boxes, labels, scores)
        old, born = track >= 0, (track < 0) & (scores >= self.new)
        tracks = tracks.found(track[old], boxes[old])
        self._name(tracks.ids, track[old])
        ids = np.full(len(order), UNCONFIRMED, np.int64)
        ids[old] = tracks.ids[track[old]]

        births = Tracks.at(boxes[born], labels[born])
        if first:  # nothing came before that could confirm them
            self._name(births.ids, np.arange(len(births.ids)))
            ids[born] = births.ids
        alive = np.where(tracks.ids == UNCONFIRMED, tracks.unseen == 0, tracks.unseen <= self.patience)
        self._tracks = tracks.rows(alive).joined(births)
        return _with_ids(found, order, ids)

    def _associate(self, tracks: Tracks, boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """(N,), the row of the track that each detection continues; -1 for none."""
        overlap = iou(torch.from_numpy(tracks.motion.boxes), torch.from_numpy(boxes)).numpy()
        overlap[tracks.labels[:, None] != labels] = 0
        confirmed, visible = tracks.ids != UNCONFIRMED, tracks.unseen == 0
        high, low = scores >= self.high, (scores >= self.low) & (scores < self.high)

        track, free = np.full(len(scores), -1), np.ones(len(tracks.ids), bool)
        for some_tracks, some_detections, least in (
            (confirmed, high, self.overlap),
            (confirmed & visible, low, self.low_overlap),
            (~confirmed, high, self.overlap),
        ):
            rows, columns = np.flatnonzero(some_tracks & free), np.flatnonzero(some_detections & (track < 0))
            paired_rows, paired_columns = _pairs(overlap[np.ix_(rows, columns)], least)
            track[columns[paired_columns]] = rows[paired_rows]
            free[rows[paired_rows]] = False
        return track

    def _name(self, ids: np.ndarray, rows: np.ndarray) -> None:
        """Gives ids, in place, to those of these rows that have none."""
        rows = rows[ids[rows] == UNCONFIRMED]
        ids[rows] = self.count + 1 + np.arange(len(rows))
        self.count += len(rows)


@dataclass(frozen=True)
class Tracks:
    """T tracks as columns.

    Attributes:
        ids: (T,) int64, from 1; `UNCONFIRMED` for those found once only.
        labels: (T,) int64.
        unseen: (T,) int64, updates in a row in which it was not found.
        motion: where they are and how they move.
    """

    ids: np.ndarray
    labels: np.ndarray
    unseen: np.ndarray
    motion: Motion

    @classmethod
    def at(cls, boxes: np.ndarray, labels: np.ndarray) -> Tracks:
        """Tracks that begin at these boxes (T, 4), unconfirmed."""
        zeros = np.zeros(len(labels), np.int64)
        return cls(zeros + UNCONFIRMED, labels, zeros, kalman.start(boxes))

    def found(self, rows: np.ndarray, boxes: np.ndarray) -> Tracks:
        """The same after an update in which these rows, and no others, were found at these boxes."""
        corrected = kalman.correct(Motion(*(column[rows] for column in self.motion)), boxes)
        unseen, motion = self.unseen + 1, Motion(*(column.copy() for column in self.motion))
        unseen[rows] = 0
        for column, values in zip(motion, corrected, strict=True):
            column[rows] = values
        return replace(self, unseen=unseen, motion=motion)

    def rows(self, keep: np.ndarray) -> Tracks:
        """These rows alone."""
        motion = Motion(*(column[keep] for column in self.motion))
        return Tracks(self.ids[keep], self.labels[keep], self.unseen[keep], motion)

    def joined(self, other: Tracks) -> Tracks:
        """These, then the other's."""
        motion = Motion(*(np.concatenate(columns) for columns in zip(self.motion, other.motion, strict=True)))
        ids, labels = np.concatenate([self.ids, other.ids]), np.concatenate([self.labels, other.labels])
        return Tracks(ids, labels, np.concatenate([self.unseen, other.unseen]), motion)


def _columns(found: Instances) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Detections in an order of their own, so that ids do not depend on the given one.

    Returns:
        (N,) that order (best first), and in it the boxes (N, 4) float64, labels and scores.
    """
    if found.scores is None or found.boxes.ndim != 2:
        kind = "a batch" if found.boxes.ndim != 2 else "objects without scores"
        raise ValueError(f"a tracker takes the detections of one frame, with scores, and got {kind}")
    boxes = found.boxes.detach().cpu().double().numpy()
    labels, scores = found.labels.cpu().numpy(), found.scores.detach().cpu().float().numpy()
    order = np.lexsort((*boxes.T, labels, -scores))
    return order, boxes[order], labels[order], scores[order]


def _moved(tracks: Tracks) -> Tracks:
    """The tracks an update later. A lost one keeps its size: shrinking or growing on unseen, it would soon be absurd."""
    velocity = tracks.motion.velocity.copy()
    velocity[tracks.unseen > 0, 2:] = 0
    return replace(tracks, motion=kalman.predict(tracks.motion._replace(velocity=velocity)))


def _pairs(overlap: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns (K,) of the pairs of greatest total IoU, none of which has less than `least`.

    What is too little is ruled out before, so that no impossible pair keeps its two from possible ones.
    """
    possible = np.where(overlap >= least, overlap, 0)
    rows, columns = linear_sum_assignment(possible, maximize=True)
    paired = possible[rows, columns] > 0
    return rows[paired], columns[paired]


def _with_ids(found: Instances, order: np.ndarray, ids: np.ndarray) -> Instances:
    """Those that have an id, as given; `ids` (N,) come in `order`."""
    given = np.empty_like(ids)
    given[order] = ids
    all_ids = torch.from_numpy(given).to(found.boxes.device)
    return replace(found, ids=all_ids)[all_ids != UNCONFIRMED]
