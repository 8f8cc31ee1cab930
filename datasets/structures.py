"""The types that flow through Sightline: `Instances`, `LabelMaps`, `Captions`, `Sample` and `Batch`. Nothing else crosses a
folder's border.

Letters: B images, N instances (padded in a batch), H, W pixels, M side of a compact mask, P landmarks of an instance,
S sentences about an image, T words of a sentence, L cells of a feature map.
Boxes are xyxy in pixels, continuous coordinates (no +1); labels are 0..C-1, and -1 is padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor


@dataclass
class Instances:
    """Objects in one image (no leading dimension) or in a batch of images (leading dimension B); truth and predictions alike.

    Shapes are checked, values never: reading a value would stall the GPU.

    Attributes:
        boxes: (..., N, 4) float32, xyxy in pixels.
        labels: (..., N) int64, 0..C-1; -1 marks padding, whose other fields are undefined.
        scores: (..., N) float32 in [0, 1]; None for truth.
        masks: (..., N, M, M) float32, each object's mask within its own box at a fixed resolution: the share of each cell
            that it covers, its own from 0.5 on; None where there are none.
        crowd: (..., N) bool, true where a box stands for a group (COCO's iscrowd); such boxes are neither learnt nor
            missed. None means no crowds.
        landmarks: (..., N, P, 2) float32, (x, y) in pixels, NaN where a point is not known; None where there are none.
        ids: (..., N) int64, which objects are the same one in several frames of a video; None where nobody tracks.

    Raises:
        ValueError: a field's shape does not go with that of `boxes`.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor | None = None
    masks: Tensor | None = None
    crowd: Tensor | None = None
    landmarks: Tensor | None = None
    ids: Tensor | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.boxes, Tensor):  # pytree rebuilds us around placeholders while exporting
            return
        if self.boxes.ndim not in (2, 3) or self.boxes.shape[-1] != 4:
            raise ValueError(f"boxes must be (N, 4) or (B, N, 4), got {tuple(self.boxes.shape)}")
        leading = tuple(self.boxes.shape[:-1])
        for name, own in (
            ("labels", ()),
            ("scores", ()),
            ("masks", ("M", "M")),
            ("crowd", ()),
            ("landmarks", ("P", 2)),
            ("ids", ()),
        ):
            value = getattr(self, name)
            if isinstance(value, Tensor) and not _fits(value, leading, own):
                raise ValueError(
                    f"{name} must be {(*leading, *own)} to go with boxes {tuple(self.boxes.shape)}, got {tuple(value.shape)}"
                )

    def __len__(self) -> int:
        """Images in a batch, or objects in one image."""
        return self.boxes.shape[0]

    def __getitem__(self, index: int | slice | Tensor) -> Instances:
        """`batch[i]` is image i without its padding (reads labels: one synchronisation); `instances[keep]` selects objects.

        Raises:
            IndexError: no such image or object; a loop over either ends with it.
            TypeError: a batch is indexed by anything but an int.
        """
        if self.boxes.ndim == 3:
            if not isinstance(index, int):
                raise TypeError(f"a batch of Instances is indexed by an int (the image), got {type(index).__name__}")
            image = self.map(lambda value: value[index])
            return image[image.labels >= 0]
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"there is no object {index} of {len(self)}")
            index = slice(index, index + 1) if index != -1 else slice(-1, None)
        return self.map(lambda value: value[index])

    def map(self, function: Callable[[Tensor], Tensor]) -> Instances:
        """The same function applied to every tensor there is, e.g. `instances.map(lambda t: t[keep])`."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Instances(**{name: None if value is None else function(value) for name, value in values.items()})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Instances:
        """A copy on another device."""
        return self.map(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Instances:
        """A copy in page-locked memory, from which the GPU copies without waiting."""
        return self.map(lambda value: value.pin_memory())

    def to_original(self, info: ImageInfo | Sequence[ImageInfo]) -> Instances:
        """Boxes mapped from the network's frame back to the original picture's pixels, clipped to it; masks and landmarks too.

        Landmarks keep their order: where a flip made left of right, that is still so.

        Args:
            info: of one image, or B of them for a batch.
        """
        infos = [info] if isinstance(info, ImageInfo) else list(info)
        if isinstance(info, ImageInfo) != (self.boxes.ndim == 2) or (self.boxes.ndim == 3 and len(infos) != len(self)):
            raise ValueError(
                f"{len(infos)} ImageInfo given for boxes {tuple(self.boxes.shape)}; give one for each image"
            )
        rows = self.boxes.new_tensor([[*i.size, *i.scale, float(i.flipped), float(i.upturned)] for i in infos])
        rows = (rows if self.boxes.ndim == 3 else rows[0])[..., None, :]
        height, width, scale_y, scale_x, flipped, upturned = rows.unbind(-1)
        x0, y0, x1, y1 = self.boxes.unbind(-1)
        x0, x1, y0, y1 = x0 / scale_x, x1 / scale_x, y0 / scale_y, y1 / scale_y
        x0, x1 = torch.where(flipped > 0, width - x1, x0), torch.where(flipped > 0, width - x0, x1)
        y0, y1 = torch.where(upturned > 0, height - y1, y0), torch.where(upturned > 0, height - y0, y1)
        limits = torch.stack([width, height, width, height], dim=-1)
        boxes = torch.minimum(torch.stack([x0, y0, x1, y1], dim=-1).clamp(min=0), limits)
        masks, landmarks = self.masks, self.landmarks
        if masks is not None:
            masks = torch.where((flipped > 0)[..., None, None], masks.flip(-1), masks)
            masks = torch.where((upturned > 0)[..., None, None], masks.flip(-2), masks)
        if landmarks is not None:
            x, y = landmarks[..., 0] / scale_x[..., None], landmarks[..., 1] / scale_y[..., None]
            x = torch.where(flipped[..., None] > 0, width[..., None] - x, x)
            y = torch.where(upturned[..., None] > 0, height[..., None] - y, y)
            landmarks = torch.stack([x, y], dim=-1)
        return replace(self, boxes=boxes, masks=masks, landmarks=landmarks)

    @staticmethod
    def collate(images: Sequence[Instances], size: int | None = None) -> Instances:
        """A padded batch from images, all with the same fields.

        Args:
            images: B single-image Instances.
            size: N of the batch; by default the largest image's, at least 1 so that no tensor is empty.
        """
        size = size or max([1, *(len(image) for image in images)])

        def pad(name: str, fill: float) -> Tensor | None:
            values = [getattr(image, name) for image in images]
            if all(value is None for value in values):
                return None
            if any(value is None for value in values):
                raise ValueError(f"some images of the batch have {name} and some have none")
            batch = values[0].new_full((len(values), size, *values[0].shape[1:]), fill)
            for row, value in zip(batch, values, strict=True):
                row[: len(value)] = value
            return batch

        boxes, labels = pad("boxes", 0), pad("labels", -1)
        rest = (pad("scores", 0), pad("masks", 0), pad("crowd", False), pad("landmarks", torch.nan), pad("ids", -1))
        return Instances(boxes, labels, *rest)

    @staticmethod
    def concatenate(several: Sequence[Instances]) -> Instances:
        """One image's objects after another's, all with the same fields; at least one image, without leading dimension."""
        columns = {f.name: [getattr(one, f.name) for one in several] for f in fields(Instances)}
        for name, column in columns.items():
            if len({value is None for value in column}) > 1:
                raise ValueError(f"some images have {name} and some have none")
        return Instances(**{name: None if c[0] is None else torch.cat(c) for name, c in columns.items()})


def _fits(value: Tensor, leading: tuple[int, ...], own: tuple[str | int, ...]) -> bool:
    """Whether a field's shape is the leading dimensions and then its own, where letters stand for any length."""
    shape = tuple(value.shape)
    if len(shape) != len(leading) + len(own) or shape[: len(leading)] != leading:
        return False
    return all(isinstance(wanted, str) or wanted == got for wanted, got in zip(own, shape[len(leading) :], strict=True))


