"""Class folders: every layout, every kind of thing that lies about in them, and writing them."""

import gc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.datasets.clean import UNKNOWN_CATEGORY, UNREADABLE
from sightline.datasets.detection import DetectionDataset
from sightline.datasets.folders import (
    FolderSource,
    ObjectCrops,
    class_paths,
    is_class_folders,
    is_unlabelled,
    write_crops,
)
from sightline.datasets.images import read_image
from sightline.datasets.readers import raise_if_fatal, read
from sightline.datasets.table import DataError

RNG = np.random.default_rng(0)


def plant(root: Path, *names: str) -> Path:
    """Pictures of 12 x 8 (height x width), or other files where the name has no picture's suffix."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir()
        elif path.suffix in (".jpg", ".png", ".JPEG"):
            Image.fromarray(RNG.integers(0, 256, (12, 8, 3), np.uint8)).save(path)
        else:
            path.write_text("x")
    return root


def listing(table, root):
    """[(path below root, class), ...]; None where a picture has no class."""
    classes: dict[int, str] = {
        row: table.categories[label] for row, label in zip(table.image, table.labels, strict=True)
    }
    return [(Path(path).relative_to(root).as_posix(), classes.get(row)) for row, path in enumerate(table.paths)]


def test_with_splits(tmp_path):
    plant(tmp_path, "train/dog/b.jpg", "train/dog/a.png", "train/cat/z.JPEG", "valid/cat/a.jpg", "test/dog/a.jpg")
    source = FolderSource(tmp_path)
    assert source.splits == ["train", "val", "test"]
    train = source.read("train")
    assert listing(train, tmp_path) == [
        ("train/cat/z.JPEG", "cat"), ("train/dog/a.png", "dog"), ("train/dog/b.jpg", "dog"),
    ]  # fmt: skip
    assert train.categories == source.read("val").categories == ["cat", "dog"]
    assert listing(source.read("val"), tmp_path) == [("valid/cat/a.jpg", "cat")]  # no dog: legal
    assert listing(source.read("test"), tmp_path) == [("test/dog/a.jpg", "dog")]
    assert not train.problems.counts


@pytest.mark.filterwarnings("error")
def test_folders_do_not_stay_open(tmp_path):
    plant(tmp_path, "train/cat/1.jpg", "train/cat/2.jpg", "train/dog/1.jpg")
    read(tmp_path, "train")
    gc.collect()


def test_without_splits(tmp_path):
    plant(tmp_path, "b/1.jpg", "a/1.jpg", "a/2.jpg")
    source = FolderSource(tmp_path)
    assert source.splits == []
    table = source.read()
    assert listing(table, tmp_path) == [("a/1.jpg", "a"), ("a/2.jpg", "a"), ("b/1.jpg", "b")]
    assert table.image_ids.tolist() == [1, 2, 3]
    assert table.boxes.tolist() == [[0, 0, 8, 12]] * 3
    assert table.area.tolist() == [96] * 3
    assert table.sizes.tolist() == [[12, 8]] * 3


def test_pictures_without_classes(tmp_path):
    plant(tmp_path / "flat", "b.jpg", "a.jpg", "notes.txt")
    table = FolderSource(tmp_path / "flat").read()
    assert listing(table, tmp_path / "flat") == [("a.jpg", None), ("b.jpg", None)]
    assert (table.categories, len(table.image), table.problems.counts) == ([], 0, {})
    raise_if_fatal(table)
    plant(tmp_path / "split", "train/a.jpg", "train/b.jpg", "test/a.jpg", "texts/a.txt")
    source = FolderSource(tmp_path / "split")
    assert source.splits == ["train", "test"]
    assert listing(source.read("test"), tmp_path / "split") == [("test/a.jpg", None)]
    dataset = DetectionDataset(source.read("train"), resize=(12, 12))
    assert len(dataset[1].target) == 0


def test_exif_rotation(tmp_path):
    plant(tmp_path, "a/1.jpg", "b/1.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 12)).save(tmp_path / "a" / "1.jpg", exif=exif)
    table = FolderSource(tmp_path).read()
    assert table.sizes.tolist() == [[8, 12], [12, 8]]
    assert table.boxes.tolist() == [[0, 0, 12, 8], [0, 0, 8, 12]]
    assert DetectionDataset(table, resize=(8, 12))[0].image.shape == (3, 8, 12)


LAYOUTS = [
    # name, files, whether it is class folders, whether it is pictures without classes
    ("splits", ["train/a/1.jpg", "val/a/1.jpg"], True, False),
    ("only train", ["train/a/1.jpg"], True, False),
    ("classes", ["a/1.jpg", "b/1.jpg"], True, False),
    ("a class named train", ["train/1.jpg", "car/1.jpg"], True, False),
    ("a folder between class and pictures", ["train/a/pictures/1.jpg"], True, False),
    ("pictures", ["1.jpg"], False, True),
    ("pictures in splits", ["train/1.jpg", "dev/1.jpg", "texts/a.txt"], False, True),
    ("label maps", ["train/1.png", "trainannot/1.png", "val/1.png", "valannot/1.png"], False, False),
    ("pictures and masks", ["images/1.jpg", "masks/1.png"], False, False),
    ("YOLO", ["images/1.jpg", "labels/1.txt"], False, False),
    ("YOLO in splits", ["train/images/1.jpg", "train/labels/1.txt"], False, False),
    ("VOC", ["JPEGImages/1.jpg", "Annotations/1.xml"], False, False),
    ("a data set further down", ["imagenet/train/a/1.jpg"], False, False),
    ("nothing", ["a/notes.txt", "empty/"], False, False),
    ("hidden", [".cache/1.jpg", ".1.jpg"], False, False),
]


@pytest.mark.parametrize(("name", "files", "classes", "unlabelled"), LAYOUTS, ids=[row[0] for row in LAYOUTS])
def test_recognition(tmp_path, name, files, classes, unlabelled):
    plant(tmp_path, *files)
    assert (is_class_folders(tmp_path), is_unlabelled(tmp_path)) == (classes, unlabelled)
    if not classes and not unlabelled:
        with pytest.raises(DataError, match="neither class folders"):
            FolderSource(tmp_path)


@pytest.mark.parametrize("name", ["coco", "bccd", "bccd/BCCD", "raccoon", "deeppcb", "deeppcb/PCBData", "camvid"])
def test_other_formats_are_no_class_folders(real_data, name):
    assert not is_class_folders(real_data(name))
    assert not is_unlabelled(real_data(name))


def test_real_pictures_without_classes(real_data):
    table = FolderSource(real_data("demo")).read()
    assert (len(table), table.categories) == (7, [])
    assert FolderSource(real_data("flickr8k")).splits == ["train", "val", "test"]


def problems(root, split="train"):
    return FolderSource(root).read(split).problems


def test_unreadable_picture_is_fatal(tmp_path):
    plant(tmp_path, "train/a/1.jpg", "train/a/2.jpg", "train/b/1.jpg")
    (tmp_path / "train" / "a" / "1.jpg").write_bytes(b"no picture")
    table = FolderSource(tmp_path).read("train")
    assert table.problems.fatal.keys() == {UNREADABLE}
    assert "a/1.jpg" in table.problems.fatal[UNREADABLE][0]
    with pytest.raises(DataError, match=r"a/1\.jpg: not a picture"):
        raise_if_fatal(table)


def test_class_that_train_lacks_is_fatal(tmp_path):
    plant(tmp_path, "train/zebra/1.jpg", "train/cat/1.jpg", "val/zebar/1.jpg", "val/cat/1.jpg")
    assert not problems(tmp_path).counts
    found = problems(tmp_path, "val")
    assert found.counts == {UNKNOWN_CATEGORY: 1}
    (where,) = found.fatal[UNKNOWN_CATEGORY]
    assert where.endswith("val/zebar: the training split has no such class; did you mean 'zebra'?")
    plant(tmp_path, "test/tiger/1.jpg", "test/lion/1.jpg")
    with pytest.raises(
        DataError, match=r"test: no picture of a known class\s.*among the data set.s: 2\s.*lion.*\s.*tiger"
    ):
        problems(tmp_path, "test")


def test_without_a_training_split_all_classes_count(tmp_path):
    plant(tmp_path, "val/b/1.jpg", "test/a/1.jpg", "test/c/1.jpg")
    source = FolderSource(tmp_path)
    assert source.read("val").categories == source.read("test").categories == ["a", "b", "c"]
    assert source.read("val").labels.tolist() == [1]


LEFT_OUT = [
    # name, file, kind, place named, whether it counts as repaired
    ("empty class folder", "train/empty/", "class folder without pictures (left out)", "train/empty", True),
    ("folder of texts", "train/texts/a.txt", "class folder without pictures (left out)", "train/texts", True),
    ("loose picture", "train/1.jpg", "picture outside any class folder (left out)", "train/1.jpg", True),
    ("stray file", "train/a/list.csv", "file is no picture (ignored)", "train/a/list.csv", False),
    ("folder beside the splits", "extra/1.jpg", "folder is no split (ignored)", "extra", False),
    ("unlabelled split", "test/1.jpg", "split without class folders (left out)", "test", True),
]


@pytest.mark.parametrize(("name", "file", "kind", "place", "repaired"), LEFT_OUT, ids=[row[0] for row in LEFT_OUT])
def test_what_is_left_out_is_said(tmp_path, name, file, kind, place, repaired):
    plant(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", file)
    source = FolderSource(tmp_path)
    table = source.read("train")
    assert source.splits == ["train", "val"]
    assert listing(table, tmp_path) == [("train/a/1.jpg", "a"), ("train/b/1.jpg", "b")]
    assert table.problems.counts == {kind: 1}
    assert (table.problems.repaired if repaired else table.problems.warned)[kind] == [str(tmp_path / place)]
    assert not source.read("val").problems.counts


@pytest.mark.parametrize(
    "file", ["train/.hidden/1.jpg", "train/a/.1.jpg", "train/a/.DS_Store", ".git/1.jpg", "README.md"]
)
def test_what_is_passed_over_in_silence(tmp_path, file):
    plant(tmp_path, "train/a/1.jpg", "train/b/1.jpg", file)
    table = FolderSource(tmp_path).read("train")
    assert (len(table), table.problems.counts) == (2, {})


def test_nested_folders_count_with_their_class(tmp_path):
    plant(tmp_path, "train/a/deep/er/2.jpg", "train/a/1.jpg", "train/b/images/1.jpg", "train/a/deep/.x/3.jpg")
    plant(tmp_path / "train" / "b" / "images", "more/1.jpg")
    table = FolderSource(tmp_path).read("train")
    assert [label for _, label in listing(table, tmp_path)] == ["a", "a", "b", "b"]
    kind = "folder below a class's (its pictures count with the class)"
    assert table.problems.counts == {kind: 3}


def test_links(tmp_path):
    plant(tmp_path / "elsewhere", "1.jpg")
    plant(tmp_path / "set", "train/a/1.jpg")
    (tmp_path / "set" / "train" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "train" / "a" / "loop").symlink_to(tmp_path / "set")
    assert len(FolderSource(tmp_path / "set").read("train")) == 2


def test_a_single_class_is_odd(tmp_path):
    assert problems(plant(tmp_path, "train/a/1.jpg")).warned.keys() == {"only one class"}


def test_errors(tmp_path):
    plant(tmp_path / "both", "val/a/1.jpg", "valid/a/1.jpg")
    with pytest.raises(DataError, match=r"both/val and .*both/valid are both the val split; keep one"):
        FolderSource(tmp_path / "both")
    plant(tmp_path / "mixed", "train/1.jpg", "val/a/1.jpg")
    with pytest.raises(DataError, match=r"mixed/train: no class folders, but .*mixed/val has some"):
        FolderSource(tmp_path / "mixed")
    plant(tmp_path / "good", "train/a/1.jpg")
    for split in ("val", None):
        with pytest.raises(DataError, match=f"no split {split!r}; there are train"):
            FolderSource(tmp_path / "good").read(split)


def test_class_paths(tmp_path):
    plant(tmp_path, "cat/1.jpg", "dog/2.jpg", "dog/3.jpg")
    table = FolderSource(tmp_path).read()
    table = table.select_objects(np.array([0, 2]))
    assert class_paths(table, ["x.jpg", "y.jpg", "z.jpg"], "out") == [
        Path("out/cat/x.jpg"),
        None,
        Path("out/dog/z.jpg"),
    ]


def test_class_paths_of_objects_are_refused(real_data, tmp_path):
    table = read(real_data("raccoon"))
    with pytest.raises(DataError, match=r"raccoon-.*write the objects' crops instead \(--crops\)"):
        class_paths(table, table.paths, tmp_path)


def test_crops_are_the_pictures_pixels(real_data, tmp_path):
    table = read(real_data("bccd"), "test").select(np.arange(20))
    names = [Path(path).stem for path in table.paths]
    left_out = write_crops(table, names, tmp_path / "train", ObjectCrops(min_side=40))
    written = FolderSource(tmp_path).read("train")
    sides = (table.boxes[:, 2:] - table.boxes[:, :2]).min(axis=1)
    kept = np.flatnonzero(sides >= 40)
    assert left_out.counts == {"object's shorter side is under 40 pixels (left out)": len(sides) - len(kept)}
    assert len(written) == len(kept) > 100
    by_name = {Path(path).name: row for row, path in enumerate(written.paths)}
    for k in kept:
        row = table.image[k]
        found = by_name[f"{names[row]}_{k - table.offsets[row]}.png"]
        x0, y0, x1, y1 = table.boxes[k].astype(int)  # whole numbers in this set
        np.testing.assert_array_equal(read_image(written.paths[found]), read_image(table.paths[row])[y0:y1, x0:x1])
        assert written.categories[written.labels[found]] == table.categories[table.labels[k]]


def test_margins_and_rounding(tmp_path):
    image = RNG.integers(0, 256, (12, 8, 3), np.uint8)
    plant(tmp_path, "in/a/1.png")
    Image.fromarray(image).save(tmp_path / "in" / "a" / "1.png")
    table = FolderSource(tmp_path / "in").read()
    table.boxes[:] = [[2.3, 4.0, 4.3, 8.0]]
    cases = {0.0: np.s_[4:8, 2:5], 0.5: np.s_[2:10, 1:6], 2.0: np.s_[0:12, 0:8]}
    for margin, window in cases.items():
        assert not write_crops(table, ["x"], tmp_path / str(margin), ObjectCrops(margin)).counts
        np.testing.assert_array_equal(read_image(tmp_path / str(margin) / "a" / "x_0.png"), image[window])


def test_crowds_are_left_out(real_data, tmp_path):
    table = read(real_data("coco"), "val")
    table = table.select(np.unique(table.image[table.crowd])[:2])
    left_out = write_crops(table, ["a", "b"], tmp_path, ObjectCrops())
    assert left_out.counts == {"crowd is no single object (left out)": table.crowd.sum()}
    assert len(list(tmp_path.rglob("*.png"))) == (~table.crowd).sum()


@pytest.mark.parametrize("name", ["", "a/b", "..", ".git", "what?", " a", "labels", "Images", "back\\slash"])
def test_names_that_no_folder_can_bear(tmp_path, name):
    table = FolderSource(plant(tmp_path / "in", "a/1.jpg")).read()
    table.categories = [name]
    for write in (
        lambda: write_crops(table, ["x"], tmp_path / "out", ObjectCrops()),
        lambda: class_paths(table, ["x"], "o"),
    ):
        with pytest.raises(DataError, match="cannot be the name of a class folder"):
            write()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bad", [{"margin": -0.1}, {"margin": float("nan")}, {"min_side": 0}])
def test_bad_crops(bad):
    with pytest.raises(DataError, match="need 0 <= margin <= 10 and min_side >= 1"):
        ObjectCrops(**bad)
