"""YOLOX's published weights (https://github.com/Megvii-BaseDetection/YOLOX, Apache-2.0, release 0.1.1rc0) in our model.

They come as `.pth` files, with nearly our names, and as `.onnx` files, whose batch norms are folded into the convolutions and
whose tensors have no names worth the word. Both take pictures as OpenCV reads them, blue first; ours are red first.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..backbone.layer_table import layer_table
from ..backbone.onnx_weights import PREFIX
from ..backbone.sources import WeightsError
from .coco_names import COCO_80

if TYPE_CHECKING:
    from .yolox import YOLOX

State = dict[str, Tensor]

STEM = "backbone.body.stem.conv.conv.weight"
# Depend on the number of categories.
LAST = ("head.cls_preds.", "single_head.cls_preds.")


def convert(model: YOLOX, state: State, path: Path) -> State:
    """The model's state from a file's; of the published ones the model also takes the categories' names, if it has 80.

    A second head that the file lacks starts as a copy of the first.

    Args:
        model: of the file's size; its tensors are left as they are.
        state: of a published file, as `read_file` gives it, or one of ours.
        path: the file, for messages.

    Raises:
        WeightsError: an ONNX file of another network.
    """
    folded = any(key.startswith(PREFIX) for key in state)
    if folded or any(key.startswith("backbone.backbone.") for key in state):
        state = _from_onnx(model, state, path) if folded else _from_official(state)
        if STEM in state:
            state[STEM] = swap_colours(state[STEM])
        if len(model.categories) == len(COCO_80):
            model.categories = list(COCO_80)
    if model.single_head is not None and not any(key.startswith("single_head.") for key in state):
        state = state | {f"single_{key}": value for key, value in state.items() if key.startswith("head.")}
    return state


def _from_official(state: State) -> State:
    """Their names to ours: the body is the neck's `backbone`, the neck the detector's."""
    ours = {}
    for key, value in state.items():
        key = re.sub(r"^backbone\.(?!backbone\.)", "backbone.fpn.", key)
        ours[re.sub(r"^backbone\.backbone\.", "backbone.body.", key)] = value
    return ours


def swap_colours(weight: Tensor) -> Tensor:
    """The first convolution's weights for red first from those for blue first, and back: (C, 12, 3, 3), four pixels of three."""
    return weight.unflatten(1, (-1, 3)).flip(2).flatten(1, 2)


def _from_onnx(model: YOLOX, state: State, path: Path) -> State:
    """A file's convolutions go to ours one by one in order of execution; shapes must agree, but for the last layers'.

    A convolution and the norm it was folded with become that convolution and a norm that does nothing but add.
    """
    theirs = [key.removesuffix(".weight") for key in state if key.endswith(".weight")]
    ours, own, result = _convolutions(model), dict(model.named_modules()), {}
    for name, key in zip(ours, theirs, strict=False):
        weight, bias = state[f"{key}.weight"], state.get(f"{key}.bias")
        wanted = own[name].weight.shape
        if weight.shape != wanted and not name.startswith(LAST):
            raise WeightsError(
                f"{path} is of another network or size: its convolution {key.removeprefix(PREFIX)} has weights "
                f"{_shape(weight.shape)}, the model's {name} in that place {_shape(wanted)}"
            )
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        norm = own.get(f"{name.rpartition('.')[0]}.bn")
        result |= {f"{name}.weight": weight}
        result |= {f"{name}.bias": bias} if norm is None else _adding(f"{name.rpartition('.')[0]}.bn", bias, norm)
    if len(theirs) != len(ours):
        raise WeightsError(
            f"{path} is of another network or size: it has {len(theirs)} convolutions, the model {len(ours)}"
        )
    return result


def _convolutions(model: YOLOX) -> list[str]:
    """The names of all convolutions up to the first head's end, in their order of execution."""
    network = nn.Sequential(OrderedDict(backbone=model.backbone, head=model.head))
    return [row.name for row in layer_table(network, (64, 64)).rows if row.kind == "Conv2d"]


def _adding(name: str, bias: Tensor, norm: nn.Module) -> State:
    """A batch norm's state that only adds: the square root of variance and epsilon is one."""
    one, zero = torch.ones_like(bias), torch.zeros_like(bias)
    return {
        f"{name}.weight": one,
        f"{name}.bias": bias,
        f"{name}.running_mean": zero,
        f"{name}.running_var": one - norm.eps,
    }


def _shape(shape: torch.Size) -> str:
    return "x".join(map(str, shape))
