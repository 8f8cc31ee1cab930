"""The data module under Lightning: exact resumption, options, splits, and what it says about the data."""

import logging
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI

from sightline.datasets import data_module, picture_data
from sightline.datasets.augment import Augment, crop
from sightline.datasets.crops import ScaleCrop
from sightline.datasets.data_module import DetectionData, Shapes
from sightline.datasets.mixing import Mixing
from sightline.datasets.picture_data import default_workers
from sightline.datasets.proposal_files import write_proposals
from sightline.datasets.proposals import Boxes, Proposer, Regions
from sightline.datasets.shapes import CATEGORIES, shapes_table
from sightline.datasets.table import DataError

SMALL = Shapes(train_images=14, val_images=5, size=32)


def make_data(**options):
    return DetectionData(
        **{"batch_size": 4, "min_size": 32, "max_size": 32, "num_workers": 0, "shapes": SMALL, **options}
    )


class Recorder(LightningModule):
    """A network of one number that writes down what it is given."""

    def __init__(self, num_classes: int = 0):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.num_classes, self.seen, self.validated = num_classes, [], []

    def training_step(self, batch, batch_idx):
        ids = tuple(info.id for info in batch.infos)
        self.seen.append((self.current_epoch, batch_idx, ids, batch.images.long().sum().item()))
        return self.weight * 1.0

    def validation_step(self, batch, batch_idx):
        self.validated += [info.id for info in batch.infos]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAndStop(Callback):
    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def fit(data, checkpoint=None, callbacks=(), **options):
    model = Recorder()
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = Trainer(accelerator="cpu", **{"max_epochs": 3, **quiet, **options}, callbacks=list(callbacks))
    trainer.fit(model, data, ckpt_path=checkpoint, weights_only=None if checkpoint is None else False)
    return model


@pytest.mark.parametrize("step", [2, 4, 6, 8], ids=["mid 0", "end 0", "mid 1", "end 1"])
def test_a_resumed_run_sees_exactly_what_was_left(tmp_path, step):
    """14 pictures make 4 batches of 4; a checkpoint after any goes on with the next, augmentation included."""
    expected = fit(make_data()).seen
    assert len(expected) == 12
    path = tmp_path / "stopped.ckpt"
    fit(make_data(), callbacks=[SaveAndStop(step, path)])
    assert fit(make_data(), path).seen == expected[step:]


def test_resuming_with_workers(tmp_path):
    expected = fit(make_data()).seen
    path = tmp_path / "stopped.ckpt"
    fit(make_data(num_workers=2), callbacks=[SaveAndStop(6, path)])
    assert fit(make_data(num_workers=2), path).seen == expected[6:]


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_while_pictures_are_mixed(tmp_path, workers):
    """One epoch of three is plain; before and in it a resumed run sees what the whole one did."""
    options = {"mixing": Mixing(copy_paste=0.5), "plain_epochs": 1, "masks": 7}
    expected = fit(make_data(**options)).seen
    for step in (2, 6, 8):
        path = tmp_path / f"{step}.ckpt"
        fit(make_data(**options, num_workers=workers), callbacks=[SaveAndStop(step, path)])
        assert fit(make_data(**options, num_workers=workers), path).seen == expected[step:]


def test_the_last_epochs_are_plain():
    mixed, plain = make_data(mixing=Mixing(), plain_epochs=1), make_data()
    seen, expected = fit(mixed).seen, fit(plain).seen
    assert seen[8:] == expected[8:]
    assert all(one[:3] == other[:3] and one[3] != other[3] for one, other in zip(seen[:8], expected[:8], strict=True))
    assert [mixed.plain(epoch) for epoch in range(4)] == [False, False, True, True]
    assert not any(plain.plain(epoch) for epoch in range(4)), "nothing was mixed that could stop"
    assert not make_data(mixing=Mixing()).plain(1000), "nobody knows the last epoch"
    fit(mixed, max_epochs=-1, max_steps=5)
    assert not mixed.plain(1000)


def test_it_says_so_once_when_all_epochs_are_plain(caplog):
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        assert fit(make_data(mixing=Mixing()), max_epochs=1).seen == fit(make_data(), max_epochs=1).seen
    assert caplog.text.count("warning: nothing is mixed: the last 15 epochs are plain") == 1


def test_overfitting_mixes_nothing():
    options = {"max_epochs": 2, "overfit_batches": 1}
    assert fit(make_data(mixing=Mixing(), plain_epochs=0), **options).seen == fit(make_data(), **options).seen


