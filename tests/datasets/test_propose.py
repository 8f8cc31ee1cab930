"""Proposals on disk: never stale, never partial, the same for any number of processes."""

import os
import signal
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.datasets import propose as module
from sightline.datasets.detection import read_picture
from sightline.datasets.folders import FolderSource
from sightline.datasets.proposals import Boxes, Proposer
from sightline.datasets.propose import cache_folder, propose
from sightline.datasets.shapes import shapes_table
from sightline.datasets.table import DataError

LOG = "PROPOSED"  # the variable with the file where calls are counted, in whichever process


@dataclass(frozen=True)
class Toy(Proposer):
    """Boxes that follow from the pixels, fewer for dark pictures; notes each call."""

    limit: int = 9
    scale: float = 1.0

    def __call__(self, image):
        with open(os.environ[LOG], "a") as log:
            log.write("x")
        rng = np.random.default_rng(int(image.astype(np.int64).sum()))
        corners = np.sort(rng.random((int(image.mean()) % self.limit, 2, 2)), axis=1) * self.scale
        return Boxes(corners.reshape(-1, 4).astype(np.float32), np.sort(rng.random(len(corners)))[::-1].astype("f4"))


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """How many pictures were proposed for since it was last asked."""
    log = tmp_path / "log"
    monkeypatch.setenv(LOG, str(log))
    monkeypatch.delenv("SIGHTLINE_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def count():
        number = len(log.read_text()) if log.exists() else 0
        log.write_text("")
        return number

    return count


@pytest.fixture
def folders(tmp_path):
    """A data set of two classes of four pictures each."""
    rng = np.random.default_rng(0)
    for name in ("data/train/cat/{}.png", "data/train/dog/{}.png"):
        for number in range(4):
            path = tmp_path / name.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (20 + number, 30, 3), np.uint8)).save(path)
    return tmp_path / "data"


def read(folder):
    return FolderSource(folder).read("train")


def assert_right(table, proposer):
    """The table's regions against a plain loop."""
    for row, path in enumerate(table.paths):
        expected = proposer(read_picture(path))
        np.testing.assert_array_equal(table.regions[row].boxes, expected.boxes)
        np.testing.assert_array_equal(table.regions[row].scores, expected.scores)


def same(one, other):
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("boxes", "scores", "offsets"))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_any_number_of_processes_finds_the_same(folders, tmp_path, calls, workers):
    table = propose(read(folders), Toy(), cache=tmp_path / "cache", num_workers=workers, progress=False)
    assert calls() == 8
    assert_right(table, Toy())
    assert calls() == 8
    again = propose(read(folders), Toy(), cache=tmp_path / "cache", num_workers=workers, progress=False)
    assert calls() == 0, "what was kept is computed again"
    assert same(again.regions, table.regions)


@dataclass(frozen=True)
class Masked(Toy):
    """The same with masks."""

    def __call__(self, image):
        found = super().__call__(image)
        return found._replace(masks=np.random.default_rng(len(found.boxes)).random((len(found.boxes), 10, 10)) < 0.5)


def test_masks_are_kept_too(folders, tmp_path, calls):
    """Also of pictures for which nothing is proposed."""
    first = propose(read(folders), Masked(limit=4), cache=tmp_path / "cache", progress=False)
    assert calls() == 8
    again = propose(read(folders), Masked(limit=4), cache=tmp_path / "cache", progress=False)
    assert calls() == 0
    assert (np.diff(first.regions.offsets) == 0).any()
    for row, path in enumerate(again.paths):
        np.testing.assert_array_equal(again.regions[row].masks, Masked(limit=4)(read_picture(path)).masks)
    assert same(first.regions, again.regions)


def test_the_table_is_otherwise_as_it_was(folders, tmp_path, calls):
    before = read(folders)
    after = propose(before, Toy(), cache=tmp_path / "cache", progress=False)
    assert before.regions is None
    assert after.paths is before.paths
    assert after.boxes is before.boxes


def test_a_changed_picture_is_computed_anew_and_a_moved_one_is_not(folders, tmp_path, calls):
    cache = tmp_path / "cache"
    propose(read(folders), Toy(), cache=cache, progress=False)
    calls()
    path = folders / "train" / "cat" / "1.png"
    before = path.stat()
    pixels = np.array(Image.open(path))
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # even where its date does not tell
    table = propose(read(folders), Toy(), cache=cache, progress=False)
    assert calls() == 1
    assert_right(table, Toy())
    folders.rename(tmp_path / "elsewhere")
    calls()
    moved = propose(read(tmp_path / "elsewhere"), Toy(), cache=cache, progress=False)
    assert calls() == 0
    assert same(moved.regions, table.regions)


@dataclass(frozen=True)
class Other(Toy):
    """Has the settings of its parent."""


@dataclass(frozen=True)
class Keyed(Toy):
    """Has a key of its own, which may be no name for a file."""

    version: str = "one"

    @property
    def key(self):
        return self.version


