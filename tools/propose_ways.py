"""The ways to come by proposals, for `sightline propose`: by a method, by a network, from a file.

Each is made before any work is done, so that a mistake in the last does not cost the first one's time.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sightline.datasets.picture_data import default_workers
from sightline.datasets.proposal_files import read_proposals
from sightline.datasets.proposals import Boxes, Proposer, Regions
from sightline.datasets.propose import propose
from sightline.datasets.table import DataError, Table, nearest
from sightline.detectors import load
from sightline.detectors.inference import usable_device
from sightline.detectors.proposers import proposer_named
from sightline.training.network_proposals import network_proposals


@dataclass(frozen=True)
class Answer:
    """What one way of proposing gave.

    Attributes:
        regions: the proposals, no more a picture than asked for.
        seconds: the mean of the pictures computed; None where none was.
        told: the time as the table shows it.
    """

    regions: Regions
    seconds: float | None
    told: str


Way = Callable[[Table], Answer]


def by_method(name: str, arguments: argparse.Namespace) -> Way:
    """By a proposer of that name, from the cache as far as it goes."""
    method = proposer_named(name, arguments.limit)
    workers = _cores() if arguments.workers is None else arguments.workers

    def ask(table: Table) -> Answer:
        with tempfile.TemporaryDirectory() as folder:
            stopwatch = Stopwatch(method, str(Path(folder) / "seconds"))
            try:
                found = propose(table, stopwatch, cache=arguments.cache, num_workers=workers)
            except KeyboardInterrupt:
                print("\nwhat was computed is kept; the same command goes on from there", file=sys.stderr)
                raise
            seconds = stopwatch.seconds()
        return Answer(found.regions, float(np.mean(seconds)) if seconds else None, _told(seconds, len(table)))

    return ask


@dataclass(frozen=True)
class Stopwatch(Proposer):
    """Proposes as another does, and notes the seconds of every picture in a file, whatever process does it."""

    proposer: Proposer
    file: str

    @property
    def limit(self) -> int:
        return self.proposer.limit

    @property
    def key(self) -> str:
        return self.proposer.key

    def __call__(self, image: np.ndarray) -> Boxes:
        started = time.perf_counter()
        found = self.proposer(image)
        with open(self.file, "a", encoding="ascii") as file:
            file.write(f"{time.perf_counter() - started:.6f}\n")
        return found

    def seconds(self) -> list[float]:
        """Of every picture so far."""
        path = Path(self.file)
        return [float(line) for line in path.read_text("ascii").split()] if path.exists() else []


def _told(seconds: list[float], pictures: int) -> str:
    """The mean, and how many pictures it does not speak of."""
    if not seconds:
        return "cached"
    cached = pictures - len(seconds)
    return f"{np.mean(seconds):.3f}" + (f" ({cached} cached)" if cached else "")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def by_model(path: str, arguments: argparse.Namespace) -> Way:
    """By the region proposal network of a checkpoint."""
    model = load(path, device=usable_device(arguments.device))
    workers = default_workers() if arguments.workers is None else arguments.workers

    def ask(table: Table) -> Answer:
        started = time.perf_counter()
        found = network_proposals(model, table, batch_size=arguments.batch, num_workers=workers)
        seconds = (time.perf_counter() - started) / len(table)
        return Answer(found.regions.best(arguments.limit), seconds, f"{seconds:.3f}")

    return ask


def from_file(path: str, arguments: argparse.Namespace) -> Way:
    """As they stand in a file."""
    where = Path(path)
    if not where.exists():
        near = nearest(where.name, [each.name for each in where.parent.iterdir()] if where.parent.is_dir() else [])
        raise DataError(f"{path}: no such file{near}")
    return lambda table: Answer(read_proposals(path, table).regions.best(arguments.limit), None, "read")


WAYS = {"method": by_method, "model": by_model, "proposals": from_file}
