"""How much memory work takes at most: on a GPU as PyTorch counts it, on a CPU that of a process which does nothing else."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn

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


def resident(prepare: Prepare, *arguments: Any) -> float | None:
    """MiB that a model's work takes at most in a process that does nothing else; None where the system does not tell.

    Args:
        prepare: a function of a module that gives a model and its work. Of the model the weights count, and what was there
            before; of the work, done `CPU_RUNS` times, all.
        arguments: of `prepare`, of plain values and arrays.

    Raises:
        BrokenProcessPool: the process was killed, most likely for want of memory.
    """
    if not STATUS.exists():
        return None
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(_growth, prepare, arguments).result()


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
