"""Where the time goes: a model's work stage by stage, ours and torchvision's alike.

Stages are the submodules of a network, by name, and suppression wherever it happens. Hooks stand at the start and the end
of each, and only in rounds of their own: on a GPU every one of them waits for all that was started before, so the stages add
up to somewhat more than the whole. What runs between two stages belongs to the input before the backbone, to the head after it.

Suppression is no submodule. Its two operators are replaced where they are called, for a round, by themselves between two looks
at the clock; a dispatch mode, which sees every operator, would have cost each of a thousand others some microseconds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from sightline.detectors import nms
from sightline.tools import timing

K = TypeVar("K", bound=Hashable)
INPUT, BACKBONE, REST, SUPPRESSION = "input", "backbone", "head", "NMS"
# In the order of the work; REST is all after the backbone that is in no stage of its own.
STAGES = (INPUT, BACKBONE, "neck", "proposals", "pooling", REST, SUPPRESSION)
SUBMODULES = {
    "normalize": INPUT,
    "transform": INPUT,
    "backbone": BACKBONE,
    "backbone.fpn": "neck",
    "rpn": "proposals",
    "roi_heads.pool": "pooling",
    "roi_heads.mask_pool": "pooling",
    "roi_heads.box_roi_pool": "pooling",
    "roi_heads.mask_roi_pool": "pooling",
}
OPERATORS = ((nms, "_nms"), (torch.ops.torchvision, "nms"))  # where each is looked up when it is called


def time_jobs(
    jobs: Mapping[K, tuple[nn.Module, Callable[[], object]]], repeats: int, title: str
) -> dict[K, tuple[list[float], dict[str, float]]]:
    """The milliseconds of each round, and the median ones of each stage, of jobs that take turns.

    Args:
        jobs: a model, and what it is to do, by any name.
        repeats: timed rounds.
        title: of the bar.
    """
    whole = {name: timing.timed(job, device_of(model)) for name, (model, job) in jobs.items()}
    times, stages = timing.alternate(whole, repeats, title), time_stages(jobs, repeats)
    return {name: (times[name], stages[name]) for name in jobs}


def time_stages(jobs: Mapping[K, tuple[nn.Module, Callable[[], object]]], repeats: int) -> dict[K, dict[str, float]]:
    """The median milliseconds of each stage of jobs that take turns; arguments as for `time_jobs`."""
    staged = timing.alternate({name: split(*job) for name, job in jobs.items()}, repeats, "its stages")
    return {
        name: {stage: statistics.median(r[stage] for r in rounds) for stage in rounds[0]}
        for name, rounds in staged.items()
    }


def split(model: nn.Module, job: Callable[[], object]) -> Callable[[], dict[str, float]]:
    """The same job; returns the milliseconds of each stage that it came by, the times of stages within it not counted."""

    def work() -> dict[str, float]:
        with ExitStack() as hooks:
            watch = Stopwatch(device_of(model))
            for module, stage in _submodules(model):
                hooks.callback(module.register_forward_pre_hook(lambda *_, stage=stage: watch.enter(stage)).remove)
                hooks.callback(module.register_forward_hook(lambda *_: watch.leave()).remove)
            for owner, name in OPERATORS:
                hooks.enter_context(_noted(owner, name, watch))
            job()
            return watch.stop()

    return work


class Stopwatch:
    """Stages within stages, and how long each took by itself."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.times = device, {}
        self._open, self._last = [INPUT], timing.now(device)

    def enter(self, stage: str) -> None:
        """A stage begins."""
        self._note()
        if stage == BACKBONE:
            self._open[0] = REST
        self._open.append(stage)

    def leave(self) -> None:
        """The stage that began last ends."""
        self._note()
        self._open.pop()

    def stop(self) -> dict[str, float]:
        """Milliseconds of each stage."""
        self._note()
        return self.times

    def _note(self) -> None:
        stage, time = self._open[-1], timing.now(self.device)
        self.times[stage] = self.times.get(stage, 0.0) + time - self._last
        self._last = time


def _submodules(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Those of the model, or of the network that it wraps, that are stages."""
    for root in (model, getattr(model, "network", None)):
        modules = {} if root is None else dict(root.named_modules())
        yield from ((modules[name], stage) for name, stage in SUBMODULES.items() if name in modules)


@contextmanager
def _noted(owner: Any, name: str, watch: Stopwatch) -> Iterator[None]:
    """For a while, calls of one operator count as suppression."""
    operator = getattr(owner, name)

    def call(*arguments: Any, **named: Any) -> Any:
        watch.enter(SUPPRESSION)
        result = operator(*arguments, **named)
        watch.leave()
        return result

    setattr(owner, name, call)
    try:
        yield
    finally:
        setattr(owner, name, operator)


def shown(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """The stages that any of these rows' times are of, in their order: the columns of a table."""
    return [stage for stage in STAGES if any(stage in times for times in rows)]


def device_of(model: nn.Module) -> torch.device:
    """Where a model is."""
    return next(model.parameters()).device
