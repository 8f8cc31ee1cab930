"""Normalisation layers by name: each is a function from the number of channels to a layer, as every body takes it.

Which one: "batch" from random weights with eight or more images a device, "sync" for fewer images on several devices,
"group" (https://arxiv.org/abs/1803.08494) for very small batches, "frozen" to fine-tune pretrained weights, whose
statistics small batches would only blur.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from torch import Tensor, addcmul, nn
from torchvision.ops import FrozenBatchNorm2d as _FrozenBatchNorm2d

Norm = Callable[[int], nn.Module]


def norm_layer(name: str | Norm, *, eps: float = 1e-5) -> Norm:
    """The factory of that name.

    Args:
        name: "frozen", "batch", "sync" or "group"; a factory is returned as it is.
        eps: added to the variance. Torchvision's first COCO detectors (`COCO_V1` of Faster, Mask and Keypoint R-CNN and
            RetinaNet with ResNet-50) have frozen norms of eps 0: they need `norm_layer("frozen", eps=0.0)`.

    Raises:
        ValueError: no such name.
    """
    if not isinstance(name, str):
        return name
    if name == "frozen_eps0":
        return partial(FrozenBatchNorm2d, eps=0.0)
    if name not in _NORMS:
        raise ValueError(
            f"norm must be one of {', '.join(_NORMS)} or a function from channels to a layer, got {name!r}"
        )
    return partial(_NORMS[name], eps=eps)


class FrozenBatchNorm2d(_FrozenBatchNorm2d):
    """Batch norm of fixed statistics and affine parameters, all buffers: the same in train() and eval().

    State dicts are those of `nn.BatchNorm2d`; `num_batches_tracked` is dropped. Unlike torchvision's, of which it is a
    kind, the output keeps the input's dtype (under bf16 autocast torchvision's returns float32, twice the memory), and
    it is one operation instead of two.
    """

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return addcmul(shift.to(x.dtype).view(1, -1, 1, 1), x, scale.to(x.dtype).view(1, -1, 1, 1))


def group_norm(channels: int, eps: float = 1e-5) -> nn.GroupNorm:
    """Group norm of 32 groups, or of the most groups that divide both 32 and `channels` (MobileNetV2's 24: 8)."""
    return nn.GroupNorm(math.gcd(32, channels), channels, eps=eps)


_NORMS: dict[str, Callable[..., nn.Module]] = {
    "frozen": FrozenBatchNorm2d,
    "batch": nn.BatchNorm2d,
    "sync": nn.SyncBatchNorm,
    "group": group_norm,
}
