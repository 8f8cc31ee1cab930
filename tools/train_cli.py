"""From the options of `sightline train` to a run in its folder."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, LambdaCallback, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from sightline.backbone.checkpoint import save
from sightline.backbone.model import Model
from sightline.datasets.table import DataError
from sightline.tools.train_options import Parser, RunOptions, check_one_thing
from sightline.training import (
    MONITORS,
    MovingAverage,
    PlateauUnfreezing,
    SaveOnInterrupt,
    StagedUnfreezing,
    Training,
    TrainingClock,
    UpdateRatios,
)
from sightline.training.metrics import ContinuedCSVLogger
from sightline.training.overfit import STEPS_ALONE, OverfitOneBatch, mixed
from sightline.training.rate_finder import find_rate
from sightline.training.run_folder import RunFolder
from sightline.training.schedules import Schedule
from sightline.training.tasks import Monitor


class TrainCLI(LightningCLI):
    """LightningCLI with our data and modules, and what every run has: a folder, checkpoints, metrics, a clean Ctrl-C.

    A subclass is for one kind of model; it says which by `MODULE`, `DATA` and `NETWORK`.

    Args:
        arguments: options, the recipe's file among them.
        folder: makes the run's folder, once the options have been found to be right.
        prepare: a last look at the run before its folder is made: it may change the model, and refuse options.

    Attributes:
        MODULE: the Lightning module.
        DATA: the Lightning data module.
        NETWORK: the module's argument that is the network, so `--model.NETWORK…`.
    """

    MODULE: type[Training]
    DATA: type[LightningDataModule]
    NETWORK: str

    def __init__(
        self,
        arguments: list[str],
        folder: Callable[[], RunFolder],
        *,
        prepare: Callable[[Any], None] | None = None,
    ) -> None:
        self._folder, self._prepare, self._arguments = folder, prepare, arguments
        warnings.filterwarnings("ignore", message=".*LightningCLI's args parameter.*")
        warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # frozen batch norms
        super().__init__(
            self.MODULE,
            self.DATA,
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
        """The data decide the size of the last layer. (jsonargparse cannot link to an argument of a builder function.)"""
        parser = LightningArgumentParser()
        parser.add_class_arguments(self.DATA, "data")
        self._data = parser.instantiate_classes(Namespace(data=self.config.data)).data
        self.fit_to_data(self.builder_arguments)

    @property
    def builder_arguments(self) -> Namespace:
        """Of the function that makes the network."""
        return self.config.model[self.NETWORK].init_args

    def fit_to_data(self, arguments: Namespace) -> None:
        """Changes the builder's arguments to what the data ask for."""
        raise NotImplementedError

    def fit_classes(self, arguments: Namespace) -> None:
        """As many classes as the data have. A file's number is that of the data of its time, and gives way without a word.

        Raises:
            DataError: the command line gives another number.
        """
        given, data = arguments.num_classes, self._data
        option = re.compile(rf"(--model\.{self.NETWORK}\.(init_args\.)?num_classes)(=.*)?")
        named = [match[1] for match in map(option.fullmatch, self._arguments) if match]
        if named and given != data.num_classes:
            raise DataError(
                f"{named[-1]} {given}: the data have {data.num_classes} categories, for which the network is built: leave it out"
            )
        arguments.num_classes = data.num_classes

    def check(self) -> None:
        """Raises a `DataError` where options do not go together, before anything is made; data and network are there."""
        raise NotImplementedError

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Called when data and model are made."""
        self.datamodule = self._data  # the one that has read the annotations already
        options: RunOptions = self.options
        check_one_thing(options)
        self.check()
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
        return self._made_trainer(kwargs)

    def _made_trainer(self, arguments: dict[str, Any]) -> Trainer:
        """Lightning's own, which says by several kinds of errors that this machine has no such device, strategy or precision."""
        try:
            return super().instantiate_trainer(**arguments)
        except (MisconfigurationException, ImportError, ValueError) as error:
            raise DataError(f"--trainer options that cannot be met: {error}") from error

    def _trainer_of_steps(self, options: RunOptions, kwargs: dict[str, Any]) -> Trainer:
        """For what takes the place of training: a few steps, and nothing beside them."""
        kwargs |= STEPS_ALONE | {"overfit_batches": int(options.overfit)}
        if self.config_init.trainer.max_steps == -1:
            kwargs["max_steps"] = options.only_steps
        trainer = self._made_trainer(kwargs)
        trainer.limit_val_batches = 0  # Lightning's overfit_batches counts for validation too
        if trainer.world_size > 1:
            raise DataError("--run.overfit and --run.find_rate look at one process's loss: leave out --trainer.devices")
        return trainer

    @property
    def options(self) -> RunOptions:
        """`--run.…`"""
        return self.config_init.run

    @property
    def network(self) -> Model:
        """What is trained."""
        return self.model.network

    @property
    def monitor(self) -> Monitor:
        """By what the best checkpoint is told."""
        return MONITORS[self.network.task]

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
        self.prepare_data()
        if options.only_steps is not None:
            self.prepare_network()
            return self._overfit() if options.overfit else self._find_rate()
        try:
            self.learn(resume)
        except (SystemExit, KeyboardInterrupt):  # the first is how Lightning ends an interrupted training
            if self.folder.last.exists():
                print(f"go on with: sightline train --resume {self.folder.path}")
            raise
        if self.trainer.is_global_zero:
            self.finish(time.perf_counter() - started)
        return 0

    def learn(self, resume: bool) -> None:
        """What a run is there for."""
        self.fit(resume=resume)

    def fit(self, *, resume: bool = False) -> None:
        """Trains, and leaves the configuration, checkpoints and metrics; a resumed run goes on from its last checkpoint."""
        self.start(resume)
        checkpoint = str(self.folder.last) if resume else None
        if resume:  # changed options count at the next resumption too, once the checkpoint has been found to fit them
            self.trainer.callbacks.append(LambdaCallback(on_train_start=lambda *_: self._keep_options()))
        self.trainer.fit(self.model, self.datamodule, ckpt_path=checkpoint, weights_only=True)
        if self.trainer.is_global_zero and not self.folder.best.exists() and not self.trainer.fast_dev_run:
            rank_zero_info("nothing was validated, so no epoch is known to be the best: the last weights are kept")
            self.save(self.network)

    def start(self, resume: bool) -> None:
        """What comes before the first step; nothing where a run goes on."""
        if resume:
            return
        self.prepare_network()
        for split in (
            "train",
            "val",
        ):  # what is wrong with a file beside the data is to be known before the first epoch
            self.datamodule.proposed(split)
        self._keep_options()

    def prepare_data(self) -> None:
        """What is made of the data before they are loaded, also where a run goes on."""

    def prepare_network(self) -> None:
        """Changes the network before its first step; a checkpoint keeps what came of it."""

    def _keep_options(self) -> None:
        if self.trainer.is_global_zero:
            self.parser.save(self.config, self.folder.config, skip_none=False, overwrite=True)

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

    def save(self, network: Model) -> None:
        """Writes the best checkpoint."""
        self.folder.checkpoints.mkdir(parents=True, exist_ok=True)
        save(network, self.folder.best)

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
        raise NotImplementedError
