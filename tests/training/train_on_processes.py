"""Trains a tiny detector on one or two CPU processes with the same total batch, and saves what came of it.

python train_on_processes.py PROCESSES OUT
"""

import sys

import torch
from lightning.pytorch import Callback, Trainer

from sightline.datasets.data_module import DetectionData, Shapes
from sightline.detectors import faster_rcnn
from sightline.training import DetectionTraining


class Record(Callback):
    """The loss of every step, over all processes."""

    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, pl_module, outputs, *_):
        self.losses.append(pl_module.all_gather(outputs["loss"]).mean().item())


def main(processes: int, out: str) -> None:
    torch.manual_seed(0)
    detector = faster_rcnn(
        "resnet10_narrow_fpn", 6, norm="group", anchor_sizes=((16,), (32,), (64,), (96,)), proposals=20, head_width=32
    )
    # Samples are drawn at random in each process; looking at everything leaves nothing to chance.
    detector.rpn.samples = detector.roi_heads.samples = 10**6
    detector.rpn.foreground_share = detector.roi_heads.foreground_share = 1.0
    data = DetectionData(batch_size=8 // processes, min_size=64, max_size=64, num_workers=0, shapes=Shapes(24, 9, 64))
    record = Record()
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", devices=processes, strategy="ddp" if processes > 1 else "auto", logger=False,
        callbacks=[record], enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        enable_checkpointing=False, use_distributed_sampler=False,
    )  # fmt: skip
    training = DetectionTraining(detector)
    trainer.fit(training, data)
    if trainer.is_global_zero:
        torch.save(
            {
                "losses": record.losses,
                "scores": training.result.summary(),
                "val_loss": trainer.callback_metrics["val/loss"].item(),
                "weights": detector.state_dict(),
            },
            out,
        )


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
