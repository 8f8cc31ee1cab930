"""A trained detector on pictures and video, one after another: behind `Detector.predict`, `track` and `sightline predict`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..backbone.checkpoint import default_device
from ..backbone.model import answering
from ..datasets.batching import collate, frame_for
from ..datasets.proposals import as_instances
from ..datasets.sources import Frame, frames_and_arrays
from ..datasets.structures import ImageInfo, Instances, Sample
from ..datasets.table import DataError
from ..datasets.transforms import from_hwc, resize, to_hwc
from .model import Detector
from .video_tracking import VideoTracker


def run(model: Detector, source: Any, *, score: float = 0.5, every: int = 1) -> Iterator[Sample]:
    """Pictures with what was found in them, as they are asked for; no more than one is held.

    Args:
        model: on any device; it is run in evaluation mode and left in the mode it was in.
        source: what `datasets.sources.frames` takes (a picture, folder, pattern, video, stream, camera), an
            (H, W, 3) uint8 RGB array, or a list of these.
        score: the least score of a detection; below the model's own threshold it changes nothing. A classifier's best
            answer is given whatever its score.
        every: of a video, only every so many frames.

    Yields:
        The original picture (3, H, W) uint8, its detections in that picture's pixels on the CPU, best first, and where
        it comes from: `info.id` counts from 1, `info.path` is the file, of a video with "#" and the frame's number.

    Raises:
        DataError: nothing is there, or it cannot be read.
    """
    for number, frame in enumerate(frames_and_arrays(source, every), 1):
        yield _sample(number, frame, find(model, from_hwc(frame.image), score=score))


def track(model: Detector, source: Any, *, score: float = 0.5, every: int = 1) -> Iterator[Sample]:
    """As `run`, with objects followed from frame to frame: `ids` tells which are the same.

    Args:
        score: the least score of a good detection; an object that is being followed is also found by a lower one. See
            `VideoTracker`, also for what is a video.

    Raises:
        ValueError: the score is not from 0 to 1.
    """
    tracker = VideoTracker(score, every)
    for number, frame in enumerate(frames_and_arrays(source, every), 1):
        found = find(model, from_hwc(frame.image), score=tracker.low)
        yield _sample(number, frame, tracker.update(frame.name, frame.fps, found))


def _sample(number: int, frame: Frame, found: Instances) -> Sample:
    path = f"{frame.name}#{frame.index}" if frame.is_video else frame.name
    return Sample(from_hwc(frame.image), found, ImageInfo(number, path, frame.image.shape[:2]))


def find(model: Detector, image: Tensor, *, score: float = 0.5) -> Instances:
    """The objects in one picture (3, H, W) uint8 RGB, in its pixels, on the CPU, best first; `score` as for `run`.

    A model's proposer sees the picture as it is, not as it is resized for the network: as `datasets.propose` does it.
    """
    return find_each(model, [image], score=score)[0]


def find_each(model: Detector, images: Sequence[Tensor], *, score: float = 0.5) -> list[Instances]:
    """The objects in several pictures of one size, which the model sees as one batch; each as `find` gives it."""
    samples = [resize(_to_detect(model, image), *model.resize) for image in images]
    device = next(model.parameters()).device
    batch = collate(samples, frame_for(samples[0].image.shape[1:], model.resize)).to(device)
    with answering(model):
        found = model.detect(*batch.inputs).to("cpu")
    return [_kept(model, found[i].to_original(sample.info), score) for i, sample in enumerate(samples)]


def _to_detect(model: Detector, image: Tensor) -> Sample:
    nothing = Instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    proposals = None if model.proposer is None else as_instances(model.proposer(to_hwc(image)))
    return Sample(image, nothing, ImageInfo(0, "picture", tuple(image.shape[1:])), proposals)


def _kept(model: Detector, found: Instances, score: float) -> Instances:
    """The detections of at least that score, best first."""
    found = found[found.scores.argsort(descending=True, stable=True)]
    kept = found.scores >= score
    if model.task == "classification":
        kept[:1] = True  # a classifier always has an answer
    return found[kept]


def usable_device(name: str | None) -> torch.device:
    """The device of that name; of None, the best there is.

    Raises:
        DataError: there is none of that name on this machine.
    """
    try:
        device = torch.device(name or default_device())
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"device {name!r} cannot be used here: {reason}") from error
    return device
