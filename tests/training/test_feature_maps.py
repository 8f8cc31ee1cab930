"""Maps of a frozen backbone: what they are, when they are read from the disk, and what is refused."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from sightline.backbone.freeze import freeze_stages
from sightline.captioning.decoder import Decoder
from sightline.captioning.model import Captioner
from sightline.captioning.vocabulary import Vocabulary
from sightline.datasets.batching import Key
from sightline.datasets.caption_data import CaptionData
from sightline.datasets.caption_dataset import CaptionDataset
from sightline.datasets.data_module import Shapes
from sightline.datasets.shapes import shapes_table
from sightline.datasets.table import DataError
from sightline.training import feature_maps
from sightline.training.feature_maps import cached_maps

SIDE = 32


class Network(nn.Module):
    """Two maps, with a batch norm that training would change."""

    strides, channels, mean, std = (4, 8), (6, 10), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    stage_prefixes = {"one": ("conv1", "norm1"), "two": ("conv2",)}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 6, 4, 4), nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 10, 2, 2)

    def forward(self, images):
        fine = self.norm1(self.conv1(images)).relu()
        return [fine, self.conv2(fine)]


@pytest.fixture
def model():
    torch.manual_seed(0)
    captioner = Captioner(Network(), Decoder(9))
    freeze_stages(captioner.backbone, 0)
    captioner.resize = (SIDE, SIDE, True)
    captioner.backbone.norm1.running_mean += 0.3
    return captioner.train()


@pytest.fixture
def table():
    return shapes_table("train", 7, 48)


def cached(model, table, folder, **options):
    return cached_maps(model, table, folder, **{"progress": False, **options})


def by_hand(model, table):
    """Picture by picture, through the layers' names."""
    network, norm, maps = model.backbone, model.backbone.norm1, []
    mean, std, shift = (torch.tensor(v)[:, None, None] for v in (network.mean, network.std, norm.running_mean.tolist()))
    deviation = (norm.running_var + norm.eps).sqrt()[:, None, None]
    dataset = CaptionDataset(table, encode=lambda _: [2], resize=(SIDE, SIDE, True))
    for row in range(len(table)):
        with torch.no_grad():
            fine = (network.conv1((dataset[row].image.float() / 255 - mean)[None] / std) - shift) / deviation
            maps.append(network.conv2(fine.relu())[0].numpy())
    return np.stack(maps)


def test_maps_are_the_backbones_in_evaluation(model, table, tmp_path):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    maps = cached(model, table, tmp_path / "a" / "b", batch_size=3)
    assert (maps.shape, maps.dtype) == ((7, 10, 4, 4), np.float16)
    assert isinstance(maps, np.memmap)
    assert not maps.flags.writeable
    np.testing.assert_allclose(maps, by_hand(model, table), rtol=2e-3, atol=1e-3)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [file.suffix for file in (tmp_path / "a" / "b").iterdir()] == [".npy"]


def test_another_layer(model, table, tmp_path):
    model.layer = 0
    assert cached(model, table, tmp_path).shape == (7, 6, 8, 8)


def test_they_are_computed_in_the_models_precision(model, table, tmp_path):
    """Eight bits of a number instead of eleven."""
    full = cached(model, table, tmp_path).astype(np.float32)
    model.precision = "bfloat16"
    half = cached(model, table, tmp_path).astype(np.float32)
    assert np.array_equal(half, torch.from_numpy(half).bfloat16().float())
    assert not np.array_equal(full, torch.from_numpy(full).bfloat16().float())
    np.testing.assert_allclose(half, full, rtol=0.05, atol=0.05)


def test_they_are_read_the_second_time(model, table, tmp_path, monkeypatch):
    first = cached(model, table, tmp_path)
    monkeypatch.setattr(feature_maps, "_maps", None)  # computing again would fail
    assert np.array_equal(cached(model, table, tmp_path, batch_size=2), first)
    with torch.no_grad():
        model.decoder.sampling = 0.5
    other = replace(table, captions=[["another"]] * 7)
    assert np.array_equal(cached(model, other, tmp_path), first)
    assert len(list(tmp_path.iterdir())) == 1


def change_weight(model, table):
    with torch.no_grad():
        model.backbone.conv1.weight[0, 0, 0, 0] += 1e-3


def change_statistics(model, table):
    model.backbone.norm1.running_var[0] += 1e-3


def change_mean(model, table):
    model.normalize.adopt((0.4, 0.5, 0.61), (0.2, 0.3, 0.25))


def change_size(model, table):
    model.resize = (SIDE, SIDE + 8, True)


