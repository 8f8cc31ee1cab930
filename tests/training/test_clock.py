"""The clock of training, on a clock of its own: steps take 10 seconds, validation batches 1000."""

import pytest
from lightning.pytorch import Callback, Trainer

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


def fit(tmp_path, clock, tiny_detector, data, ticker, **options):
    log = Log()
    trainer = Trainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_checkpointing=False, num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        callbacks=[ticker, clock, log], **options,
    )  # fmt: skip
    trainer.fit(DetectionTraining(tiny_detector()), data)
    return trainer.num_training_batches, log.seen


def test_validation_does_not_count(tmp_path, tiny_detector, tiny_data, monkeypatch):
    ticker, clock = Ticker(), TrainingClock()
    monkeypatch.setattr("sightline.training.clock.time.perf_counter", lambda: ticker.now)
    steps, seen = fit(tmp_path, clock, tiny_detector, tiny_data(), ticker, max_epochs=2)
    assert steps > 1
    assert seen == [10 * steps, 20 * steps]
    resumed = TrainingClock()
    resumed.load_state_dict(clock.state_dict())
    assert fit(tmp_path, resumed, tiny_detector, tiny_data(), ticker, max_epochs=1)[1] == [30 * steps]


def test_several_validations_in_an_epoch(tmp_path, tiny_detector, tiny_data, monkeypatch):
    ticker, clock = Ticker(), TrainingClock()
    monkeypatch.setattr("sightline.training.clock.time.perf_counter", lambda: ticker.now)
    steps, seen = fit(tmp_path, clock, tiny_detector, tiny_data(), ticker, max_epochs=1, val_check_interval=1)
    assert seen == pytest.approx([10 * (i + 1) for i in range(steps)])
