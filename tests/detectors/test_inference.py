"""Detectors on pictures, arrays and video, one at a time."""

import weakref
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from sightline.datasets.detection import read_picture
from sightline.datasets.images import write_image
from sightline.datasets.proposals import Boxes, Proposer, Regions
from sightline.datasets.shapes import CATEGORIES, shapes_table
from sightline.datasets.structures import Instances
from sightline.datasets.table import DataError
from sightline.datasets.transforms import from_hwc
from sightline.detectors import fast_rcnn, faster_rcnn
from sightline.detectors.inference import find, run, track, usable_device
from sightline.detectors.model import Detector
from sightline.training import score


class RedFinder(Detector):
    """Finds the red pixels' box with score 0.9 and the whole picture with 0.4; between them is a row of padding."""

    def __init__(self):
        super().__init__(mean=(0.5,) * 3, std=(0.5,) * 3, num_classes=2)
        self.layer, self.frozen = nn.Linear(1, 1), nn.Linear(1, 1).eval()
        self.resize, self.seen = (64, 96), []

    def forward(self, images, sizes):
        self.seen.append((tuple(images.shape), sizes.tolist(), self.training, torch.is_inference_mode_enabled()))
        return images

    def decode(self, images, sizes):
        red = (images[0, 0] > 150) & (images[0, 1] < 90)
        rows, columns = torch.where(red.any(1))[0], torch.where(red.any(0))[0]
        box = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()
        whole = torch.tensor([0.0, 0.0, sizes[0, 1], sizes[0, 0]])
        boxes = torch.stack([whole, torch.zeros(4), box])[None]
        return Instances(boxes, torch.tensor([[1, -1, 0]]), torch.tensor([[0.4, 0.0, 0.9]]))


def picture(height=120, width=180, box=(40, 30, 100, 60)):
    """Grey with a red box, (H, W, 3)."""
    image = np.full((height, width, 3), 128, np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = (255, 0, 0)
    return image


@pytest.fixture
def clip(tmp_path):
    """Ten frames whose red box moves 4 pixels to the right each."""
    path = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, (180, 120))
    for i in range(10):
        writer.write(picture(box=(20 + 4 * i, 30, 80 + 4 * i, 60))[..., ::-1].copy())
    writer.release()
    return path


def test_boxes_are_in_the_picture_s_own_pixels():
    model = RedFinder()
    (sample,) = run(model, picture())
    assert sample.info.size == (120, 180)
    assert np.array_equal(sample.image.permute(1, 2, 0), picture())
    assert sample.target.labels.tolist() == [0]
    np.testing.assert_allclose(sample.target.boxes[0], [40, 30, 100, 60], atol=2)
    # Resized to 64 x 96, which is padded to nothing more; then a shape that does need padding.
    assert model.seen == [((1, 3, 64, 96), [[64, 96]], False, True)]
    list(run(model, picture(120, 130)))
    assert model.seen[-1][:2] == ((1, 3, 64, 96), [[64, 69]])


@pytest.mark.parametrize(
    ("score", "scores"), [(0.0, [0.9, 0.4]), (0.4, [0.9, 0.4]), (0.41, [0.9]), (0.95, [])], ids=str
)
def test_scores_fall_and_padding_is_gone(score, scores):
    (sample,) = run(RedFinder(), picture(), score=score)
    np.testing.assert_allclose(sample.target.scores, scores)
    assert len(sample.target.boxes) == len(sample.target.labels) == len(scores)


def test_modes_are_as_before_between_pictures():
    model = RedFinder()
    model.train()
    model.frozen.eval()
    for sample in run(model, [picture(), picture()]):
        assert model.training
        assert model.layer.training
        assert not model.frozen.training
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        sample.target.boxes += 1  # an inference tensor would refuse
        assert not sample.target.boxes.is_inference()
    assert [training for _, _, training, _ in model.seen] == [False, False]


def test_modes_are_as_before_after_an_error():
    model = RedFinder().train()
    model.forward = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        list(run(model, picture()))
    assert model.training


def test_video(clip):
    samples = list(run(RedFinder(), clip, every=4))
    assert [sample.info.path for sample in samples] == [f"{clip}#0", f"{clip}#4", f"{clip}#8"]
    assert [sample.info.id for sample in samples] == [1, 2, 3]
    left = [sample.target.boxes[0, 0].item() for sample in samples]
    np.testing.assert_allclose(left, [20, 36, 52], atol=3)


def test_tracking(clip):
    """The red box keeps its id, of the least score as well; the whole picture of score 0.4 is not good enough to begin."""
    samples = list(track(RedFinder(), clip, every=2))
    assert [sample.info.path for sample in samples] == [f"{clip}#{i}" for i in (0, 2, 4, 6, 8)]
    assert [sample.target.ids.tolist() for sample in samples] == [[1]] * 5
    left = [sample.target.boxes[0, 0].item() for sample in samples]
    np.testing.assert_allclose(left, [20, 28, 36, 44, 52], atol=3)
    assert [found.ids.tolist() for found in RedFinder().track([clip, picture()], score=0.3)] == [[1, 2]] * 10 + [[3, 4]]


def test_tracking_asks_for_low_scores():
    """What falls from 0.9 to 0.4 is still found, though `score` is 0.5."""
    model = RedFinder()
    decode, count = model.decode, iter(range(9))

    def fading(images, sizes):
        found = decode(images, sizes)
        found.scores[0, 2] -= 0.5 * (next(count) > 0)
        return found

    model.decode = fading
    given = [found.scores.tolist() for found in model.track([picture()] * 3)]
    np.testing.assert_allclose(given, [[0.9], [0.4], [0.4]])


