"""Features at a layer: what they are, when they are read from the disk, and the last layer fitted to them."""

import os
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from sightline.datasets import mnist
from sightline.datasets.data_module import DetectionData
from sightline.datasets.images import read_image, write_image
from sightline.datasets.mnist import FILES, MnistFolder
from sightline.datasets.table import DataError
from sightline.detectors import faster_rcnn
from sightline.detectors.classification import Classifier, classifier
from sightline.training import score
from sightline.training.features import Cut, table_features
from sightline.training.last_layer import fit_last_layer
from sightline.training.linear import fit_svm

HEAD = "backbone.fc"
COLOURS = {"blue": (30, 40, 200), "green": (40, 180, 50), "red": (210, 30, 30)}


@pytest.fixture
def pictures(tmp_path):
    """Class folders of three colours, 8 pictures of 32 pixels each to train and 4 to validate."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for name, colour in COLOURS.items():
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for k in range(count):
                noisy = np.clip(rng.normal(colour, 30, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(noisy).save(folder / f"{k}.png")
    return DetectionData(str(tmp_path / "data"), 5, min_size=32, max_size=32, exact=True, num_workers=0)


@pytest.fixture
def model(tiny_classifier):
    model = tiny_classifier(3)
    model.resize = (32, 32, True)
    return model.eval()


def by_hand(model, table):
    """The input of the last layer, picture by picture."""
    rows = []
    for path in table.paths:
        image = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None]
        maps = model.normalize(image, torch.tensor([[32, 32]]))
        with torch.no_grad():
            network = model.backbone
            x = network.norm1(network.conv1(maps)).relu()
            rows.append(network.conv2(x).relu().mean((2, 3))[0])
    return torch.stack(rows)


def test_features_are_what_the_last_layer_sees(model, pictures, tmp_path):
    table = pictures.tables["train"]
    features = table_features(Cut(model, HEAD, inputs=True), table, tmp_path / "cache", batch_size=5)
    assert features.shape == (24, 32)
    torch.testing.assert_close(features, by_hand(model, table), rtol=1e-4, atol=1e-5)


def test_maps_are_averaged_and_any_layer_will_do(model, pictures, tmp_path):
    batch = next(iter(pictures.val_dataloader()))
    maps = {}
    handle = model.backbone.conv2.register_forward_hook(lambda _, __, out: maps.update(out=out))
    with torch.no_grad():
        model(batch.images, batch.sizes)
    handle.remove()
    found = Cut(model, "backbone.conv2")(batch.images, batch.sizes)
    torch.testing.assert_close(found, maps["out"].mean((2, 3)))


def test_leaves_the_model_as_it_was(model, pictures):
    model.train()
    model.backbone.norm1.eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = next(iter(pictures.val_dataloader()))
    Cut(model, HEAD, inputs=True)(batch.images, batch.sizes)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_cache_is_read_and_holds_no_code(model, pictures, tmp_path, monkeypatch):
    table, cut = pictures.tables["train"], Cut(model, HEAD, inputs=True)
    first = table_features(cut, table, tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    assert np.array_equal(np.load(file, allow_pickle=False), first.numpy())
    monkeypatch.setattr("sightline.training.features._compute", None)  # computing again would fail
    assert torch.equal(table_features(cut, table, tmp_path / "cache"), first)


def test_digits_that_changed_are_read_anew(tiny_classifier, tmp_path):
    """Their many pictures lie in one file."""
    model, found = tiny_classifier(10).eval(), []
    model.resize = (32, 32, True)
    for end in (0, 0, 1):
        for name, shape in zip(FILES["train"], ((4, 28, 28), (4,)), strict=True):
            header = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
            digits = bytes(range(256)) * 12 + bytes([end]) * 64
            (tmp_path / name).write_bytes(header + (digits if len(shape) == 3 else bytes(4)))
        table = MnistFolder(tmp_path).read("train")
        mnist._pictures.cache_clear()  # as in a new process
        table_features(Cut(model, HEAD, inputs=True), table, tmp_path / "cache")
        found.append(len(list((tmp_path / "cache").iterdir())))
    assert found == [1, 1, 2]


def change_weights(model, pictures):
    with torch.no_grad():
        model.backbone.conv1.weight[0, 0] += 1


def change_statistics(model, pictures):
    model.backbone.norm1.running_mean += 1


def change_size(model, pictures):
    model.resize = (48, 48, True)


def change_picture(model, pictures):
    path = pictures.tables["train"].paths[0]
    date = os.stat(path).st_mtime_ns
    image = read_image(path)
    write_image(path, 255 - image)
    os.utime(path, ns=(date, date))  # as a copy that keeps dates has it


def change_mean(model, pictures):
    model.normalize.mean += 0.1


def change_head(model, pictures):
    nn.init.normal_(model.get_submodule(HEAD).weight)


CHANGES = {
    change_weights: True, change_statistics: True, change_size: True, change_picture: True, change_mean: True,
    change_head: False,
}  # fmt: skip


@pytest.mark.parametrize(("change", "anew"), CHANGES.items(), ids=lambda value: getattr(value, "__name__", str(value)))
def test_computed_anew_when_what_they_follow_from_changed(model, pictures, tmp_path, change, anew):
    table, cut = pictures.tables["train"], Cut(model, HEAD, inputs=True)
    table_features(cut, table, tmp_path / "cache")
    change(model, pictures)
    table_features(cut, table, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == (2 if anew else 1)


def test_other_layers_and_pictures_have_other_files(model, pictures, tmp_path):
    for layer in ("backbone.conv1", "backbone.conv2"):
        table_features(Cut(model, layer), pictures.tables["val"], tmp_path / "cache")
    table_features(Cut(model, "backbone.conv2"), pictures.tables["train"], tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 3


@pytest.mark.parametrize("kind", ["svm", "softmax"])
def test_last_layer_learns_the_colours(model, pictures, tmp_path, kind):
    model.categories = pictures.categories
    below = {name: value.clone() for name, value in model.state_dict().items() if not name.startswith(HEAD)}
    tried = fit_last_layer(model, pictures.tables["train"], kind, cache=tmp_path / "cache")
    assert max(tried.values()) > 0.9
    assert score(model, pictures.tables["val"], progress=False).result.summary()["top1_error"] == 0
    assert all(torch.equal(value, below[name]) for name, value in model.state_dict().items() if name in below)


def test_last_layer_is_the_linear_model(model, pictures, tmp_path):
    table = pictures.tables["train"]
    assert fit_last_layer(model, table, "svm", c=0.01, cache=tmp_path) == {}
    wanted = fit_svm(by_hand(model, table), torch.from_numpy(table.labels), 3, 0.01)
    head = model.get_submodule(HEAD)
    torch.testing.assert_close(head.weight.double(), wanted.weight, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(head.bias.double(), wanted.bias, rtol=1e-3, atol=1e-4)


def test_mistakes(model, pictures, tmp_path):
    with pytest.raises(ValueError, match=r"no layer 'fc'; it has .*backbone\.fc"):
        Cut(model, "fc")
    with pytest.raises(DataError, match="last layer of a classifier; FasterRCNN is none"):
        fit_last_layer(faster_rcnn("mobilenet_v2_lite_fpn", 3), pictures.tables["train"], "svm", cache=tmp_path)
    squeezed = classifier("squeezenet1_1", 3)
    assert isinstance(squeezed, Classifier)
    with pytest.raises(DataError, match="is Conv2d and not linear"):
        fit_last_layer(squeezed, pictures.tables["train"], "svm", cache=tmp_path)
