"""MNIST's idx files: what is read, and what is said of broken ones."""

import gzip
import struct

import numpy as np
import pytest
import torch

from sightline.datasets.mnist import FILES, MnistFolder, is_mnist, read_digits, read_idx, read_mnist
from sightline.datasets.table import DataError

PICTURES = (np.arange(5 * 28 * 28) % 251).astype(np.uint8).reshape(5, 28, 28)
LABELS = np.array([3, 0, 9, 9, 1], np.uint8)


def idx(array, kind=8):
    """The bytes of an idx file (http://yann.lecun.com/exdb/mnist, "the idx file format")."""
    return bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture(params=["plain", "gzipped"])
def folder(request, tmp_path):
    for names in FILES.values():
        for name, array in zip(names, (PICTURES, LABELS), strict=True):
            data = idx(array)
            if request.param == "gzipped":
                name, data = f"{name}.gz", gzip.compress(data)
            (tmp_path / name).write_bytes(data)
    return tmp_path


def test_digits(folder):
    pictures, labels = read_digits(folder, "train")
    assert (pictures.dtype, labels.dtype) == (torch.uint8, torch.uint8)
    assert pictures.shape == (5, 1, 28, 28)
    assert np.array_equal(pictures[:, 0], PICTURES)
    assert np.array_equal(labels, LABELS)


def test_table(folder):
    source = MnistFolder(folder)
    assert source.splits == ["train", "test"]
    table = source.read("test")
    assert len(table) == 5
    assert table.categories == list("0123456789")
    assert table.labels.tolist() == LABELS.tolist()
    assert table.image.tolist() == [0, 1, 2, 3, 4]
    assert (table.boxes == [0, 0, 28, 28]).all()
    assert (table.sizes == 28).all()
    assert table.paths[2] == f"mnist:{folder}#test/2"
    assert table.problems.summary() == ""
    assert np.array_equal(read_mnist(table.paths[2]), np.repeat(PICTURES[2][..., None], 3, axis=2))


def test_a_picture_may_be_written_to(folder):
    """What is kept for the next reader stays as it is."""
    path = f"mnist:{folder}#train/1"
    read_mnist(path)[:] = 0
    assert read_mnist(path).any()


def test_recognition(folder, tmp_path_factory):
    assert is_mnist(folder)
    assert not is_mnist(tmp_path_factory.mktemp("empty"))
    assert not is_mnist(folder / "absent")


def test_a_folder_with_one_split(tmp_path):
    for name, array in zip(FILES["test"], (PICTURES, LABELS), strict=True):
        (tmp_path / name).write_bytes(idx(array))
    assert is_mnist(tmp_path)
    assert MnistFolder(tmp_path).splits == ["test"]
    with pytest.raises(DataError, match="no train-images-idx3-ubyte"):
        MnistFolder(tmp_path).read("train")


def test_names_with_a_dot(tmp_path):
    (tmp_path / "t10k-images.idx3-ubyte").write_bytes(idx(PICTURES))
    (tmp_path / "t10k-labels.idx1-ubyte").write_bytes(idx(LABELS))
    assert MnistFolder(tmp_path).read("test").labels.tolist() == LABELS.tolist()


GOOD = idx(LABELS)
# name: the file's bytes, what is said
BROKEN = {
    "empty": (b"", "starts with , an idx file"),
    "bad magic": (b"\0\0\x0b\1" + GOOD[4:], "starts with 00 00 0b 01, an idx file of bytes with 00 00 08"),
    "a web page": (b"<html>not found</html>", "starts with 3c 68 74 6d"),
    "cut in the header": (GOOD[:6], "truncated within its header"),
    "cut in the values": (GOOD[:-1], r"4 values for a shape of \(5,\); truncated"),
    "more than stated": (GOOD + b"\0", r"6 values for a shape of \(5,\)"),
    "broken gzip": (gzip.compress(GOOD)[:-9], "cannot be read"),
    "damaged gzip": (gzip.compress(GOOD)[:12] + b"\xff" * 20, "cannot be read"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files(name, tmp_path):
    data, message = BROKEN[name]
    path = tmp_path / "labels"
    path.write_bytes(data)
    with pytest.raises(DataError, match=message) as error:
        read_idx(path)
    assert str(path) in str(error.value)


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(tmp_path / "absent")


# name: pictures, labels, what is said
MISMATCHED = {
    "numbers": (PICTURES, LABELS[:4], "has 5 pictures, but .* 4 labels"),
    "sizes": (PICTURES[:, :20], LABELS, r"pictures \(5, 20, 28\)"),
    "exchanged": (LABELS, PICTURES, r"expected \(I, 28, 28\) and \(I,\)"),
    "labels": (PICTURES, LABELS + 1, "label 10 at row 2; expected 0 to 9"),
}


@pytest.mark.parametrize("name", MISMATCHED)
def test_files_that_do_not_go_together(name, tmp_path):
    *arrays, message = MISMATCHED[name]
    for file, array in zip(FILES["train"], arrays, strict=True):
        (tmp_path / file).write_bytes(idx(array))
    with pytest.raises(DataError, match=message):
        read_digits(tmp_path, "train")


@pytest.mark.parametrize("path", ["mnist:", "mnist:#train/1", "mnist:folder", "mnist:folder#train/x", "shapes:0/1/2"])
def test_paths_of_no_picture(path):
    with pytest.raises(DataError, match="is no MNIST picture; those are mnist:FOLDER#SPLIT/INDEX"):
        read_mnist(path)


@pytest.mark.parametrize(
    ("rest", "message"), [("train/5", "there are 5 pictures in train"), ("val/0", "no split 'val'")]
)
def test_paths_to_nowhere(rest, message, folder):
    with pytest.raises(DataError, match=message):
        read_mnist(f"mnist:{folder}#{rest}")


def test_no_split_named(folder):
    with pytest.raises(DataError, match="no split ''; MNIST has train and test"):
        MnistFolder(folder).read()


def test_the_real_files(real_data):
    folder = real_data("mnist")
    pictures, labels = read_digits(folder, "test")
    assert pictures.shape == (10_000, 1, 28, 28)
    assert labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
