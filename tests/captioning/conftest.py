"""A captioner whose sentences one can foresee."""

from typing import NamedTuple

import pytest
import torch
from torch import nn

from sightline.captioning.decoder import END, PAD, Decoder, Step
from sightline.captioning.model import Captioner
from sightline.captioning.vocabulary import SPECIAL, Vocabulary
from sightline.datasets.structures import Captions

COLOURS = ("red", "green", "blue")


class Means(nn.Module):
    """A backbone: the mean colour of each 8 x 8 pixels, in [0, 1]."""

    strides, channels, mean, std, stage_prefixes = (8,), (3,), (0.0,) * 3, (1.0,) * 3, {}

    def forward(self, images):
        return [nn.functional.avg_pool2d(images, 8, ceil_mode=True)]


class Memory(NamedTuple):
    amounts: torch.Tensor  # (B, 3) of the colours in the picture
    weights: torch.Tensor  # (B, L) of the cells, the brighter the more


class State(NamedTuple):
    said: torch.Tensor  # (B, S) words so far


class ColourNamer(Decoder):
    """Says the picture's main colour, "picture", and the end; it looks at bright cells."""

    def __init__(self, attends=True):
        super().__init__(len(SPECIAL) + 4)
        self.layer, self.attends, self.seen = nn.Linear(1, 1), attends, []

    def prepare(self, annotations):
        self.seen.append((tuple(annotations.maps.shape), self.training, torch.is_inference_mode_enabled()))
        valid = annotations.valid[:, None]
        maps = torch.where(valid, annotations.maps, 0)
        light = maps.sum(1).masked_fill(~annotations.valid, -torch.inf).flatten(1)
        return Memory(maps.sum((2, 3)) / valid.sum((2, 3)), light.softmax(1))

    def begin(self, memory, sentences):
        return State(torch.zeros(len(memory.weights), sentences))

    def step(self, words, state, memory):
        logits = torch.full((*words.shape, self.num_words), -20.0)
        logits[..., len(SPECIAL) : -1] = torch.where(state.said[..., None] == 0, 10 * memory.amounts[:, None], -20.0)
        logits[..., -1] = torch.where(state.said == 1, 10.0, -20.0)
        logits[..., END] = torch.where(state.said > 1, 10.0, -20.0)
        attention = memory.weights[:, None].expand(-1, words.shape[1], -1) if self.attends else None
        return Step(logits, State(state.said + 1), attention)


class TwoAndAGap:
    """A search whose sentences are the two likeliest first words and what follows, then one that is not there."""

    def __call__(self, decoder, annotations):
        memory = decoder.prepare(annotations)
        batch = len(annotations.maps)
        words, state = torch.ones(batch, 3, dtype=torch.long), decoder.begin(memory, 3)
        tokens, scores, looks = [], torch.zeros(batch, 3), []
        for t in range(5):
            step = decoder.step(words, state, memory)
            found, state = step.logits.log_softmax(-1).topk(3), step.state
            # Of the first word the two best go on; behind the end is padding.
            rank = torch.arange(3).expand(batch, 3) if t == 0 else torch.zeros(batch, 3, dtype=torch.long)
            pick = rank[..., None]
            ended = (tokens[-1] == END) | (tokens[-1] == PAD) if tokens else torch.zeros(batch, 3, dtype=torch.bool)
            words = torch.where(ended, PAD, found.indices.gather(-1, pick)[..., 0])
            scores = scores + torch.where(ended, 0, found.values.gather(-1, pick)[..., 0])
            tokens.append(words)
            looks.append(step.attention)
        tokens = torch.stack(tokens, 2)
        tokens[:, 2] = PAD
        return Captions(tokens, scores, None if looks[0] is None else torch.stack(looks, 2))


@pytest.fixture
def namer():
    """A function to make the captioner: (attends=True)."""

    def make(attends=True):
        model = Captioner(Means(), ColourNamer(attends))
        model.vocabulary = Vocabulary([*SPECIAL, *COLOURS, "picture"])
        model.resize, model.search = (32, 48, True), TwoAndAGap()
        return model.eval()

    return make
