"""What every captioner is: a backbone, a decoder, a vocabulary, and the three verbs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..backbone.model import Model, evaluating
from ..backbone.protocol import Backbone, check_backbone
from ..datasets.structures import Captions
from .decoder import Annotations, Decoder
from .search import Beam, Greedy, Sampling
from .vocabulary import Vocabulary


class Captioner(Model):
    """Sentences about pictures:

        annotations = model(images, sizes)                # what the backbone makes of them; needs no targets
        losses = model.losses(annotations, captions)      # dict of scalars to be summed
        captions = model.decode(annotations, sizes)       # the sentences, as numbers of words

    Args:
        backbone: pixels to feature maps.
        decoder: feature maps to words; of as many channels as the map looked at.
        layer: which of the backbone's maps is looked at, -1 for the coarsest.

    Attributes:
        vocabulary: the words; it travels with the checkpoint. Until the data say more, they are numbers.
        search: how sentences are found, see `search.py`; how long they may be travels with the checkpoint.
    """

    task = "captioning"

    def __init__(self, backbone: Backbone, decoder: Decoder, *, layer: int = -1) -> None:
        check_backbone(backbone, user="a captioner")
        super().__init__(mean=backbone.mean, std=backbone.std)
        map_channels(backbone, layer)
        self.backbone, self.decoder, self.layer = backbone, decoder, layer
        _freeze_behind(backbone, layer)
        self.vocabulary = Vocabulary.numbers(decoder.num_words)
        self.resize = (224, 224, True)
        self.search: Beam | Greedy | Sampling = Beam()

    def forward(self, images: Tensor, sizes: Tensor) -> Annotations:
        """(B, 3, H, W) uint8 RGB and (B, 2) valid (height, width) to annotations."""
        return self.annotate(self.maps(images, sizes), sizes)

    def maps(self, images: Tensor, sizes: Tensor) -> Tensor:
        """The backbone's map that is looked at: (B, D, h, w)."""
        return self.backbone(self.normalize(images, sizes))[self.layer]

    def annotate(self, maps: Tensor, sizes: Tensor) -> Annotations:
        """Annotations from maps that were made before, (B, D, h, w) of any float type, and sizes (B, 2)."""
        stride = self.backbone.strides[self.layer]
        rows = torch.arange(maps.shape[2], device=maps.device) * stride < sizes[:, 0, None]
        columns = torch.arange(maps.shape[3], device=maps.device) * stride < sizes[:, 1, None]
        return Annotations(maps.to(self.normalize.mean.dtype), rows[:, :, None] & columns[:, None, :])

    def losses(self, outputs: Annotations, targets: Captions) -> dict[str, Tensor]:
        """Scalars by name, each "loss_…"; their sum is what training minimises."""
        return self.decoder.losses(outputs, targets.tokens)

    def decode(self, outputs: Annotations, sizes: Tensor) -> Captions:
        """The sentences of (B, S), best first, of every picture."""
        return self.search(self.decoder, outputs)

    def caption(self, images: Tensor, sizes: Tensor) -> Captions:
        """From pixels to sentences: `decode` after `forward`."""
        return self.decode(self(images, sizes), sizes)

    def description(self) -> dict[str, Any]:
        """See `Model.description`; the vocabulary and the length of sentences are part of it."""
        return super().description() | {"words": list(self.vocabulary.words), "most": self.search.most}

    def restore(self, about: Mapping[str, Any]) -> None:
        """See `Model.restore`."""
        super().restore(about)
        vocabulary = Vocabulary(about["words"])
        if len(vocabulary) != self.decoder.num_words:
            raise ValueError(f"has a vocabulary of {len(vocabulary)} words for a model of {self.decoder.num_words}")
        self.vocabulary, self.search = vocabulary, replace(self.search, most=about["most"])

    def predict(self, source: Any, *, every: int = 1) -> Iterator[list[str]]:
        """Sentences about pictures or video, one picture at a time, best first.

        Args:
            source: an image file, a folder, a glob, a video, a camera's number, an (H, W, 3) uint8 RGB array, or a list.
            every: of a video, only every so many frames.

        Raises:
            DataError: a source cannot be read.
        """
        from .inference import run

        for sample in run(self, source, every=every):
            yield sample.sentences


def map_channels(backbone: Backbone, layer: int) -> int:
    """D of the map that is looked at, -1 the coarsest; ValueError when the backbone has no such map."""
    if not -len(backbone.channels) <= layer < len(backbone.channels):
        raise ValueError(f"layer must be one of the backbone's {len(backbone.channels)} maps, got {layer}")
    return backbone.channels[layer]


def of_words(decoder: Decoder) -> tuple[str, ...]:
    """What begins the names, in a captioner, of weights with a row for each word: with other words they start anew."""
    return tuple(f"decoder.{name}" for name in decoder.of_words)


def _freeze_behind(backbone: Backbone, layer: int) -> None:
    """Parameters that only maps behind the one looked at depend on are not trained: several processes would wait for them."""
    trained = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    if not trained or layer in (-1, len(backbone.channels) - 1):
        return
    with evaluating(backbone), torch.enable_grad():
        seen = backbone(torch.zeros(1, 3, 64, 64, device=trained[0].device))[layer].sum()
    slopes = torch.autograd.grad(seen, trained, allow_unused=True) if seen.requires_grad else [None] * len(trained)
    for parameter, slope in zip(trained, slopes, strict=True):
        parameter.requires_grad_(slope is not None)
