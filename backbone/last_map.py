"""A backbone of which only the last map is used, as the R-CNN papers use theirs."""

from __future__ import annotations

from torch import Tensor, nn

from .protocol import Backbone, body_stages, check_backbone


class LastMap(nn.Module):
    """A backbone of which only the last map is used: again a `Backbone`."""

    def __init__(self, body: Backbone) -> None:
        super().__init__()
        check_backbone(body, user="LastMap")
        self.body = body
        self.strides, self.channels = tuple(body.strides[-1:]), tuple(body.channels[-1:])
        self.mean, self.std = body.mean, body.std
        self.stage_prefixes = body_stages(body)

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.body(images)[-1:]
