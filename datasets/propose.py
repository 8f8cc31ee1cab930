"""Proposals for a table's pictures: computed once, by several processes, and kept on disk beside the data.

A picture's boxes are a small file whose folder is named by the proposer's settings and whose name by the picture's content,
so nothing stale is ever read. Files appear whole or not at all: an interrupted run goes on where it stopped, and several
processes may work at once (those of one training do): each goes through the pictures in another order and leaves out what is
there by then, so that together they take little longer than their share each.

Letters: I pictures, P proposals of one.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from .detection import has_file, read_picture, start_worker, with_plain_errors
from .proposals import Boxes, Proposer, Regions, pack, unpack
from .table import DataError, Table

FORMAT = 1  # to be raised when files are written, or pictures read, in another way


def propose(
    table: Table,
    proposer: Proposer,
    *,
    cache: str | os.PathLike | None = None,
    num_workers: int = 0,
    progress: bool = True,
) -> Table:
    """The table with the proposer's boxes for every picture, in place of any it has; the same for any number of processes.

    Args:
        table: I pictures.
        proposer: what proposes.
        cache: folder where boxes are kept; None: see `cache_folder`.
        num_workers: processes that compute what is missing; 0 computes in this one.
        progress: show a bar.

    Raises:
        DataError: a picture cannot be read, or there is no place to keep boxes.
    """
    folder = cache_folder(table.paths, cache) / _name(proposer)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        digests = pool.map(content_digest, table.paths)
        bar = tqdm(digests, "look up", len(table), unit="picture", disable=_hidden(progress), leave=False, delay=2)
        files = [folder / f"{digest}.npy" for digest in bar]
        found = dict(zip(files, pool.map(_load, files), strict=True))
    missing = {file: path for file, path in zip(files, table.paths, strict=True) if found[file] is None}
    for file in _compute(missing, proposer, num_workers, progress):
        found[file] = _load(file)
    return replace(table, regions=Regions.of([found[file] for file in files]))


def cache_folder(paths: Sequence[str], cache: str | os.PathLike | None = None) -> Path:
    """Where the proposals of pictures are kept; the folder is made.

    Args:
        paths: the pictures.
        cache: the folder itself. By default it is `proposals` in $SIGHTLINE_CACHE where that is set, else in `.sightline`
            beside the folder that holds all pictures, else (pictures without files, or among files that must not be
            changed) in ~/.cache/sightline.

    Raises:
        DataError: nothing can be written there.
    """
    if cache is not None:
        places = [Path(cache)]
    elif "SIGHTLINE_CACHE" in os.environ:
        places = [Path(os.environ["SIGHTLINE_CACHE"]) / "proposals"]
    else:
        homes = [*_beside(paths), Path.home() / ".cache" / "sightline"]
        places = [home / "proposals" for home in homes]
    for place in places:
        if _writable(place):
            return place
    raise DataError(
        f"{places[-1]}: proposals cannot be kept there, nothing can be written; name another folder, by the option for the "
        "cache of proposals or the variable SIGHTLINE_CACHE"
    )


def _beside(paths: Sequence[str]) -> list[Path]:
    """`.sightline` beside the pictures' common folder, or in it where it is the uppermost; empty where there is none."""
    folders = {os.path.dirname(os.path.abspath(path)) for path in paths if has_file(path)}
    try:
        common = Path(os.path.commonpath(folders))
    except ValueError:  # no files, or on several drives
        return []
    if common == common.parent:
        return []
    return [(common if common.parent == common.parent.parent else common.parent) / ".sightline"]


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def _name(proposer: Proposer) -> str:
    """A name for people, and 16 hexadecimal digits for all the boxes follow from besides the picture."""
    # Its type is not among them: a proposer that merely times another gives the same boxes.
    settings = repr((FORMAT, proposer.key)).encode()
    kind = re.sub(r"\W", "", proposer.key.partition("(")[0].rpartition(".")[2])[:40]
    return f"{kind}-{hashlib.sha256(settings).hexdigest()[:16]}"


def content_digest(path: str) -> str:
    """40 hexadecimal digits of a picture's content."""
    if path.startswith("shapes:"):  # such a picture follows from its path, and drawing it takes longer than reading one
        content = path.encode()
    elif not has_file(path):
        content = read_picture(path).tobytes()
    else:
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return hashlib.sha256(content).hexdigest()[:40]


def _load(file: Path) -> Boxes | None:
    """What `_save` wrote; None where nothing is, or not all of it."""
    try:
        columns = np.load(file, allow_pickle=False)
    except Exception:  # on broken bytes numpy raises whatever comes
        return None
    if columns.dtype.names == ("box", "score", "mask"):
        return Boxes(columns["box"], columns["score"], unpack(columns["mask"]))
    if columns.ndim != 2 or columns.shape[1] != 5 or columns.dtype != np.float32:
        return None
    return Boxes(columns[:, :4], columns[:, 4])


def _save(file: Path, found: Boxes) -> None:
    """Writes (P, 5) float32, boxes and scores, or records with masks; the file appears at once, whole."""
    partial = file.with_suffix(f".{uuid4().hex}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as stream:
            np.save(stream, _columns(found), allow_pickle=False)
        partial.replace(file)
    except OSError as error:
        raise DataError(f"{file}: proposals cannot be kept here ({error.strerror}); name another folder") from error
    finally:
        partial.unlink(missing_ok=True)


def _columns(found: Boxes) -> np.ndarray:
    """What a file holds of a picture."""
    if found.masks is None:
        return np.column_stack([found.boxes, found.scores]).astype(np.float32)
    masks = pack(found.masks)
    records = np.empty(len(masks), [("box", "f4", 4), ("score", "f4"), ("mask", "u1", masks.shape[1:])])
    records["box"], records["score"], records["mask"] = found.boxes, found.scores, masks
    return records


def _compute(missing: dict[Path, str], proposer: Proposer, num_workers: int, progress: bool) -> Iterator[Path]:
    """Computes and keeps the boxes of pictures; gives their files as they are done, in any order."""
    if not missing:
        return
    files = np.random.default_rng().permutation(np.array(list(missing), object)).tolist()
    loader = DataLoader(
        _Missing(files, [missing[file] for file in files], proposer),
        batch_size=None,
        num_workers=min(num_workers, len(files)),
        worker_init_fn=_start,
        in_order=False,
        generator=torch.Generator(),  # or a training would draw other numbers where it finds all proposals
    )
    for index in with_plain_errors(tqdm(loader, "propose", unit="picture", disable=_hidden(progress), leave=False)):
        yield files[index]


def _hidden(progress: bool) -> bool | None:
    """What tqdm calls `disable`: None hides the bar where no terminal shows it."""
    return None if progress else True


class _Missing(Dataset):
    """Pictures whose proposals are yet to be computed; its items are their numbers, given once their files are there."""

    def __init__(self, files: list[Path], paths: list[str], proposer: Proposer) -> None:
        self.files, self.paths, self.proposer = files, paths, proposer

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> int:
        if _load(self.files[index]) is None:  # another process may have been here
            _save(self.files[index], self.proposer(read_picture(self.paths[index])))
        return index


def _start(worker: int) -> None:
    """What each process does first. At Ctrl-C they end their picture in silence, and the main process ends them."""
    start_worker(worker)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
