"""Spatial transformers on distorted MNIST: test errors beside those of the paper's table 1, and what each transformer crops.

    python benchmarks/distorted_mnist.py data/mnist                             # everything: hours of one core
    python benchmarks/distorted_mnist.py data/mnist --networks cnn st_cnn --transforms affine --distortions R

Jaderberg et al. 2015, https://arxiv.org/abs/1506.02025, section 4.1. Training digits are distorted anew in every epoch; the
10,000 test digits are distorted once, by a seed of their own. Each finished run adds a line to OUTPUT/results.jsonl, and a
transformer's a picture (its inputs with the outline of what it samples, above its outputs); what is there is not run again.
The paper's networks saw 600 epochs or more, without batch norm and with steps of the rate; here it is one cycle of AdamW.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from sightline.backbone.mnist_networks import DigitNetwork, cnn, fcn, st_cnn, st_fcn
from sightline.backbone.spatial_transformer import Affine, Projective, ThinPlateSpline, Transform
from sightline.datasets.distort import DISTORTIONS, SIZES
from sightline.datasets.mnist import read_digits

matplotlib.use("Agg")
from matplotlib import pyplot as plt

TRANSFORMS: dict[str, Callable[[], Transform]] = {
    "affine": Affine, "projective": Projective, "tps": ThinPlateSpline,
}  # fmt: skip
PLAIN = {"fcn": fcn, "cnn": cnn}
TRANSFORMED = {"st_fcn": st_fcn, "st_cnn": st_cnn}
# Of the training digits, by network, or row where one needs others; larger pictures take more, above all without a transformer.
EPOCHS = {
    "fcn": {"R": 40, "RTS": 120, "P": 40, "E": 40, "cluttered": 300},
    "cnn": {"R": 10, "RTS": 60, "P": 10, "E": 10, "cluttered": 15},
    "st_fcn": {"R": 40, "RTS": 40, "P": 40, "E": 40, "cluttered": 1125},
    "st_fcn tps": {"RTS": 80},
    "st_cnn": {"R": 10, "RTS": 16, "P": 10, "E": 10, "cluttered": 30},
}
# Test errors in percent: table 1, and the text of section 4.1 for clutter.
PAPER = {
    "fcn": {"R": 2.1, "RTS": 5.2, "P": 3.1, "E": 3.2, "cluttered": 13.2},
    "cnn": {"R": 1.2, "RTS": 0.8, "P": 1.5, "E": 1.4, "cluttered": 3.5},
    "st_fcn affine": {"R": 1.2, "RTS": 0.8, "P": 1.5, "E": 2.7, "cluttered": 2.0},
    "st_fcn projective": {"R": 1.3, "RTS": 0.9, "P": 1.4, "E": 2.6},
    "st_fcn tps": {"R": 1.1, "RTS": 0.8, "P": 1.4, "E": 2.4},
    "st_cnn affine": {"R": 0.7, "RTS": 0.5, "P": 0.8, "E": 1.2, "cluttered": 1.7},
    "st_cnn projective": {"R": 0.8, "RTS": 0.6, "P": 0.8, "E": 1.3},
    "st_cnn tps": {"R": 0.7, "RTS": 0.5, "P": 0.8, "E": 1.1},
}


class Run(NamedTuple):
    """One cell of the table."""

    network: str
    transform: str  # empty for networks without a transformer
    distortion: str

    @property
    def row(self) -> str:
        return f"{self.network} {self.transform}".strip()

    @property
    def epochs(self) -> int:
        return (EPOCHS[self.network] | EPOCHS.get(self.row, {}))[self.distortion]

    @property
    def localisation_rate(self) -> float:
        """As a share of the classifier's: a tenth, as in the paper, with which an ST-FCN learns too slowly to find a digit."""
        return 1.0 if self.network == "st_fcn" and self.distortion == "cluttered" else 0.1

    def build(self) -> DigitNetwork:
        size = SIZES[self.distortion]
        if self.transform:
            return TRANSFORMED[self.network](size, transform=TRANSFORMS[self.transform]())
        return PLAIN[self.network](size)


