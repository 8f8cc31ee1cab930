"""Which of a data set's lists is trained on and which validates; and a split by hash where there is only one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from os.path import basename

import numpy as np

from .table import DataError, Problems, Table, nearest

_NO_VAL = 'no "val" split ("test" is validated on; do not also report it as unseen)'


def roles(splits: Sequence[str], where: str, *, train: str | None = None, val: str | None = None) -> dict[str, str]:
    """From "train", "val" and "test" to the data set's own split names; a role that nothing fills is left out.

    "train" is `train`, else "train", else "trainval"; "val" is `val`, else "val" unless "trainval", which contains it,
    is trained on, else "test"; "test" is "test". With neither val nor test the caller holds pictures out by hash.

    Args:
        splits: the names of the data set's splits, at least one.
        where: the data set, for the error message.
        train, val: explicit names of splits, which win.

    Raises:
        DataError: a named split is not there, or several are and none of them is for training.
    """
    for name in (train, val):
        if name is not None and name not in splits:
            raise DataError(
                f"{where}: no split {name!r}; there are {', '.join(splits) or 'none'}{nearest(name, splits)}"
            )
    found = {"train": train or next((name for name in ("train", "trainval") if name in splits), None)}
    if found["train"] is None and len(splits) == 1:
        return {"train": splits[0]}
    if found["train"] is None:
        raise DataError(f"{where}: which of {', '.join(splits)} is for training? none is named train or trainval")
    standing_for_val = ["test"] if found["train"] == "trainval" else ["val", "minival", "test"]
    found["val"] = val or next((name for name in standing_for_val if name in splits), None)
    found["test"] = "test" if "test" in splits and found["train"] != "test" else None
    return {role: name for role, name in found.items() if name is not None}


def without_unions(splits: Sequence[str]) -> list[str]:
    """The splits that make up the data set: without "trainval" where its parts are there, lest pictures count twice."""
    if {"train", "val"} <= set(splits):
        return [split for split in splits if split != "trainval"]
    return list(splits)


def held_out(names: Sequence[str], fraction: float, seed: int) -> np.ndarray:
    """(I,) bool: which pictures validate. Each is decided by its own name, so the answer stays when pictures are added.

    About `fraction` of them (0..1, exclusive); of two or more at least one on either side.
    """
    if not 0 < fraction < 1:
        raise DataError(f"val_fraction must lie between 0 and 1, got {fraction}")
    digests = [hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest() for name in names]
    places = np.array([int.from_bytes(digest, "big") / 2**64 for digest in digests])
    held = places < fraction
    if len(held) > 1:
        held[places.argmin()], held[places.argmax()] = True, False
    return held


def split_by_hash(table: Table, fraction: float, seed: int) -> dict[str, Table]:
    """A table's "train" and "val" parts by `held_out` of the file names; the problems go with "train"."""
    if len(table) < 2:
        raise DataError(f"{table.paths[0]}: the only picture cannot both train and validate; name a val split")
    held = held_out([basename(path) for path in table.paths], fraction, seed)
    train, val = table.select(np.flatnonzero(~held)), table.select(np.flatnonzero(held))
    train.problems.warn(
        f'no "val" split (held out {held.sum()} of {len(held)} pictures by hash of the name)', val.paths[0]
    )
    val.problems = Problems()
    return {"train": train, "val": val}


def warn_test_as_val(table: Table, where: str) -> None:
    """Notes that the test split validates."""
    if _NO_VAL not in table.problems.warned:
        table.problems.warn(_NO_VAL, where)
