"""Times our RoIAlign beside torchvision's MultiScaleRoIAlign on the same maps and boxes, forward and backward.

python benchmarks/roi_align.py                       # one 800 x 1216 picture, 1000 regions, 256 channels
python benchmarks/roi_align.py --images 8 --regions 512 --precision bfloat16

On a GPU "ours" is the Triton kernel, and its plain version runs beside it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign

from sightline.detectors.boxes import full_precision
from sightline.detectors.roi_align import roi_align_plain
from sightline.detectors.roi_pool import RoIAlign, assign_levels

STRIDES = (4, 8, 16, 32)
BINS, SAMPLES = 7, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--regions", type=int, default=1000, help="of each image")
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1216), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16", "float16"), default="float32", help="of the maps"
    )
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    maps, rois = scene(arguments, device)
    ways = ways_to_pool(maps, rois, arguments.size, device)
    away = max((way() - ways["ours"]()).abs().max().item() for way in ways.values())
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}; largest difference {away:.1e}")
    times = measure(ways, maps, arguments.rounds, device)
    moved = traffic(maps, rois)
    for name, (forward, backward) in times.items():
        rates = "".join(f"   {moved[key] / forward / 1e9:7.4g} GB/s {key}" for key in moved)
        print(f"{name:<12} forward {forward * 1e3:8.2f} ms   backward {backward * 1e3:8.2f} ms{rates}")
    ratios = [theirs / mine for theirs, mine in zip(times["torchvision"], times["ours"], strict=True)]
    print(f"ours is {ratios[0]:.1f} and {ratios[1]:.1f} times as fast")


def scene(arguments: argparse.Namespace, device: str) -> tuple[list[Tensor], Tensor]:
    """Channels-last maps that want gradients, and boxes of up to a fifth of the picture's sides."""
    height, width = arguments.size
    dtype = getattr(torch, arguments.precision)
    maps = [
        torch.randn(arguments.images, arguments.channels, height // s, width // s, device=device)
        .to(dtype, memory_format=torch.channels_last)
        .requires_grad_()
        for s in STRIDES
    ]
    frame = torch.tensor([width, height], device=device)
    corner = torch.rand(arguments.images, arguments.regions, 2, device=device) * frame * 0.8
    sides = torch.rand_like(corner) ** 2 * frame * 0.2 + 2
    return maps, torch.cat([corner, corner + sides], dim=-1)


def ways_to_pool(maps: list[Tensor], rois: Tensor, size: tuple[int, int], device: str) -> dict[str, Callable]:
    """By name; torchvision's operator takes half precision only as autocast gives it, in float32."""
    peer, ours = MultiScaleRoIAlign([str(i) for i in range(4)], BINS, SAMPLES), RoIAlign(STRIDES)

    def torchvisions() -> Tensor:
        named = {str(i): full_precision(level) for i, level in enumerate(maps)}
        return peer(named, list(rois), [tuple(size)] * len(rois)).to(maps[0].dtype)

    def plain() -> Tensor:
        levels = assign_levels(rois, STRIDES)
        return roi_align_plain(maps, rois, levels, strides=STRIDES, output_size=BINS, sampling_ratio=SAMPLES)

    ways = {"torchvision": torchvisions, "ours": lambda: ours(maps, rois)}
    return ways | ({"plain": plain} if device == "cuda" else {})


def traffic(maps: list[Tensor], rois: Tensor) -> dict[str, int]:
    """Bytes of a forward pass: the least that memory moves, maps and result once each, and all that samples read."""
    width = maps[0].shape[1] * maps[0].element_size()
    bins = rois.shape[0] * rois.shape[1] * BINS**2
    maps_bytes = sum(level.numel() * level.element_size() for level in maps)
    return {"at least": maps_bytes + bins * width, "sampled": bins * width * 4 * SAMPLES**2}


def measure(ways: dict[str, Callable], maps: list[Tensor], rounds: int, device: str) -> dict[str, list[float]]:
    """Median seconds of (forward, backward) of each way; the ways take turns, after one round to warm up."""
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            moments = [_now(device)]
            pooled = way()
            moments.append(_now(device))
            gradient = torch.ones_like(pooled)
            moments.append(_now(device))
            torch.autograd.grad(pooled, maps, gradient)
            moments.append(_now(device))
            seen[name].append((moments[1] - moments[0], moments[3] - moments[2]))
    return {name: [statistics.median(column) for column in zip(*rows[1:], strict=True)] for name, rows in seen.items()}


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
