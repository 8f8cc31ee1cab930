"""Captioners on pictures, arrays and video, one at a time."""

import weakref

import cv2
import numpy as np
import pytest
import torch

from sightline.captioning.inference import caption, caption_each, run
from sightline.datasets.images import write_image
from sightline.datasets.table import DataError
from sightline.datasets.transforms import from_hwc

RGB = {"red": (200, 40, 10), "green": (10, 200, 40), "blue": (40, 10, 200)}


def picture(colour="red", height=64, width=96):
    return np.full((height, width, 3), RGB[colour], np.uint8)


@pytest.fixture
def clip(tmp_path):
    """Nine frames: three red, three green, three blue."""
    writer = cv2.VideoWriter(str(tmp_path / "clip.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (96, 64))
    for i in range(9):
        writer.write(picture(list(RGB)[i // 3])[..., ::-1].copy())
    writer.release()
    return tmp_path / "clip.mp4"


def test_sentences_are_of_the_picture(namer):
    (told,) = run(namer(), picture("green"))
    assert told.sentences == ["green picture", "blue picture"]
    assert told.said.words == [["green", "picture"], ["blue", "picture"]]
    assert told.frame.name == "array 0"
    assert np.array_equal(told.frame.image, picture("green"))
    assert list(namer().predict([picture("red"), picture("blue")])) == [
        ["red picture", "green picture"],
        ["blue picture", "red picture"],
    ]


def test_nothing_of_the_padding_is_left(namer):
    """Neither words behind the longest sentence, nor sentences that are not there, nor cells beside the picture."""
    model = namer()
    model.resize = (32, 96)  # a frame of 32 x 64 for what is resized to 32 x 40
    said = caption(model, from_hwc(picture("red", 64, 80)))
    assert model.decoder.seen[0][0] == (1, 3, 4, 8)
    assert said.captions.tokens.tolist() == [[4, 7, 2], [5, 7, 2]]
    assert said.captions.attention.shape == (2, 3, 4 * 5)
    assert said.grid == (4, 5)
    torch.testing.assert_close(said.captions.attention.sum(-1), torch.ones(2, 3))
    first, second = said.captions.scores.tolist()
    assert second < first < 0


@pytest.mark.parametrize(
    ("resize", "shape", "grid", "extent"),
    [
        ((32, 48, True), (64, 96), (4, 6), (64, 96)),
        ((32, 48, True), (100, 30), (4, 6), (100, 30)),
        ((36, 44, True), (36, 44), (5, 6), (40, 48)),  # a map's last cells reach beyond a picture that is no multiple
        ((32, 96), (64, 80), (4, 5), (64, 80)),
        ((32, 96), (64, 90), (4, 6), (64, 96)),
    ],
    ids=str,
)
def test_where_the_cells_lie(namer, resize, shape, grid, extent):
    model = namer()
    model.resize = resize
    said = caption(model, from_hwc(picture("red", *shape)))
    assert said.grid == grid
    np.testing.assert_allclose(said.extent, extent, rtol=1e-6)


def test_attention_is_where_the_light_is(namer):
    image = np.zeros((64, 96, 3), np.uint8)
    image[16:32, 48:64] = 255  # cell (1, 3) of 4 x 6
    said = caption(namer(), from_hwc(image))
    weights = said.captions.attention[0, 0].unflatten(0, said.grid)
    assert divmod(int(weights.argmax()), said.grid[1]) == (1, 3)


def test_several_of_different_shapes_are_as_each_alone(namer):
    model = namer()
    model.resize = (32, 96)
    pictures = [from_hwc(picture(*kind)) for kind in (("red", 64, 80), ("blue", 40, 120), ("green", 90, 64))]
    together = caption_each(model, pictures)
    assert model.decoder.seen[0][0][0] == 3
    for said, image in zip(together, pictures, strict=True):
        alone = caption(model, image)
        assert (said.sentences, said.grid, said.extent) == (alone.sentences, alone.grid, alone.extent)
        torch.testing.assert_close(said.captions.scores, alone.captions.scores)
        torch.testing.assert_close(said.captions.attention, alone.captions.attention)


def test_without_attention_there_is_none(namer):
    said = caption(namer(attends=False), from_hwc(picture()))
    assert said.captions.attention is None
    assert said.sentences[0] == "red picture"


def test_modes_are_as_before_between_pictures(namer):
    model = namer().train()
    model.decoder.layer.eval()
    for told in run(model, [picture(), picture()]):
        assert model.training
        assert not model.decoder.layer.training
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        told.said.captions.attention += 1  # an inference tensor would refuse
        told.said.captions.tokens += 1
    assert [(training, inference) for _, training, inference in model.decoder.seen] == [(False, True)] * 2


def test_modes_are_as_before_after_an_error(namer):
    model = namer().train()
    model.search = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        list(run(model, picture()))
    assert model.training


def test_video(namer, clip):
    told = list(run(namer(), clip, every=3))
    assert [each.frame.index for each in told] == [0, 3, 6]
    assert [each.sentences[0] for each in told] == ["red picture", "green picture", "blue picture"]


def test_no_frame_outlives_its_turn(namer, clip):
    alive = []
    for told in run(namer(), [clip, clip, clip]):
        alive.append(weakref.ref(told.frame.image))
        assert sum(image() is not None for image in alive) <= 2  # this one, and the one the loop held until just now
    assert len(alive) == 27


def test_arrays_among_files(namer, tmp_path):
    write_image(tmp_path / "a.png", picture("blue"))
    told = list(run(namer(), [picture("green"), tmp_path / "a.png"]))
    assert [each.frame.name for each in told] == ["array 0", str(tmp_path / "a.png")]
    assert [each.sentences[0] for each in told] == ["green picture", "blue picture"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((4, 4, 3)), r"uint8 RGB array, got \(4, 4, 3\) float64"),
        ("no-such-picture.jpg", "no-such-picture.jpg: no such file"),
        ([], "no source was given"),
    ],
    ids=["float", "missing", "none"],
)
def test_bad_sources(namer, source, message):
    with pytest.raises(DataError, match=message):
        list(run(namer(), source))
