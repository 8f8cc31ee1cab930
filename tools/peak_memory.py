"""How much memory work takes at most: on a GPU as PyTorch counts it, on a CPU that of a process which does nothing else."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sightline.datasets.table import DataError

STATUS = Path("/proc/self/status")  # Linux's figures on a process
Prepare = Callable[..., tuple[nn.Module, Callable[[], object]]]
# How often work is done while it is measured: on a GPU a graph is run, recorded and replayed, and an optimiser has its momentum
# from the second step on.
GPU_RUNS, CPU_RUNS = 3, 2


def allocated(model: nn.Module, work: Callable[[], object]) -> float:
    """MiB that a model on a GPU takes at most, weights included, while it works; other tensors there do not count.

    To be asked before the work was ever done: what a recorded graph takes is only seen while it is recorded.
    """
    device = next(model.parameters()).device
    others = torch.cuda.memory_allocated(device) - _bytes(model)
    torch.cuda.reset_peak_memory_stats(device)
    for _ in range(GPU_RUNS):
        work()
    return (torch.cuda.max_memory_allocated(device) - others) / 2**20


def _bytes(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))


class Killed(ChildProcessError):
    """The process that worked alone was ended by a signal, whose number it is made with."""

    def __init__(self, number: int) -> None:
        likely = ", most likely for want of memory" if number == signal.SIGKILL else ""
        super().__init__(f"killed by signal {number} ({signal.strsignal(number)}){likely}")


def out_of_memory(error: Exception) -> bool:
    """Whether an error says so; on a CPU torch has no class for it."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "CPUAllocator" in str(error)


def resident(prepare: Prepare, *arguments: Any) -> float | None:
    """MiB that a model's work takes at most in a process that does nothing else; None where the system does not tell.

    Args:
        prepare: a function of a module that gives a model and its work. Of the model the weights count, and what was there
            before; of the work, done `CPU_RUNS` times, all.
        arguments: of `prepare`, of plain values and arrays.

    Raises:
        Killed: the process was killed.
        DataError: as `prepare` and the work.
        RuntimeError: the memory did not suffice; or another fault, of which the process has printed its traceback.
    """
    if not STATUS.exists():
        return None
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(sender, prepare, arguments), daemon=True)
    with _left_to_this_process(signal.SIGINT):
        process.start()
    sender.close()
    try:
        answer = receiver.recv()
    except EOFError:
        process.join()
        if process.exitcode < 0:
            raise Killed(-process.exitcode) from None
        raise RuntimeError(f"the process that measures memory ended with exit code {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
    if isinstance(answer, Exception):
        raise answer
    return answer


@contextmanager
def _left_to_this_process(number: signal.Signals) -> Iterator[None]:
    """Processes started meanwhile never get that signal: a terminal sends Ctrl-C to all, and one answer to it is enough."""
    resource_tracker.ensure_running()  # its own start, else part of the first process's, lets the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _report(sender: Connection, prepare: Prepare, arguments: tuple) -> None:
    """Sends the figure, or the error where its message tells all."""
    try:
        sender.send(_growth(prepare, arguments))
    except Exception as error:
        if not (isinstance(error, DataError) or out_of_memory(error)):
            raise
        sender.send(error)


def _growth(prepare: Prepare, arguments: tuple) -> float:
    """(The process's `ru_maxrss` would start from its parent's.)"""
    model, work = prepare(*arguments)
    before = _status("VmRSS")
    for _ in range(CPU_RUNS):
        work()
    return _status("VmHWM") - before + _bytes(model) / 2**20


def _status(name: str) -> float:
    """One of the figures on this process, in MiB."""
    return int(STATUS.read_text().partition(f"{name}:")[2].split()[0]) / 1024


def memory_kind(device: torch.device) -> str:
    """What the figure on memory means."""
    if device.type == "cuda":
        return "the most that PyTorch had allocated on the GPU for this model (max_memory_allocated)"
    if not STATUS.exists():
        return "not measured on this system"
    return (
        "a model's weights, and by how much the resident memory of a process that ran it alone grew at most (peak RSS)"
    )
