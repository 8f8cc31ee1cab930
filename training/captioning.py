"""Training and validation of captioners: the losses of their decoders, and the scores of what they write."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from ..captioning.decoder import Annotations
from ..captioning.hard_attention import HardAttending
from ..captioning.model import Captioner
from ..captioning.search import Beam
from ..datasets.structures import Batch
from ..evaluation import CaptionCollector, CaptionResult
from .caption_scoring import annotated, judge_captions
from .module import Training, TrainingError
from .schedules import Schedule
from .self_critical import SelfCritic
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
        self_critical: bool = False,
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
            self_critical: learn from the CIDEr-D of sentences drawn by chance instead of from true words, see `SelfCritic`; for a
                last stretch at a low rate, from weights that already write.
            beam: width of the search in validations and of the final scores; 1 is greedy.
        """
        super().__init__(optimizer, schedule, backbone_rate, norm_decay)
        if not 0 <= sampling <= 1:
            raise ValueError(f"sampling must be from 0 to 1, got {sampling}")
        self.captioner, self.sampling = captioner, sampling
        captioner.search = Beam(beam)
        if self_critical and isinstance(captioner.decoder, HardAttending):
            raise ValueError(
                "self_critical does not go with hard attention, whose looks are drawn by chance, too: train soft attention"
            )
        self.self_critical = self_critical
        self._critic: SelfCritic | None = None
        self.result: CaptionResult | None = None

    @property
    def network(self) -> Captioner:
        return self.captioner

    def setup(self, stage: str) -> None:
        """The data also decide how long sentences may be."""
        super().setup(stage)
        data = self.trainer.datamodule
        if data is not None:
            self.captioner.search = replace(self.captioner.search, most=data.longest)
            if self.self_critical:
                truths = [[data.encode(text) for text in group] for group in data.tables["train"].captions]
                self._critic = SelfCritic(truths, most=data.longest)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A run goes on with the words that it began with, and on maps of the backbone that it has."""
        before, now = checkpoint["sightline"]["words"], self.captioner.vocabulary.words
        if before != now:
            raise TrainingError(
                f"the data give a vocabulary of {len(now)} words, the run began with another of {len(before)}: its pictures' "
                "sentences, or data.min_count, have changed since; start a new run"
            )
        if self.trainer.datamodule is not None and self.trainer.datamodule.maps is not None:
            self._check_maps(checkpoint["state_dict"])

    def _check_maps(self, weights: dict[str, Tensor]) -> None:
        """Maps were made by the backbone as it was built: `weights`, which it is about to get, must be the same."""
        backbone = self.captioner.backbone.state_dict(prefix="captioner.backbone.")
        for name, value in backbone.items():
            if not value.cpu().equal(weights[name].cpu()):
                raise TrainingError(
                    f"the backbone's maps on disk do not go with the run ({name} differs): the file of its weights, or the "
                    "seed of random ones, has changed since; go on as the run began, or with --data.cache_maps false"
                )

    def on_train_start(self) -> None:
        self.on_train_epoch_start()  # a run resumed in the middle of an epoch does not start that one

    def on_train_epoch_start(self) -> None:
        self.captioner.decoder.sampling = self.sampling * self.current_epoch / max(1, self._epochs() - 1)

    def _epochs(self) -> int:
        """How many epochs the run has, which its steps may end before its epochs do."""
        trainer = self.trainer
        steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        return min(limit for limit in (trainer.max_epochs, math.ceil(trainer.max_steps / steps)) if limit > 0)

    def losses_of(self, batch: Batch) -> tuple[dict[str, Tensor], Annotations]:
        annotations = annotated(self.captioner, batch)
        if self._critic is not None and self.training:
            loss, reward = self._critic(self.captioner.decoder, annotations, batch.captions.tokens)
            self.log("train/CIDEr-D", reward, on_step=False, on_epoch=True, batch_size=len(batch), sync_dist=True)
            return {"loss_reward": loss}, annotations
        return self.captioner.losses(annotations, batch.captions), annotations

    def judged(self, losses: dict[str, Tensor]) -> Tensor:
        """The words'. Those of attention never come near 0, and the one for REINFORCE is of any size and sign."""
        return losses["loss_words" if "loss_words" in losses else "loss_reward"]

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
