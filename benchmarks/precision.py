"""How far boxes move when a detector answers in bfloat16 instead of float32.

    python benchmarks/precision.py yolox_nano@yolox_nano.onnx coco/images/
    python benchmarks/precision.py runs/shapes/1/checkpoints/best.ckpt pictures/ --score 0.5

An object that float32 finds is looked for among bfloat16's of its category, by IoU. One with which none has an IoU of 0.5 is
lost; of the others it is printed how far the edge moved that moved farthest.
"""

from __future__ import annotations

import argparse
import sys

import torch
from torch import Tensor

from sightline.datasets.structures import Instances
from sightline.detectors.boxes import iou
from sightline.tools.model_names import trained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint, or a name and its weights")
    parser.add_argument("pictures", help="a folder")
    parser.add_argument("--score", type=float, default=0.3, help="the least, in float32 (0.3)")
    arguments = parser.parse_args()
    model = trained(arguments.model, "cuda" if torch.cuda.is_available() else "cpu")
    model.precision = "float32"
    exact = list(model.predict(arguments.pictures, score=arguments.score))
    model.precision = "bfloat16"
    found = list(model.predict(arguments.pictures, score=0.0))
    moved = torch.cat([shifts(*pair) for pair in zip(exact, found, strict=True)])
    there = moved[moved.isfinite()]
    print(f"{len(exact)} pictures, {len(moved)} objects, {len(moved) - len(there)} lost; pixels moved:")
    if len(there) == 0:
        sys.exit("nothing to compare; choose a lower --score or other pictures")
    print(f"median {there.median():.2f}, ninth decile {there.quantile(0.9):.2f}, farthest {there.max():.2f}")


def shifts(exact: Instances, found: Instances) -> Tensor:
    """(N,): of each of one picture's N objects in pixels; infinite for one that is lost."""
    objects = exact.boxes.shape[0]
    if found.boxes.shape[0] == 0:
        return torch.full((objects,), torch.inf)
    overlaps = iou(exact.boxes, found.boxes).where(exact.labels[:, None] == found.labels, -1.0)
    highest, place = overlaps.max(dim=1)
    return (exact.boxes - found.boxes[place]).abs().amax(dim=1).where(highest >= 0.5, torch.inf)


if __name__ == "__main__":
    main()
