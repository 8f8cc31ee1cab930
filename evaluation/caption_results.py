"""COCO's caption files for scoring: results, [{image_id, caption}], and truth, captions_*.json."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from ..datasets.table import DataError
from .json_records import check, column, is_whole, kind, load_json


def read_caption_truth(path: str | Path) -> dict[int, list[str]]:
    """The sentences of each picture that has any, from a COCO captions json, in the file's order.

    Raises:
        DataError: the file is not there, no JSON, without annotations, or one of them lacks an image_id or a caption.
    """
    path = Path(path)
    content = load_json(path)
    annotations = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(annotations, list) or not annotations:
        raise DataError(f"{path}: expected a COCO object with a list of annotations in it, got a JSON {kind(content)}")
    if isinstance(annotations[0], dict) and "bbox" in annotations[0] and "caption" not in annotations[0]:
        raise DataError(f"{path}: holds boxes, not captions; give the captions_*.json beside it")
    references: dict[int, list[str]] = {}
    for image, caption in zip(*_columns(path, annotations), strict=True):
        references.setdefault(int(image), []).append(caption)
    return references


def read_caption_results(path: str | Path, truth: Collection[int], *, partial: bool = False) -> dict[int, str]:
    """The caption of each picture, from a list of {image_id, caption}; other keys are not read.

    An empty caption is legal: it scores 0.

    Args:
        path: the file.
        truth: ids of the pictures that have references, e.g. `read_caption_truth`'s dictionary.
        partial: allow pictures of the truth to have no caption, where only a part of a split was captioned.

    Raises:
        DataError: the file is not there, no JSON or no such list, or empty; a record lacks a key, has no text for a
            caption, names a picture without references, or one that an earlier record named; or, unless `partial`, a
            picture has no caption.
    """
    path = Path(path)
    records = load_json(path)
    if not isinstance(records, list) or not records:
        found = "an empty list" if records == [] else f"a JSON {kind(records)}"
        raise DataError(f"{path}: expected a list of {{image_id, caption}}, got {found}")
    captions: dict[int, str] = {}
    for row, (image, caption) in enumerate(zip(*_columns(path, records), strict=True)):
        if image not in truth:
            raise DataError(
                f"{path}: record {row}: image_id {image} has no sentence in the truth, which is of {len(truth)} "
                "pictures. Is it the same split?"
            )
        if image in captions:
            raise DataError(f"{path}: record {row}: image_id {image} has a caption already; give one a picture")
        captions[int(image)] = caption
    if not partial and len(captions) < len(truth):
        missing = next(image for image in truth if image not in captions)
        raise DataError(
            f"{path}: {len(truth) - len(captions)} of the truth's {len(truth)} pictures have no caption, {missing} "
            "for one; caption them, or ask for the scores of a part (--partial)"
        )
    return captions


def write_caption_results(path: str | Path, captions: Mapping[int, str]) -> None:
    """Writes the caption of each picture as `read_caption_results` reads it."""
    records = [{"image_id": int(image), "caption": caption} for image, caption in captions.items()]
    Path(path).write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")


def _columns(path: Path, records: list) -> tuple[list, list]:
    images, captions = column(path, records, "image_id"), column(path, records, "caption")
    check(path, images, "image_id", is_whole, "a whole number")
    check(path, captions, "caption", lambda value: isinstance(value, str), "a text")
    return images, captions
