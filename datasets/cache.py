"""Decoded pictures kept in memory that all processes of a loader share."""

from __future__ import annotations

import os
import shutil

import numpy as np
import torch
from torch import Tensor

from .table import DataError


class Cache:
    """Pictures (C, h, w) uint8 of known sizes in one block of memory, shared by all processes that inherit or unpickle it."""

    def __init__(self, shapes: np.ndarray, channels: int = 3) -> None:
        self._shapes, self._starts = shapes, np.append(0, np.cumsum(channels * shapes.prod(1)))
        needed, free = int(self._starts[-1]), _shared_memory_free()
        if needed > 0.8 * free:
            raise DataError(
                f"the cache needs {needed / 1e9:.1f} GB of shared memory and {free / 1e9:.1f} GB is free; turn it off "
                "(cache: false), choose a smaller max_size, or give the container more (docker run --shm-size)"
            )
        self._memory = torch.empty(needed, dtype=torch.uint8).share_memory_()
        self.filled = torch.zeros(len(shapes), dtype=torch.bool).share_memory_()

    def get(self, index: int) -> Tensor:
        return self._view(index).clone(memory_format=torch.preserve_format)  # so that nobody changes the original

    def put(self, index: int, image: Tensor) -> None:
        self._view(index).copy_(image)
        self.filled[index] = True  # two workers may both get here, with the same picture

    def _view(self, index: int) -> Tensor:
        height, width = self._shapes[index].tolist()
        return self._memory[self._starts[index] : self._starts[index + 1]].view(height, width, -1).permute(2, 0, 1)


def _shared_memory_free() -> float:
    return shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else float("inf")
