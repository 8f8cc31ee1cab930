"""Denoising autoencoder: a backbone learns from pictures without labels, by restoring what was taken from them.

Vincent et al. 2008 ("Extracting and composing robust features with denoising autoencoders", section 2.3: masking) and
2010 (https://jmlr.org/papers/v11/vincent10a.html, section 3.5: Gaussian noise), convolutional as in Masci et al. 2011
("Stacked convolutional auto-encoders"). All layers are trained at once, where the papers stack them one by one.

Once trained, its checkpoint gives the backbone to another model: `backbone_weights=".../best.ckpt"`, or `weights` of a
classifier.

Letters: B images, H, W pixels of the frame, h, w cells of the last map.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..backbone import Backbone, BackboneWithFPN, build_backbone, check_backbone, norm_layer
from ..backbone.building import finish
from ..backbone.chain import Chain
from ..datasets.structures import Instances
from .autoencoder_parts import MirrorDecoder, StrideDecoder, can_mirror
from .model import Detector

# (B, 3, H, W) normalised images and a strength to corrupted ones.
Corruption = Callable[[Tensor, float], Tensor]


class Outputs(NamedTuple):
    """What `forward` makes of a batch.

    Attributes:
        restored: (B, 3, H, W), from the corrupted images.
        images: (B, 3, H, W), normalised, as they were.
        inside: (B, 1, H, W), 1 in a picture and 0 in its padding.
    """

    restored: Tensor
    images: Tensor
    inside: Tensor


class Autoencoder(Detector):
    """Corrupts pictures, encodes them by a backbone, and restores them from its last map.

    Pictures are corrupted in validation as in training. It finds no objects.

    Args:
        backbone: pixels to feature maps, of which the last is used.
        decoder: that map (B, channels, h, w) and (H, W) to (B, 3, H, W).
        corrupt: `masking` or `gaussian`.
        corruption: its strength.
    """

    task = "reconstruction"

    def __init__(self, backbone: Backbone, decoder: nn.Module, *, corrupt: Corruption, corruption: float) -> None:
        super().__init__(mean=backbone.mean, std=backbone.std, num_classes=0)
        self.backbone, self.decoder, self.corrupt, self.corruption = backbone, decoder, corrupt, corruption

    def forward(self, images: Tensor, sizes: Tensor) -> Outputs:
        """Pictures restored.

        Args:
            images: (B, 3, H, W) RGB, uint8 or float in 0..255, padded right and below.
            sizes: (B, 2), the valid (height, width) of each.
        """
        clean, inside = self.normalize(images, sizes), _inside(images, sizes)
        corrupted = self.corrupt(clean, self.corruption) * inside
        return Outputs(self._restore(corrupted), clean, inside)

    def _restore(self, images: Tensor) -> Tensor:
        return self.decoder(self.backbone(images)[-1], images.shape[-2:])

    def losses(self, outputs: Outputs, targets: Instances) -> dict[str, Tensor]:
        """`loss_reconstruction`: the mean square of what is wrong in pixels of pictures, in units of normalised images."""
        restored, images, inside = outputs
        squares = (restored - images) ** 2 * inside
        return {"loss_reconstruction": squares.sum() / (images.shape[1] * inside.sum()).clamp(min=1)}

    def decode(self, outputs: Outputs, sizes: Tensor) -> Instances:
        """No objects: Instances of (B, 1), all padding."""
        boxes = torch.zeros(len(sizes), 1, 4, device=outputs.images.device)
        return Instances(boxes, torch.full_like(boxes[..., 0], -1, dtype=torch.int64), torch.zeros_like(boxes[..., 0]))

    def reconstruct(self, images: Tensor, sizes: Tensor) -> Tensor:
        """What comes out for pictures that are not corrupted: (B, 3, H, W) uint8 RGB, black in the padding."""
        restored = self._restore(self.normalize(images, sizes)) * self.normalize.std + self.normalize.mean
        return ((255 * restored).round().clamp(0, 255) * _inside(images, sizes)).to(torch.uint8)


def _inside(images: Tensor, sizes: Tensor) -> Tensor:
    """(B, 1, H, W) float32: 1 in the valid part of each picture, else 0."""
    rows, columns = (torch.arange(length, device=images.device) for length in images.shape[-2:])
    inside = (rows < sizes[:, :1])[:, :, None] & (columns < sizes[:, 1:])[:, None]
    return inside[:, None].float()


def masking(images: Tensor, share: float) -> Tensor:
    """A share of the pixels, drawn at random, set to the mean colour."""
    kept = torch.rand_like(images[:, :1]) >= share
    return images * kept


def gaussian(images: Tensor, deviation: float) -> Tensor:
    """Normal noise on every pixel and channel, of a deviation in units of normalised images."""
    return images + deviation * torch.randn_like(images)


CORRUPTIONS: dict[str, Corruption] = {"masking": masking, "gaussian": gaussian}


def autoencoder(
    backbone: str = "resnet18",
    *,
    corruption: float = 0.3,
    noise: str = "masking",
    tied: bool = False,
    weights: str | None = None,
    backbone_weights: str | None = None,
    norm: str = "batch",
) -> Autoencoder:
    """An autoencoder of any backbone.

    A chain of layers (LeNet, AlexNet, ZFNet, VGG) is mirrored layer by layer; on another body follow transposed
    convolutions that double the resolution, in the body's widths.

    Args:
        backbone: a name in `BACKBONES` of a body without a pyramid; of its maps the last is used.
        corruption: of masking the share of pixels in [0, 1), of Gaussian noise the deviation; 0 for none.
        noise: "masking" or "gaussian".
        tied: decode with the encoder's own weights, transposed; only for a chain of layers.
        weights: of the whole autoencoder: None, a path or a URL.
        backbone_weights: of the backbone alone: None, a path, a URL or "imagenet".
        norm: "batch", "sync" or "group".

    Raises:
        ValueError: an argument out of range, a backbone with a pyramid, or one whose weights cannot be tied.
    """
    architecture = {"name": "autoencoder", "arguments": dict(locals())}
    _check(corruption, noise)
    body = build_backbone(backbone, norm=norm, weights=backbone_weights)
    model = Autoencoder(body, _decoder(body, backbone, norm, tied), corrupt=CORRUPTIONS[noise], corruption=corruption)
    return finish(model, architecture, weights)


def _check(corruption: float, noise: str) -> None:
    if noise not in CORRUPTIONS:
        raise ValueError(f"noise must be one of {', '.join(CORRUPTIONS)}, got {noise!r}")
    if corruption < 0 or (noise == "masking" and corruption >= 1):
        limits = "a share in [0, 1)" if noise == "masking" else "a deviation of at least 0"
        raise ValueError(f"corruption by {noise} must be {limits}, got {corruption}")


def _decoder(body: Backbone, name: str, norm: str, tied: bool) -> nn.Module:
    check_backbone(body, user="Autoencoder")
    if isinstance(body, BackboneWithFPN):
        raise ValueError(
            f"an autoencoder trains a body without a pyramid, got {name!r}; take {name.split('_fpn')[0]!r}"
        )
    if isinstance(body, Chain) and can_mirror(body.features):
        return MirrorDecoder(list(body.features), norm=norm_layer(norm), tied=tied)
    if tied:
        raise ValueError(
            f"tied weights need a plain chain of layers (lenet, alexnet, alexnet_2012, zfnet, vgg11 to vgg19_bn); {name!r} "
            "branches, or has shortcuts: leave tied out"
        )
    return StrideDecoder(body.strides, body.channels, norm=norm_layer(norm))
