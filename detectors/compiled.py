"""A detector as one compiled graph, from uint8 pictures to `Instances`, for one who looks at many pictures of few sizes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._dynamo.exc import BackendCompilerFailed
from torch.utils import _pytree as pytree

from ..datasets.structures import Instances
from .model import Detector


def compile_detect(model: Detector) -> None:
    """From now on `model.detect` runs one compiled graph; all else stays as it is.

    The first pictures of a size take the time that compiling takes (half a minute of Faster R-CNN), and so do the first ones
    in another precision. On a GPU the graph is recorded as a CUDA graph, which is started by one call: nothing between the
    pictures and the detections reads a value, so nothing waits.

    Args:
        model: any detector, on the device it will stay on, in evaluation mode.

    Raises:
        ValueError: with the first pictures, where there is no compiler.
    """
    on_gpu = next(model.parameters()).device.type == "cuda"
    graph = torch.compile(model.detect, fullgraph=True, dynamic=False, mode="reduce-overhead" if on_gpu else "default")

    def detect(images: Tensor, sizes: Tensor, proposals: Instances | None = None) -> Instances:
        torch.compiler.cudagraph_mark_step_begin()
        try:
            found = graph(images, sizes) if proposals is None else graph(images, sizes, proposals)
        except BackendCompilerFailed as error:
            reason = str(error.inner_exception).splitlines()[0]
            raise ValueError(
                f"no compiling here ({reason}): a CPU needs a C++ compiler, a GPU Triton; or leave compiling out"
            ) from error
        # The next run writes over a CUDA graph's results.
        return pytree.tree_map(torch.clone, found) if on_gpu else found

    model.detect = detect
