"""Training and validation of captioners: the losses of their decoders, and the scores of what they write."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from ..captioning.decoder import Annotations
from ..captioning.model import Captioner
from ..captioning.search import Beam
from ..datasets.structures import Batch
from ..evaluation import CaptionCollector, CaptionResult
from .caption_scoring import annotated, judge_captions
from .module import Training, TrainingError
from .schedules import Schedule
from .tasks import MONITORS


def _adamw(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=1e-3, weight_decay=1e-4)


class CaptionTraining(Training):
    """One Lightning module for every captioner.

    Logs BLEU, ROUGE-L and CIDEr after each validation, beside the losses.

    Attributes:
        result: the last validation's scores; None before the first.
    """

    def __init__(
        self,
        captioner: Captioner,
        optimizer: OptimizerCallable = _adamw,
        schedule: Schedule | None = None,
        *,
        backbone_rate: float = 1.0,
        norm_decay: bool = True,
        sampling: float = 0.0,
        beam: int = 3,
    ) -> None:
        """
        Args:
            captioner: the network.
            optimizer: e.g. torch.optim.AdamW with its numbers.
            schedule: how the rate changes; by default two drops by ten, after a warm-up of 100 steps.
            backbone_rate: the backbone's learning rate as a share of the others'.
            norm_decay: let weight decay shrink biases and norms' weights too.
            sampling: scheduled sampling: the chance, in the last epoch, that a word the decoder is given is its own guess; it
                grows from 0 in the first, evenly.
            beam: width of the search in validations and of the final scores; 1 is greedy.
        """
        super().__init__(optimizer, schedule, backbone_rate, norm_decay)
        if not 0 <= sampling <= 1:
            raise ValueError(f"sampling must be from 0 to 1, got {sampling}")
        self.captioner, self.sampling = captioner, sampling
        captioner.search = Beam(beam)
        self.result: CaptionResult | None = None

    @property
    def network(self) -> Captioner:
        return self.captioner

    def setup(self, stage: str) -> None:
        """The data also decide how long sentences may be."""
        super().setup(stage)
        if self.trainer.datamodule is not None:
            self.captioner.search = replace(self.captioner.search, most=self.trainer.datamodule.longest)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A run goes on with the words that it began with."""
        before, now = checkpoint["sightline"]["words"], self.captioner.vocabulary.words
        if before != now:
            raise TrainingError(
                f"the data give a vocabulary of {len(now)} words, the run began with another of {len(before)}: its pictures' "
                "sentences, or data.min_count, have changed since; start a new run"
            )

    def on_train_start(self) -> None:
        self.on_train_epoch_start()  # a run resumed in the middle of an epoch does not start that one

    def on_train_epoch_start(self) -> None:
        epochs = self.trainer.max_epochs or 1
        self.captioner.decoder.sampling = self.sampling * self.current_epoch / max(1, epochs - 1)

    def losses_of(self, batch: Batch) -> tuple[dict[str, Tensor], Annotations]:
        annotations = annotated(self.captioner, batch)
        return self.captioner.losses(annotations, batch.captions), annotations

    def on_validation_epoch_start(self) -> None:
        self._collector = CaptionCollector()

    def validation_step(self, batch: Batch, index: int) -> None:
        found = self.captioner.decode(self.validated(batch), batch.sizes)
        self._collector.update(found, [info.id for info in batch.infos])

    def on_validation_epoch_end(self) -> None:
        collector, table = self._collector.gather(), self.trainer.datamodule.tables["val"]
        self.result = judge_captions(self.captioner.vocabulary, table, collector)
        numbers = self.validation_losses() | self.result.summary()
        self.log_validation(numbers, MONITORS[self.captioner.task].name)
