"""A trained segmenter on pictures and video, one after another: behind `Segmenter.predict` and `sightline predict`.

Letters: B pictures, C categories, H, W pixels of the frame, h, w those of the original picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..backbone.model import answering
from ..datasets.batching import collate, frame_for
from ..datasets.sources import frames_and_arrays
from ..datasets.structures import Batch, ImageInfo, Instances, LabelMaps, Sample
from ..datasets.transforms import from_hwc, resize
from .model import Segmenter


def run(model: Segmenter, source: Any, *, every: int = 1) -> Iterator[Sample]:
    """Pictures with their label maps, as they are asked for; no more than one is held.

    Args:
        model: on any device; it is run in evaluation mode and left in the mode it was in.
        source: what `datasets.sources.frames` takes (a picture, folder, pattern, video, stream, camera), an
            (H, W, 3) uint8 RGB array, or a list of these.
        every: of a video, only every so many frames.

    Yields:
        The original picture (3, h, w) uint8, its label map (h, w) with scores, on the CPU, and where it comes from:
        `info.id` counts from 1, `info.path` is the file, of a video with "#" and the frame's number. There are no objects.

    Raises:
        DataError: nothing is there, or it cannot be read.
    """
    for number, frame in enumerate(frames_and_arrays(source, every), 1):
        path = f"{frame.name}#{frame.index}" if frame.is_video else frame.name
        sample = _sample(from_hwc(frame.image), ImageInfo(number, path, frame.image.shape[:2]))
        sample.label_map = segment(model, sample.image)
        yield sample


def _sample(image: Tensor, info: ImageInfo) -> Sample:
    return Sample(image, Instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)), info)


def segment(model: Segmenter, image: Tensor) -> LabelMaps:
    """The label map (h, w), with scores, of one picture (3, h, w) uint8 RGB, on the CPU."""
    return segment_each(model, [image])[0]


def segment_each(model: Segmenter, images: Sequence[Tensor]) -> list[LabelMaps]:
    """Of several pictures, at least one, which the model sees as one batch; each as `segment` gives it."""
    batch = prepare(model, images)
    each = zip(probabilities(model, batch.images, batch.sizes), batch.infos, strict=True)
    return [at_original(one, info).to("cpu") for one, info in each]


def prepare(model: Segmenter, images: Sequence[Tensor]) -> Batch:
    """Pictures as the model takes them, in one frame that holds them all, on its device; see `segment_each`."""
    samples = [_sample(image, ImageInfo(0, "picture", tuple(image.shape[1:]))) for image in images]
    samples = [resize(sample, *model.resize) for sample in samples]
    frames = [frame_for(sample.image.shape[1:], model.resize) for sample in samples]
    frame = tuple(max(sides) for sides in zip(*frames, strict=True))
    return collate(samples, frame).to(next(model.parameters()).device)


def probabilities(model: Segmenter, images: Tensor, sizes: Tensor) -> Tensor:
    """(B, C, H, W) float32 on the model's device, in evaluation mode and the model's precision.

    Args:
        images: (B, 3, H, W) uint8 RGB.
        sizes: (B, 2), the valid (height, width).
    """
    with answering(model):
        return model(images, sizes).logits.float().softmax(1)


def at_original(probabilities: Tensor, info: ImageInfo) -> LabelMaps:
    """One picture's likeliest categories in its own pixels.

    Probabilities, not labels, are resized, bilinearly: borders are as smooth as the network is sure of them.

    Args:
        probabilities: (C, H, W) in the frame that the network saw, padding included.
        info: how the picture came into that frame; flips are undone.

    Returns:
        (h, w) labels, all 0..C-1, and scores; on the device of the probabilities.
    """
    height, width = (round(side * scale) for side, scale in zip(info.size, info.scale, strict=True))
    valid = probabilities[None, :, :height, :width]
    mirrored = [axis for axis, turned in ((2, info.upturned), (3, info.flipped)) if turned]
    resized = F.interpolate(valid.flip(mirrored), size=tuple(info.size), mode="bilinear", align_corners=False)
    scores, labels = resized[0].max(0)
    return LabelMaps(labels.to(torch.int16), scores)
