"""Times our matching of anchors with objects beside torchvision's box_iou and Matcher, against the number of objects.

    python benchmarks/assignment.py                           # 250,000 anchors, 8 to 500 objects a picture
    python benchmarks/assignment.py --objects 5000 --alone    # torchvision would need 9 MiB an object, 43 GB in all

Both match the anchors of a region proposal network (foreground from IoU 0.7, or the object's best; background below 0.3), and
must agree. torchvision goes picture by picture. The two take turns; medians over rounds, after one to warm up. On a CPU all is
done by one thread, and its own seconds are counted, which other work on the machine disturbs less; the peak of memory is the
process's, so each figure is measured in a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from sightline.datasets.structures import Instances
from sightline.detectors.assignment import match

FRAME = 1000.0  # pixels a side
STATUS = Path("/proc/self/status")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--anchors", type=int, default=250_000)
    parser.add_argument("--objects", type=int, nargs="+", default=[8, 50, 100, 500], help="of a picture (8 50 100 500)")
    parser.add_argument("--batch", type=int, default=2, help="pictures (2)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--alone", action="store_true", help="ours only")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    names = ["ours"] if arguments.alone else list(WAYS)
    print(f"{device}, torch {torch.__version__}; {arguments.anchors} anchors, batch {arguments.batch}")
    for objects in arguments.objects:
        sizes = arguments.batch, arguments.anchors, objects, device
        seconds = times(names, *sizes, rounds=arguments.rounds)
        peaks = [in_a_process(peak, name, *sizes) for name in names]
        figures = [f"{n} {1e3 * s:9.1f} ms {p:7.0f} MiB" for n, s, p in zip(names, seconds, peaks, strict=True)]
        if not arguments.alone:
            figures.append(f"ours is {seconds[1] / seconds[0]:.1f} times as fast")
        print(f"  {objects:5} objects", *figures, sep="   ")


def scene(pictures: int, anchors: int, objects: int, device: str) -> tuple[Tensor, Instances]:
    """Anchors of three shapes over five levels' grids, about as many as asked for, and objects of 10 to 300 pixels."""
    torch.manual_seed(0)
    levels = [_level(2.0**level, round((anchors / 3 * 0.75 / 4**level) ** 0.5)) for level in range(5)]
    centre, side = FRAME * torch.rand(pictures, objects, 2), 10 * 30 ** torch.rand(pictures, objects, 2)
    boxes = torch.cat([centre - side / 2, centre + side / 2], dim=-1)
    targets = Instances(boxes, torch.zeros(pictures, objects, dtype=torch.int64))
    return torch.cat(levels).to(device), targets.to(device)


def _level(scale: float, cells: int) -> Tensor:
    """(3 cells^2, 4): a square of 32 pixels times `scale` and two oblongs around each cell's centre."""
    place = (torch.arange(cells) + 0.5) * FRAME / max(cells, 1)
    centre = torch.stack(torch.meshgrid(place, place, indexing="xy"), dim=-1).view(-1, 1, 2)
    half = 16 * scale * torch.tensor([[1.0, 1.0], [1.4, 0.7], [0.7, 1.4]])
    return torch.cat([centre - half, centre + half], dim=-1).view(-1, 4)


def ours(anchors: Tensor, targets: Instances) -> list[Tensor]:
    """Of each picture torchvision's numbers: the object, -1 for background, -2 for neither."""
    found = match(anchors, targets, foreground_iou=0.7, background_iou=0.3, low_quality=True)
    return list(torch.where(found.foreground, found.idxs, torch.where(found.background, -1, -2)))


def torchvisions(anchors: Tensor, targets: Instances) -> list[Tensor]:
    matcher = Matcher(0.7, 0.3, allow_low_quality_matches=True)
    return [matcher(box_iou(boxes, anchors)) for boxes in targets.boxes]


WAYS: dict[str, Callable] = {"ours": ours, "torchvision": torchvisions}


def times(names: list[str], pictures: int, anchors: int, objects: int, device: str, *, rounds: int) -> list[float]:
    """Median seconds of each, having seen that they agree."""
    given = scene(pictures, anchors, objects, device)
    for mine, *others in zip(*(WAYS[name](*given) for name in names), strict=True):
        for theirs in others:
            assert torch.equal(mine, theirs), f"{(mine != theirs).sum()} of {len(mine)} anchors differ"
    seen: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            start = _now(device)
            WAYS[name](*given)
            seen[name].append(_now(device) - start)
    return [statistics.median(seconds) for seconds in seen.values()]


def in_a_process(function: Callable[..., float], *arguments: object) -> float:
    """What the function returns, in a process that did nothing else."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def peak(name: str, pictures: int, anchors: int, objects: int, device: str) -> float:
    """MiB that one way takes beyond the boxes that it is given."""
    given = scene(pictures, anchors, objects, device)
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        WAYS[name](*given)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    torch.set_num_threads(1)
    before = _kilobytes("VmRSS")
    WAYS[name](*given)
    return (_kilobytes("VmHWM") - before) / 2**10


def _kilobytes(name: str) -> float:
    """Of this process, as Linux tells it; NaN elsewhere. (`resource`'s figure would start from the parent's.)"""
    found = STATUS.exists() and re.search(rf"{name}:\s+(\d+) kB", STATUS.read_text())
    return int(found[1]) if found else float("nan")


def _now(device: str) -> float:
    if device == "cpu":
        return time.thread_time()
    torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
