"""What `sightline inspect` says of models that detect, name pixels or write: what they are made for, and their layers."""

from __future__ import annotations

import torch
from torch import Tensor

from sightline.backbone.layer_table import LayerTable, traced
from sightline.backbone.model import Model
from sightline.captioning import Captioner
from sightline.captioning.decoder import START
from sightline.captioning.vocabulary import SPECIAL
from sightline.datasets.structures import Instances
from sightline.datasets.table import counted
from sightline.detectors import Detector
from sightline.segmentation import Segmenter

SHOWN = 20  # categories or words that are named


def about(model: Model, path: str) -> str:
    """A trained model's architecture, preprocessing, and categories or words."""
    architecture = model.architecture or {"name": type(model).__name__, "arguments": {}}
    given = ", ".join(f"{name}={value!r}" for name, value in architecture["arguments"].items() if value is not None)
    shorter, longer, *exact = model.resize
    size = f"{shorter}x{longer} pixels exactly" if exact and exact[0] else f"{shorter} pixels, at most {longer}"
    return f"{path}: {architecture['name']}({given})\npictures are brought to {size}\n{_answers(model)}"


def _answers(model: Model) -> str:
    """What a model's answers are made of."""
    if isinstance(model, Captioner):
        words = model.vocabulary.words[len(SPECIAL) :]
        return f"{len(model.vocabulary)} words, {len(SPECIAL)} of them special: {_some(words)}"
    return f"{counted(len(model.categories), 'category', 'categories')}: {_some(model.categories)}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")


def model_table(model: Detector | Segmenter | Captioner, size: tuple[int, int]) -> LayerTable:
    """The layers by which a model answers for one picture of (height, width); see `shown_for`."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, 3, *size), generator=generator, dtype=torch.uint8).to(device)
    sizes = torch.tensor([size], device=device)
    if isinstance(model, Captioner):
        return traced(model, lambda images: _first_word(model, images, sizes), image)
    if isinstance(model, Segmenter):
        return traced(model, lambda images: model.segment(images, sizes), image)
    proposals = None if model.proposer is None else _whole(size).to(device)
    return traced(model, lambda images: model.detect(images, sizes, proposals), image)


def shown_for(model: Model) -> str:
    """For how much of an answer the layers are shown, where that can be said otherwise; empty where it cannot."""
    if isinstance(model, Captioner):
        return "layers are shown for one sentence's first word\n"
    return "" if getattr(model, "proposer", None) is None else "layers are shown for one proposal, the whole picture\n"


def _first_word(model: Captioner, images: Tensor, sizes: Tensor) -> None:
    decoder = model.decoder
    memory = decoder.prepare(model(images, sizes))
    words = torch.full((1, 1), START, device=images.device)
    decoder.step(words, decoder.begin(memory, 1), memory)


def _whole(size: tuple[int, int]) -> Instances:
    """One proposal, the whole picture."""
    return Instances(torch.tensor([[[0.0, 0.0, size[1], size[0]]]]), torch.zeros(1, 1, dtype=torch.int64))
