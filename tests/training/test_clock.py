"""The clock of training, on a clock of its own: steps take 10 seconds, validation batches 1000, pictures 2 where told."""

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from torch.utils.data import DataLoader

from sightline.datasets.batching import Key
from sightline.datasets.data_module import DetectionData
from sightline.datasets.detection import DetectionDataset
from sightline.training import DetectionTraining, TrainingClock


class Ticker(Callback):
    now = 0.0

    def on_train_batch_end(self, *_):
        self.now += 10

    def on_validation_batch_end(self, *_):
        self.now += 1000


class Log(Callback):
    def __init__(self):
        self.seen = []

    def on_validation_end(self, trainer, pl_module):
        self.seen.append(trainer.callback_metrics["train_seconds"].item())


class StopAt(Callback):
    """Ends a run, saved, after a step."""

    def __init__(self, path, step):
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path, weights_only=False)
            raise KeyboardInterrupt


def fit(tmp_path, clock, tiny_detector, data, ticker, *callbacks, checkpoint=None, **options):
    log = Log()
    trainer = Trainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_checkpointing=False, num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        callbacks=[ticker, clock, log, *callbacks], **options,
    )  # fmt: skip
    trainer.fit(DetectionTraining(tiny_detector()), data, ckpt_path=checkpoint, weights_only=False)
    return trainer.num_training_batches, log.seen


def test_validation_does_not_count(tmp_path, tiny_detector, tiny_data, monkeypatch):
    ticker, clock = Ticker(), TrainingClock()
    monkeypatch.setattr("sightline.training.clock.time.perf_counter", lambda: ticker.now)
    steps, seen = fit(tmp_path, clock, tiny_detector, tiny_data(), ticker, max_epochs=2)
    assert steps > 1
    assert seen == [10 * steps, 20 * steps]


def test_stopped_in_the_middle_of_an_epoch(tmp_path, tiny_detector, tiny_data, monkeypatch):
    ticker, path = Ticker(), tmp_path / "last.ckpt"
    monkeypatch.setattr("sightline.training.clock.time.perf_counter", lambda: ticker.now)
    with pytest.raises(SystemExit):
        fit(tmp_path, TrainingClock(), tiny_detector, tiny_data(), ticker, StopAt(path, 2), max_epochs=1)
    ticker.now += 5000
    steps, seen = fit(tmp_path, TrainingClock(), tiny_detector, tiny_data(), ticker, checkpoint=path, max_epochs=1)
    assert steps > 2
    assert seen == [10 * steps]


def test_several_validations_in_an_epoch(tmp_path, tiny_detector, tiny_data, monkeypatch):
    ticker, clock = Ticker(), TrainingClock()
    monkeypatch.setattr("sightline.training.clock.time.perf_counter", lambda: ticker.now)
    steps, seen = fit(tmp_path, clock, tiny_detector, tiny_data(), ticker, max_epochs=1, val_check_interval=1)
    assert seen == pytest.approx([10 * (i + 1) for i in range(steps)])


def epochs_of(tmp_path, tiny_detector, tiny_data, monkeypatch, **options):
    """What each epoch logged, where loading a picture takes 2 seconds, and a batch has 4 of them."""
    ticker, numbers = Ticker(), []
    monkeypatch.setattr("sightline.training.clock.time.perf_counter", lambda: ticker.now)
    read = DetectionDataset._read

    def slowly(self, index):
        ticker.now += 2
        return read(self, index)

    monkeypatch.setattr(DetectionDataset, "_read", slowly)
    note = LambdaCallback(on_train_end=lambda trainer, _: numbers.append(dict(trainer.callback_metrics)))
    fit(tmp_path, TrainingClock(), tiny_detector, tiny_data(augment=None), ticker, note, **options)
    return numbers[-1]


@pytest.mark.parametrize("options", [{}, {"val_check_interval": 1}], ids=["one validation", "one after each step"])
def test_share_of_waiting(tmp_path, tiny_detector, tiny_data, monkeypatch, options):
    seen = epochs_of(tmp_path, tiny_detector, tiny_data, monkeypatch, max_epochs=2, **options)
    assert seen["train/waiting"].item() == pytest.approx(8 / (8 + 10))
    assert seen["train/pictures_per_second"].item() == pytest.approx(4 / (8 + 10))


def test_another_kind_of_loader_says_nothing_of_waiting(tmp_path, tiny_detector, tiny_data, monkeypatch):
    dataset = tiny_data().train_dataloader().dataset
    keys = [[Key(0, k, (64, 64)) for k in range(4)]]
    foreign = DataLoader(dataset, batch_sampler=keys, collate_fn=lambda batch: batch)
    monkeypatch.setattr(DetectionData, "train_dataloader", lambda self: foreign)
    seen = epochs_of(tmp_path, tiny_detector, tiny_data, monkeypatch, max_epochs=1)
    assert "train/waiting" not in seen
    assert seen["train_seconds"] == 18