PAIRS = {
    "a number": (Toy(), Toy(scale=2.0)),
    "the limit": (Toy(), Toy(5)),
    "the kind": (Toy(), Other()),
    "the key": (Keyed(), Keyed(version="../two/three")),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
def test_other_settings_are_others_boxes(tmp_path, calls, pair):
    shapes = shapes_table("train", 3, 32)
    for proposer in pair:
        propose(shapes, proposer, cache=tmp_path / "cache", progress=False)
        assert calls() == 3
    for proposer in pair:
        propose(shapes, proposer, cache=tmp_path / "cache", progress=False)
    assert calls() == 0
    assert len(list((tmp_path / "cache").iterdir())) == 2, "boxes are kept elsewhere"


def test_equal_keys_are_equal_boxes(tmp_path, calls):
    """Whatever the type: one that wraps another, to time it, say, finds what that one kept."""
    shapes = shapes_table("train", 3, 32)
    for proposer in (Toy(), Keyed(version=Toy().key)):
        propose(shapes, proposer, cache=tmp_path / "cache", progress=False)
    assert calls() == 3


def test_pictures_alike_are_computed_once(folders, tmp_path, calls):
    (folders / "train" / "dog" / "3.png").write_bytes((folders / "train" / "cat" / "3.png").read_bytes())
    table = propose(read(folders), Toy(), cache=tmp_path / "cache", progress=False)
    assert calls() == 7
    assert_right(table, Toy())


BROKEN = {
    "cut short": lambda data: data[:-7],
    "header alone": lambda data: data[:128],
    "half a header": lambda data: data[:50],
    "empty": lambda data: b"",
    "something else": lambda data: b"no numbers at all",
    "pickled": lambda data: data.replace(b"'<f4'", b"'|O' "),
}


@pytest.mark.parametrize("damage", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_is_computed_again(tmp_path, calls, damage):
    shapes = shapes_table("train", 3, 32)
    table = propose(shapes, Toy(), cache=tmp_path / "cache", progress=False)
    calls()
    file = max((tmp_path / "cache").glob("*/*.npy"), key=lambda path: path.stat().st_size)
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert file.read_bytes() != whole
    assert same(propose(shapes, Toy(), cache=tmp_path / "cache", progress=False).regions, table.regions)
    assert calls() == 1
    assert file.read_bytes() == whole


def test_an_interrupted_run_goes_on(tmp_path, calls, monkeypatch):
    """Ctrl-C after three pictures, in the middle of a fourth file: three are kept, and nothing half."""
    shapes, save = shapes_table("train", 6, 32), np.save

    def stop_at_the_fourth(stream, *args, **options):
        if len(list((tmp_path / "cache").glob("*/*.npy"))) == 3:
            stream.write(b"half a")
            raise KeyboardInterrupt
        save(stream, *args, **options)

    monkeypatch.setattr(np, "save", stop_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        propose(shapes, Toy(), cache=tmp_path / "cache", progress=False)
    assert [path.suffix for path in (tmp_path / "cache").glob("*/*")] == [".npy"] * 3
    monkeypatch.undo()
    monkeypatch.setenv(LOG, str(tmp_path / "log"))
    calls()
    table = propose(shapes, Toy(), cache=tmp_path / "cache", progress=False)
    assert calls() == 3
    assert_right(table, Toy())


def test_what_another_process_did_meanwhile_is_left_out(tmp_path, calls, monkeypatch):
    """The look-up finds nothing; by the time that a picture's turn comes, all files are there."""
    shapes, compute = shapes_table("train", 4, 32), module._compute

    def late(*arguments):
        monkeypatch.setattr(module, "_compute", compute)
        propose(shapes, Toy(), cache=tmp_path / "cache", progress=False)
        return compute(*arguments)

    monkeypatch.setattr(module, "_compute", late)
    propose(shapes, Toy(), cache=tmp_path / "cache", progress=False)
    assert calls() == 4


def test_random_numbers_do_not_depend_on_the_cache(tmp_path, calls):
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        propose(shapes_table("train", 3, 32), Toy(), cache=tmp_path / "cache", progress=False)
        drawn.append((torch.rand(1).item(), np.random.rand()))  # noqa: NPY002
    assert drawn[0] == drawn[1]
    assert calls() == 3


def test_beside_the_data(folders, calls):
    table = propose(read(folders), Toy(), progress=False)
    (kept,) = (folders / ".sightline" / "proposals").iterdir()
    assert kept.name.startswith("Toy-")
    assert len(list(kept.iterdir())) == 8
    assert read(folders).paths == table.paths, "the cache is taken for data"
    assert FolderSource(folders).splits == ["train"]


PLACES = {
    "a folder": (["d/a/1.jpg", "d/a/2.jpg"], "d/.sightline"),
    "several": (["d/a/b/1.jpg", "d/a/c/2.jpg"], "d/.sightline"),
    "among others": (["d/a/1.jpg", "shapes:0/32/1"], "d/.sightline"),
    "built in": (["shapes:0/32/1", "mnist:d/m#train/2"], "home/.cache/sightline"),
    "none": ([], "home/.cache/sightline"),
}


@pytest.mark.parametrize(("paths", "expected"), PLACES.values(), ids=PLACES.keys())
def test_places(tmp_path, monkeypatch, calls, paths, expected):
    monkeypatch.chdir(tmp_path)
    assert cache_folder(paths) == tmp_path / expected / "proposals"
    assert (tmp_path / expected / "proposals").is_dir()


def test_the_uppermost_folder_is_not_written(monkeypatch, calls, tmp_path):
    made = []
    monkeypatch.setattr(module, "_writable", lambda folder: made.append(folder) or "home" in folder.parts)
    cache_folder(["/data/1.jpg"])
    assert made.pop(0) == Path("/data/.sightline/proposals")
    made.clear()
    cache_folder(["/1.jpg", "/data/2.jpg"])
    assert made == [tmp_path / "home" / ".cache" / "sightline" / "proposals"]


def test_the_variable_goes_before_the_data_and_the_argument_before_both(folders, tmp_path, monkeypatch, calls):
    paths = read(folders).paths
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path / "kept"))
    assert cache_folder(paths) == tmp_path / "kept" / "proposals"
    assert cache_folder(paths, tmp_path / "here") == tmp_path / "here"
    assert not (folders / ".sightline").exists()


def test_data_that_cannot_be_written(folders, tmp_path, calls, monkeypatch):
    (folders / ".sightline").write_text("a file where the folder would be: no folder can be made, not even by root")
    assert cache_folder(read(folders).paths) == tmp_path / "home" / ".cache" / "sightline" / "proposals"
    monkeypatch.setenv("SIGHTLINE_CACHE", str(folders / ".sightline"))
    with pytest.raises(DataError, match=r"\.sightline/proposals: .* nothing can be written; .*SIGHTLINE_CACHE"):
        cache_folder(read(folders).paths)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write(folders, tmp_path, calls):
    folders.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert cache_folder(read(folders).paths) == tmp_path / "home" / ".cache" / "sightline" / "proposals"
    finally:
        folders.chmod(stat.S_IRWXU)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_cannot_be_read_is_named(folders, tmp_path, calls, workers):
    table = read(folders)
    (folders / "train" / "dog" / "2.png").write_bytes(b"no picture")
    with pytest.raises(DataError) as error:
        propose(table, Toy(), cache=tmp_path / "cache", num_workers=workers, progress=False)
    assert str(error.value).startswith(str(folders / "train" / "dog" / "2.png"))
    assert "Traceback" not in str(error.value)
    (folders / "train" / "dog" / "2.png").unlink()
    with pytest.raises(DataError, match=r"2\.png: cannot be read \(No such file"):
        propose(table, Toy(), cache=tmp_path / "cache", num_workers=workers, progress=False)


def test_digits_are_known_by_their_pixels(real_data, tmp_path, calls):
    from sightline.datasets.mnist import MnistFolder

    table = MnistFolder(real_data("mnist")).read("test").select(range(5))
    assert_right(propose(table, Toy(), cache=tmp_path / "cache", progress=False), Toy())


def test_a_table_of_no_pictures(tmp_path, calls):
    assert len(propose(shapes_table("train", 0, 32), Toy(), cache=tmp_path, progress=False).regions) == 0


SCRIPT = """
import multiprocessing, signal, sys, time
from dataclasses import dataclass
import numpy as np
from sightline.datasets.proposals import Boxes, Proposer
from sightline.datasets.propose import propose
from sightline.datasets.shapes import shapes_table

@dataclass(frozen=True)
class Slow(Proposer):
    limit: int = 2

    def __call__(self, image):
        time.sleep(0.05)
        return Boxes(np.array([[0, 0, image[0, 0, 0] + 1, 9]], np.float32), np.ones(1, np.float32))

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts in the background
    multiprocessing.set_start_method(sys.argv[1])
    try:
        table = propose(shapes_table("train", int(sys.argv[3]), 32), Slow(), cache=sys.argv[2], num_workers=int(sys.argv[4]))
    except KeyboardInterrupt:
        print("stopped")
        sys.exit(130)
    print(table.regions.boxes.sum())
"""


def start(tmp_path, method, count, workers):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, script, method, tmp_path / "cache", str(count), str(workers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_processes_that_are_spawned(tmp_path):
    out, err = start(tmp_path, "spawn", 4, 1).communicate(timeout=120)
    expected = sum(float(read_picture(path)[0, 0, 0]) + 1 + 9 for path in shapes_table("train", 4, 32).paths)
    assert (float(out), err) == (expected, "")


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="no process groups")
def test_ctrl_c_reaches_all_processes_and_leaves_whole_files(tmp_path):
    process = start(tmp_path, "fork", 2000, 2)
    limit = time.monotonic() + 60
    while len(list((tmp_path / "cache").glob("*/*.npy"))) < 4 and time.monotonic() < limit:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "stopped\n", "")
    files = list((tmp_path / "cache").glob("*/*"))
    assert 4 <= len(files) < 2000
    assert {np.load(file).shape for file in files} == {(1, 5)}
