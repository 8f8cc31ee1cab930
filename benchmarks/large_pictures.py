"""Large pictures with known objects, for what tiles are worth: a data set's pictures side by side, nine to a picture.

    python benchmarks/large_pictures.py coco/ large/
    sightline evaluate yolox_nano@yolox_nano.onnx --data large/ --split instances_large --max-dets 1 10 500
    sightline evaluate yolox_nano@yolox_nano.onnx --data large/ --split instances_large --max-dets 1 10 500 --tiles 640

Every picture has a cell of its own, in the middle of which it stands in its own size; the tiles' borders run through them.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from sightline.datasets.coco import write_coco
from sightline.datasets.data_module import DetectionData
from sightline.datasets.detection import read_picture
from sightline.datasets.images import write_image
from sightline.datasets.table import Table

SIDE, PAPER = 3, 114  # pictures in a row and a column; the grey between them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="a data set; of its val part, as many pictures as make full ones")
    parser.add_argument("folder", help="where to write pictures and instances_large.json")
    arguments = parser.parse_args()
    table = DetectionData(arguments.data).tables["val"]
    table = table.select(np.arange(len(table) // SIDE**2 * SIDE**2))
    folder = Path(arguments.folder)
    write_coco(pasted(table, folder), folder / "instances_large.json")


def pasted(table: Table, folder: Path) -> Table:
    """Writes the large pictures; returns their objects."""
    cell = int(table.sizes.max())
    count = len(table) // SIDE**2
    paths = [str(folder / f"{i:03}.png") for i in range(count)]
    place = np.arange(len(table)) % SIDE**2
    corners = np.stack([place // SIDE, place % SIDE], axis=1) * cell + (cell - table.sizes) // 2  # (y, x)
    for i, path in enumerate(paths):
        large = np.full((SIDE * cell, SIDE * cell, 3), PAPER, np.uint8)
        for row in range(i * SIDE**2, (i + 1) * SIDE**2):
            (y, x), (height, width) = corners[row], table.sizes[row]
            large[y : y + height, x : x + width] = read_picture(table.paths[row])
        write_image(path, large)
    return replace(
        table,
        paths=paths,
        image_ids=np.arange(1, count + 1),
        sizes=np.full((count, 2), SIDE * cell),
        image=table.image // SIDE**2,
        boxes=table.boxes + np.tile(corners[:, ::-1], 2)[table.image].astype(np.float32),
        segmentations=None,
        captions=None,
    )


if __name__ == "__main__":
    main()
