"""AP over seconds of training, of several runs in one picture: which model learns faster on one machine?

    sightline train yolox_nano --data bccd/ …
    sightline train faster_rcnn_r18 --data bccd/ …
    python benchmarks/ap_over_time.py runs/yolox_nano/1 runs/faster_rcnn_r18/1 --output curves.png

Reads AP and train_seconds (steps and loading, without validation) from the runs' metrics.csv. The table tells when each run
first reached half, three quarters and nine tenths of the best AP of all.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from sightline.evaluation.plots import COLOURS, dress_axes, save_figure
from sightline.evaluation.training_curves import read_metrics

SHARES = (0.5, 0.75, 0.9)


def main() -> None:
    arguments = _arguments()
    curves = {name: curve(path) for name, path in zip(_names(arguments), arguments.runs, strict=True)}
    print(table(curves))
    plot(curves, arguments.output)


def curve(run: str) -> tuple[np.ndarray, np.ndarray]:
    """(seconds, AP) at each validation of a run's folder."""
    metrics = read_metrics(Path(run) / "metrics.csv")
    if "AP" not in metrics or "train_seconds" not in metrics:
        raise SystemExit(f"{run}/metrics.csv has no AP and train_seconds: is it a detector's, trained by this version?")
    (steps, seconds), (scored, scores) = metrics["train_seconds"], metrics["AP"]
    return np.interp(scored, steps, seconds), scores


def table(curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """Per run: the last and the best AP, the seconds of training, and the seconds to shares of the best AP of all."""
    best = max(scores.max() for _, scores in curves.values())
    heads = ["run", "AP", "best AP", "seconds", *(f"s to {share * best:.3f}" for share in SHARES)]
    width = max(map(len, (*curves, heads[0])))
    lines = ["  ".join([heads[0].ljust(width), *(head.rjust(10) for head in heads[1:])])]
    for name, (seconds, scores) in curves.items():
        reached = [seconds[scores >= share * best] for share in SHARES]
        cells = [f"{scores[-1]:.3f}", f"{scores.max():.3f}", f"{seconds[-1]:.0f}"]
        cells += [f"{times[0]:.0f}" if len(times) else "-" for times in reached]
        lines.append("  ".join([name.ljust(width), *(cell.rjust(10) for cell in cells)]))
    return "\n".join(lines)


def plot(curves: dict[str, tuple[np.ndarray, np.ndarray]], path: str) -> None:
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    dress_axes(axes, "AP over time", "seconds of training", "AP")
    for (name, (seconds, scores)), colour in zip(curves.items(), COLOURS, strict=False):
        axes.plot(seconds, scores, color=colour, linewidth=1.8, marker="o", markersize=3, label=name)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    save_figure(figure, path)


def _names(arguments: argparse.Namespace) -> list[str]:
    """The recipes' names; where they are not different, the folders'."""
    names = arguments.names or [Path(run).resolve().parent.name for run in arguments.runs]
    return names if len(set(names)) == len(names) else list(arguments.runs)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", help="folders that `sightline train` left, e.g. runs/yolox_s/1"
    )
    parser.add_argument("--names", metavar="NAME", nargs="+", help="for the legend; by default the recipes'")
    parser.add_argument("--output", metavar="FILE", default="ap_over_time.png", help="the picture (ap_over_time.png)")
    arguments = parser.parse_args()
    if arguments.names and len(arguments.names) != len(arguments.runs):
        parser.error(f"{len(arguments.names)} names for {len(arguments.runs)} runs")
    return arguments


if __name__ == "__main__":
    main()
