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