@dataclass
class LabelMaps:
    """A category for each pixel of one image (no leading dimension) or of a batch (leading dimension B); truth and predictions.

    Attributes:
        labels: (..., H, W) int16, 0..C-1; -1 where there is nothing to learn and nothing to score: void, and padding.
        scores: (..., H, W) float32 in [0, 1], the probability of each label; None for truth.

    Raises:
        ValueError: the shape of `scores` is not that of `labels`.
    """

    labels: Tensor
    scores: Tensor | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.labels, Tensor):  # see `Instances`
            return
        if self.labels.ndim not in (2, 3):
            raise ValueError(f"labels must be (H, W) or (B, H, W), got {tuple(self.labels.shape)}")
        if isinstance(self.scores, Tensor) and self.scores.shape != self.labels.shape:
            raise ValueError(
                f"scores must be {tuple(self.labels.shape)} to go with labels, got {tuple(self.scores.shape)}"
            )

    def __len__(self) -> int:
        """Images in a batch, or rows of one image."""
        return self.labels.shape[0]

    def __getitem__(self, index: int) -> LabelMaps:
        """Image `index` of a batch, with its padding."""
        return self.map(lambda value: value[index])

    def map(self, function: Callable[[Tensor], Tensor]) -> LabelMaps:
        """The same function applied to every tensor there is."""
        return LabelMaps(function(self.labels), None if self.scores is None else function(self.scores))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> LabelMaps:
        """A copy on another device."""
        return self.map(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> LabelMaps:
        """A copy in page-locked memory, from which the GPU copies without waiting."""
        return self.map(lambda value: value.pin_memory())


@dataclass
class Captions:
    """Sentences about one image (no leading dimension) or about each of a batch (leading dimension B); truth and predictions.

    Attributes:
        tokens: (..., S, T) int64, the number of each word in a vocabulary and, last, that of the end; 0 is padding, behind
            the end, and throughout a sentence that is not there.
        scores: (..., S) float32, log probabilities; None for truth.
        attention: (..., S, T, L) float32, how much each cell of the feature map counted for each word, row by row of the map;
            None where nobody attends.

    Raises:
        ValueError: a field's shape does not go with that of `tokens`.
    """

    tokens: Tensor
    scores: Tensor | None = None
    attention: Tensor | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.tokens, Tensor):  # see `Instances`
            return
        if self.tokens.ndim not in (2, 3):
            raise ValueError(f"tokens must be (S, T) or (B, S, T), got {tuple(self.tokens.shape)}")
        *leading, words = self.tokens.shape
        for name, own in (("scores", ()), ("attention", (words, "L"))):
            value = getattr(self, name)
            if isinstance(value, Tensor) and not _fits(value, tuple(leading), own):
                raise ValueError(
                    f"{name} must be {(*leading, *own)} to go with tokens {tuple(self.tokens.shape)}, got {tuple(value.shape)}"
                )

    def __len__(self) -> int:
        """Images in a batch, or sentences about one image."""
        return self.tokens.shape[0]

    def __getitem__(self, index: int | slice | Tensor) -> Captions:
        """`batch[i]` is image i; of one image, a choice of its sentences."""
        return self.map(lambda value: value[index])

    def map(self, function: Callable[[Tensor], Tensor]) -> Captions:
        """The same function applied to every tensor there is."""
        scores, attention = (None if value is None else function(value) for value in (self.scores, self.attention))
        return Captions(function(self.tokens), scores, attention)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Captions:
        """A copy on another device."""
        return self.map(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Captions:
        """A copy in page-locked memory, from which the GPU copies without waiting."""
        return self.map(lambda value: value.pin_memory())


class ImageInfo(NamedTuple):
    """Where a sample came from and how it was changed: what it takes to map boxes back to the original picture.

    `scale` is network pixels per original pixel; padding goes right and below, so there is no offset. Flips come last.
    """

    id: int
    path: str
    size: tuple[int, int]  # (height, width) of the original picture, after its EXIF rotation
    scale: tuple[float, float] = (1.0, 1.0)  # (y, x)
    flipped: bool = False  # left to right
    upturned: bool = False  # top to bottom


@dataclass
class Sample:
    """One picture before batching.

    Attributes:
        image: (3, H, W) uint8 RGB.
        target: its objects, in that image's pixels.
        info: where it came from.
        proposals: where objects may be, best first, for detectors that do not propose themselves; labels are 0. None
            where nobody asked.
        label_map: (H, W) of the image, for models that name every pixel; None where nobody asked.
    """

    image: Tensor
    target: Instances
    info: ImageInfo
    proposals: Instances | None = None
    label_map: LabelMaps | None = None

    def __post_init__(self) -> None:
        if isinstance(self.image, Tensor) and (self.image.ndim != 3 or self.image.shape[0] != 3):
            raise ValueError(f"image must be (3, H, W), got {tuple(self.image.shape)} for {self.info.path}")

    def moved(self, image: Tensor, change: Callable[[Instances], Instances], info: ImageInfo | None = None) -> Sample:
        """The sample after a change of geometry: another image, objects and proposals changed alike.

        Raises:
            ValueError: there is a label map, which `change` cannot follow; see `segmentation_augment.py`.
        """
        if self.label_map is not None:
            raise ValueError(f"{self.info.path}: the label map would stay behind; use SegmentationAugment")
        proposals = None if self.proposals is None else change(self.proposals)
        return Sample(image, change(self.target), info or self.info, proposals)


@dataclass
class Batch:
    """Pictures padded right and below to one frame.

    Attributes:
        images: (B, 3, H, W) uint8 RGB, zero in the padding.
        sizes: (B, 2) int64, the valid (height, width) within the frame.
        targets: the objects, padded to one N; None when nothing is known of them.
        infos: B records of where each picture came from.
        proposals: (B, K) boxes that may hold an object, best first, padded with label -1; None where nobody asked.
        captions: the sentences, for models that write some; None where nobody asked.
        label_maps: (B, H, W), -1 in the padding, for models that name every pixel; None where nobody asked.
        maps: (B, C, h, w) float16, what a frozen backbone made of the images beforehand, which are then not read and
            (B, 3, 0, 0); None where nobody did.
    """

    images: Tensor
    sizes: Tensor
    targets: Instances | None
    infos: list[ImageInfo]
    proposals: Instances | None = None
    captions: Captions | None = None
    label_maps: LabelMaps | None = None
    maps: Tensor | None = None

    def __len__(self) -> int:
        return self.images.shape[0]

    @property
    def inputs(self) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Instances]:
        """What a model's `forward` takes: (images, sizes), and the proposals where there are any."""
        return (self.images, self.sizes) if self.proposals is None else (self.images, self.sizes, self.proposals)

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        """A copy on another device; from pinned memory the copy overlaps with the GPU's work."""
        return self._map(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory."""
        return self._map(lambda value: value.pin_memory())

    def _map(self, change: Callable[[Tensor | Instances | Captions | LabelMaps], Any]) -> Batch:
        """The same change to everything that is made of tensors."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return Batch(
            **{name: value if value is None or name == "infos" else change(value) for name, value in parts.items()}
        )


for _type in (Instances, LabelMaps, Captions, Sample, Batch):
    # Makes the types containers for torch.export, torch.compile and torchvision's v2 transforms. Without it the latter
    # flip the picture and leave the boxes as they were, without a word.
    torch.export.register_dataclass(_type, serialized_type_name=f"sightline.{_type.__name__}")
