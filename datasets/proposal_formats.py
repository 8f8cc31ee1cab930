"""What files of proposals say, each kind as one `Listing`; `proposal_files` fits it to a table.

Letters: I pictures of the file, P proposals of all, M cells along a mask's side.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .proposals import require_packed
from .table import DataError

SUFFIXES = (".npz", ".json", ".mat")
KINDS = "an .npz of ours, COCO's results (json), or selective search's .mat"
PICKLED = (
    "a pickled file may run code when it is read, so this one is not. If you trust it, load it with pickle and write it by "
    "numpy.savez('proposals.npz', names=…, boxes=…, scores=…, offsets=…): names of I pictures, boxes (P, 4) xyxy in pixels, "
    "picture after picture, scores (P,), and offsets (I + 1) of each picture's first box"
)


class Listing(NamedTuple):
    """A file's word.

    Attributes:
        pictures: I names, or I ids.
        boxes: (P, 4) float64, xyxy in pixels, as they are: beyond the picture, empty, NaN.
        scores: (P,) float64.
        offsets: (I + 1,) int64: picture i's are rows offsets[i] to offsets[i + 1].
        masks: (P, M, ceil(M / 8)) uint8, packed as in `Regions`; None of boxes alone.
    """

    pictures: Sequence[str] | Sequence[int]
    boxes: np.ndarray
    scores: np.ndarray
    offsets: np.ndarray
    masks: np.ndarray | None = None


def read_listing(path: Path) -> Listing:
    """A file of any kind, told by its first bytes; no code in it is run.

    Raises:
        DataError: it is not there, of no known kind, or broken.
    """
    try:
        with path.open("rb") as file:
            start = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if path.suffix.lower() in (".pkl", ".pickle") or start.startswith(b"\x80"):
        raise DataError(f"{path}: {PICKLED}")
    try:
        listing = _reader(path, start)(path)
        _require_shapes(listing)
    except DataError:
        raise
    except Exception as error:  # on broken bytes numpy, zipfile, json and scipy raise whatever comes
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{path}: cannot be read as {KINDS} ({reason}); make or download it again") from error
    return listing


def _reader(path: Path, start: bytes) -> Callable[[Path], Listing]:
    if start.startswith((b"MATLAB 7.3", b"\x89HDF")):
        raise DataError(f"{path}: MATLAB's version 7.3 is not read here; load it in MATLAB and save it with -v7")
    if start.startswith(b"PK"):
        return _read_npz
    if start.startswith((b"[", b"{")):
        return _read_results
    if start.startswith(b"MATLAB"):
        return _read_mat
    raise DataError(f"{path}: of no known kind; proposals come as {KINDS}")


def _require_shapes(listing: Listing) -> None:
    pictures, boxes, scores, offsets, masks = listing
    count = len(boxes)
    if boxes.shape != (count, 4) or scores.shape != (count,):
        raise ValueError(f"boxes must be (P, 4) and scores (P,), got {boxes.shape} and {scores.shape}")
    if offsets.shape != (len(pictures) + 1,) or offsets[0] != 0 or offsets[-1] != count or (np.diff(offsets) < 0).any():
        raise ValueError(
            f"offsets must be {len(pictures) + 1} rising numbers, one more than pictures, from 0 to {count}"
        )
    if masks is not None:
        require_packed(masks, count)


def _read_npz(path: Path) -> Listing:
    """`names` or `image_ids`, `boxes`, `offsets`, `scores` unless boxes are in order, and perhaps `masks`."""
    with np.load(path, allow_pickle=False) as file:
        known = [key for key in ("names", "image_ids", "boxes", "offsets", "scores", "masks") if key in file.files]
        arrays = {key: file[key] for key in known}
        found = ", ".join(file.files)
    pictures = arrays.get("names", arrays.get("image_ids"))
    if pictures is None or not {"boxes", "offsets"} <= arrays.keys():
        raise DataError(f"{path}: it needs arrays names (or image_ids), boxes and offsets, and has {found or 'none'}")
    if pictures.dtype.kind not in "Uiu" or arrays["offsets"].dtype.kind not in "iu":
        raise ValueError("names must be text, image_ids and offsets whole numbers")
    offsets = arrays["offsets"].astype(np.int64)
    scores = arrays.get("scores", _by_place(np.diff(offsets)))
    boxes, masks = arrays["boxes"].astype(np.float64), arrays.get("masks")
    return Listing(pictures.tolist(), boxes, scores.astype(np.float64), offsets, masks)


def _by_place(counts: np.ndarray | Sequence[int]) -> np.ndarray:
    """Scores of boxes that are best first in each picture: 0, -1, -2, …"""
    return -np.concatenate([np.zeros(0), *(np.arange(count) for count in counts)])


def _read_results(path: Path) -> Listing:
    """COCO's results; the proposals of a picture may stand anywhere in the list."""
    records = json.loads(path.read_bytes())
    if not isinstance(records, list):
        raise DataError(
            f"{path}: a list of results {{image_id, bbox, score}} is wanted, and this is a json object; truth has no scores"
        )
    bad = next((number for number, record in enumerate(records) if not _is_result(record)), None)
    if bad is not None:
        raise DataError(
            f"{path}: result {bad} is {str(records[bad])[:120]}; it must have image_id (a whole number), bbox "
            "[x, y, width, height] and score"
        )
    ids = np.array([record["image_id"] for record in records], np.int64)
    order = np.argsort(ids, kind="stable")
    boxes = np.array([record["bbox"] for record in records], np.float64).reshape(-1, 4)[order]
    scores = np.array([record["score"] for record in records], np.float64)[order]
    pictures, counts = np.unique(ids, return_counts=True)
    boxes[:, 2:] += boxes[:, :2]
    return Listing(pictures.tolist(), boxes, scores, np.concatenate([[0], np.cumsum(counts)]))


def _is_result(record: Any) -> bool:
    if not isinstance(record, dict) or not isinstance(record.get("image_id"), int):
        return False
    box = record.get("bbox")
    numbers = [*box, record.get("score")] if isinstance(box, list) and len(box) == 4 else [None]
    return all(isinstance(number, (int, float)) for number in numbers)


def _read_mat(path: Path) -> Listing:
    """`images`, a cell array of names, and `boxes`, one of (P, 4) y1 x1 y2 x2 from 1, both ends included, best first."""
    from scipy.io import loadmat  # with albumentations; takes a while to import

    content = loadmat(path, variable_names=("images", "boxes"))
    missing = {"images", "boxes"} - content.keys()
    if missing:
        raise DataError(f"{path}: it has no {' and no '.join(sorted(missing))}, as selective search's files have")
    pictures = [str(np.asarray(cell).item()) for cell in content["images"].ravel()]
    cells = [np.asarray(cell, np.float64).reshape(-1, 4) for cell in content["boxes"].ravel()]
    counts = [len(cell) for cell in cells]
    boxes = np.concatenate([np.zeros((0, 4)), *cells])[:, [1, 0, 3, 2]] - [1, 1, 0, 0]
    return Listing(pictures, boxes, _by_place(counts), np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))
