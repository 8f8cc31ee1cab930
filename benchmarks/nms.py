"""Times our suppression of a whole batch beside torchvision's batched_nms, which is called picture by picture.

    python benchmarks/nms.py                    # batches of 1 and 8
    python benchmarks/nms.py --batch 1 --rounds 30

The boxes are random clusters: 5 levels of 1000 boxes a picture, as a region proposal network has them, at IoU 0.7, and 2048
boxes of 80 labels, as a second stage has them, at 0.5. On a CPU ours is the plain version, on a GPU the kernels. Both must
leave the same boxes. The ways take turns; medians over rounds, after one to warm up. On a CPU all is done by one thread, and
its own seconds are counted, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from sightline.detectors.nms import nms

CLUSTERS = 100  # of a group


class Scene(NamedTuple):
    """Boxes of B pictures, best first in each group.

    Attributes:
        boxes: (B, L, K, 4), xyxy: L groups a picture.
        scores: (B, L, K).
        labels: (B, L, K).
        threshold: of IoU.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    threshold: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="pictures (1 8)")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print(f"{device}, torch {torch.__version__}; milliseconds a batch")
    for pictures in arguments.batch:
        compare(f"5 levels of 1000, batch {pictures}", scene(pictures, 5, 1000, 1, 0.7, device), arguments.rounds)
        compare(f"2048 of 80 labels, batch {pictures}", scene(pictures, 1, 2048, 80, 0.5, device), arguments.rounds)


def compare(name: str, boxes: Scene, rounds: int) -> None:
    """Prints the times of both and their ratio, having seen that they agree."""
    ways = {"ours": lambda: ours(boxes), "torchvision": lambda: torchvisions(boxes)}
    kept = ways["ours"]()
    for picture, idxs in enumerate(ways["torchvision"]()):
        assert torch.equal(kept[picture].flatten().nonzero()[:, 0], idxs.sort().values), f"{name}: picture {picture}"
    seconds = measure(ways, rounds, boxes.boxes.device.type)
    print(
        f"  {name:<28} ours {1e3 * seconds['ours']:8.2f}   torchvision {1e3 * seconds['torchvision']:8.2f}   "
        f"ours is {seconds['torchvision'] / seconds['ours']:.2f} times as fast   {kept.float().mean():.0%} kept"
    )


def scene(pictures: int, levels: int, number: int, labels: int, threshold: float, device: str) -> Scene:
    """Boxes scattered around the members of `CLUSTERS`, each of which has a place, a size and a label."""
    shape = pictures, levels, CLUSTERS
    places = torch.rand(*shape, 2) * torch.tensor([1216.0, 800.0])
    sides = 20 * 16 ** torch.rand(*shape, 2)
    which = torch.randint(CLUSTERS, (pictures, levels, number))
    pair = which[..., None].expand(-1, -1, -1, 2)
    centre = places.gather(2, pair) + 8 * torch.randn(*which.shape, 2)
    half = 0.5 * sides.gather(2, pair) * torch.exp(0.15 * torch.randn(*which.shape, 2))
    scores = torch.rand(which.shape).sort(dim=-1, descending=True).values
    label = torch.randint(labels, shape).gather(2, which)
    boxes = torch.cat([centre - half, centre + half], dim=-1)
    return Scene(boxes.to(device), scores.to(device), label.to(device), threshold)


def ours(scene: Scene) -> Tensor:
    """(B, L, K) bool."""
    valid = torch.ones_like(scene.labels, dtype=torch.bool).flatten(0, 1)
    labels = None if scene.boxes.shape[1] > 1 else scene.labels.flatten(0, 1)  # proposals have no labels
    return nms(scene.boxes.flatten(0, 1), valid, scene.threshold, labels).view_as(scene.labels)


def torchvisions(scene: Scene) -> list[Tensor]:
    """Of each picture the indices kept, which says nothing yet of padding them to one shape."""
    levels = torch.arange(scene.boxes.shape[1], device=scene.boxes.device)[:, None]
    groups = (scene.labels + 1000 * levels).flatten(1)
    values = zip(scene.boxes.flatten(1, 2), scene.scores.flatten(1), groups, strict=True)
    return [batched_nms(boxes, scores, group, scene.threshold) for boxes, scores, group in values]


def measure(ways: dict[str, Callable], rounds: int, device: str) -> dict[str, float]:
    """Median seconds of each way."""
    seen: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            start = _now(device)
            way()
            seen[name].append(_now(device) - start)
    return {name: statistics.median(seconds[1:]) for name, seconds in seen.items()}


def _now(device: str) -> float:
    if device == "cpu":
        return time.thread_time()
    torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
