"""Segmenters on pictures, arrays and video, one at a time."""

import weakref

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from sightline.datasets.images import write_image
from sightline.datasets.structures import ImageInfo
from sightline.datasets.table import DataError
from sightline.datasets.transforms import from_hwc
from sightline.segmentation.inference import at_original, probabilities, run, segment, segment_each
from sightline.segmentation.model import Outputs, Segmenter


class Colours(Segmenter):
    """Each pixel's colour is its category: 0 red, 1 green, 2 blue; where there is no picture, "blue" for certain."""

    def __init__(self):
        super().__init__(mean=(0.0,) * 3, std=(1.0,) * 3, num_classes=3)
        self.layer, self.frozen = nn.Linear(1, 1), nn.Linear(1, 1).eval()
        self.resize, self.seen = (64, 96), []

    def forward(self, images, sizes):
        self.seen.append((tuple(images.shape), sizes.tolist(), self.training, torch.is_inference_mode_enabled()))
        nothing = (images == 0).all(1, keepdim=True)
        return Outputs(torch.where(nothing, torch.tensor([0.0, 0, 99]).view(1, 3, 1, 1), images / 25.5))


RGB = ((200, 40, 10), (10, 200, 40), (40, 10, 200))


def picture(height=128, width=192, split=0.5):
    """Red left of a border at that share of the width, green right of it, and a blue bottom quarter: it, and its labels."""
    labels = np.zeros((height, width), np.int16)
    labels[:, round(split * width) :] = 1
    labels[height * 3 // 4 :] = 2
    return np.array(RGB, np.uint8)[labels], labels


@pytest.fixture
def clip(tmp_path):
    """Nine frames whose border moves to the right."""
    writer = cv2.VideoWriter(str(tmp_path / "clip.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (192, 128))
    for i in range(9):
        writer.write(picture(split=0.1 * (i + 1))[0][..., ::-1].copy())
    writer.release()
    return tmp_path / "clip.mp4"


@pytest.mark.parametrize("resize", [(64, 96), (64, 500), (256, 999), (50, 70, True)], ids=str)
@pytest.mark.parametrize("shape", [(128, 192), (97, 131), (200, 61)], ids=str)
def test_label_maps_are_of_the_pictures_own_size(resize, shape):
    """Wrong are at most pixels beside a border, by what resizing there and back may move it."""
    model = Colours()
    model.resize = resize
    image, labels = picture(*shape)
    (sample,) = run(model, image)
    assert sample.info.size == shape
    assert np.array_equal(sample.image.permute(1, 2, 0), image)
    assert len(sample.target) == 0
    assert sample.label_map.labels.shape == sample.label_map.scores.shape == shape
    assert sample.label_map.labels.dtype == torch.int16
    assert (sample.label_map.labels.numpy() != labels).mean() < 0.03
    assert sample.label_map.scores.min() > 0.3
    assert (next(iter(model.predict(image))).labels == sample.label_map.labels).all()


def test_a_picture_of_the_network_s_size_keeps_every_pixel():
    image, labels = picture(64, 90)
    found = segment(Colours(), from_hwc(image))
    assert np.array_equal(found.labels, labels)


def test_a_border_is_where_it_is_likely_not_where_cells_end():
    """Between 0.9 and 0.2 it lies where both are alike: two labels of two pixels become five of seven, of 3.5 pixels each."""
    ramp = torch.tensor([[0.9, 0.2]])
    found = at_original(torch.stack([ramp, 1 - ramp]), ImageInfo(1, "a", (1, 14), (1.0, 1 / 7)))
    # Centres at 3 and 10 of 0..13; 0.5 is reached 4/7 of the way, at 7.
    assert found.labels.tolist() == [[0] * 7 + [1] * 7]
    torch.testing.assert_close(found.scores[0, [0, 3, 10, 13]], torch.tensor([0.9, 0.9, 0.8, 0.8]))


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("upturned", [False, True])
def test_flips_are_undone(flipped, upturned):
    image, labels = picture(60, 80, 0.3)
    turned = [axis for axis, turn in ((0, upturned), (1, flipped)) if turn]
    frame = torch.zeros(1, 3, 64, 96, dtype=torch.uint8)
    frame[0, :, :60, :80] = from_hwc(np.flip(image, turned).copy())
    found = probabilities(Colours(), frame, torch.tensor([[60, 80]]))
    info = ImageInfo(1, "a", (60, 80), flipped=flipped, upturned=upturned)
    assert np.array_equal(at_original(found[0], info).labels, labels)


def test_several_of_different_shapes_are_as_each_alone():
    model = Colours()
    images = [from_hwc(picture(*shape)[0]) for shape in ((128, 192), (90, 70), (70, 200))]
    together = segment_each(model, images)
    assert model.seen[0][0][0] == 3
    for found, image in zip(together, images, strict=True):
        alone = segment(model, image)
        assert torch.equal(found.labels, alone.labels)
        torch.testing.assert_close(found.scores, alone.scores)


def test_modes_are_as_before_between_pictures():
    model = Colours().train()
    model.frozen.eval()
    for sample in run(model, [picture()[0], picture(64, 96)[0]]):
        assert model.training
        assert not model.frozen.training
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        sample.label_map.labels += 1  # an inference tensor would refuse
        sample.label_map.scores += 1
    assert [(training, inference) for _, _, training, inference in model.seen] == [(False, True)] * 2


def test_modes_are_as_before_after_an_error():
    model = Colours().train()
    model.forward = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        list(run(model, picture()[0]))
    assert model.training


def test_video(clip):
    samples = list(run(Colours(), clip, every=4))
    assert [sample.info.path for sample in samples] == [f"{clip}#0", f"{clip}#4", f"{clip}#8"]
    assert [sample.info.id for sample in samples] == [1, 2, 3]
    red = [(sample.label_map.labels[40] == 0).float().mean().item() for sample in samples]
    np.testing.assert_allclose(red, [0.1, 0.5, 0.9], atol=0.03)


def test_no_frame_outlives_its_turn(clip):
    alive = []
    for sample in run(Colours(), [clip, clip]):
        alive.append(weakref.ref(sample.image))
        assert sum(image() is not None for image in alive) <= 2  # this one, and the one the loop held until just now
    assert len(alive) == 18


def test_arrays_among_files(tmp_path):
    write_image(tmp_path / "a.png", picture(40, 60)[0])
    samples = list(run(Colours(), [picture()[0], tmp_path / "a.png"]))
    assert [sample.info.path for sample in samples] == ["array 0", str(tmp_path / "a.png")]
    assert [tuple(sample.label_map.labels.shape) for sample in samples] == [(128, 192), (40, 60)]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((4, 4, 3)), r"uint8 RGB array, got \(4, 4, 3\) float64"),
        ("no-such-picture.jpg", "no-such-picture.jpg: no such file"),
        ([], "no source was given"),
    ],
    ids=["float", "missing", "none"],
)
def test_bad_sources(source, message):
    with pytest.raises(DataError, match=message):
        list(run(Colours(), source))
