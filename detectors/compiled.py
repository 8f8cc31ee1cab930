"""A detector as one compiled graph, from uint8 pictures to `Instances`, for one who looks at many pictures of few sizes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit, ShortenTraceback
from torch.utils import _pytree as pytree

from ..datasets.structures import Instances
from .model import Detector

log = logging.getLogger(__name__)
T = TypeVar("T")


def compile_detect(model: Detector) -> None:
    """From now on `model.detect` runs one compiled graph; all else stays as it is.

    The first pictures of a size take the time that compiling takes (half a minute of Faster R-CNN), and so do the first ones
    in another precision; after eight of these, further ones are not compiled. On a GPU the graph is recorded as a CUDA graph,
    which is started by one call: nothing between the pictures and the detections reads a value, so nothing waits.

    Args:
        model: any detector, on the device it will stay on, in evaluation mode.

    Raises:
        ValueError: with the first pictures, where there is no compiler.
    """
    on_gpu = next(model.parameters()).device.type == "cuda"
    graph = one_graph(model.detect, recorded=on_gpu)

    def detect(images: Tensor, sizes: Tensor, proposals: Instances | None = None) -> Instances:
        found = graph(images, sizes) if proposals is None else graph(images, sizes, proposals)
        # The next run writes over a CUDA graph's results.
        return pytree.tree_map(torch.clone, found) if on_gpu else found

    model.detect = detect


def one_graph(function: Callable[..., T], *, recorded: bool = False) -> Callable[..., T]:
    """The function as one compiled graph for each shape of its arguments, up to torch's limit of eight; beyond it, as it is.

    Args:
        function: of tensors, or of what is made of them.
        recorded: as a CUDA graph, whose results the next call writes over.

    Raises:
        ValueError: when it is called, where there is no compiler.
    """
    graph = torch.compile(function, fullgraph=True, dynamic=False, mode="reduce-overhead" if recorded else "default")
    told: list[bool] = []

    def run(*arguments: object) -> T:
        torch.compiler.cudagraph_mark_step_begin()
        try:
            return graph(*arguments)
        except FailOnRecompileLimitHit:
            if not told:
                log.warning("so many sizes were compiled that further ones are not: make pictures of one size")
            told.append(True)
            return function(*arguments)
        except ShortenTraceback as error:
            reason = str(getattr(error, "inner_exception", error)).partition("\n")[0]
            raise ValueError(
                f"no compiling here ({reason}): a CPU needs a C++ compiler, a GPU Triton; or leave compiling out"
            ) from error

    return run