def change_layer(model, table):
    model.layer = 0


def change_form(model, table):
    model.backbone.norm1.eps = 1e-3


def change_picture(model, table):
    date = os.stat(table.paths[3]).st_mtime_ns
    Image.new("RGB", (48, 48), (9, 9, 9)).save(table.paths[3])
    os.utime(table.paths[3], ns=(date, date))  # as a copy that keeps dates has it


def change_precision(model, table):
    model.precision = "bfloat16"


CHANGES = [
    change_weight,
    change_statistics,
    change_mean,
    change_size,
    change_layer,
    change_form,
    change_picture,
    change_precision,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_nothing_stale_is_read(change, model, table, tmp_path):
    paths = [str(tmp_path / f"{row}.png") for row in range(len(table))]
    for row, path in enumerate(paths):
        Image.new("RGB", (48, 48), (row, 0, 0)).save(path)
    table = replace(table, paths=paths)
    for _ in range(2):
        cached(model, table, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 1
    change(model, table)
    cached(model, table, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_an_interrupted_run_goes_on(model, table, tmp_path, monkeypatch):
    plain, sizes = feature_maps._maps, []

    def interrupted(model, batch):
        if sum(sizes) > 4:
            raise KeyboardInterrupt
        sizes.append(len(batch))
        return plain(model, batch)

    monkeypatch.setattr(feature_maps, "_maps", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cached(model, table, tmp_path, batch_size=2)
    assert sizes == [1, 2, 2]  # the first asks for the shape
    assert not list(tmp_path.glob("*.npy"))
    monkeypatch.setattr(feature_maps, "_maps", lambda model, batch: (sizes.append(len(batch)), plain(model, batch))[1])
    found = cached(model, table, tmp_path, batch_size=2)
    assert sizes[3:] == [1, 2, 1]
    np.testing.assert_allclose(found, by_hand(model, table), rtol=2e-3, atol=1e-3)


def test_a_decoder_cannot_tell_them_from_the_backbones(model, tmp_path):
    """The whole way: data with maps give the annotations that data with pictures do."""
    data = [
        CaptionData(batch_size=4, min_size=SIDE, max_size=SIDE, num_workers=0, shapes=Shapes(9, 5, 48))
        for _ in range(2)
    ]
    data[1].maps = {split: cached(model, table, tmp_path) for split, table in data[1].tables.items()}
    for each in data:
        each.encode = Vocabulary.of(each.texts("train"), 1).encode
    model.eval()
    with torch.no_grad():
        for seen, kept in zip(data[0].train_dataloader(), data[1].train_dataloader(), strict=True):
            wanted, found = model(seen.images, seen.sizes), model.annotate(kept.maps, kept.sizes)
            assert torch.equal(wanted.valid, found.valid)
            torch.testing.assert_close(found.maps, wanted.maps, rtol=2e-3, atol=1e-3)
            assert torch.equal(seen.captions.tokens, kept.captions.tokens)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_row_is_its_pictures(model, table, tmp_path):
    """Whatever order a loader takes them in."""
    maps = cached(model, table, tmp_path)
    order = np.array([4, 0, 6])
    np.testing.assert_array_equal(cached(model, table.select(order), tmp_path), maps[order])
    dataset = CaptionDataset(table, encode=lambda _: [2], resize=model.resize, maps=maps)
    batch = dataset.__getitems__([Key(0, int(row), (SIDE, SIDE)) for row in order])
    assert np.array_equal(batch.maps.numpy(), maps[order])


# -- What is refused --


def test_pictures_of_several_sizes(model, table, tmp_path):
    model.resize = (SIDE, 2 * SIDE)
    with pytest.raises(DataError, match=r"set --data\.exact true"):
        cached(model, table, tmp_path)


def test_a_backbone_that_is_trained(model, table, tmp_path):
    freeze_stages(model.backbone, 1)
    with pytest.raises(ValueError, match=r"2 of its tensors are trained, conv2\.weight among"):
        cached(model, table, tmp_path)


def test_numbers_too_large_for_half_precision(model, table, tmp_path):
    with torch.no_grad():
        model.backbone.conv2.weight.mul_(1e6)
    with pytest.raises(
        DataError, match=r"shapes:\S+: the network's features are not finite in half precision \(largest"
    ):
        cached(model, table, tmp_path)
    assert not list(tmp_path.glob("*.npy"))


def test_a_disk_without_room(model, table, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 10**3})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(DataError, match=r"7 pictures take .* name another folder, or .*--data\.cache_maps false"):
        cached(model, table, tmp_path)
    assert not list(tmp_path.iterdir())
