"""Frames from pictures, folders, patterns, videos and lists of them."""

import itertools
import os

import cv2
import numpy as np
import pytest

from sightline.datasets import sources
from sightline.datasets.images import read_image, write_image
from sightline.datasets.sources import frames
from sightline.datasets.table import DataError


def make_picture(path, value=100):
    write_image(path, np.full((20, 30, 3), (value, 0, 0), np.uint8))
    return path


@pytest.fixture
def clip(tmp_path):
    """A video of 10 frames, 48x32, 5 frames per second; frame i is red of 20 i."""
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5, (48, 32))
    for number in range(10):
        writer.write(np.full((32, 48, 3), (0, 0, 20 * number), np.uint8))  # OpenCV's order is blue, green, red
    writer.release()
    return path


def test_picture(tmp_path):
    path = make_picture(tmp_path / "a.png")
    source = frames(path)
    (frame,) = source
    assert (frame.name, frame.index, frame.fps, frame.is_video, source.total) == (str(path), 0, None, False, 1)
    np.testing.assert_array_equal(frame.image, read_image(path))


@pytest.mark.parametrize(("every", "indices"), [(1, range(10)), (3, [0, 3, 6, 9]), (4, [0, 4, 8]), (100, [0])])
def test_video(clip, every, indices):
    source = frames(str(clip), every)
    found = list(source)
    assert [frame.index for frame in found] == list(indices)
    assert source.total == len(found)
    for frame in found:
        assert (frame.image.shape, frame.image.dtype, frame.fps, frame.is_video) == ((32, 48, 3), np.uint8, 5, True)
        np.testing.assert_allclose(frame.image.mean((0, 1)), [20 * frame.index, 0, 0], atol=6)


def test_folder_pattern_and_list(tmp_path, clip):
    paths = [make_picture(tmp_path / f"{name}.png", 50) for name in "ba"]
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "sub").mkdir()
    (tmp_path / "._a.png").write_bytes(b"hidden")
    assert [frame.name[-5:] for frame in frames(tmp_path, every=5)] == ["a.png", "b.png", "p.avi", "p.avi"]
    assert frames(tmp_path, every=5).total == 4
    assert [frame.name for frame in frames(str(tmp_path / "*.png"))] == [str(path) for path in reversed(paths)]
    assert [frame.name for frame in frames([paths[0], str(paths[1])])] == [str(path) for path in paths]


def test_a_name_with_brackets_or_digits_is_a_file_first(tmp_path, monkeypatch):
    path = make_picture(tmp_path / "a[1].png")
    assert frames(path).total == 1
    monkeypatch.chdir(tmp_path)
    os.rename(path, "0")
    assert [frame.name for frame in frames("0")] == ["0"]


def test_broken_pictures_are_skipped_and_counted(tmp_path):
    make_picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"nothing")
    source = frames(tmp_path)
    assert len(list(source)) == 1
    assert source.problems.counts == {"picture or video cannot be read (skipped)": 1}
    assert "b.png: not a picture" in source.problems.summary()


def test_what_stands_alone_is_an_error(tmp_path):
    for name in ("b.png", "c.png", "d.mp4"):
        (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"b\.png: not a picture"):
        list(frames(tmp_path / "b.png"))
    with pytest.raises(DataError, match=r"d\.mp4: cannot be opened as a video"):
        list(frames(tmp_path / "d.mp4"))
    with pytest.raises(DataError, match="none of the pictures can be read"):
        list(frames(tmp_path))


def test_errors_come_before_the_first_frame(tmp_path):
    make_picture(tmp_path / "dog.png")
    (tmp_path / "empty").mkdir()
    for source, message in [
        (tmp_path / "dgo.png", "no such file or folder; did you mean 'dog.png'"),
        (tmp_path / "empty", "no picture and no video"),
        (str(tmp_path / "*.jpg"), "no file matches"),
        ([], "no source was given"),
    ]:
        with pytest.raises(DataError, match=message):
            frames(source)
    with pytest.raises(DataError, match="every must be at least 1"):
        frames(tmp_path, every=0)


def test_cameras_and_streams_have_no_total():
    assert frames("0").items == frames(0).items == [0]
    assert frames("0").total is None
    assert frames(["rtsp://somewhere/1", 2]).items == ["rtsp://somewhere/1", 2]
    assert frames("rtsp://somewhere/1").total is None


def test_a_camera_that_is_not_there():
    with pytest.raises(DataError, match="camera 97 cannot be opened"):
        list(frames("97"))


def test_a_video_that_ends_early_is_noted(clip, monkeypatch):
    monkeypatch.setattr(sources, "_frame_count", lambda capture: 20)
    source = frames(clip)
    assert len(list(source)) == 10
    assert source.problems.repaired == {"video ends early": [f"{clip}: 10 of 20 frames"]}


def test_a_consumer_that_stops_early_closes_the_video(clip):
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    for _ in range(5):
        assert [frame.index for frame in itertools.islice(frames(clip), 2)] == [0, 1]
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before


def test_memory_stays_flat_over_a_long_clip(real_data):
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("memory is read from /proc")

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    source = frames(real_data("demo") / "one-by-one-person-detection.mp4")
    assert source.total == 1394
    count = 0
    for frame in source:
        assert (frame.image.shape, frame.fps) == ((432, 768, 3), 10)
        count += 1
        if count == 50:
            early = resident()
    assert count == 1394
    assert resident() - early < 20  # MiB; all frames together are 1323
