"""OverFeat on whole pictures beside the same network on every window cut out: equal answers, and what it saves.

python benchmarks/overfeat_dense.py                              # the small network at 128 and 256 pixels
python benchmarks/overfeat_dense.py --network fast --sizes 263   # the paper's, from 231 pixels on
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from sightline.detectors.overfeat import OverFeat, overfeat


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--network", default="small", help='"small", "fast" or "accurate"')
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256], help="height and width of the pictures")
    parser.add_argument("--at_once", type=int, default=64, help="windows that the sliding network sees in a batch")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = overfeat(1000, network=arguments.network).eval().to(device)
    print(
        f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}; {arguments.network}: {model.window} pixels"
    )
    print(f"{'picture':>9} {'windows':>8} {'sliding':>11} {'dense':>11} {'ratio':>7} {'largest difference':>19}")
    for size in arguments.sizes:
        image = torch.randn(1, 3, size, size, device=device)
        ways: dict[str, Callable[[], Tensor]] = {
            "sliding": partial(slide, model, image, arguments.at_once),
            "dense": partial(dense, model, image),
        }
        report(size, ways, measure(ways, arguments.rounds, device))


@torch.inference_mode()
def slide(model: OverFeat, image: Tensor, at_once: int) -> Tensor:
    """(1, channels, h, w): what the network says of every window of `image`, one cut out after the other."""
    views = image[0].unfold(1, model.window, model.stride).unfold(2, model.window, model.stride)
    rows, columns = views.shape[1:3]
    windows = views.permute(1, 2, 0, 3, 4).flatten(0, 1)
    answers = torch.cat([torch.cat(model.dense(some), dim=1) for some in windows.split(at_once)])
    return answers[:, :, 0, 0].T.unflatten(1, (rows, columns))[None]


def dense(model: OverFeat, image: Tensor) -> Tensor:
    """(1, channels, h, w): the same in one pass."""
    return torch.cat(model.dense(image), dim=1)


def measure(ways: dict[str, Callable[[], Tensor]], rounds: int, device: str) -> dict[str, float]:
    """Median seconds of each way; they take turns, after one round to warm up."""
    seen: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode():
        for _ in range(rounds + 1):
            for name, way in ways.items():
                started = _now(device)
                way()
                seen[name].append(_now(device) - started)
    return {name: statistics.median(seconds[1:]) for name, seconds in seen.items()}


def report(size: int, ways: dict[str, Callable[[], Tensor]], seconds: dict[str, float]) -> None:
    """One line: windows, milliseconds of both ways, their ratio, and how far their answers are apart."""
    with torch.inference_mode():
        one, other = (ways[name]() for name in ("sliding", "dense"))
    away, count = (one - other).abs().max().item(), other[0, 0].numel()
    times = [f"{seconds[name] * 1e3:8.1f} ms" for name in ("sliding", "dense")]
    print(
        f"{size:>4}x{size:<4} {count:>8} {' '.join(times)} {seconds['sliding'] / seconds['dense']:6.1f}x {away:19.1e}"
    )


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
