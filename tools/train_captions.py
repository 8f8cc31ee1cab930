"""The training of captioners: what `sightline train` does with a recipe of one."""

from __future__ import annotations

from jsonargparse import Namespace
from torch import nn

from sightline.captioning import load
from sightline.captioning.vocabulary import Vocabulary
from sightline.datasets.caption_data import CaptionData
from sightline.datasets.table import DataError
from sightline.tools.train_cli import TrainCLI
from sightline.tools.train_options import RunOptions
from sightline.training.caption_scoring import score_captions
from sightline.training.captioning import CaptionTraining
from sightline.training.feature_maps import cached_maps


class CaptionCLI(TrainCLI):
    """A run of a recipe with `model.captioner`."""

    MODULE, DATA, NETWORK = CaptionTraining, CaptionData, "captioner"

    def fit_to_data(self, arguments: Namespace) -> None:
        """As many words as stand often enough in the training sentences."""
        self._vocabulary = Vocabulary.of(self._data.texts("train"), self._data.min_count)
        arguments.num_words = len(self._vocabulary)

    def check(self) -> None:
        """See `TrainCLI.check`; also makes model and data know the same words."""
        options, captioner = self.options, self.model.captioner
        captioner.vocabulary, self.datamodule.encode = self._vocabulary, self._vocabulary.encode
        for name in ("machines", "linear", "statistics"):
            if getattr(options, name):
                raise DataError(f"--run.{name} is for detectors and classifiers; a captioner knows none: leave it out")
        if self.datamodule.cache_maps and _trains(captioner.backbone, options):
            raise DataError(
                "--data.cache_maps keeps what a frozen backbone makes of the pictures, but this one is trained: leave it out, or "
                "set --model.captioner.init_args.trainable_stages 0 and no --run.unfreeze"
            )

    def prepare_data(self) -> None:
        """Has the frozen backbone look at all pictures once, where that is asked for and a run is long enough for it."""
        data = self.datamodule
        if data.cache_maps and self.options.only_steps is None:
            loading = {"batch_size": data.batch_size, "num_workers": data.num_workers}
            captioner, cache = self.network.to(self.device), self.folder.path.parent / "features"
            captioner.resize = tuple(data.resize)
            data.maps = {split: cached_maps(captioner, table, cache, **loading) for split, table in data.tables.items()}

    def finish(self, seconds: float) -> None:
        """See `TrainCLI.finish`."""
        folder, data = self.folder, self.datamodule
        if not folder.best.exists():  # Lightning's fast_dev_run saves nothing
            return
        model = load(folder.best, device=self.device)
        model.search = self.network.search
        table = data.tables["val"]
        scored = score_captions(model, table, batch_size=data.batch_size, num_workers=data.num_workers)
        details = {"data": data.path, "checkpoint": str(folder.best), "training": f"{seconds:.0f} s"}
        folder.finish(scored, table, details, {"train_seconds": round(seconds, 1)})
        print(f"\n{scored.result.table()}\n\ntrained in {seconds:.0f} s; see {folder.path / 'report.html'}")


def _trains(backbone: nn.Module, options: RunOptions) -> bool:
    """Whether a run changes the backbone, now or later."""
    return options.unfreeze is not None or any(parameter.requires_grad for parameter in backbone.parameters())
