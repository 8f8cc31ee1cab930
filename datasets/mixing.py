"""Strong augmentation: several pictures in one, seen through random maps, in other colours.

Mosaic: YOLOv4 (Bochkovskiy et al. 2020, https://arxiv.org/abs/2004.10934), section 3.3. Mixup: Zhang et al. 2017
(https://arxiv.org/abs/1710.09412), for detectors Zhang et al. 2019 (https://arxiv.org/abs/1902.04103). Copy-paste: Ghiasi
et al. 2021 (https://arxiv.org/abs/2012.07177), see `pasting`. All of them, and off for the last epochs: YOLOX (Ge et al.
2021, https://arxiv.org/abs/2107.08430), section 2. Different here: pictures keep the scale at which the network sees
them, instead of each filling the frame; maps turn about the frame's centre; mixup takes its second picture through the
same kind of map.

Letters: H, W pixels of the frame, P landmarks of an object.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import cv2
import numpy as np

from .colour import change_hsv
from .pasting import paste
from .perspective import FILL, move, project, seen, warp
from .structures import Instances, Sample
from .transforms import from_hwc, resize_instances, to_hwc

Another = Callable[[np.random.Generator], Sample]  # draws a picture of the data set


@dataclass(frozen=True)
class Mixing:
    """Mosaic, copy-paste, mixup, random maps and colours: `mixing(sample, another, frame, rng)` is a sample of `frame`.

    An equal `rng` gives an equal result in every process. `info` names the first picture, but maps no boxes back. Which
    objects stay, and with which boxes, `perspective.seen` says; landmarks and masks follow. Angles, shifts and the change
    of hue are drawn uniformly, factors log-uniformly.

    Attributes:
        mosaic: probability that four pictures meet at a point anywhere in the frame; else it is one, in the middle.
        mixup: probability that another picture is blended with the result, half and half, the objects of both counting.
        copy_paste: probability that objects of another picture are put on it.
        degrees: largest angle that a picture, or mosaic, is turned by, either way.
        translate: largest shift along each axis, as a share of the frame's side.
        scale: range of the zoom about the frame's centre; 1 is the scale at which the network sees pictures elsewhere.
        shear: largest angle in degrees that each axis leans by.
        perspective: how much nearer or farther the frame's corners come, 0 to 0.5: 0.1 is 10 %.
        flip: probability of mirroring left to right.
        hue: largest change of hue in degrees.
        saturation: largest factor by which saturation grows or falls, at least 1.
        value: the same for HSV's value.
    """

    mosaic: float = 1.0
    mixup: float = 1.0
    copy_paste: float = 0.0
    degrees: float = 10.0
    translate: float = 0.1
    scale: tuple[float, float] = (0.5, 1.5)
    shear: float = 2.0
    perspective: float = 0.0
    flip: float = 0.5
    hue: float = 10.0
    saturation: float = 1.5
    value: float = 1.5

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0.01 <= low <= high <= 100:
            raise ValueError(f"mixing.scale must be (low, high) with 0.01 <= low <= high <= 100, got {self.scale}")
        limits = {"degrees": (0, 180), "translate": (0, 1), "shear": (0, 60), "perspective": (0, 0.5), "hue": (0, 180)}
        limits |= {"saturation": (1, 255), "value": (1, 255)}
        for field in fields(self):
            least, most = limits.get(field.name, (0, 1))
            if field.name != "scale" and not least <= getattr(self, field.name) <= most:
                raise ValueError(f"mixing.{field.name} must lie in [{least}, {most}], got {getattr(self, field.name)}")

    def __call__(
        self,
        sample: Sample,
        another: Another,
        frame: tuple[int, int],
        rng: np.random.Generator,
        *,
        mirror: Sequence[int] | None = None,
    ) -> Sample:
        """
        Args:
            sample: a picture at the scale at which a network sees it; not changed.
            another: draws another such picture, the same for an equal generator.
            frame: (H, W) of what comes out.
            rng: of all random choices.
            mirror: (P,), the row that each landmark's place is filled from in a mirrored picture, by
                `landmarks.mirrored`; None where there are no landmarks.
        """
        camera = _Camera(self, frame, rng, mirror)
        if rng.random() < self.mosaic:
            mixed = camera.mosaic([sample, *(another(rng) for _ in range(3))])
        else:
            mixed = camera.single(sample)
        if rng.random() < self.copy_paste:
            mixed = paste(camera.single(another(rng), anywhere=True), mixed, rng)
        if rng.random() < self.mixup:
            mixed = _blend(mixed, camera.single(another(rng)))
        return self._recoloured(mixed, rng)

    def _recoloured(self, sample: Sample, rng: np.random.Generator) -> Sample:
        hue, saturation, value = rng.uniform(-1, 1, 3).tolist()
        image = change_hsv(
            to_hwc(sample.image),
            hue=hue * self.hue, saturation=self.saturation**saturation, value=self.value**value,
        )  # fmt: skip
        return replace(sample, image=from_hwc(image))


class _Camera:
    """Takes frames out of scenes, each through a random map.

    A scene is pictures side by side; its coordinates are the frame's before the map.
    """

    def __init__(
        self, mixing: Mixing, frame: tuple[int, int], rng: np.random.Generator, mirror: Sequence[int] | None
    ) -> None:
        self.mixing, self.frame, self.rng, self.mirror = mixing, frame, rng, mirror

    def mosaic(self, samples: list[Sample]) -> Sample:
        """Four pictures around a point drawn anywhere in the frame: top left, top right, bottom left, bottom right."""
        x, y = (self.rng.random(2) * self.frame[::-1]).tolist()
        return self._shot(samples, (x, y), ((1, 1), (0, 1), (1, 0), (0, 0)))

    def single(self, sample: Sample, *, anywhere: bool = False) -> Sample:
        """One picture in the middle of the frame, or with its centre anywhere in it."""
        x, y = ((self.rng.random(2) if anywhere else np.full(2, 0.5)) * self.frame[::-1]).tolist()
        return self._shot([sample], (x, y), ((0.5, 0.5),))

    def _shot(
        self, samples: list[Sample], point: tuple[float, float], anchors: Sequence[tuple[float, float]]
    ) -> Sample:
        """The frame seen of pictures, each with its `anchor` (x, y; from 0 to 1 within it) at `point` of the scene."""
        zoom, flipped, matrix = self._draw()
        if zoom < 0.5:  # bilinear interpolation would skip pixels: they are averaged first
            samples, matrix = [_shrunk(sample, zoom) for sample in samples], matrix @ np.diag([1 / zoom, 1 / zoom, 1])
            point = (point[0] * zoom, point[1] * zoom)
        corners = [
            tuple(math.floor(p - a * side) for p, a, side in zip(point, anchor, sample.image.shape[:0:-1], strict=True))
            for sample, anchor in zip(samples, anchors, strict=True)
        ]
        image = _photograph([to_hwc(sample.image) for sample in samples], corners, matrix, self.frame)
        targets = [_shifted(sample.target, *corner) for sample, corner in zip(samples, corners, strict=True)]
        target = seen(Instances.concatenate(targets), matrix, self.frame)
        if flipped and target.landmarks is not None and self.mirror is not None:
            target = replace(target, landmarks=target.landmarks[:, list(self.mirror)])
        return Sample(from_hwc(image), target, samples[0].info)

    def _draw(self) -> tuple[float, bool, np.ndarray]:
        """A zoom, whether to mirror, and the map from scene to frame with both of them."""
        mixing, (height, width) = self.mixing, self.frame
        zoom, flip, *draws = self.rng.random(9).tolist()
        low, high = mixing.scale
        zoom = low * (high / low) ** zoom
        angle, lean_x, lean_y, right, down, *depth = (2 * u - 1 for u in draws)
        angle, lean_x, lean_y = (
            math.radians(u * most)
            for u, most in ((angle, mixing.degrees), (lean_x, mixing.shear), (lean_y, mixing.shear))
        )
        cos, sin = zoom * math.cos(angle), zoom * math.sin(angle)
        turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
        lean = np.array([[1, math.tan(lean_x), 0], [math.tan(lean_y), 1, 0], [0, 0, 1]])
        flipped = flip < mixing.flip
        mirrored = np.diag([-1.0 if flipped else 1.0, 1.0, 1.0])
        nearness = np.eye(3)
        nearness[2, :2] = [u * mixing.perspective / side for u, side in zip(depth, (width, height), strict=True)]
        shifted = move((0.5 + right * mixing.translate) * width, (0.5 + down * mixing.translate) * height)
        return zoom, flipped, shifted @ nearness @ turn @ lean @ mirrored @ move(-0.5 * width, -0.5 * height)


def _shrunk(sample: Sample, zoom: float) -> Sample:
    """The sample at `zoom` < 1 times its size, every pixel the mean of those that it stands for."""
    old = tuple(sample.image.shape[1:])
    new = tuple(max(1, round(side * zoom)) for side in old)
    image = from_hwc(cv2.resize(to_hwc(sample.image), new[::-1], interpolation=cv2.INTER_AREA))
    return sample.moved(image, lambda instances: resize_instances(instances, old, new))


def _photograph(
    pictures: list[np.ndarray], corners: list[tuple[int, int]], matrix: np.ndarray, frame: tuple[int, int]
) -> np.ndarray:
    """(H, W, 3), the frame seen of pictures (h, w, 3) whose top left corners lie at `corners` (x, y) of the scene.

    Only the part of the scene that is seen gets painted.
    """
    ends = np.array([[0, 0], [frame[1], 0], [0, frame[0]], frame[::-1]], np.float64)
    ends = project(np.linalg.inv(matrix), ends)
    lows = np.array(corners)
    highs = lows + [picture.shape[1::-1] for picture in pictures]
    low = np.maximum(np.floor(ends.min(axis=0)) - 1, lows.min(axis=0)).astype(int)
    high = np.minimum(np.ceil(ends.max(axis=0)) + 1, highs.max(axis=0)).astype(int)
    if (high <= low).any():
        return np.full((*frame, 3), FILL, np.uint8)
    scene = np.full((high[1] - low[1], high[0] - low[0], 3), FILL, np.uint8)
    for picture, first, last in zip(pictures, lows, highs, strict=True):
        (x0, y0), (x1, y1) = np.maximum(first, low), np.minimum(last, high)
        if x0 < x1 and y0 < y1:
            part = picture[y0 - first[1] : y1 - first[1], x0 - first[0] : x1 - first[0]]
            scene[y0 - low[1] : y1 - low[1], x0 - low[0] : x1 - low[0]] = part
    return warp(scene, matrix @ move(*low), frame)


def _shifted(instances: Instances, x: int, y: int) -> Instances:
    shift = instances.boxes.new_tensor([x, y, x, y])
    landmarks = None if instances.landmarks is None else instances.landmarks + shift[:2]
    return replace(instances, boxes=instances.boxes + shift, landmarks=landmarks)


def _blend(one: Sample, other: Sample) -> Sample:
    """The mean of two pictures of one size; half and half, as losses know no objects that count less."""
    image = cv2.addWeighted(to_hwc(one.image), 0.5, to_hwc(other.image), 0.5, 0)
    return Sample(from_hwc(image), Instances.concatenate([one.target, other.target]), one.info)
