"""`sightline train [RECIPE] [--data PATH] [--any.option value]`: trains a model and leaves a run folder.

sightline train                                  # a small Faster R-CNN on the built-in shapes
sightline train faster_rcnn --data coco/         # on your pictures
sightline train --resume runs/faster_rcnn/1      # goes on where a run stopped
sightline train --run.overfit true               # can the model learn one batch by heart?
sightline train --list                           # the recipes
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from jsonargparse import Namespace
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only

from sightline.datasets.data_module import DetectionData
from sightline.datasets.statistics import Statistics
from sightline.datasets.table import DataError
from sightline.detectors import load, save
from sightline.tools.main import run
from sightline.tools.train_search import Outcome, search, take_plan
from sightline.training import (
    MONITORS,
    DetectionTraining,
    PlateauUnfreezing,
    SaveOnInterrupt,
    StagedUnfreezing,
    TrainingError,
    UpdateRatios,
    overfit,
    rate_finder,
    score,
)
from sightline.training.last_layer import fit_last_layer
from sightline.training.metrics import ContinuedCSVLogger
from sightline.training.overfit import STEPS_ALONE, OverfitOneBatch, mixed
from sightline.training.rate_finder import find_rate
from sightline.training.run_folder import RunFolder

RECIPES = resources.files("sightline.training.recipes")
HELP = """usage: sightline train [RECIPE] [--data PATH] [--any.option value …]

    RECIPE               a name of `sightline train --list`, or a config.yaml; `shapes` without --data, else `faster_rcnn`
    --data PATH          a data set in COCO, Pascal VOC or YOLO form
    --resume FOLDER      goes on with a run, e.g. runs/faster_rcnn/1, or the latest in runs/faster_rcnn
    --search N           N runs with other learning rates and weight decays, coarse then fine (docs/training.md)
    --list               the recipes, a line each
    --print_config       the whole configuration as YAML, with every option there is
    --runs FOLDER        where run folders are made (runs)

Often used:
    --trainer.max_epochs 24        --data.batch_size 8        --data.min_size 640 --data.max_size 1066
    --model.optimizer.lr 0.005     --run.ema 0.999            --run.patience 5
    --trainer.precision bf16-mixed --trainer.devices 2        --seed_everything 1
    --run.unfreeze plateau         --run.ratios true          --run.statistics FILE

In place of training:
    --run.overfit true             can the model learn one batch by heart? (exit code 1: it cannot)
    --run.find_rate true           a learning rate, from the loss at rising rates
    --run.linear svm               a classifier's last layer alone, as a linear model on fixed features

`sightline train RECIPE --help` lists every option with its type."""


@dataclass
class RunOptions:
    """What happens around the steps, or in their place.

    Args:
        ema: decay of a moving average of the weights (0.999, say), which is then validated and saved; null for none.
        patience: stop after so many validations without a better score; null to go on to the end.
        unfreeze: epochs at each of which one more stage of the backbone is trained, from the last downwards; or
            "plateau", for one more whenever the score does not improve.
        unfreeze_patience: how many validations without a better score make a plateau.
        ratios: log by how much steps change the weights, stage by stage; about 1e-3 of their size is healthy.
        statistics: normalise with the mean and deviation in this file, made by `sightline inspect DATA --statistics FILE`;
            for networks that start from random weights.
        tensorboard: log to TensorBoard too.
        overfit: do not train, but see whether the model can learn one batch by heart.
        find_rate: do not train, but let the learning rate rise until the loss diverges, and suggest one.
        linear: do not train by gradient, but fit a classifier's last layer to the features of the rest, as linear
            support vector machines ("svm") or softmax regression ("softmax").
        linear_c: how much errors weigh against small weights in that fit; null chooses by cross-validation.
    """

    ema: float | None = None
    patience: int | None = None
    unfreeze: list[int] | Literal["plateau"] | None = None
    unfreeze_patience: int = 2
    ratios: bool = False
    statistics: str | None = None
    tensorboard: bool = False
    overfit: bool = False
    find_rate: bool = False
    linear: Literal["svm", "softmax"] | None = None
    linear_c: float | None = None

    @property
    def only_steps(self) -> int | None:
        """How many steps are taken where a few of them are all that is done, with no validation and no checkpoint."""
        return overfit.STEPS if self.overfit else rate_finder.STEPS if self.find_rate else None


def main(argv: list[str] | None = None) -> int:
    """Runs the command; `argv` without the command's name."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in ("-h", "--help"):
        print(HELP)
        return 0
    if "--list" in argv:
        print("\n".join(f"{name:<20} {text}" for name, text in recipes().items()))
        return 0
    root, resume = _take(argv, "--runs") or "runs", _take(argv, "--resume")
    if resume:
        return TrainCLI(*_resumed(resume, argv)).train(resume=True)
    plan = take_plan(argv)
    arguments, recipe = _started(argv)
    if plan is None:
        return TrainCLI(arguments, lambda: _new_folder(root, recipe)).train()
    return search(plan, root, recipe, lambda options, parent: _trial([*arguments, *options], parent))