def test_only_training_pictures_are_mixed():
    data = make_data(mixing=Mixing(), masks=7)
    assert data.train_dataloader().dataset.mixing is data.mixing
    assert data.val_dataloader().dataset.mixing is None
    assert next(iter(data.val_dataloader())).targets.masks.shape[2:] == (7, 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixing": Mixing(), "crop": ScaleCrop((32, 32))}, "data.mixing and data.crop"),
        ({"mixing": Mixing(), "proposals": "boxes.json"}, "data.mixing and data.proposals"),
        ({"plain_epochs": -1}, "plain_epochs"),
        ({"masks": 0}, "masks"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(DataError, match=message):
        make_data(**options)


def test_validation_sees_every_picture_once():
    model = fit(make_data(), max_epochs=1, num_sanity_val_steps=0)
    assert sorted(model.validated) == [1, 2, 3, 4, 5]


def test_overfitting_sees_the_same_pictures_unchanged():
    model = fit(make_data(), max_epochs=2, overfit_batches=1)
    first, second = model.seen
    assert first[2:] == second[2:]


def test_options_from_the_command_line():
    class CLI(LightningCLI):
        def add_arguments_to_parser(self, parser):
            parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")

    def run(*args):
        options = ["--data.shapes.train_images=3", "--data.shapes.val_images=2", "--data.num_workers=0", *args]
        cli = CLI(Recorder, DetectionData, run=False, args=options, save_config_callback=None)
        return cli.datamodule, cli.model

    data, model = run("--data.augment.flip", "0.3")
    assert data.augment == Augment(flip=0.3)
    assert data.shapes == Shapes(3, 2)
    assert model.num_classes == data.num_classes == len(CATEGORIES)
    assert run("--data.mixing.scale", "[0.1, 2.0]", "--data.masks", "28")[0].mixing == Mixing(scale=(0.1, 2.0))
    assert run()[0].mixing is None
    assert run("--data.augment", "null")[0].augment is None
    with pytest.raises(SystemExit):
        run("--data.augment.flop", "1")


def test_defaults_train_on_the_shapes():
    data = DetectionData()
    assert data.path == "shapes"
    assert data.num_workers == default_workers() >= 0
    assert data.augment == Augment()


def test_splits():
    data = make_data(cache=True)
    assert list(data.tables) == ["train", "val", "test"]
    assert data.tables is data.tables, "annotations are read twice"
    assert data.categories == list(CATEGORIES)
    ids = [info.path for batch in data.test_dataloader() for info in batch.infos]
    assert sorted(ids) == sorted(data.tables["test"].paths)
    assert len(data.train_dataloader()) == 4


def test_only_training_pictures_are_changed():
    data = make_data()
    assert data.train_dataloader().dataset.augment is data.augment
    assert data.val_dataloader().dataset.augment is None


def read_splits_from(monkeypatch, **tables):
    calls = []
    monkeypatch.setattr(data_module, "read_splits", lambda path, **names: calls.append((path, names)) or tables)
    return make_data(path="some/folder", train_split="trainval"), calls


def test_without_a_test_split_validation_pictures_serve(monkeypatch):
    data, calls = read_splits_from(monkeypatch, train=shapes_table("train", 4, 32), val=shapes_table("val", 3, 32))
    assert len(data.test_dataloader().dataset) == 3
    assert calls == [("some/folder", {"train": "trainval", "val": None})]


def test_a_missing_split_is_named(monkeypatch):
    data, _ = read_splits_from(monkeypatch, train=shapes_table("train", 4, 32))
    with pytest.raises(DataError, match='some/folder has no split "val", only train'):
        data.val_dataloader()


def test_repaired_problems_are_told_once(monkeypatch, caplog):
    table = shapes_table("train", 2, 32)
    table.problems.add("box outside its image (dropped)", "labels.json, annotation 7")
    data, _ = read_splits_from(monkeypatch, train=table, val=table)
    with caplog.at_level(logging.INFO):
        data.setup("fit")
        data.setup("test")
    assert caplog.text.count("annotation 7") == 1
    assert "2 images" in caplog.text


def test_all_splits_share_frames(monkeypatch):
    data = make_data()
    wide = shapes_table("val", 3, 32)
    wide.sizes[:] = (32, 64)
    data.__dict__["tables"] = {"train": shapes_table("train", 4, 32), "val": wide}
    data.resize = (32, 64)
    np.testing.assert_array_equal(data.frames, [[32, 32], [32, 64]])


def test_shapes_have_no_splits_to_choose():
    with pytest.raises(DataError, match="train_split"):
        _ = make_data(train_split="trainval").tables


@pytest.mark.parametrize("bad", [{"min_size": 0}, {"min_size": 64, "max_size": 32}, {"batch_size": 0}, {"largest": 0}])
def test_impossible_options_are_named(bad):
    with pytest.raises(DataError, match=next(iter(bad))):
        make_data(**bad)


@pytest.mark.parametrize(("cores", "gpus", "expected"), [(2, 0, 0), (16, 0, 2), (16, 1, 15), (64, 8, 7), (1, 1, 1)])
def test_worker_counts(monkeypatch, cores, gpus, expected):
    monkeypatch.setattr(picture_data.os, "sched_getaffinity", lambda _: range(cores), raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert default_workers() == expected


def test_real_pictures(real_data):
    data = make_data(path=str(real_data("coco")), min_size=160, max_size=320, batch_size=8)
    batch = next(iter(data.train_dataloader()))
    assert batch.images.shape[0] == 8
    assert batch.images.shape[2:] == next(iter(data.train_dataloader().batch_sampler))[0].frame
    valid = batch.targets.labels >= 0
    assert 0 < valid.sum() < valid.numel()
    sizes = batch.sizes.flip(1).repeat(1, 2)[:, None].expand_as(batch.targets.boxes)
    assert (batch.targets.boxes <= sizes + 1e-3)[valid].all()


def test_exact_pictures_have_no_padding(real_data):
    data = make_data(path=str(real_data("raccoon")), exact=True, min_size=40, max_size=56)
    batch = next(iter(data.val_dataloader()))
    assert batch.images.shape[2:] == (40, 56)
    assert batch.sizes.tolist() == [[40, 56]] * len(batch)
    table = data.tables["val"]
    for i, info in enumerate(batch.infos):  # boxes map back to where they were, along each axis by its own scale
        row = table.paths.index(info.path)
        expected = torch.from_numpy(table.boxes[table.image == row])
        torch.testing.assert_close(batch.targets[i].to_original(info).boxes, expected, rtol=0, atol=1e-3)


class Quarter:
    """The upper left quarter of every picture, whatever its size."""

    size = (10, 12)

    def __call__(self, sample, rng):
        return crop(sample, (0, 0), self.size)


def test_an_augmentation_of_one_size_needs_no_larger_frame():
    data = make_data(augment=Quarter())
    assert next(iter(data.train_dataloader())).images.shape[2:] == (10, 12)
    assert next(iter(data.val_dataloader())).images.shape[2:] == (32, 32)


def test_only_the_largest_objects():
    whole, one = make_data().tables["train"], make_data(largest=1).tables["train"]
    assert len(one) == len(whole) == len(one.image)
    for row in range(len(whole)):
        rows = np.flatnonzero(whole.image == row)
        best = rows[whole.area[rows].argmax()]
        assert one.boxes[row].tolist() == whole.boxes[best].tolist()
        assert one.labels[row] == whole.labels[best]


@dataclass(frozen=True)
class Middle(Proposer):
    """The middle of every picture, and how often it was asked."""

    limit: int = 1
    asked: list = field(default_factory=list, compare=False, repr=False)

    def __call__(self, image):
        self.asked.append(1)
        height, width = image.shape[:2]
        box = np.array([[width / 4, height / 4, width * 3 / 4, height * 3 / 4]], np.float32)
        return Boxes(box, np.ones(1, np.float32))


@pytest.fixture
def proposing(tmp_path):
    data = make_data(min_size=64, max_size=64, proposal_cache=str(tmp_path / "cache"))
    data.proposer = Middle()
    return data


def test_proposals_are_made_for_the_splits_that_are_asked_for(proposing, tmp_path):
    batch = next(iter(proposing.val_dataloader()))
    assert batch.proposals[0].boxes.tolist() == [[16, 16, 48, 48]]
    assert len(proposing.proposer.asked) == 5
    assert len(list((tmp_path / "cache").glob("*/*.npy"))) == 5
    assert proposing.proposed("val") is proposing.tables["val"]
    assert proposing.tables["val"].regions is not None
    assert proposing.tables["train"].regions is None
    proposing.val_dataloader()
    assert len(proposing.proposer.asked) == 5
    assert next(iter(proposing.train_dataloader())).proposals is not None
    assert len(proposing.proposer.asked) == 19


def test_nobody_proposes():
    assert next(iter(make_data().val_dataloader())).proposals is None


def test_a_training_with_proposals(proposing):
    """Lightning moves them, and the pictures are those of a training without."""
    expected = fit(make_data(min_size=64, max_size=64), max_epochs=1)
    seen = []

    class Look(Callback):
        def on_train_batch_start(self, trainer, module, batch, index):
            seen.append(batch.proposals.labels.shape)

    assert fit(proposing, callbacks=[Look()], max_epochs=1).seen == expected.seen
    assert seen == [(4, 250)] * 4


def test_proposals_made_elsewhere(tmp_path, proposing):
    tables = make_data().tables
    for split in ("train", "val"):
        count = len(tables[split])
        boxes = Boxes(np.array([[1, 2, 3, 4]], np.float32), np.ones(1, np.float32))
        write_proposals(tmp_path / f"{split}.npz", replace(tables[split], regions=Regions.of([boxes] * count)))
    data = make_data(proposals=str(tmp_path))
    data.proposer = proposing.proposer
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert next(iter(loader)).proposals.boxes.shape == (4, 250, 4)
    assert data.tables["val"].regions[3].boxes.tolist() == [[1, 2, 3, 4]]
    assert data.proposer.asked == []
    with pytest.raises(DataError, match="none of its 19 pictures"):
        data.test_dataloader()
