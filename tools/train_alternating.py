"""`sightline train RECIPE --alternating`: a Faster R-CNN in four steps, each a run of its own, in one folder.

sightline train faster_rcnn_vgg16 --data voc/ --alternating
sightline train --resume runs/faster_rcnn_vgg16/1        # goes on with the step that was interrupted
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from sightline.datasets.proposal_files import write_proposals
from sightline.datasets.table import DataError, Table
from sightline.detectors import FasterRCNN, load
from sightline.tools.train_detection import DetectionCLI
from sightline.training import alternating
from sightline.training.alternating import STEPS, Step
from sightline.training.network_proposals import network_proposals
from sightline.training.run_folder import RunFolder

PROPOSALS = "proposals.npz"


def alternate(arguments: list[str], folder: Callable[[], Path], *, finished: int = 0) -> int:
    """Trains in four steps, then scores the last one's best checkpoint and writes its report.

    Args:
        arguments: options, the recipe's file among them.
        folder: makes the run's folder when it is first asked, once the options have been found to be right.
        finished: how many steps are done already.

    Returns:
        The exit code.

    Raises:
        DataError: the model is no Faster R-CNN, or an option does not go with four runs.
    """
    for number in range(finished, len(STEPS)):
        _take_step(number, arguments, folder)
    return 0


def resumable(path: str) -> Path | None:
    """The folder of the alternating run that is meant, if one is.

    Args:
        path: the run's folder, one of its steps', or a folder of numbered runs, whose latest is meant.
    """
    given = Path(path)
    numbered = [child for child in given.glob("*") if child.name.isdecimal() and _started(child)]
    latest = max(numbered, key=lambda child: int(child.name), default=given)
    return next((run for run in (given, given.parent, latest) if _config(run).is_file()), None)


def _started(run: Path) -> bool:
    return RunFolder(run).config.is_file() or _config(run).is_file()


def _config(run: Path) -> Path:
    """That of the first step, which is the recipe's."""
    return _step(run, STEPS[0]).config


def go_on(run: Path, changes: list[str]) -> int:
    """Goes on where an alternating run was stopped.

    Args:
        run: its folder.
        changes: options that the steps to come shall have in place of the first step's.

    Raises:
        DataError: all steps are finished.
    """
    finished = next((number for number, step in enumerate(STEPS) if not _note(run, step).exists()), len(STEPS))
    if finished == len(STEPS):
        raise DataError(f"all four steps of {run} are finished, see {_step(run, STEPS[-1]).path / 'report.html'}")
    return alternate(["--config", str(_config(run)), *changes], lambda: run, finished=finished)


def _take_step(number: int, arguments: list[str], folder: Callable[[], Path]) -> None:
    step, before = STEPS[number], None
    if number:
        last = _step(folder(), STEPS[number - 1])
        before = load(last.best, device="cpu")
        if step.part == "head":
            arguments = [*arguments, "--data.proposals", str(last.path / PROPOSALS)]
    cli = DetectionCLI(arguments, lambda: _made(folder(), step), prepare=lambda cli: _prepare(cli, step, before))
    if cli.trainer.world_size > 1:
        raise DataError("alternating training is for one device: leave out --trainer.devices")
    print(f"\nstep {number + 1} of {len(STEPS)}: {step.text}", flush=True)
    try:
        _train(cli, step, folder())
    except (SystemExit, KeyboardInterrupt):  # the first is how Lightning ends an interrupted training
        print(f"go on with: sightline train --resume {folder()}")
        raise


def _train(cli: DetectionCLI, step: Step, run: Path) -> None:
    """One step, with all that belongs to it, from where it may have been stopped; leaves a note when it is finished."""
    started = time.perf_counter()
    cli.fit(resume=cli.folder.last.exists())
    if not cli.folder.best.exists():
        raise DataError(
            f"{cli.folder.path} has no validated checkpoint for the next step to begin with: remove {cli.folder.checkpoints} and "
            f"go on with --resume {run}, which trains the step anew; --trainer.fast_dev_run saves none at all"
        )
    if step.part == "rpn":
        _export(cli)
    seconds = time.perf_counter() - started
    if step is STEPS[-1]:
        _finish(cli, seconds + sum(_seconds(run, other) for other in STEPS[:-1]))
    _note(run, step).write_text(json.dumps({"train_seconds": round(seconds, 1)}) + "\n")


def _prepare(cli: DetectionCLI, step: Step, before: FasterRCNN | None) -> None:
    """Refuses what cannot be trained in these steps; makes the model ready for one of them."""
    model, options = cli.model.detector, cli.options
    if not isinstance(model, FasterRCNN):
        raise DataError(
            f"--alternating is for a recipe of Faster R-CNN, whose two parts learn in turn, e.g. faster_rcnn_vgg16; this one "
            f"makes a {type(model).__name__}: leave --alternating out"
        )
    refused = [*options.in_place, *(["unfreeze"] if options.unfreeze is not None else [])]
    if refused:
        raise DataError(
            f"--run.{refused[0]} does not go with --alternating, whose steps say what learns: leave out one"
        )
    if step.part == "rpn" and cli.datamodule.proposals is not None:
        raise DataError("--alternating learns from proposals of its own: leave out --data.proposals")
    alternating.prepare(model, step, before)


def _export(cli: DetectionCLI) -> None:
    """Writes the best checkpoint's proposals, as many as are learnt from, for the pictures to train on and to validate on."""
    data, tables = cli.datamodule, cli.datamodule.tables
    model = load(cli.folder.best, device=cli.device)
    model.rpn.pre_nms = model.rpn.post_nms = model.rpn.training_nms
    pictures = _pictures([tables["train"], tables["val"]])
    proposed = network_proposals(model, pictures, batch_size=data.batch_size, num_workers=data.num_workers)
    write_proposals(cli.folder.path / PROPOSALS, proposed)


def _pictures(tables: list[Table]) -> Table:
    """All pictures of some tables, once each, without their objects."""
    paths = np.concatenate([np.array(table.paths, object) for table in tables])
    _, rows = np.unique(paths.astype(str), return_index=True)
    sizes = np.concatenate([table.sizes for table in tables])[rows]
    nothing = tables[0].select_objects(np.zeros(0, np.int64))
    return replace(
        nothing, paths=paths[rows].tolist(), image_ids=np.arange(len(rows)), sizes=sizes, captions=None, regions=None
    )


def _finish(cli: DetectionCLI, seconds: float) -> None:
    """Scores the detector on the proposals that it makes itself, as everybody will use it."""
    tables = cli.datamodule.tables
    tables["val"] = replace(tables["val"], regions=None)
    cli.finish(seconds)


def _step(run: Path, step: Step) -> RunFolder:
    return RunFolder(run / step.name)


def _made(run: Path, step: Step) -> RunFolder:
    folder = _step(run, step)
    folder.path.mkdir(exist_ok=True)
    return folder


def _note(run: Path, step: Step) -> Path:
    """What a finished step leaves: {"train_seconds": …}, the time for its proposals among them."""
    return run / step.name / "finished.json"


def _seconds(run: Path, step: Step) -> float:
    return json.loads(_note(run, step).read_text())["train_seconds"]