def recipes() -> dict[str, str]:
    """Names of the recipes, each with its first line."""
    files = sorted((f for f in RECIPES.iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name)
    return {f.name.removesuffix(".yaml"): f.read_text().splitlines()[0].lstrip("# ") for f in files}


class Parser(LightningArgumentParser):
    """Names the nearest option when one is mistyped."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        text = f"{message} {ex or ''}"
        known = [option for action in self._actions for option in action.option_strings]
        unknown = re.findall(r"--[\w.-]+", text.split("nrecognized arguments")[-1]) if "nrecognized" in text else []
        unknown += re.findall(r"[Kk]ey '([\w.]+)' is not expected", text)
        for option in unknown:
            close = difflib.get_close_matches("--" + option.lstrip("-"), known, n=1)
            message += f"\n  did you mean {close[0]}?" if close else ""
        raise DataError(message.strip())


class TrainCLI(LightningCLI):
    """LightningCLI with our data and module, and what every run has: a folder, checkpoints, metrics, a clean Ctrl-C.

    Args:
        arguments: options, the recipe's file among them.
        folder: makes the run's folder, once the options have been found to be right.
    """

    def __init__(self, arguments: list[str], folder: Callable[[], RunFolder]) -> None:
        self._folder = folder
        warnings.filterwarnings("ignore", message=".*LightningCLI's args parameter.*")
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

    def after_instantiate_classes(self) -> None:
        self.datamodule = self._data  # the one that has read the annotations already

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        options: RunOptions = self.config_init.run
        _check_one_thing(options)
        _check_start(options, self.config.model.detector.init_args)
        self.folder = folder = self._folder()
        if options.only_steps is not None:
            kwargs |= STEPS_ALONE | {"overfit_batches": int(options.overfit)}
            if self.config_init.trainer.max_steps == -1:
                kwargs["max_steps"] = options.only_steps
            trainer = super().instantiate_trainer(**kwargs)
            if trainer.world_size > 1:
                raise DataError(
                    "--run.overfit and --run.find_rate look at one process's loss: leave out --trainer.devices"
                )
            return trainer
        loggers = [ContinuedCSVLogger(folder.path.parent, name="", version=folder.path.name)]
        if options.tensorboard:
            loggers.append(TensorBoardLogger(folder.path, name="tensorboard", version=""))
        self.trainer_defaults["callbacks"] = self._callbacks(options, folder)
        if not self.config_init.trainer.get("logger"):
            kwargs["logger"] = loggers
        return super().instantiate_trainer(**kwargs)

    def _callbacks(self, options: RunOptions, folder: RunFolder) -> list[Callback]:
        name, mode = MONITORS[self.model.detector.task]
        best = ModelCheckpoint(
            folder.checkpoints, "best", monitor=name, mode=mode, save_last=True, enable_version_counter=False
        )
        callbacks: list[Callback] = [best, SaveOnInterrupt(folder.last), LearningRateMonitor("epoch")]
        if options.ema is not None:
            callbacks.append(EMAWeightAveraging(decay=options.ema))
        if options.patience is not None:
            callbacks.append(EarlyStopping(name, mode=mode, patience=options.patience, min_delta=0.0))
        if options.unfreeze == "plateau":
            callbacks.append(PlateauUnfreezing(MONITORS[self.model.detector.task], options.unfreeze_patience))
        elif options.unfreeze is not None:
            callbacks.append(StagedUnfreezing(options.unfreeze))
        if options.ratios:
            callbacks.append(UpdateRatios())
        return callbacks

    def train(self, *, resume: bool = False) -> int:
        """Trains, then scores the best checkpoint and writes the report; or does what stands in place of training.

        Returns:
            The exit code: 1 where a batch could not be learnt.
        """
        options, folder, started = self.config_init.run, self.folder, time.perf_counter()
        if options.statistics is not None and not resume:  # a checkpoint carries what it was trained with
            known = Statistics.load(options.statistics)
            self.model.detector.normalize.adopt(known.mean.tolist(), known.std.tolist())
        if options.overfit:
            return self._overfit()
        if options.find_rate:
            return self._find_rate()
        if self.trainer.is_global_zero and not resume:
            self.parser.save(self.config, folder.config, skip_none=False, overwrite=True)
        if options.linear is not None:
            self._fit_last_layer(options)
        else:
            self._fit(str(folder.last) if resume else None)
        if self.trainer.is_global_zero:
            self._finish(time.perf_counter() - started)
        return 0

    def _fit(self, checkpoint: str | None) -> None:
        try:
            self.trainer.fit(self.model, self.datamodule, ckpt_path=checkpoint, weights_only=True)
        except SystemExit:  # how Lightning ends an interrupted run
            if self.folder.last.exists():
                print(f"go on with: sightline train --resume {self.folder.path}")
            raise

    def _overfit(self) -> int:
        watch, tables = OverfitOneBatch(self.trainer.max_steps), self.datamodule.tables
        tables["train"] = mixed(tables["train"], self.datamodule.seed)
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
        data, detector, folder = self.datamodule, self.model.detector, self.folder
        detector.categories, detector.resize = list(data.categories), tuple(data.resize)
        tried = fit_last_layer(
            detector.to(self.trainer.strategy.root_device),
            data.tables["train"],
            options.linear,
            c=options.linear_c,
            cache=folder.path.parent / "features",
            batch_size=data.batch_size,
            num_workers=data.num_workers,
        )
        for c, accuracy in tried.items():
            print(f"c {c:<8g} right in cross-validation: {accuracy:.4f}")
        folder.checkpoints.mkdir(parents=True, exist_ok=True)
        save(detector, folder.best)

    @property
    def reached(self) -> float | None:
        """The best checkpoint's score, of `MONITORS`; None where nothing was saved."""
        best = self.trainer.checkpoint_callback.best_model_score
        return None if best is None else float(best)

    def _finish(self, seconds: float) -> None:
        folder, table = self.folder, self.datamodule.tables["val"]
        if not folder.best.exists():  # Lightning's fast_dev_run saves nothing
            return
        if self.model.detector.task == "reconstruction":
            print(
                f"\ntrained in {seconds:.0f} s, val/loss {self.reached:.4f}; a classifier starts from these weights with"
            )
            print(f"    --model.detector.init_args.weights {folder.best}")
            return
        model = load(folder.best, device=self.model.device)
        workers = self.datamodule.num_workers
        scored = score(
            model, table, batch_size=self.datamodule.batch_size, num_workers=workers, max_dets=self.model.max_dets
        )
        details = {"data": self.datamodule.path, "checkpoint": str(folder.best), "training": f"{seconds:.0f} s"}
        folder.finish(scored, table, details, {"train_seconds": round(seconds, 1)})
        print(f"\n{scored.result.table()}\n\ntrained in {seconds:.0f} s; see {folder.path / 'report.html'}")


def _check_start(options: RunOptions, arguments: Namespace) -> None:
    given = next((name for name in ("weights", "backbone_weights") if arguments.get(name) is not None), None)
    if options.linear is not None and given is None:
        rank_zero_info(
            "warning: --run.linear on a network of random weights; name some by --model.detector.init_args.weights"
        )
    if options.statistics is not None and given:
        raise DataError(
            f"--run.statistics is for random weights: those of {given} expect the pictures they were trained on"
        )


def _check_one_thing(options: RunOptions) -> None:
    asked = [name for name in ("overfit", "find_rate", "linear") if getattr(options, name)]
    if len(asked) > 1:
        raise DataError(f"--run.{asked[0]} and --run.{asked[1]} each stand in place of training: ask for one of them")


def _started(argv: list[str]) -> tuple[list[str], str]:
    """A new run's options and the name of its recipe."""
    data = "--data" in argv or any(a.startswith(("--data=", "--data.path")) for a in argv)
    recipe = argv.pop(0) if argv and not argv[0].startswith("-") else "faster_rcnn" if data else "shapes"
    known = recipes()
    if recipe in known:
        path = str(RECIPES / f"{recipe}.yaml")
    elif Path(recipe).is_file():
        path, recipe = recipe, Path(recipe).stem
    else:
        close = difflib.get_close_matches(recipe, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise DataError(f"no recipe {recipe!r}{hint} There are: {', '.join(known)}; or name a YAML file")
    return ["--config", path, *_with_data_path(argv)], recipe


def _trial(arguments: list[str], parent: Callable[[], Path]) -> Outcome:
    """One run of a search, in a folder of its own."""
    os.environ.pop("SIGHTLINE_RUN_FOLDER", None)
    cli = TrainCLI(arguments, lambda: _new_folder(str(parent().parent), parent().name))
    if cli.trainer.world_size > 1 or cli.config_init.run.only_steps or cli.config_init.run.linear:
        raise DataError("a search trains its runs one after the other on one device: leave out --trainer.devices, "
                        "--run.overfit, --run.find_rate and --run.linear")  # fmt: skip
    measure, mode = MONITORS[cli.model.detector.task]
    try:
        cli.train()
    except TrainingError as error:
        print(f"this run failed: {error}", file=sys.stderr)
        return Outcome(measure, mode, None, str(cli.folder.path))
    return Outcome(measure, mode, cli.reached, str(cli.folder.path))


def _new_folder(root: str, recipe: str) -> RunFolder:
    # Lightning starts the command anew for each further process; all must write into one folder.
    path = os.environ.get("SIGHTLINE_RUN_FOLDER")
    if path is None and rank_zero_only.rank:  # under torchrun or SLURM: the first process's folder is broadcast
        return RunFolder(Path(root) / recipe / "of_the_first_process")
    folder = RunFolder(path) if path else RunFolder.new(root, recipe)
    os.environ["SIGHTLINE_RUN_FOLDER"] = str(folder.path)
    return folder


def _resumed(path: str, argv: list[str]) -> tuple[list[str], Callable[[], RunFolder]]:
    """A stopped run's options, with what the command changes of them (more epochs, say), and its folder."""
    folder = RunFolder.existing(path)
    return ["--config", str(folder.config), *_with_data_path(argv)], lambda: folder


def _with_data_path(argv: list[str]) -> list[str]:
    """`--data PATH` is short for `--data.path PATH`."""
    return [re.sub(r"^--data(=|$)", r"--data.path\1", argument) for argument in argv]


def _take(argv: list[str], option: str) -> str | None:
    """The value of an option of ours, taken out of the list."""
    for i, argument in enumerate(argv):
        if argument == option:
            if i + 1 == len(argv):
                raise DataError(f"{option} needs a folder, e.g. {option} runs/shapes/1")
            del argv[i]
            return argv.pop(i)
        if argument.startswith(f"{option}="):
            return argv.pop(i).partition("=")[2]
    return None


if __name__ == "__main__":
    sys.exit(run("train", sys.argv[1:]))
