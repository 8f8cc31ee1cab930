"""What pretrained weights are worth on few pictures: three ways to the same classifier, in one table.

    python benchmarks/transfer.py COCO --weights mobilenet_v2_imagenet_tfpad.pth       # about 10 minutes on one core

The pictures are crops of the objects of COCO's 20 commonest classes there, of at least 16 pixels, from its training part to
its validation part, all brought to 96x96 pixels. The network is MobileNetV2 with TensorFlow's padding, whose ImageNet
weights the file has.

- fixed: the pretrained network's features, and a linear SVM as its last layer, C by cross-validation;
- staged: fine-tuning, the new last layer first, then four of the six pretrained stages from the last downwards, at a tenth
  of its rate; batch norms keep their statistics, which batches of so few small pictures only spoil;
- random: training of the whole network from random weights, for more epochs and at a larger rate.

Both trainings see the same augmentation. Accuracy is that of the last weights, none are chosen by the validation part;
"of a class" is the mean over the classes, of which one, person, is by far the commonest. Seconds are those of training,
loading included: by the clock and, which other work on the machine disturbs less, of the CPU.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from sightline.datasets.crops import ScaleCrop
from sightline.datasets.data_module import DetectionData
from sightline.datasets.folders import ObjectCrops
from sightline.detectors.classification import Classifier, classifier
from sightline.tools.convert import convert
from sightline.training import CosineDecay, DetectionTraining, StagedUnfreezing, score
from sightline.training.last_layer import fit_last_layer

SIZE = 96
NETWORK = "mobilenet_v2_tf"
UNFREEZE = (0.15, 0.15, 0.3, 0.45)  # shares of the run at which one more stage is trained


@dataclass
class Row:
    """One way's outcome: accuracies in [0, 1], and what its training took."""

    way: str
    epochs: int
    accuracy: float
    of_a_class: float
    seconds: float
    cpu_seconds: float


def fixed(model: Classifier, data: DetectionData, cache: str) -> None:
    """A support vector machine on features of the network as it is."""
    tried = fit_last_layer(model, data.tables["train"], "svm", cache=cache)
    print("C and cross-validated accuracy: " + ", ".join(f"{c:g} {accuracy:.3f}" for c, accuracy in tried.items()))


def train(
    model: Classifier,
    data: DetectionData,
    epochs: int,
    rate: float,
    *,
    backbone_rate: float = 1.0,
    callbacks: Sequence[Callback] = (),
) -> None:
    """AdamW with half a cosine of the rate, as `sightline train` does it."""
    training = DetectionTraining(
        model,
        lambda groups: torch.optim.AdamW(groups, lr=rate, weight_decay=0.01),
        CosineDecay(warmup_steps=30),
        backbone_rate=backbone_rate,
    )
    trainer = Trainer(
        max_epochs=epochs, limit_val_batches=0, logger=False, enable_checkpointing=False, enable_model_summary=False,
        use_distributed_sampler=False, devices=1, callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(training, data)


def measured(way: str, epochs: int, model: Classifier, data: DetectionData, run: Callable[[], None]) -> Row:
    """Trains by `run`, then scores."""
    started, cpu_started = time.perf_counter(), time.process_time()
    run()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    result = score(model.to("cuda" if torch.cuda.is_available() else "cpu"), data.tables["val"], batch_size=32).result
    classes = [1 - row["top1_error"] for row in result.per_class() if row["truths"]]
    accuracy = 1 - result.summary()["top1_error"]
    row = Row(way, epochs, accuracy, float(np.mean(classes)), seconds, cpu_seconds)
    print(f"{way}: {accuracy:.3f}", flush=True)
    return row


def make(data: DetectionData, weights: str | None) -> Classifier:
    """The network, with the data's classes and size of pictures; the norms of pretrained weights are fixed."""
    seed_everything(0)
    model = classifier(NETWORK, data.num_classes, weights=weights, norm="batch" if weights is None else "frozen")
    model.categories, model.resize = list(data.categories), data.resize
    return model


def compare(data: DetectionData, weights: str, epochs: int, random_epochs: int, cache: str) -> list[Row]:
    """The three ways, one after the other."""
    thaw = StagedUnfreezing([round(share * epochs) for share in UNFREEZE])
    pretrained, tuned, random = make(data, weights), make(data, weights), make(data, None)
    return [
        measured("fixed features, SVM", 0, pretrained, data, lambda: fixed(pretrained, data, cache)),
        measured(
            "staged fine-tuning", epochs, tuned, data,
            lambda: train(tuned, data, epochs, 1e-3, backbone_rate=0.1, callbacks=[thaw]),
        ),
        measured(
            "random weights", random_epochs, random, data,
            lambda: train(random, data, random_epochs, 2e-3),
        ),
    ]  # fmt: skip


def table(rows: list[Row]) -> str:
    """The rows as text."""
    lines = [f"{'way':<22} {'epochs':>6} {'accuracy':>9} {'of a class':>11} {'seconds':>8} {'of the CPU':>11}"]
    for row in rows:
        lines.append(
            f"{row.way:<22} {row.epochs or '':>6} {row.accuracy:>9.3f} {row.of_a_class:>11.3f} "
            f"{row.seconds:>8.0f} {row.cpu_seconds:>11.0f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", help="a detection data set with a training and a validation part, such as COCO's")
    parser.add_argument("--weights", required=True, help=f"ImageNet weights of {NETWORK}")
    parser.add_argument("--epochs", type=int, default=12, help="of fine-tuning")
    parser.add_argument("--random-epochs", type=int, default=20, help="of training from random weights")
    parser.add_argument("--json", help="write the numbers here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        crops = str(Path(folder) / "crops")
        convert(arguments.data, "folders", crops, categories=20, crops=ObjectCrops(min_side=16))
        crop = ScaleCrop(size=(SIZE, SIZE), scale=(SIZE, round(1.25 * SIZE)), lighting=0.0)
        data = DetectionData(crops, 32, min_size=SIZE, max_size=SIZE, exact=True, num_workers=0, crop=crop, cache=True)
        machine = (
            torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
        )
        for split in ("train", "val"):
            print(f"{split}: {data.tables[split].describe()}")
        commonest = np.bincount(data.tables["val"].labels).max() / len(data.tables["val"])
        print(f"{machine}, torch {torch.__version__}; always the commonest class: {commonest:.3f}")
        rows = compare(data, arguments.weights, arguments.epochs, arguments.random_epochs, folder)
    print(f"\n{table(rows)}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
