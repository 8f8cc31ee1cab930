"""COCO's captions json (https://cocodataset.org/#format-data): images, and annotations with a caption for each sentence.

What is fatal: as in `coco`, and a caption that is no text. What is left out and counted: sentences of images that the
file does not list, empty sentences, images without a sentence.
"""

from __future__ import annotations

import os
from os import PathLike
from pathlib import Path

from .caption_sentences import Sentences, captioned_table, leave_out
from .clean import Pictures, measure
from .coco import find_images, image_columns, no_garbage_collection, read_json, stated_size
from .table import DataError, Table


def read_coco_captions(json_path: str | PathLike, image_folder: str | PathLike | None = None) -> Table:
    """One COCO captions json as a table, in the order of its images; those without a sentence are left out.

    Args:
        json_path: a `captions_*.json` or any file of that form.
        image_folder: where its pictures lie; by default found around the json (beside it, `images/`, `train2017/`).

    Raises:
        DataError: no json, of another form, without a sentence, or no pictures around it. Smaller faults are in
            `problems`.
    """
    path, sentences = Path(json_path), Sentences()
    with no_garbage_collection():
        document = _load(path)
        ids, names = image_columns(path, document["images"], sentences.problems)
        known = set(ids)
        for row, annotation in enumerate(document["annotations"]):
            _add_annotation(sentences, annotation, known, f"{path}: annotations[{row}] (id {annotation.get('id')!r})")
    rows = [row for row, id_ in enumerate(ids) if id_ in sentences.of]
    leave_out(sentences.problems, [f"{path}: image {id_}" for id_ in ids if id_ not in sentences.of])
    folder = Path(image_folder) if image_folder is not None else find_images(path, names)
    paths = [os.path.join(folder, names[row]) for row in rows]
    stated = [stated_size(document["images"][row]) for row in rows]
    pictures = Pictures(paths, measure(paths, sentences.problems, stated=stated), [ids[row] for row in rows])
    return captioned_table(path, pictures, [sentences.of[ids[row]] for row in rows], sentences.problems)


def _load(path: Path) -> dict[str, list[dict]]:
    document = read_json(path)
    for key in ("images", "annotations"):
        rows = document.get(key) if isinstance(document, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DataError(f"{path}: not COCO's captions form: no list of objects under {key!r}")
    if not any("caption" in row for row in document["annotations"][:10]):
        raise DataError(f"{path}: its annotations hold no captions; give the captions_*.json")
    return document


def _add_annotation(sentences: Sentences, annotation: dict, known: set[int], where: str) -> None:
    image, caption = annotation.get("image_id"), annotation.get("caption")
    if not isinstance(caption, str):
        sentences.problems.add("caption is not a text", f"{where}: {caption!r}", fatal=True)
    elif not isinstance(image, int) or image not in known:
        sentences.problems.add("caption of an image the file does not list (left out)", f"{where}: {image!r}")
    else:
        sentences.add(image, caption, where)
