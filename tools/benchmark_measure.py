"""Several models' work measured side by side: times, floors, memory and stages, at one setting."""

from __future__ import annotations

import gc
import json
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sightline.tools import peak_memory, timing
from sightline.tools.benchmark_loading import OURS, THEIRS, time_loading
from sightline.tools.benchmark_work import Setting, TooSmall, Work, is_peer, prepare, prepare_alone
from sightline.tools.peak_memory import Killed
from sightline.tools.stages import time_stages


@dataclass
class Measured(timing.Timed):
    """One model's work at one setting.

    Attributes:
        task: of the model, e.g. "detection".
        peer: whether it is torchvision's.
        work: a name of `WORKS`.
        floor: ms of each round of the backbone and neck alone; empty where there is no backbone.
        memory: peak in MiB, see `memory_kind`; None where it cannot be had.
    """

    task: str
    peer: bool
    work: str
    setting: Setting
    floor: list[float]
    memory: float | None

    @property
    def floor_ms(self) -> float | None:
        """The median time of the backbone and neck alone."""
        return statistics.median(self.floor) if self.floor else None

    @property
    def to_floor(self) -> float | None:
        """How many times as long as the floor."""
        return None if self.floor_ms is None else self.ms / self.floor_ms

    def record(self) -> dict[str, Any]:
        """All there is, for JSON."""
        numbers = {"ms": self.ms, "floor_ms": self.floor_ms, "to_floor": self.to_floor, "images_per_second": self.rate}
        return asdict(self) | numbers


def write_json(path: Path, content: dict) -> None:
    """What is measured, so far; what was there stays until all is written."""
    partial = Path(f"{path}.partial")
    partial.write_text(json.dumps(content, indent=2), encoding="utf-8")
    partial.replace(path)


@dataclass
class Split:
    """Where a model's time goes.

    Attributes:
        stages: median ms of each, from the files to the answer.
    """

    model: str
    batch: int
    stages: dict[str, float]


def measure(specs: Sequence[str], work: str, setting: Setting, repeats: int) -> list[Measured]:
    """A row for each model that can do it; of the others it is said why they are left out.

    Args:
        specs: models, as on the command line.
        work: a name of `WORKS`.
        setting: what they are timed on.
        repeats: timed rounds; all works and floors take turns.

    Raises:
        DataError: a model cannot do that work.
    """
    _forget()
    if setting.compiled:
        torch.compiler.reset()  # it makes only so many graphs of one function
    ready: dict[str, tuple[Work, float | None]] = {}
    for spec in specs:
        with leaving_out(f"{work} of {spec}, {described(work, setting)}"):
            # First, before anything runs: see `allocated`.
            ready[spec] = (one := prepare(spec, work, setting)), _peak(spec, work, setting, one)
    jobs = {(spec, "whole"): one.whole for spec, (one, _) in ready.items()}
    jobs |= {(spec, "floor"): one.floor for spec, (one, _) in ready.items() if one.floor is not None}
    device, title, times = torch.device(setting.device), f"{work}, {described(work, setting)}", {}
    with leaving_out(f"{title}, all models"):
        clocked = {name: timing.timed(job, device) for name, job in jobs.items()}
        times = timing.alternate(clocked, repeats, title)
    return [
        Measured(
            model=spec,
            batch=setting.batch,
            times=times[spec, "whole"],
            task=one.model.task,
            peer=is_peer(one.model),
            work=work,
            setting=setting,
            floor=times.get((spec, "floor"), []),
            memory=memory,
        )
        for spec, (one, memory) in ready.items()
        if times
    ]


def _peak(spec: str, work: str, setting: Setting, one: Work) -> float | None:
    """MiB, see `memory_kind`; the work is done once in any case, so that what cannot be done fails here, by itself."""
    kind = torch.device(setting.device).type
    if kind == "cuda":
        return peak_memory.allocated(one.model, one.whole)
    peak = peak_memory.resident(prepare_alone, spec, work, setting) if kind == "cpu" else None
    if peak is None:
        one.whole()
    return peak


def _forget() -> None:
    """Frees what was measured before."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def measure_stages(specs: Sequence[str], setting: Setting, repeats: int) -> list[Split]:
    """Where each model's time goes, op by op, from files to answers; models that the memory does not hold are left out."""
    _forget()
    setting = replace(setting, compiled=False)
    jobs, sides = {}, {}
    for spec in specs:
        with leaving_out(f"stages of {spec}, {described('inference', setting)}"):
            one = prepare(spec, "inference", setting)
            one.whole()
            jobs[spec], sides[spec] = (one.model, one.whole), THEIRS if is_peer(one.model) else OURS
    loading = time_loading(setting, repeats)
    return [
        Split(spec, setting.batch, loading[sides[spec]] | stages) for spec, stages in time_stages(jobs, repeats).items()
    ]


@contextmanager
def leaving_out(what: str) -> Iterator[None]:
    """Does what it can: where the memory does not suffice or pictures are too small, that is said, and the rest is left out."""
    try:
        yield
    except (RuntimeError, MemoryError, Killed, TooSmall) as error:
        if peak_memory.out_of_memory(error):
            reason = "out of memory"
        elif isinstance(error, (Killed, TooSmall)):
            reason = str(error)
        else:
            raise
        print(f"{what}: {reason}; left out", flush=True)
        _forget()


def described(work: str, setting: Setting) -> str:
    """What may differ from one point to the next, for people."""
    classes = "" if setting.classes is None else f", {setting.classes} classes"
    return f"batch {setting.batch}, {pixels(work, setting)}{classes}"


def pixels(work: str, setting: Setting) -> str:
    """Of the pictures, and how many objects are learnt from, if any."""
    learnt = work == "training" and setting.objects is not None
    return f"{setting.size[0]}x{setting.size[1]}" + (f", {setting.objects} objects a picture" if learnt else "")
