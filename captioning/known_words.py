"""A captioner that takes over the weights of one with other words: each word keeps what was learnt of it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backbone.sources import find_weights
from ..backbone.weights import read_file
from .decoder import UNKNOWN
from .model import Captioner, of_words


@torch.no_grad()
def take_known_words(model: Captioner, weights: str) -> int:
    """Puts what weights have learnt of single words where these words stand in the model's own vocabulary.

    Builders load rows by their number, or not at all where the number of words differs: right only for one and the same
    vocabulary. A word that the weights do not know starts as their UNKNOWN. Weights that say nothing of their words, as
    other tools' do, change nothing.

    Args:
        model: with its vocabulary, and all other weights loaded.
        weights: a path or an address, as the builder had it.

    Returns:
        How many words, special ones among them, the weights know.

    Raises:
        WeightsError: they cannot be had or read.
    """
    content = read_file(find_weights(weights))
    about = content.get("sightline") if isinstance(content, dict) else None
    if not isinstance(about, dict) or "words" not in about:
        return 0
    number = {word: i for i, word in enumerate(about["words"])}
    rows = torch.tensor([number.get(word, UNKNOWN) for word in model.vocabulary.words])
    learnt: dict[str, Tensor] = {
        name.removeprefix("captioner."): value for name, value in content["state_dict"].items()
    }
    for name, value in model.state_dict().items():
        if name.startswith(of_words(model.decoder)):
            value.copy_(learnt[name][rows])
    return sum(word in number for word in model.vocabulary.words)
