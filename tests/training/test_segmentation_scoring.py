"""Scoring segmenters and files of label maps: at the original resolution, in the data's labels, from any batch."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from sightline.datasets.images import read_image, write_image
from sightline.datasets.label_files import write_label_map
from sightline.datasets.label_maps import read_label_maps
from sightline.datasets.structures import LabelMaps
from sightline.datasets.table import DataError, Table
from sightline.datasets.transforms import from_hwc, resize_image, resize_shape
from sightline.evaluation import ReportInputs, SegmentationCollector
from sightline.segmentation.model import Outputs, Segmenter
from sightline.training.label_file_scoring import score_label_files
from sightline.training.segmentation_scoring import score_segmenter

NAMES = ["red", "green", "blue"]
SIZES = [(24, 32), (40, 24), (24, 32), (30, 30), (16, 48)]


class ColourNamer(Segmenter):
    """Takes each pixel for its strongest colour."""

    def __init__(self, categories=("red", "green", "blue")):
        super().__init__(mean=(0.0,) * 3, std=(1.0,) * 3, num_classes=len(categories))
        self.scale = nn.Parameter(torch.tensor(20.0))  # a model has parameters, which tell its device
        self.categories, self.resize = list(categories), (24, 64)

    def forward(self, images, sizes):
        return Outputs(self.scale * self.normalize(images, sizes))


@dataclass
class Maps:
    """A column of label maps in memory."""

    maps: list

    def __len__(self):
        return len(self.maps)

    def __getitem__(self, row):
        return self.maps[row]

    def select(self, rows):
        return Maps([self.maps[row] for row in rows])


def painted(row):
    """True labels and the colours that a picture has: both blocks, apart by a strip of a few pixels; void in a corner."""
    height, width = SIZES[row]
    seen = np.full((height, width), row % 3, np.int16)
    seen[height // 2 :, : width // 2] = (row + 1) % 3
    truth = np.roll(seen, row, axis=1)
    truth[:3, :4] = -1
    return truth, seen


@pytest.fixture
def table(tmp_path):
    """Five pictures of several sizes, whose label maps the model gets nearly right."""
    paths = [str(tmp_path / f"{i}.png") for i in range(5)]
    for row, path in enumerate(paths):
        write_image(path, 200 * np.eye(3, dtype=np.uint8)[painted(row)[1]])
    none = np.zeros(0, np.int64)
    return Table(
        NAMES, paths, np.array([7, 3, 9, 1, 4]), np.array(SIZES), none, np.zeros((0, 4), np.float32), none, np.zeros(0),
        none.astype(bool), none.astype(bool), np.arange(1, 4), label_maps=Maps([painted(row)[0] for row in range(5)]),
        colours=[(255, 0, 0), (0, 255, 0), (0, 0, 255)],
    )  # fmt: skip


def expected(table, **options):
    """The scores of what the pictures show."""
    collector = SegmentationCollector(3, boundary=True)
    for row, image_id in enumerate(table.image_ids):
        maps = (LabelMaps(torch.from_numpy(labels)[None]) for labels in painted(row)[::-1])
        collector.update(*maps, [image_id])
    return collector.result(NAMES, image_ids=table.image_ids, **options)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_originals_are_scored(table, batch_size):
    """Whatever shares a batch and its padding, each picture counts as one alone, resized back before labels are chosen."""
    model = ColourNamer().train()
    scored = score_segmenter(model, table, batch_size=batch_size, progress=False)
    assert scored.result.image_ids.tolist() == [7, 3, 9, 1, 4]  # a report finds its pictures by row
    alone = SegmentationCollector(3, boundary=True)
    for row, image_id in enumerate(table.image_ids):
        image = from_hwc(read_image(table.paths[row]))
        small = resize_image(image, resize_shape(*SIZES[row], 24, 64))
        with torch.no_grad():
            seen = (model.scale * model.normalize(small[None], torch.tensor([small.shape[1:]]))).softmax(1)
        labels = nn.functional.interpolate(seen, size=SIZES[row], mode="bilinear").argmax(1)
        np.testing.assert_array_equal(scored.found(row), labels[0].numpy())
        alone.update(LabelMaps(labels), LabelMaps(torch.from_numpy(painted(row)[0])[None]), [image_id])
    assert scored.result.to_dict() == alone.result(NAMES, image_ids=table.image_ids).to_dict()
    assert scored.result.summary() == pytest.approx(expected(table).summary(), abs=0.05)
    assert model.training
    assert scored.to_dict()["void"] == "ignored"
    assert list(scored.to_dict())[-3:] == ["per_class", "seconds", "per_image"]


def test_at_the_pictures_own_size(table):
    """Nothing is resized then, and the scores are those of what the pictures show, to the last pixel."""
    table = table.select(np.array([0, 2, 4]))
    table.sizes[2], table.label_maps.maps[2] = (24, 32), table.label_maps.maps[0]
    table.paths[2] = table.paths[0]
    scored = score_segmenter(ColourNamer(), table, batch_size=2, void_is_wrong=True, progress=False)
    collector = SegmentationCollector(3, boundary=True)
    for row, image_id in zip((0, 2, 0), table.image_ids, strict=True):
        maps = (LabelMaps(torch.from_numpy(labels)[None]) for labels in painted(row)[::-1])
        collector.update(*maps, [image_id])
    reference = collector.result(NAMES, image_ids=table.image_ids, void_is_wrong=True)
    assert scored.result.to_dict() == reference.to_dict()
    for row, picture in enumerate((0, 2, 0)):
        np.testing.assert_array_equal(scored.found(row), painted(picture)[1])


def test_categories_go_by_name(table):
    """The model may know more, and in another order: a pixel that it takes for something else is wrong."""
    usual = score_segmenter(ColourNamer(), table, progress=False)
    model = ColourNamer()
    model.categories = ["blue", "green", "red"]
    mixed = score_segmenter(model, table, progress=False)
    np.testing.assert_array_equal(mixed.result.matrix[:, [2, 1, 0, 3]], usual.result.matrix)
    fewer = replace(table, categories=NAMES[:2], category_ids=np.array([1, 2]), colours=None)
    fewer.label_maps = Maps([np.where(maps == 2, -1, maps) for maps in table.label_maps.maps])
    result = score_segmenter(ColourNamer(), fewer, progress=False).result
    np.testing.assert_array_equal(result.matrix[:2, 2], usual.result.matrix[:2, 2])  # blue: no category of these
    with pytest.raises(DataError, match="does not know green"):
        score_segmenter(ColourNamer(["red", "grass", "blue"]), table, progress=False)


def test_report(table, tmp_path):
    scored = score_segmenter(ColourNamer(), table, boundary=False, progress=False)
    inputs = ReportInputs(load_image=lambda row: np.asarray(Image.open(table.paths[row])), image_names=table.paths)
    page = scored.write_report(tmp_path / "run", inputs).read_text("utf-8")
    assert page.count("<figcaption>") == 5
    assert "cannot be shown" not in page
    assert "boundary_IoU" not in scored.to_dict()


@pytest.fixture
def files(table, tmp_path):
    """What the pictures show, as `sightline predict` writes it."""
    for row in range(5):
        write_label_map(tmp_path / "found" / f"{row}.png", painted(row)[1], table.colours)
    return tmp_path / "found"


@pytest.mark.parametrize("void_is_wrong", [False, True])
def test_files(table, files, void_is_wrong):
    scored = score_label_files(files, table, void_is_wrong=void_is_wrong, progress=False)
    assert scored.result.to_dict() == expected(table, void_is_wrong=void_is_wrong).to_dict()
    np.testing.assert_array_equal(scored.found(1), painted(1)[1])


def test_files_without_a_category(table, files):
    """255 where there is a truth is wrong, and a mistake for no other category."""
    blank = np.full(SIZES[0], -1)
    write_label_map(files / "0.png", blank)
    result = score_label_files(files, table, progress=False).result
    assert result.matrix[:3, 3].sum() == (painted(0)[0] >= 0).sum()
    assert result.picture_accuracy[0] == 0


def test_files_in_folders(table, files, tmp_path):
    """Pictures of one name are told apart by their folders."""
    paths = [str(tmp_path / "a" / "x.jpg"), str(tmp_path / "b" / "x.jpg"), *table.paths[2:]]
    (files / "a").mkdir(), (files / "b").mkdir()
    (files / "0.png").rename(files / "a" / "x.png"), (files / "1.png").rename(files / "b" / "x.png")
    scored = score_label_files(files, replace(table, paths=paths), progress=False)
    assert scored.result.to_dict() == expected(table).to_dict()
    (files / "a" / "x.png").rename(files / "x.png"), (files / "b" / "x.png").unlink()
    with pytest.raises(DataError, match="what is the prediction of what"):
        score_label_files(files, replace(table, paths=paths), progress=False)


def test_files_that_do_not_go_with_the_data(table, files):
    def refused(message, folder=files):
        with pytest.raises(DataError, match=message):
            score_label_files(folder, table, progress=False)

    refused("is no folder", files / "nowhere")
    write_label_map(files / "2.png", np.zeros((5, 6), int))
    refused(r"2.png: the picture is 24x32 pixels .* prediction .*2.png 5x6")
    write_label_map(files / "2.png", np.full(SIZES[2], 3))
    refused(r"2.png: 3 is no category; predictions have 0 to 2, and 255")
    Image.new("RGB", (32, 24)).save(files / "2.png")
    refused(r"2.png: holds colours")
    (files / "2.png").unlink()
    refused(r"1 of 5 pictures have no prediction, such as .*2.png")


def test_a_data_set_by_its_path(tmp_path):
    """CamVid's layout, in which 11 is void."""
    for split in ("train", "val"):
        for row in range(2):
            truth, seen = painted(row)
            write_image(tmp_path / "camvid" / split / f"{row}.png", 200 * np.eye(3, dtype=np.uint8)[seen])
            write_label_map(tmp_path / "camvid" / f"{split}annot" / f"{row}.png", np.where(truth < 0, 11, truth))
            write_label_map(tmp_path / "found" / f"{row}.png", seen)
    scored = score_label_files(tmp_path / "found", read_label_maps(tmp_path / "camvid")["val"], progress=False)
    result = scored.result
    assert len(result.categories) == 11
    assert result.matrix[-1].sum() == 2 * 12
    assert result.picture_accuracy[0] == 1
    assert result.picture_accuracy[1] < 1