def runs(arguments: argparse.Namespace) -> list[Run]:
    """The chosen cells, in the order of the options; of clutter the paper has the affine transformers only."""
    found = []
    for distortion in arguments.distortions:
        transforms = [t for t in arguments.transforms if t == "affine" or distortion != "cluttered"]
        for network in arguments.networks:
            found += [Run(network, t, distortion) for t in (transforms if network in TRANSFORMED else [""])]
    return found


# -- Training and testing --


def train(
    run: Run, digits: Tensor, labels: Tensor, *, epochs: int, rate: float, batch: int, device: str
) -> DigitNetwork:
    """Fresh distortions in every epoch, in bfloat16 where that is safe."""
    network = run.build().to(device, memory_format=torch.channels_last)
    optimizer, scheduler = one_cycle(network, rate, epochs * (len(digits) // batch), run.localisation_rate)
    for epoch in range(epochs):
        started, losses = time.perf_counter(), []
        for pictures, targets in batches(run.distortion, digits, labels, batch, seed=epoch):
            with torch.autocast(device, torch.bfloat16):
                logits = network(pictures.to(device))
            loss = F.cross_entropy(logits.float(), targets.to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)  # a transformer that loses its digit must not run off
            optimizer.step()
            scheduler.step()
            losses.append(loss.detach())
        loss = torch.stack(losses).mean().item()
        print(f"  epoch {epoch + 1:>3} of {epochs}  loss {loss:.4f}  {time.perf_counter() - started:.1f} s", flush=True)
    return network


def one_cycle(
    network: DigitNetwork, rate: float, steps: int, localisation_rate: float
) -> tuple[torch.optim.AdamW, OneCycleLR]:
    """AdamW with one cycle of the rate; the localisation network at a share of it."""
    groups = [{"params": list(network.classifier.parameters()), "lr": rate}]
    if network.transformer is not None:
        groups.append({"params": list(network.transformer.parameters()), "lr": rate * localisation_rate})
    peaks = [group["lr"] for group in groups]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01, fused=True)
    return optimizer, OneCycleLR(optimizer, peaks, total_steps=steps, pct_start=0.2)


def batches(
    distortion: str, digits: Tensor, labels: Tensor, size: int, *, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """An epoch of full batches: pictures (B, 1, S, S) freshly distorted, and labels (B,)."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(digits), generator=generator)
    for rows in order[: len(order) // size * size].split(size):
        yield DISTORTIONS[distortion](digits[rows], generator), labels[rows].long()


def distorted_test_set(distortion: str, digits: Tensor) -> Tensor:
    """Always the same pictures; the seed is none of an epoch's."""
    return DISTORTIONS[distortion](digits, torch.Generator().manual_seed(2**31))


@torch.inference_mode()
def test_error(network: DigitNetwork, pictures: Tensor, labels: Tensor, device: str) -> float:
    """In percent; in full precision."""
    network.eval()
    found = torch.cat([network(part.to(device)).argmax(1).cpu() for part in pictures.split(500)])
    return 100 * (found != labels).float().mean().item()


# -- What is shown --


def print_table(results: list[dict]) -> None:
    """Ours / the paper's; more than 0.3 above the paper's is marked."""
    errors = {(result["row"], result["distortion"]): result["error"] for result in results}
    print(f"\n{'test error, % (paper)':<22}" + "".join(f"{name:>15}" for name in SIZES))
    for row, paper in PAPER.items():
        cells = []
        for distortion in SIZES:
            ours, theirs = errors.get((row, distortion)), paper.get(distortion)
            mark = "!" if ours is not None and theirs is not None and ours > theirs + 0.3 else ""
            shown = f"{'-' if ours is None else f'{ours:.2f}'}{mark}"
            cells.append(f"{shown:>8} {f'({theirs})' if theirs is not None else '':<6}")
        print(f"{row:<22}" + "".join(cells))


@torch.inference_mode()
def draw_crops(network: DigitNetwork, pictures: Tensor, path: Path, device: str) -> None:
    """Inputs with the outline of the sampled grid (its upper edge in cyan), above the transformer's outputs."""
    transformer, pictures = network.transformer, pictures.to(device)
    grid, outputs = transformer.grid(pictures).cpu().numpy(), transformer(pictures).cpu().numpy()
    figure, axes = plt.subplots(2, len(pictures), figsize=(1.2 * len(pictures), 2.5), squeeze=False)
    side = pictures.shape[-1]
    border = F.pad(pictures[:, 0].cpu(), [side // 4] * 4)  # for grids that reach beyond the picture
    for column, (top, bottom) in enumerate(axes.T):
        outline = np.concatenate([grid[column, 0], grid[column, :, -1], grid[column, -1, ::-1], grid[column, ::-1, 0]])
        top.imshow(border[column], cmap="gray")
        top.autoscale(False)
        for edge, colour in ((outline, "tab:orange"), (grid[column, 0], "tab:cyan")):
            top.plot(*((edge.T + 1) * side / 2 - 0.5 + side // 4), color=colour, linewidth=1.2)
        bottom.imshow(outputs[column, 0], cmap="gray")
        top.axis("off")
        bottom.axis("off")
    figure.tight_layout(pad=0.2)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", help="folder of the four MNIST files")
    parser.add_argument("--networks", nargs="+", choices=[*PLAIN, *TRANSFORMED], default=[*PLAIN, *TRANSFORMED])
    parser.add_argument("--transforms", nargs="+", choices=TRANSFORMS, default=list(TRANSFORMS))
    parser.add_argument("--distortions", nargs="+", choices=DISTORTIONS, default=list(DISTORTIONS))
    parser.add_argument(
        "--effort", type=float, default=1.0, help="multiplies the epochs, 10 to 1125 by network and distortion"
    )
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=3e-3, help="the peak of the cycle")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    parser.add_argument("--output", type=Path, default=Path("runs/distorted_mnist"))
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)  # batch norm's small numbers slow a CPU down
    arguments.output.mkdir(parents=True, exist_ok=True)
    print_table(run_all(arguments))


def run_all(arguments: argparse.Namespace) -> list[dict]:
    """Runs what has not been run; returns the records of all runs, of this command and earlier ones."""
    record = arguments.output / "results.jsonl"
    results = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    finished = {(result["row"], result["distortion"]) for result in results}
    digits, labels = read_digits(arguments.data, "train")
    test_digits, test_labels = read_digits(arguments.data, "test")
    for run in runs(arguments):
        if (run.row, run.distortion) in finished:
            continue
        print(f"{run.row} on {run.distortion}", flush=True)
        torch.manual_seed(arguments.seed)
        epochs = max(1, round(arguments.effort * run.epochs))
        started, cpu_started = time.perf_counter(), time.process_time()
        network = train(
            run, digits, labels, epochs=epochs, rate=arguments.rate, batch=arguments.batch, device=arguments.device
        )
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
        pictures = distorted_test_set(run.distortion, test_digits)
        results.append({
            "row": run.row, "distortion": run.distortion, "epochs": epochs, "batch": arguments.batch, "rate": arguments.rate,
            "seed": arguments.seed, "parameters": sum(p.numel() for p in network.parameters()),
            "error": round(test_error(network, pictures, test_labels, arguments.device), 2),
            "seconds": round(seconds), "cpu_seconds": round(cpu_seconds),
        })  # fmt: skip
        with record.open("a") as file:
            file.write(json.dumps(results[-1]) + "\n")
        print(f"  test error {results[-1]['error']:.2f} %, {seconds:.0f} s", flush=True)
        if network.transformer is not None:
            name = f"{run.row} {run.distortion}".replace(" ", "-")
            draw_crops(network, pictures[:12], arguments.output / f"{name}.png", arguments.device)
    return results


if __name__ == "__main__":
    main()
