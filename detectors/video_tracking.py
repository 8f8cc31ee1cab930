"""Tracking of whatever is read: one video after the other, folders of frames among them."""

from __future__ import annotations

from pathlib import Path

from ..datasets.structures import Instances
from .tracking import LOW_SCORE, Tracker

FPS = 30.0  # where a video does not tell, or not credibly
FASTEST = 240.0  # streams may say 90000


class VideoTracker:
    """A `Tracker` for each video, whose ids go on from one to the next: one id is one object in all that a run reads.

    Pictures of one folder that follow each other are the frames of one video, as in MOT17; so are arrays.

    Args:
        score: the least score of a good detection: `Tracker`'s `high`. A track begins 0.1 above, as in the paper.
        every: of a video, how many frames go by for one that is looked at: a track is kept for a second without being
            found, the paper's 30 frames at 30 a second.

    Attributes:
        low: the least score of the detections to look for.

    Raises:
        ValueError: the score is not from 0 to 1.
    """

    def __init__(self, score: float = 0.5, every: int = 1) -> None:
        self.low = min(LOW_SCORE, score)
        self._score, self._every = score, every
        self._video, self._tracker = "", self._new(FPS)

    @property
    def count(self) -> int:
        """Ids given so far."""
        return self._tracker.count

    def update(self, name: str, fps: float | None, found: Instances) -> Instances:
        """The objects of the next frame, as `Tracker.update` gives them.

        Args:
            name, fps: the frame's, as of `datasets.sources.Frame`.
            found: its detections, down to `low`.
        """
        video = video_of(name, is_video=fps is not None)
        if video != self._video:
            count = self.count
            self._video, self._tracker = video, self._new(fps)
            self._tracker.count = count
        return self._tracker.update(found)

    def _new(self, fps: float | None) -> Tracker:
        rate = fps if fps and 0 < fps <= FASTEST else FPS
        patience = max(1, round(rate if fps is None else rate / self._every))
        return Tracker(high=self._score, low=self.low, new=min(self._score + 0.1, 1.0), patience=patience)


def video_of(name: str, *, is_video: bool) -> str:
    """What a frame belongs to: its file, stream or camera, or, of a picture, the folder."""
    return name if is_video else str(Path(name).parent)
