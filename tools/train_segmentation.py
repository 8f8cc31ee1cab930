"""The training of networks that name every pixel: what `sightline train` does with a recipe of one."""

from __future__ import annotations

from jsonargparse import Namespace

from sightline.datasets.segmentation_data import SegmentationData
from sightline.datasets.table import DataError
from sightline.segmentation import load
from sightline.tools.train_cli import TrainCLI
from sightline.training.segmentation import SegmentationTraining
from sightline.training.segmentation_scoring import score_segmenter


class SegmentationCLI(TrainCLI):
    """A run of a recipe with `model.segmenter`."""

    MODULE, DATA, NETWORK = SegmentationTraining, SegmentationData, "segmenter"

    def fit_to_data(self, arguments: Namespace) -> None:
        """See `TrainCLI.fit_classes`."""
        self.fit_classes(arguments)

    def check(self) -> None:
        """See `TrainCLI.check`."""
        for name in ("machines", "linear", "statistics"):
            if getattr(self.options, name):
                raise DataError(f"--run.{name} is for detectors and classifiers, not for label maps: leave it out")

    def finish(self, seconds: float) -> None:
        """See `TrainCLI.finish`."""
        folder, data = self.folder, self.datamodule
        if not folder.best.exists():  # Lightning's fast_dev_run saves nothing
            return
        model, table = load(folder.best, device=self.device), data.tables["val"]
        scored = score_segmenter(model, table, batch_size=data.batch_size, num_workers=data.num_workers)
        details = {"data": data.path, "checkpoint": str(folder.best), "training": f"{seconds:.0f} s"}
        folder.finish(scored, table, details, {"train_seconds": round(seconds, 1)})
        print(f"\n{scored.result.table()}\n\ntrained in {seconds:.0f} s; see {folder.path / 'report.html'}")
