"""The training of captioners: what `sightline train` does with a recipe of one."""

from __future__ import annotations

from jsonargparse import Namespace
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import nn

from sightline.captioning import load
from sightline.captioning.known_words import take_known_words
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
                raise DataError(f"--run.{name} is for detectors and classifiers, not for a captioner: leave it out")
        if options.overfit and self.model.self_critical:
            raise DataError(
                "--run.overfit watches the loss of true words, and --model.self_critical true has none: leave out one"
            )
        most, longest = captioner.decoder.most_words, self.datamodule.longest
        if most is not None and longest + 1 > most:
            raise DataError(
                f"--data.longest {longest}: with their end such sentences are longer than the decoder's {most} words; set "
                f"--data.longest {most - 1} or less, or --model.captioner.init_args.most_words {longest + 1}"
            )
        if self.datamodule.cache_maps:
            self._check_cached_maps()

    def _check_cached_maps(self) -> None:
        """Maps are made once: neither the backbone nor the pictures may change afterwards."""
        if _trains(self.model.captioner.backbone, self.options):
            raise DataError(
                "--data.cache_maps keeps what a frozen backbone makes of the pictures, but this one is trained: set "
                "--data.cache_maps false, or --model.captioner.init_args.trainable_stages 0 and no --run.unfreeze"
            )
        if self.datamodule.augment is not None:
            raise DataError(
                "--data.cache_maps keeps what a backbone makes of the pictures, which --data.augment changes: set "
                "--data.cache_maps false, or --data.augment null"
            )

    def prepare_data(self) -> None:
        """Has the frozen backbone look at all pictures once, where that is asked for and a run is long enough for it."""
        data = self.datamodule
        if data.cache_maps and self.options.only_steps is None:
            loading = {"batch_size": data.batch_size, "num_workers": data.num_workers}
            captioner, cache = self.network.to(self.device), self.folder.path.parent / "features"
            captioner.resize = tuple(data.resize)
            data.maps = {split: cached_maps(captioner, table, cache, **loading) for split, table in data.tables.items()}

    def prepare_network(self) -> None:
        """See `TrainCLI.prepare_network`. Words that given weights know stand elsewhere in these data's vocabulary."""
        weights, words = self.builder_arguments.get("weights"), len(self._vocabulary)
        if weights is not None and (known := take_known_words(self.network, weights)):
            rank_zero_info(f"{weights} knows {known} of {words} words")
        # What is to be learnt by heart are the true words, which nothing blurs.
        if self.options.overfit:
            self.model.sampling = self.network.decoder.smoothing = 0.0

    def finish(self, seconds: float) -> None:
        """See `TrainCLI.finish`."""
        folder, data = self.folder, self.datamodule
        if not folder.best.exists():  # Lightning's fast_dev_run saves nothing
            return
        model = load(folder.best, device=self.device)
        model.search = self.network.search
        table, maps = data.tables["val"], None if data.maps is None else data.maps["val"]
        scored = score_captions(model, table, maps=maps, batch_size=data.batch_size, num_workers=data.num_workers)
        details = {"data": data.path, "checkpoint": str(folder.best), "training": f"{seconds:.0f} s"}
        folder.finish(scored, table, details, {"train_seconds": round(seconds, 1)})
        print(f"\n{scored.result.table()}\n\ntrained in {seconds:.0f} s; see {folder.path / 'report.html'}")


def _trains(backbone: nn.Module, options: RunOptions) -> bool:
    """Whether a run changes the backbone, now or later."""
    return options.unfreeze is not None or any(parameter.requires_grad for parameter in backbone.parameters())
