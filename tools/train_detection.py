"""The training of detectors (with masks, too), classifiers and localizers: what `sightline train` does with such a recipe."""

from __future__ import annotations

import shutil
from typing import Any

from jsonargparse import Namespace

from sightline.datasets.data_module import DetectionData
from sightline.datasets.statistics import Statistics
from sightline.datasets.table import DataError, Table
from sightline.detectors import Detector, FasterRCNN
from sightline.tools.model_names import build
from sightline.tools.train_cli import TrainCLI
from sightline.tools.train_options import RunOptions, check_for_detector
from sightline.training import DetectionTraining, score
from sightline.training.last_layer import fit_last_layer
from sightline.training.region_machines import fit_region_machines
from sightline.training.tasks import Monitor


class DetectionCLI(TrainCLI):
    """A run of a recipe with `model.detector`."""

    MODULE, DATA, NETWORK = DetectionTraining, DetectionData, "detector"

    def fit_to_data(self, arguments: Namespace) -> None:
        """See `TrainCLI.fit_classes`."""
        if "num_classes" in arguments:  # what learns without labels has none
            self.fit_classes(arguments)

    def check(self) -> None:
        """See `TrainCLI.check`; also tells the data where the network wants to look."""
        detector = self.model.detector
        self.datamodule.proposer = detector.proposer
        check_for_detector(self.options, detector, self.builder_arguments)
        _check_proposals(self.datamodule, detector)
        if detector.task == "instance_segmentation":
            _check_masks(self.datamodule)

    @property
    def monitor(self) -> Monitor:
        """See `TrainCLI.monitor`; where only the proposal network learns, its loss."""
        detector = self.model.detector
        proposes = isinstance(detector, FasterRCNN) and "head" not in detector.learns
        return Monitor("val/loss", "min") if proposes else super().monitor

    def prepare_network(self) -> None:
        """Takes over the pictures' statistics. A checkpoint carries them: a resumed run has those that it was trained with."""
        if self.options.statistics is not None:
            known = Statistics.load(self.options.statistics)
            self.model.detector.normalize.adopt(known.mean.tolist(), known.std.tolist())

    def learn(self, resume: bool) -> None:
        """Training, or a fit of the last layers in its place or behind it."""
        options = self.options
        if options.linear is not None:
            self.start(resume)
            self._fit_last_layer(options)
        elif options.machines and self.trainer.max_epochs == 0:
            self.start(resume)
            self.save(self._given())
        else:
            self.fit(resume=resume)
        if options.machines and self.trainer.is_global_zero:
            self._fit_machines()

    def _fit_last_layer(self, options: RunOptions) -> None:
        detector = self._given()
        tried = fit_last_layer(
            detector, self.datamodule.tables["train"], options.linear, c=options.linear_c, **self._loading()
        )
        for c, accuracy in tried.items():
            print(f"c {c:<8g} right in cross-validation: {accuracy:.4f}")
        self.save(detector)

    def _fit_machines(self) -> None:
        """Puts support vector machines and ridge regressors into the best checkpoint."""
        if not self.folder.best.exists():  # see `finish`
            return
        detector = build(str(self.folder.best), self.device)
        loading = self._loading()
        # Other runs have other weights and so other features, which may take many gigabytes: they go when they were used.
        loading["cache"] = self.folder.path / "features"
        print(fit_region_machines(detector, self._table("train"), **loading))
        self.save(detector)
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
        model, table, data = build(str(folder.best), self.device), self._table("val"), self.datamodule
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


def _check_masks(data: DetectionData) -> None:
    for table in (data.tables["train"], data.tables["val"]):
        if table.segmentations is None and len(table.image):
            raise DataError(
                f"{table.describe()}: no object has a mask, from which masks could be learnt; take data with outlines, or "
                "train a detector of boxes (faster_rcnn)"
            )
