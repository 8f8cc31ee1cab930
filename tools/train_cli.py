"""From the options of `sightline train` to a run in its folder."""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, LambdaCallback, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from sightline.datasets.data_module import DetectionData
from sightline.datasets.statistics import Statistics
from sightline.datasets.table import DataError, Table
from sightline.detectors import Detector, FasterRCNN, load, save
from sightline.tools.train_options import Parser, RunOptions, check
from sightline.training import (
    MONITORS,
    DetectionTraining,
    MovingAverage,
    PlateauUnfreezing,
    SaveOnInterrupt,
    StagedUnfreezing,
    TrainingClock,
    UpdateRatios,
    score,
)
from sightline.training.last_layer import fit_last_layer
from sightline.training.metrics import ContinuedCSVLogger
from sightline.training.overfit import STEPS_ALONE, OverfitOneBatch, mixed
from sightline.training.rate_finder import find_rate
from sightline.training.region_machines import fit_region_machines
from sightline.training.run_folder import RunFolder
from sightline.training.schedules import Schedule
from sightline.training.tasks import Monitor


class TrainCLI(LightningCLI):
    """LightningCLI with our data and module, and what every run has: a folder, checkpoints, metrics, a clean Ctrl-C.

    Args:
        arguments: options, the recipe's file among them.
        folder: makes the run's folder, once the options have been found to be right.
        prepare: a last look at the run before its folder is made: it may change the model, and refuse options.
    """

    def __init__(
        self,
        arguments: list[str],
        folder: Callable[[], RunFolder],
        *,
        prepare: Callable[[TrainCLI], None] | None = None,
    ) -> None:
        self._folder, self._prepare = folder, prepare
        warnings.filterwarnings("ignore", message=".*LightningCLI's args parameter.*")
        warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # frozen batch norms
        super().__init__(
            DetectionTraining,
            DetectionData,
            run=False,
            args=arguments,
            save_config_callback=None,
            trainer_defaults={
                "devices": 1,
                "use_distributed_sampler": False,
                "max_epochs": 12,
                "num_sanity_val_steps": 0,
            },
            parser_class=Parser,
            parser_kwargs={"prog": "sightline train", "allow_abbrev": False},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            seed_everything_default=0,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(RunOptions, "run")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)

    def before_instantiate_classes(self) -> None:
        """The data decide the number of classes. (jsonargparse cannot link to an argument of a builder function.)"""
        parser = LightningArgumentParser()
        parser.add_class_arguments(DetectionData, "data")
        self._data = parser.instantiate_classes(Namespace(data=self.config.data)).data
        arguments = self.config.model.detector.init_args
        if "num_classes" in arguments:  # what learns without labels has none
            arguments.num_classes = self._data.num_classes

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Called when data and model are made."""
        self.datamodule = self._data  # the one that has read the annotations already
        self.datamodule.proposer = self.model.detector.proposer
        options: RunOptions = self.options
        check(options, self.model.detector, self.config.model.detector.init_args)
        _check_proposals(self._data, self.model.detector)
        if self._prepare is not None:
            self._prepare(self)
        self.folder = folder = self._folder()
        if options.only_steps is not None:
            return self._trainer_of_steps(options, kwargs)
        loggers = [ContinuedCSVLogger(folder.path.parent, name="", version=folder.path.name)]
        if options.tensorboard:
            loggers.append(TensorBoardLogger(folder.path, name="tensorboard", version=""))
        self.trainer_defaults["callbacks"] = self._callbacks(options, folder)
        if not self.config_init.trainer.get("logger"):
            kwargs["logger"] = loggers
        return super().instantiate_trainer(**kwargs)

    def _trainer_of_steps(self, options: RunOptions, kwargs: dict[str, Any]) -> Trainer:
        """For what takes the place of training: a few steps, and nothing beside them."""
        kwargs |= STEPS_ALONE | {"overfit_batches": int(options.overfit)}
        if self.config_init.trainer.max_steps == -1:
            kwargs["max_steps"] = options.only_steps
        trainer = super().instantiate_trainer(**kwargs)
        trainer.limit_val_batches = 0  # Lightning's overfit_batches counts for validation too
        if trainer.world_size > 1:
            raise DataError("--run.overfit and --run.find_rate look at one process's loss: leave out --trainer.devices")
        return trainer

    @property
    def options(self) -> RunOptions:
        """`--run.…`"""
        return self.config_init.run

    @property
    def monitor(self) -> Monitor:
        """By what the best checkpoint is told: where only the proposal network learns, by its loss."""
        detector = self.model.detector
        proposes = isinstance(detector, FasterRCNN) and "head" not in detector.learns
        return Monitor("val/loss", "min") if proposes else MONITORS[detector.task]

    def _callbacks(self, options: RunOptions, folder: RunFolder) -> list[Callback]:
        name, mode = self.monitor
        best = ModelCheckpoint(folder.checkpoints, "best", monitor=name, mode=mode, enable_version_counter=False)
        # Not `save_last`, which only writes where a best one is written: runs would be resumed from the best epoch.
        last = ModelCheckpoint(folder.checkpoints, "last", save_on_train_epoch_end=False, enable_version_counter=False)
        callbacks: list[Callback] = [best, last, LearningRateMonitor("epoch"), TrainingClock()]
        if options.ema is not None:
            callbacks.append(MovingAverage(options.ema))
        if options.patience is not None:
            callbacks.append(EarlyStopping(name, mode=mode, patience=options.patience, min_delta=0.0))
        if options.unfreeze == "plateau":
            callbacks.append(PlateauUnfreezing(self.monitor, options.unfreeze_patience))
        elif options.unfreeze is not None:
            callbacks.append(StagedUnfreezing(options.unfreeze))
        if options.ratios:
            callbacks.append(UpdateRatios())
        return [*callbacks, SaveOnInterrupt(folder.last)]

    def train(self, *, resume: bool = False) -> int:
        """Trains, then scores the best checkpoint and writes the report; or does what stands in place of training.

        Returns:
            The exit code: 1 where a batch could not be learnt.
        """
        options, started = self.options, time.perf_counter()
        if options.only_steps is not None:
            self._adopt_statistics()
            return self._overfit() if options.overfit else self._find_rate()
        try:
            self._learn(resume)
        except (SystemExit, KeyboardInterrupt):  # the first is how Lightning ends an interrupted training
            if self.folder.last.exists():
                print(f"go on with: sightline train --resume {self.folder.path}")
            raise
        if self.trainer.is_global_zero:
            self.finish(time.perf_counter() - started)
        return 0

    def _learn(self, resume: bool) -> None:
        options = self.options
        if options.linear is not None:
            self._start(resume)
            self._fit_last_layer(options)
        elif options.machines and self.trainer.max_epochs == 0:
            self._start(resume)
            self._save(self._given())
        else:
            self.fit(resume=resume)
        if options.machines and self.trainer.is_global_zero:
            self._fit_machines()

    def fit(self, *, resume: bool = False) -> None:
        """Trains, and leaves the configuration, checkpoints and metrics; a resumed run goes on from its last checkpoint."""
        self._start(resume)
        checkpoint = str(self.folder.last) if resume else None
        if resume:  # changed options count at the next resumption too, once the checkpoint has been found to fit them
            self.trainer.callbacks.append(LambdaCallback(on_train_start=lambda *_: self._keep_options()))
        self.trainer.fit(self.model, self.datamodule, ckpt_path=checkpoint, weights_only=True)
        if self.trainer.is_global_zero and not self.folder.best.exists() and not self.trainer.fast_dev_run:
            rank_zero_info("nothing was validated, so no epoch is known to be the best: the last weights are kept")
            self._save(self.model.detector)

    def _start(self, resume: bool) -> None:
        if resume:
            return
        self._adopt_statistics()
        for split in (
            "train",
            "val",
        ):  # what is wrong with a file of proposals is to be known now, not after some epochs
            self.datamodule.proposed(split)
        self._keep_options()

    def _keep_options(self) -> None:
        if self.trainer.is_global_zero:
            self.parser.save(self.config, self.folder.config, skip_none=False, overwrite=True)

    def _adopt_statistics(self) -> None:
        """A checkpoint carries them: a resumed run has those that it was trained with."""
        if self.options.statistics is not None:
            known = Statistics.load(self.options.statistics)
            self.model.detector.normalize.adopt(known.mean.tolist(), known.std.tolist())

    def _overfit(self) -> int:
        watch, tables = OverfitOneBatch(self.trainer.max_steps), self.datamodule.tables
        tables["train"] = mixed(tables["train"], self.datamodule.seed)
        self.model.schedule = Schedule(self.model.schedule.warmup_steps)  # where the rate ends, any loss stands still
        self.trainer.callbacks.append(watch)
        self.trainer.fit(self.model, self.datamodule)
        watch.verdict.write(self.folder.path / "overfit.csv")
        print(f"\n{watch.verdict}")
        return 0 if watch.verdict.learnt else 1

    def _find_rate(self) -> int:
        curve = find_rate(self.trainer, self.model, self.datamodule)
        curve.write(self.folder.path)
        print(f"\n{curve.describe()}\nsee {self.folder.path / 'rate_curve.png'}")
        return 0

    def _fit_last_layer(self, options: RunOptions) -> None:
        detector = self._given()
        tried = fit_last_layer(
            detector, self.datamodule.tables["train"], options.linear, c=options.linear_c, **self._loading()
        )
        for c, accuracy in tried.items():
            print(f"c {c:<8g} right in cross-validation: {accuracy:.4f}")
        self._save(detector)

    def _fit_machines(self) -> None:
        """Puts support vector machines and ridge regressors into the best checkpoint."""
        if not self.folder.best.exists():  # see `finish`
            return
        detector = load(self.folder.best, device=self.device)
        loading = self._loading()
        # Other runs have other weights and so other features, which may take many gigabytes: they go when they were used.
        loading["cache"] = self.folder.path / "features"
        print(fit_region_machines(detector, self._table("train"), **loading))
        self._save(detector)
        shutil.rmtree(loading["cache"])

    def _given(self) -> Detector:
        """The model as it is without training, with what a checkpoint needs to know of the data."""
        data, detector = self.datamodule, self.model.detector
        detector.categories, detector.resize = list(data.categories), tuple(data.resize)
        return detector.to(self.device)

    def _loading(self) -> dict[str, Any]:
        """Where features are kept, which runs of a recipe share, and how pictures are loaded."""
        cache, data = self.folder.path.parent / "features", self.datamodule
        return {"cache": cache, "batch_size": data.batch_size, "num_workers": data.num_workers}

    def _save(self, detector: Detector) -> None:
        self.folder.checkpoints.mkdir(parents=True, exist_ok=True)
        save(detector, self.folder.best)

    @property
    def device(self) -> torch.device:
        """Where the work is done; the model itself lies on the CPU after training."""
        return self.trainer.strategy.root_device

    @property
    def reached(self) -> float | None:
        """The best checkpoint's score, of `monitor`; None where nothing was saved."""
        best = self.trainer.checkpoint_callback.best_model_score
        return None if best is None else float(best)

    def finish(self, seconds: float) -> None:
        """Scores the best checkpoint on the validation pictures, and writes results and report; prints the scores.

        Args:
            seconds: that training took.
        """
        folder = self.folder
        if not folder.best.exists():  # Lightning's fast_dev_run saves nothing
            return
        if self.model.detector.task == "reconstruction":
            print(
                f"\ntrained in {seconds:.0f} s, val/loss {self.reached:.4f}; a classifier starts from these weights with"
            )
            print(f"    --model.detector.init_args.weights {folder.best}")
            return
        model, table, data = load(folder.best, device=self.device), self._table("val"), self.datamodule
        scored = score(
            model, table, batch_size=data.batch_size, num_workers=data.num_workers, max_dets=self.model.max_dets
        )
        details = {"data": data.path, "checkpoint": str(folder.best), "training": f"{seconds:.0f} s"}
        if self.options.machines:
            details["last layers"] = (
                "support vector machines and ridge regressors; the curves are of the network before"
            )
        folder.finish(scored, table, details, {"train_seconds": round(seconds, 1)})
        print(f"\n{scored.result.table()}\n\ntrained in {seconds:.0f} s; see {folder.path / 'report.html'}")

    def _table(self, split: str) -> Table:
        """A split's pictures, with proposals where the model needs them."""
        return self.datamodule.proposed(split)


def _check_proposals(data: DetectionData, detector: Detector) -> None:
    if data.proposals is not None and detector.proposer is None and not isinstance(detector, FasterRCNN):
        raise DataError(
            f"--data.proposals {data.proposals}: {type(detector).__name__} looks at whole pictures and takes no proposals; "
            "leave it out, or train one that does (fast_rcnn, rcnn)"
        )
