"""Several models' work measured side by side: times, floors, memory and stages, at one setting."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from sightline.tools import peak_memory, timing
from sightline.tools.benchmark_loading import OURS, THEIRS, time_loading
from sightline.tools.benchmark_work import Setting, Work, is_peer, prepare, prepare_alone
from sightline.tools.stages import time_stages


@dataclass
class Measured:
    """One model's work at one setting.

    Attributes:
        model: as on the command line.
        task: of the model, e.g. "detection".
        peer: whether it is torchvision's.
        work: a name of `WORKS`.
        times: ms of each round.
        floor: the same of the backbone and neck alone; empty where there is no backbone.
        memory: peak in MiB, see `memory_kind`; None where it cannot be had.
    """

    model: str
    task: str
    peer: bool
    work: str
    setting: Setting
    times: list[float]
    floor: list[float]
    memory: float | None

    @property
    def ms(self) -> float:
        """The median time of a batch."""
        return statistics.median(self.times)

    @property
    def floor_ms(self) -> float | None:
        """The median time of the backbone and neck alone."""
        return statistics.median(self.floor) if self.floor else None

    @property
    def to_floor(self) -> float | None:
        """How many times as long as the floor."""
        return None if self.floor_ms is None else self.ms / self.floor_ms

    @property
    def rate(self) -> float:
        """Pictures a second."""
        return 1000 * self.setting.batch / self.ms

    def record(self) -> dict[str, Any]:
        """All there is, for JSON."""
        numbers = {"ms": self.ms, "floor_ms": self.floor_ms, "to_floor": self.to_floor, "images_per_second": self.rate}
        return asdict(self) | numbers


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
    """A row for each model that the memory holds; of the others it is said that they are left out.

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
        with unless_out_of_memory(f"{work} of {spec}, {described(setting)}"):
            # First, before anything runs: see `allocated`.
            ready[spec] = (one := prepare(spec, work, setting)), _peak(spec, work, setting, one)
    jobs = {(spec, "whole"): one.whole for spec, (one, _) in ready.items()}
    jobs |= {(spec, "floor"): one.floor for spec, (one, _) in ready.items() if one.floor is not None}
    device, times = torch.device(setting.device), {}
    with unless_out_of_memory(f"{work}, {described(setting)}, all models"):
        clocked = {name: timing.timed(job, device) for name, job in jobs.items()}
        times = timing.alternate(clocked, repeats, f"{work}, {described(setting)}")
    return [
        Measured(
            model=spec,
            task=one.model.task,
            peer=is_peer(one.model),
            work=work,
            setting=setting,
            times=times[spec, "whole"],
            floor=times.get((spec, "floor"), []),
            memory=memory,
        )
        for spec, (one, memory) in ready.items()
        if times
    ]


def _peak(spec: str, work: str, setting: Setting, one: Work) -> float | None:
    """MiB, see `memory_kind`."""
    kind = torch.device(setting.device).type
    if kind == "cuda":
        return peak_memory.allocated(one.model, one.whole)
    return peak_memory.resident(prepare_alone, spec, work, setting) if kind == "cpu" else None


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
        with unless_out_of_memory(f"stages of {spec}, {described(setting)}"):
            one = prepare(spec, "inference", setting)
            one.whole()
            jobs[spec], sides[spec] = (one.model, one.whole), THEIRS if is_peer(one.model) else OURS
    loading = time_loading(setting, repeats)
    return [
        Split(spec, setting.batch, loading[sides[spec]] | stages) for spec, stages in time_stages(jobs, repeats).items()
    ]


@contextmanager
def unless_out_of_memory(what: str) -> Iterator[None]:
    """Does what it can: where the memory does not suffice, that is said, and the rest is left out."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _out_of_memory(error):
            raise
        print(f"{what}: out of memory, left out", flush=True)
        _forget()


def _out_of_memory(error: Exception) -> bool:
    """Whether an error says so. On a CPU torch has no class for it; a process that takes too much is killed."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError, BrokenProcessPool)) or "CPUAllocator" in str(error)


def described(setting: Setting) -> str:
    """What may differ from one point to the next, for people."""
    height, width = setting.size
    classes = "" if setting.classes is None else f", {setting.classes} classes"
    return f"batch {setting.batch}, {height}x{width}, {setting.objects} objects{classes}"
