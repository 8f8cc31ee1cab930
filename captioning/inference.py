"""A trained captioner on pictures and video, one after another: behind `Captioner.predict` and `sightline predict`.

Letters: S sentences about a picture, T words of the longest of them, L = h * w cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backbone.model import answering, evaluating
from ..datasets.batching import collate, frame_for
from ..datasets.sources import Frame, frames_and_arrays
from ..datasets.structures import Batch, Captions, ImageInfo, Instances, Sample
from ..datasets.transforms import from_hwc, resize
from .decoder import END, PAD, Annotations
from .model import Captioner


class Said(NamedTuple):
    """What was said about one picture, or one region of it.

    Attributes:
        captions: S sentences on the CPU, best first, without padding: tokens (S, T), scores (S,), and attention (S, T, L)
            of the cells that lie in the picture; None where nobody attends.
        sentences: the S of them as texts.
        words: the words of each, in order: `attention[s, t]` is of `words[s][t]`.
        grid: (h, w), the rows and columns of cells.
        extent: (height, width) in the picture's own pixels of what these cells cover, from its top left corner; it may end
            up to a cell beyond the picture, whose sides need be no multiple of a cell's.
    """

    captions: Captions
    sentences: list[str]
    words: list[list[str]]
    grid: tuple[int, int]
    extent: tuple[float, float]


class Captioned(NamedTuple):
    """A picture, where it comes from, and what was said about it."""

    frame: Frame
    said: Said

    @property
    def sentences(self) -> list[str]:
        """Texts, best first."""
        return self.said.sentences


def run(model: Captioner, source: Any, *, every: int = 1) -> Iterator[Captioned]:
    """Pictures with sentences about them, as they are asked for; no more than one is held.

    Args:
        model: on any device; it is run in evaluation mode and left in the mode it was in. Its `search` says how sentences
            are found, and how many.
        source: what `datasets.sources.frames` takes (a picture, folder, pattern, video, stream, camera), an
            (H, W, 3) uint8 RGB array, or a list of these.
        every: of a video, only every so many frames.

    Raises:
        DataError: nothing is there, or it cannot be read.
    """
    for frame in frames_and_arrays(source, every):
        yield Captioned(frame, caption(model, from_hwc(frame.image)))


def caption(model: Captioner, image: Tensor) -> Said:
    """The sentences about one picture (3, H, W) uint8 RGB."""
    return caption_each(model, [image])[0]


def caption_each(model: Captioner, images: Sequence[Tensor]) -> list[Said]:
    """The sentences about several pictures, at least one, which the model sees as one batch; each as `caption` gives it."""
    batch = prepare(model, images)
    annotations = annotate(model, batch.images, batch.sizes)
    extents = [_extent(model, *each) for each in zip(batch.infos, shapes(annotations), strict=True)]
    return write(model, annotations, batch.sizes, extents)


def prepare(model: Captioner, images: Sequence[Tensor]) -> Batch:
    """Pictures as the model takes them, in one frame that holds them all, on its device; see `caption_each`."""
    nothing = Instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    samples = [Sample(image, nothing, ImageInfo(0, "picture", tuple(image.shape[1:]))) for image in images]
    samples = [resize(sample, *model.resize) for sample in samples]
    frames = [frame_for(sample.image.shape[1:], model.resize) for sample in samples]
    frame = tuple(max(sides) for sides in zip(*frames, strict=True))
    return collate(samples, frame).to(next(model.parameters()).device)


def _extent(model: Captioner, info: ImageInfo, grid: tuple[int, int]) -> tuple[float, float]:
    stride = model.backbone.strides[model.layer]
    return grid[0] * stride / info.scale[0], grid[1] * stride / info.scale[1]


def annotate(model: Captioner, images: Tensor, sizes: Tensor) -> Annotations:
    """What the backbone makes of (B, 3, H, W) pictures of sizes (B, 2), on the model's device, in its precision."""
    with answering(model):
        return model(images, sizes)


def shapes(annotations: Annotations) -> list[tuple[int, int]]:
    """Of each picture, how many rows and columns of cells lie in it."""
    rows, columns = annotations.valid.any(2).sum(1), annotations.valid.any(1).sum(1)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def write(
    model: Captioner, annotations: Annotations, sizes: Tensor, extents: Sequence[tuple[float, float]]
) -> list[Said]:
    """The sentences that annotations give.

    Args:
        model: whose annotations they are.
        annotations: of B pictures or regions, on the model's device.
        sizes: (B, 2), the valid (height, width) within the frame that the annotations are of.
        extents: of each, what its valid cells cover in its own pixels, see `Said`.
    """
    # In full precision: a sentence's score is a sum of logarithms, of which bfloat16 keeps two digits.
    with evaluating(model), torch.inference_mode():
        captions = model.decode(annotations, sizes).to("cpu")
    frame = tuple(annotations.maps.shape[-2:])
    each = zip(shapes(annotations), extents, strict=True)
    return [_said(model, captions[i], frame, grid, extent) for i, (grid, extent) in enumerate(each)]


def _said(
    model: Captioner, captions: Captions, frame: tuple[int, int], grid: tuple[int, int], extent: tuple[float, float]
) -> Said:
    captions = _trimmed(captions, frame, grid)
    rows = captions.tokens.tolist()
    sentences = [model.vocabulary.decode(row) for row in rows]
    words = [[model.vocabulary.words[token] for token in row if token not in (END, PAD)] for row in rows]
    return Said(captions, sentences, words, grid, extent)


def _trimmed(captions: Captions, frame: tuple[int, int], grid: tuple[int, int]) -> Captions:
    """One picture's captions without the sentences, words and cells (of `frame`, those outside `grid`) that are padding."""
    said = captions.tokens != PAD
    captions = captions[said.any(1)]  # a copy, outside of inference mode
    length = int(said.sum(1).max()) if len(captions) else 0
    attention = captions.attention
    if attention is not None:
        attention = attention[:, :length].unflatten(2, frame)[..., : grid[0], : grid[1]].flatten(2)
    return Captions(captions.tokens[:, :length], captions.scores, attention)
