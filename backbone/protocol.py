"""What a backbone is: pixels in, a list of feature maps out. Heads read its numbers and never ask what it is inside.

Letters: B images, H, W pixels, C channels of one map. Maps are c2..c5 (a body's) or p2..p7 (a pyramid's), where the
number is log2 of the stride.
"""

from __future__ import annotations

from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    """What every backbone states. Any module with these five attributes will do; the base class is for type checkers.

    Attributes:
        strides: pixels per cell of each map, finest first, e.g. (4, 8, 16, 32).
        channels: C of each map, as many as there are strides.
        mean, std: (red, green, blue) on the 0..1 scale, what the images were normalised with when the weights were
            trained; detectors copy them into buffers.
        stage_prefixes: the parts to freeze one after another, from the pixels upwards: name to the prefixes of its
            parameters' names, e.g. {"stem": ("conv1", "bn1"), "layer1": ("layer1",)}. Parameters under no prefix (a
            classifier's last layer, a pyramid) lie above all stages. See `freeze.py`.
    """

    strides: tuple[int, ...]
    channels: tuple[int, ...]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    stage_prefixes: dict[str, tuple[str, ...]]

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised floats to maps (B, C, ceil(H / stride), ceil(W / stride)), finest first."""
        raise NotImplementedError


def body_stages(body: nn.Module) -> dict[str, tuple[str, ...]]:
    """The `stage_prefixes` of a module that holds another one, which states its own, as its `body`."""
    return {name: tuple(f"body.{prefix}" for prefix in prefixes) for name, prefixes in body.stage_prefixes.items()}


def check_backbone(value: object, *, user: str, maps: int | None = None) -> None:
    """Says what is wrong when a head was given something that is no backbone.

    Args:
        value: what the head was given.
        user: the head's name, for the message.
        maps: how many feature maps the head takes; None takes any number.

    Raises:
        ValueError: not a module, an attribute of `Backbone` is missing, or strides and channels do not go together.
    """
    kind = type(value).__name__
    if not isinstance(value, nn.Module):
        raise ValueError(f"{user} needs a backbone, got {kind}; build one with build_backbone('resnet50_fpn')")
    missing = [name for name in Backbone.__annotations__ if not hasattr(value, name)]
    if missing:
        raise ValueError(
            f"{user} needs a backbone, but {kind} has no {', '.join(missing)}; "
            "turn any network into a backbone with sightline.backbone.wrap(module, layers)"
        )
    strides, channels = tuple(value.strides), tuple(value.channels)
    if not strides:
        raise ValueError(
            f"{user} needs feature maps, but {kind} gives none (a classifier?); take the backbone of that name"
        )
    if len(strides) != len(channels) or list(strides) != sorted(strides) or min(strides + channels) < 1:
        raise ValueError(
            f"{kind} states strides {strides} and channels {channels}; expected a positive number per map, finest first"
        )
    if maps is not None and len(strides) != maps:
        raise ValueError(f"{user} takes {maps} feature map(s), but {kind} gives {len(strides)}, at strides {strides}")
