"""`sightline train [RECIPE] [--data PATH] [--any.option value]`: trains a model and leaves a run folder.

sightline train                                  # a small Faster R-CNN on the built-in shapes
sightline train faster_rcnn --data coco/         # on your pictures
sightline train --resume runs/faster_rcnn/1      # goes on where a run stopped
sightline train --run.overfit true               # can the model learn one batch by heart?
sightline train faster_rcnn_vgg16 --alternating  # Faster R-CNN in the four steps of its paper
sightline train --list                           # the recipes
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import yaml
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from sightline.datasets.table import DataError, nearest
from sightline.tools.main import run
from sightline.tools.train_alternating import alternate, go_on, resumable
from sightline.tools.train_captions import CaptionCLI
from sightline.tools.train_cli import TrainCLI
from sightline.tools.train_detection import DetectionCLI
from sightline.tools.train_search import Outcome, search, take_plan
from sightline.tools.train_segmentation import SegmentationCLI
from sightline.training import TrainingError
from sightline.training.run_folder import RunFolder

RECIPES = resources.files("sightline.training.recipes")
HELP = """usage: sightline train [RECIPE] [--data PATH] [--any.option value …]

    RECIPE               a name of `sightline train --list`, or a config.yaml; `shapes` without --data, else `faster_rcnn`
    --data PATH          a data set in COCO, Pascal VOC or YOLO form; pictures and label maps; sentences as COCO, CSV …
    --resume FOLDER      goes on with a run, e.g. runs/faster_rcnn/1, or the latest in runs/faster_rcnn
    --alternating        Faster R-CNN in the four steps of its paper, each a run (docs/training.md)
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
And after it:
    --run.machines true            an R-CNN's last layers as support vector machines and ridge regressors

`sightline train RECIPE --help` lists every option with its type."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; `argv` without the command's name."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in ("-h", "--help"):
        print(HELP)
        return 0
    if "--list" in argv:
        width = max(map(len, recipes()))
        print("\n".join(f"{name:<{width}} {text}" for name, text in recipes().items()))
        return 0
    root, resume = _take(argv, "--runs") or "runs", _take(argv, "--resume")
    if resume:
        return _resume(resume, argv)
    plan, alternating = take_plan(argv), _take_flag(argv, "--alternating")
    arguments, recipe = _started(argv)
    if plan is not None and alternating:
        raise DataError("a search is for trainings of one run each: leave out --alternating")
    if plan is not None:
        return search(plan, root, recipe, lambda options, parent: _trial([*arguments, *options], parent))
    if alternating:
        _check_alternating(arguments)
        return alternate(arguments, functools.cache(lambda: _new_folder(root, recipe).path))
    return _command_line(arguments)(arguments, lambda: _new_folder(root, recipe)).train()


def recipes() -> dict[str, str]:
    """Names of the recipes, each with its first line."""
    files = sorted((f for f in RECIPES.iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name)
    return {f.name.removesuffix(".yaml"): f.read_text().splitlines()[0].lstrip("# ") for f in files}


def _started(argv: list[str]) -> tuple[list[str], str]:
    """A new run's options and the name of its recipe."""
    data = "--data" in argv or any(a.startswith(("--data=", "--data.path")) for a in argv)
    recipe = argv.pop(0) if argv and not argv[0].startswith("-") else "faster_rcnn" if data else "shapes"
    known = recipes()
    if recipe in known:
        path = str(RECIPES / f"{recipe}.yaml")
    elif Path(recipe).suffix.lower() in (".yaml", ".yml") and Path(recipe).is_file():
        path, recipe = recipe, Path(recipe).stem
    elif Path(recipe).exists():
        raise DataError(
            f"{recipe} is no recipe: name one of `sightline train --list` or a run's config.yaml; data go with --data, weights "
            "to start from with --model.detector.init_args.weights"
        )
    else:
        hint = nearest(recipe, known) or "."
        raise DataError(f"no recipe {recipe!r}{hint} There are {', '.join(known)}; or name a YAML file")
    return ["--config", path, *_with_data_path(argv)], recipe


def _command_line(arguments: list[str]) -> type[TrainCLI]:
    """That for the kind of model that a configuration, the second of the arguments, describes."""
    try:
        content = yaml.safe_load(Path(arguments[1]).read_text(encoding="utf-8"))
    except yaml.YAMLError:
        content = None  # the parser will say where
    model = content.get("model") if isinstance(content, dict) else None
    named = (line for line in (CaptionCLI, SegmentationCLI) if isinstance(model, dict) and line.NETWORK in model)
    return next(named, DetectionCLI)


def _check_alternating(arguments: list[str]) -> None:
    if _command_line(arguments) is not DetectionCLI:
        raise DataError(
            "--alternating is for a recipe of Faster R-CNN, whose two parts learn in turn, e.g. faster_rcnn_vgg16; this one "
            "makes another kind of model: leave --alternating out"
        )


def _resume(path: str, argv: list[str]) -> int:
    """Goes on with a stopped run, with what the command changes of its options (more epochs, say)."""
    changes = _with_data_path([argument for argument in argv if argument != "--alternating"])
    several = resumable(path)
    if several is not None:
        return go_on(several, changes)
    folder = RunFolder.existing(path)
    arguments = ["--config", str(folder.config), *changes]
    return _command_line(arguments)(arguments, lambda: folder).train(resume=True)


def _trial(arguments: list[str], parent: Callable[[], Path]) -> Outcome:
    """One run of a search, in a folder of its own."""
    os.environ.pop("SIGHTLINE_RUN_FOLDER", None)
    cli = _command_line(arguments)(arguments, lambda: _new_folder(str(parent().parent), parent().name))
    if cli.trainer.world_size > 1 or cli.options.in_place:
        raise DataError("a search trains its runs one after the other on one device: leave out --trainer.devices, "
                        "--run.overfit, --run.find_rate and --run.linear")  # fmt: skip
    measure, mode = cli.monitor
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


def _take_flag(argv: list[str], option: str) -> bool:
    """Whether an option of ours without a value is given; it is taken out of the list."""
    given = option in argv
    argv[:] = [argument for argument in argv if argument != option]
    return given


if __name__ == "__main__":
    sys.exit(run("train", sys.argv[1:]))
