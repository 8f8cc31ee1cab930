"""Karpathy's splits of captioned pictures (https://cs.stanford.edu/people/karpathy/deepimagesent/): one json for all of them.

    {"images": [{"filename": "a.jpg", "filepath": "val2014", "cocoid": 9, "split": "restval",
                 "sentences": [{"raw": "A dog.", "tokens": ["a", "dog"]}]}]}

Split "restval" is trained on, as all who report results on these splits do. What is fatal: a picture without a name, of no
known split or in two, a sentence without text. What is left out and counted: empty sentences, pictures without a sentence.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from .caption_lines import SPLITS
from .caption_sentences import Sentences, leave_out
from .coco import is_whole, no_garbage_collection, read_json
from .table import DataError


def is_karpathy(path: Path) -> bool:
    """Whether a json is of this form, by the keys it holds."""
    try:
        data = path.read_bytes()
    except OSError:
        return False
    return b'"sentences"' in data and b'"annotations"' not in data


def read_karpathy(path: Path) -> Sentences:
    """The sentences of such a json, their pictures' splits, and the pictures' ids where they are COCO's.

    Raises:
        DataError: no json, or of another form. Smaller faults are in `problems`.
    """
    sentences, empty = Sentences(), []
    with no_garbage_collection():
        for row, image in enumerate(_load(path)):
            name, where = _name(image), f"{path}: images[{row}]"
            if name is None:
                sentences.problems.add("picture without a filename", where, fatal=True)
                continue
            _add_image(sentences, name, image, f"{where} ({name})")
            if name not in sentences.of:
                empty.append(f"{where} ({name})")
    leave_out(sentences.problems, empty)
    for id_, times in Counter(sentences.ids.values()).items():
        if times > 1:
            sentences.problems.add("image id used twice", f"{path}: cocoid {id_}", fatal=True)
    return sentences


def _load(path: Path) -> list[dict]:
    document = read_json(path)
    images = document.get("images") if isinstance(document, dict) else None
    if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
        raise DataError(f"{path}: not of the form of Karpathy's splits: no list of objects under 'images'")
    return images


def _name(image: dict) -> str | None:
    """The picture's name, with the folder before it where the file says which."""
    name, folder = image.get("filename"), image.get("filepath")
    if not isinstance(name, str) or not name:
        return None
    return f"{folder}/{name}" if isinstance(folder, str) and folder else name


def _add_image(sentences: Sentences, name: str, image: dict, where: str) -> None:
    split = SPLITS.get(str(image.get("split")).lower())
    if split is None:
        sentences.problems.add(f"split is none of {', '.join(SPLITS)}", f"{where}: {image.get('split')!r}", fatal=True)
    elif sentences.split.setdefault(name, split) != split:
        sentences.problems.add("picture is in two splits", where, fatal=True)
    elif name in sentences.of:
        sentences.problems.warn("picture listed twice (all its sentences kept)", where)
    if is_whole(image.get("cocoid")):
        sentences.ids[name] = image["cocoid"]
    rows = image.get("sentences")
    for sentence in rows if isinstance(rows, list) else []:
        text = _text(sentence)
        if text is None:
            sentences.problems.add("sentence without text", f"{where}: {str(sentence)[:80]}", fatal=True)
        else:
            sentences.add(name, text, where)


def _text(sentence: Any) -> str | None:
    """The sentence as it was written, or else its words."""
    if not isinstance(sentence, dict):
        return None
    raw, tokens = sentence.get("raw"), sentence.get("tokens")
    if isinstance(raw, str):
        return raw
    whole = isinstance(tokens, list) and all(isinstance(token, str) for token in tokens)
    return " ".join(tokens) if whole else None