def test_no_frame_outlives_its_turn(clip):
    alive = []
    for sample in run(RedFinder(), [clip, clip, clip]):
        alive.append(weakref.ref(sample.image))
        # This one, and the one before, which the loop's variable held until just now.
        assert sum(image() is not None for image in alive) <= 2
    assert len(alive) == 30


def test_arrays_among_files(tmp_path):
    write_image(tmp_path / "a.png", picture())
    frozen = picture()[:, ::-1]
    frozen.flags.writeable = False
    samples = list(run(RedFinder(), [picture(), tmp_path / "a.png", frozen]))
    assert [sample.info.path for sample in samples] == ["array 0", str(tmp_path / "a.png"), "array 2"]
    assert samples[0].target.boxes.tolist() == samples[1].target.boxes.tolist()
    np.testing.assert_allclose(samples[2].target.boxes[0], [80, 30, 140, 60], atol=2)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((4, 4, 3)), r"uint8 RGB array, got \(4, 4, 3\) float64"),
        (np.zeros((4, 4), np.uint8), r"got \(4, 4\) uint8"),
        (np.zeros((0, 4, 3), np.uint8), r"got \(0, 4, 3\)"),
        ("no-such-picture.jpg", "no-such-picture.jpg: no such file"),
        ([], "no source was given"),
    ],
    ids=["float", "grey", "empty", "missing", "none"],
)
def test_bad_sources(source, message):
    with pytest.raises(DataError, match=message):
        list(run(RedFinder(), source))


def test_predict_gives_instances():
    small = {"norm": "batch", "anchor_sizes": ((8,), (16,), (32,), (64,)), "proposals": 20, "head_width": 32}
    model = faster_rcnn("resnet10_narrow_fpn", 6, **small)
    model.resize = (64, 96)
    for found in model.predict([picture(), picture(50, 300)], score=0.1):
        assert isinstance(found, Instances)
        assert found.scores.min() >= 0.1
        assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
        assert len(found) > 0
    assert (found.boxes >= 0).all()
    assert (found.boxes[:, 2] <= 300).all()
    assert (found.boxes[:, 3] <= 50).all()


def test_a_device_that_is_not_there():
    assert usable_device("cpu") == torch.device("cpu")
    with pytest.raises(DataError, match="device 'gpu' cannot be used here"):
        usable_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(DataError, match="device 'cuda' cannot be used here"):
            usable_device("cuda")


@dataclass(frozen=True)
class FromPixels(Proposer):
    """Boxes that follow from a picture's pixels; notes what it was shown."""

    limit: int = 20
    seen: list = field(default_factory=list, compare=False, repr=False)

    def __call__(self, image):
        self.seen.append(image.copy())
        rng = np.random.default_rng(int(image.astype(np.int64).sum()))
        corners = np.sort(rng.random((self.limit, 2, 2)), axis=1) * image.shape[1::-1]
        return Boxes(corners.reshape(-1, 4).astype(np.float32), np.arange(self.limit, 0, -1, dtype=np.float32))


@pytest.fixture
def regional():
    """A Fast R-CNN of the shapes' categories, untrained."""
    model = fast_rcnn("resnet10_narrow", 6, norm="batch", head_width=16, detections=30).eval()
    model.categories, model.resize, model.proposer = list(CATEGORIES), (64, 96), FromPixels()
    return model


def test_a_proposer_sees_the_original_picture(regional):
    given = []
    regional.forward = lambda images, sizes, proposals: given.append(proposals) or RedFinder.forward
    regional.decode = lambda *_: Instances(torch.zeros(1, 1, 4), torch.zeros(1, 1).long(), torch.ones(1, 1))
    find(regional, from_hwc(picture()))
    (image,) = regional.proposer.seen
    assert np.array_equal(image, picture())
    expected = torch.from_numpy(regional.proposer(picture()).boxes) * np.float32(64 / 120)
    torch.testing.assert_close(given[0][0].boxes, expected)


def test_predicting_and_evaluating_find_the_same(regional, tmp_path):
    table = shapes_table("val", 4, 48)
    scored = score(regional, table, batch_size=1, proposal_cache=tmp_path, progress=False)
    found = scored.detections
    assert len(regional.proposer.seen) == 4
    for row, path in enumerate(table.paths):
        mine, alone = found.image == row, find(regional, from_hwc(read_picture(path)), score=0.0)
        order = np.argsort(-found.scores[mine], kind="stable")
        assert mine.sum() == len(alone) > 5
        np.testing.assert_allclose(found.scores[mine][order], alone.scores, atol=1e-6)
        np.testing.assert_allclose(found.boxes[mine][order], alone.boxes, atol=1e-3)
        assert found.labels[mine][order].tolist() == alone.labels.tolist()


def test_scoring_uses_the_proposals_that_a_table_has(regional, tmp_path):
    boxes = Boxes(np.array([[8, 8, 40, 40]], np.float32), np.ones(1, np.float32))
    table = replace(shapes_table("val", 4, 48), regions=Regions.of([boxes] * 4))
    found = score(regional, table, progress=False).detections
    assert regional.proposer.seen == []
    assert 0 < len(found.boxes) <= 4 * 6  # a detection is of one region and one category


def test_a_model_that_proposes_itself_is_given_none():
    boxes = Boxes(np.array([[8, 8, 40, 40]], np.float32), np.ones(1, np.float32))
    table = replace(shapes_table("val", 2, 48), regions=Regions.of([boxes] * 2))
    small = {"norm": "batch", "anchor_sizes": ((8,), (16,), (32,), (64,)), "proposals": 20, "head_width": 16}
    model = faster_rcnn("resnet10_narrow_fpn", 6, **small).eval()
    model.categories, model.resize = list(CATEGORIES), (64, 64)
    assert len(score(model, table, progress=False).truth.image_ids) == 2
