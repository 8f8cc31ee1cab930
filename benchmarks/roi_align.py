"""Times our RoIAlign beside torchvision's MultiScaleRoIAlign on the same maps and boxes, forward and backward.

python benchmarks/roi_align.py                       # one 800 x 1216 picture, 1000 regions, 256 channels
python benchmarks/roi_align.py --images 8 --regions 512
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torchvision.ops import MultiScaleRoIAlign

from sightline.detectors.roi_pool import RoIAlign

STRIDES = (4, 8, 16, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--regions", type=int, default=1000, help="of each image")
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1216), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    height, width = arguments.size
    maps = [
        torch.randn(arguments.images, arguments.channels, height // s, width // s, device=device)
        .to(memory_format=torch.channels_last)
        .requires_grad_()
        for s in STRIDES
    ]
    corner = (
        torch.rand(arguments.images, arguments.regions, 2, device=device)
        * torch.tensor([width, height], device=device)
        * 0.8
    )
    sides = torch.rand_like(corner) ** 2 * torch.tensor([width, height], device=device) * 0.2 + 2
    rois = torch.cat([corner, corner + sides], dim=-1)
    peer, ours = MultiScaleRoIAlign([str(i) for i in range(4)], 7, 2), RoIAlign(STRIDES)
    named = {str(i): level for i, level in enumerate(maps)}
    ways = {
        "torchvision": lambda: peer(named, list(rois), [(height, width)] * arguments.images),
        "ours": lambda: ours(maps, rois),
    }
    away = (ways["ours"]() - ways["torchvision"]()).abs().max().item()
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}; largest difference {away:.1e}")
    times = measure(ways, maps, arguments.rounds, device)
    for name, (forward, backward) in times.items():
        print(f"{name:<12} forward {forward * 1e3:8.1f} ms   backward {backward * 1e3:8.1f} ms")
    ratios = [theirs / mine for theirs, mine in zip(times["torchvision"], times["ours"], strict=True)]
    print(f"ours is {ratios[0]:.1f} and {ratios[1]:.1f} times as fast")


def measure(ways: dict[str, Callable], maps: list[torch.Tensor], rounds: int, device: str) -> dict[str, list[float]]:
    """Median seconds of (forward, backward) of each way; the ways take turns, after one round to warm up."""
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            moments = [_now(device)]
            pooled = way()
            moments.append(_now(device))
            torch.autograd.grad(pooled, maps, torch.ones_like(pooled))
            moments.append(_now(device))
            seen[name].append((moments[1] - moments[0], moments[2] - moments[1]))
    return {name: [statistics.median(column) for column in zip(*rows[1:], strict=True)] for name, rows in seen.items()}


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
