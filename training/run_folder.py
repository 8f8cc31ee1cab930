"""The folder a run leaves behind: runs/<recipe>/<n>, with its configuration, checkpoints, metrics, results and report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ..datasets.detection import read_picture
from ..datasets.table import DataError, Table
from ..evaluation import ReportInputs
from .caption_scoring import ScoredCaptions
from .scoring import Scored
from .segmentation_scoring import ScoredLabelMaps


class RunFolder:
    """Paths within one run's folder.

    Args:
        path: runs/<recipe>/<n>.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.checkpoints = self.path / "checkpoints"
        self.best, self.last = self.checkpoints / "best.ckpt", self.checkpoints / "last.ckpt"
        self.metrics, self.results = self.path / "metrics.csv", self.path / "results.json"

    @staticmethod
    def new(root: str | Path, recipe: str) -> RunFolder:
        """The next free runs/<recipe>/<n>, made at once, so that two runs started together do not share one."""
        parent = Path(root) / recipe
        parent.mkdir(parents=True, exist_ok=True)
        number = max([0, *(int(child.name) for child in parent.iterdir() if child.name.isdecimal())])
        while True:
            number += 1
            try:
                (parent / str(number)).mkdir()
                return RunFolder(parent / str(number))
            except FileExistsError:
                continue

    @staticmethod
    def existing(path: str | Path) -> RunFolder:
        """A run to go on with: its folder, or a folder of numbered runs, whose latest is meant.

        Raises:
            DataError: there is no run, or nothing was saved in it yet.
        """
        path = Path(path)
        if path.is_dir() and not (path / "config.yaml").exists():
            numbered = [
                child for child in path.iterdir() if child.name.isdecimal() and (child / "config.yaml").exists()
            ]
            path = max(numbered, key=lambda child: int(child.name), default=path)
        run = RunFolder(path)
        if not run.config.exists():
            raise DataError(f"{path} is no run folder: it has no config.yaml; name one like runs/shapes/1")
        if not run.last.exists():
            raise DataError(f"{path} has no {run.last.relative_to(path)}: it was stopped before its first validation")
        return run

    def finish(
        self,
        scored: Scored | ScoredCaptions | ScoredLabelMaps,
        table: Table,
        details: Mapping[str, str],
        extra: Mapping[str, float],
    ) -> None:
        """Writes results.json and report.html.

        Args:
            scored: of the best checkpoint, on the validation pictures.
            table: those pictures.
            details: what the report says of the run.
            extra: more numbers for results.json, such as the seconds of training.
        """
        self.results.write_text(json.dumps(scored.to_dict() | dict(extra), indent=2) + "\n")
        inputs = ReportInputs(
            title=f"Run {self.path}",
            details=details,
            load_image=lambda row: read_picture(table.paths[row]),
            image_names=table.paths,
            metrics=self.metrics if self.metrics.exists() else None,
        )
        scored.write_report(self.path, inputs)
