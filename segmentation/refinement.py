"""Refinement by recurrence (Pinheiro and Collobert 2014, "Recurrent Convolutional Neural Networks for Scene Labeling",
https://proceedings.mlr.press/v32/pinheiro14.html): one network names the pixels of a picture, then looks at the picture again
together with what it said, and so on.

The network sees a picture and C planes of probabilities, none at first. It halves their size, so that at each step the picture is
scaled to the size of the last answer, and the network sees twice as far: of the picture 20, 58, 134 pixels. The answers of
all steps are learnt alike (the paper's equation 9), and the last one counts.

Deviations: kernels of 7 x 7, whose answers stay in place, where the paper has 8 x 8, which sees 23, 67, 155 pixels; borders are
padded; answers are interpolated to pixels, where the paper runs the network on shifted pictures.

Letters: B pictures, C categories, H, W pixels of the frame, h, w those of a step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbone.building import finish
from .losses import MapLoss
from .model import Outputs, Segmenter

KERNEL = 7
STRIDE = 2  # of one step


class RecurrentLabeling(Segmenter):
    """See the file's head.

    Args:
        network: (B, 3 + C, h, w), a picture and probabilities, to logits (B, C, h / 2, w / 2); h and w are even.
        num_classes: C.
        steps: how often it is applied.
        loss: see `Segmenter`.
    """

    def __init__(self, network: nn.Module, num_classes: int, *, steps: int, loss: MapLoss | None = None) -> None:
        super().__init__(
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            num_classes=num_classes,
            loss=loss,
            auxiliary_weight=1.0,
        )
        self.network, self.num_classes, self.steps = network, num_classes, steps

    def forward(self, images: Tensor, sizes: Tensor) -> Outputs:
        """See `Segmenter.forward`; auxiliary are the answers of all steps but the last."""
        height, width = images.shape[-2:]
        multiple = STRIDE**self.steps
        picture = F.pad(self.normalize(images, sizes), (0, -width % multiple, 0, -height % multiple))
        answers = [
            F.interpolate(logits, scale_factor=STRIDE**step, mode="bilinear")[..., :height, :width]
            for step, logits in enumerate(self._answers(picture), 1)
        ]
        return Outputs(answers[-1], tuple(answers[:-1]))

    def _answers(self, picture: Tensor) -> list[Tensor]:
        """Logits of each step, each of half the size of the one before."""
        said = picture.new_zeros(len(picture), self.num_classes, *picture.shape[-2:])
        answers = []
        for step in range(self.steps):
            if step:
                picture = F.interpolate(picture, scale_factor=1 / STRIDE, mode="bilinear", antialias=True)
                said = answers[-1].softmax(1)
            answers.append(self.network(torch.cat([picture, said.to(picture.dtype)], 1)))
        return answers


def _network(num_classes: int, widths: Sequence[int]) -> nn.Sequential:
    """The paper's network of two convolutions (section 5.2), one pooling, and a classifier of every place."""
    first, second = widths
    return nn.Sequential(
        nn.Conv2d(3 + num_classes, first, KERNEL, padding=KERNEL // 2),
        nn.Tanh(),
        nn.MaxPool2d(STRIDE),
        nn.Conv2d(first, second, KERNEL, padding=KERNEL // 2),
        nn.Tanh(),
        nn.Conv2d(second, num_classes, 1),
    )


def recurrent_labeling(
    num_classes: int = 21,
    *,
    steps: int = 3,
    widths: Sequence[int] = (25, 50),
    loss: str = "cross_entropy",
    weights: str | None = None,
) -> RecurrentLabeling:
    """Pinheiro and Collobert's recurrent network, 0.1 million parameters.

    Args:
        num_classes: C.
        steps: how often the network is applied; 1 is the network alone. Weights of one number serve any other.
        widths: channels of its two convolutions.
        loss: see `MapLoss`; of every step.
        weights: of the whole model: None, a path or a URL. With other categories the first and the last layer start at random.

    Raises:
        ValueError: an argument out of range.
        WeightsError: weights that cannot be had or do not fit.
    """
    architecture = {"name": "recurrent_labeling", "arguments": dict(locals())}
    if not 1 <= steps <= 8 or len(widths) != 2:
        raise ValueError(f"need 1 to 8 steps and two widths, got {steps} and {list(widths)}")
    network = _network(num_classes, widths)
    for layer in network:
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    model = RecurrentLabeling(network, num_classes, steps=steps, loss=MapLoss(num_classes, kind=loss))
    return finish(model, architecture, weights, allow_missing=("network.0.", "network.5."))