def test_no_label_maps(table):
    with pytest.raises(DataError, match="5 pictures have no label maps"):
        score_segmenter(ColourNamer(), replace(table, label_maps=None), progress=False)


def test_a_label_map_of_another_size(table):
    table.label_maps.maps[1] = np.zeros((24, 40), np.int16)
    with pytest.raises(DataError, match=r"1.png: its label map is 24x40 pixels .* the picture 40x24"):
        score_segmenter(ColourNamer(), table, progress=False)


def test_real_pictures_void_rules(real_data, tmp_path):
    """A truth as its own prediction scores 1 on CamVid; void given away to a category costs only by the stricter rule."""
    from sightline.datasets.label_maps import read_label_maps

    table = read_label_maps(real_data("camvid"))["test"].select(np.arange(0, 233, 40))
    for row, path in enumerate(table.paths):
        labels = table.label_maps[row]
        write_label_map(tmp_path / f"{path.rpartition('/')[2][:-4]}.png", np.where(labels < 0, 1, labels))
    ignored = score_label_files(tmp_path, table, progress=False).result.summary()
    assert set(ignored.values()) == {1.0}
    strict = score_label_files(tmp_path, table, void_is_wrong=True, progress=False).result.summary()
    assert 0.95 < strict.pop("mean_IoU") < 1
    assert strict.pop("frequency_weighted_IoU") < 1
    assert set(strict.values()) == {1.0}
