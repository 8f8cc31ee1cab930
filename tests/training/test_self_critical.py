"""Sentences that score better than others about the same picture become likelier."""

import torch
from torch import nn

from sightline.captioning.decoder import END, PAD, Annotations, Decoder, Step
from sightline.captioning.search import Greedy
from sightline.datasets.structures import Captions
from sightline.training.self_critical import SelfCritic


class State(tuple):
    """Nothing is remembered but the place in the sentence."""

    def __new__(cls, count):
        return super().__new__(cls, (count,))


class Placed(Decoder):
    """Logits of each place in a sentence, the same for all pictures."""

    def __init__(self, words, places):
        super().__init__(words)
        self.logits = nn.Parameter(torch.zeros(places, words))

    def prepare(self, annotations):
        return annotations

    def begin(self, memory, sentences):
        return State(torch.zeros(len(memory.maps), sentences, dtype=torch.int64))

    def step(self, words, state, memory):
        return Step(self.logits[state[0].clamp(max=len(self.logits) - 1)], State(state[0] + 1), None)


ANNOTATIONS = Annotations(torch.zeros(2, 1, 1, 1), torch.ones(2, 1, 1, dtype=torch.bool))
TRUTHS = torch.tensor([[[4, 5, END, PAD]], [[4, 5, END, PAD]]])
# Other pictures have other words, so that those of the truth are rare enough to count.
PICTURES = [[[4, 5, END]], [[6, 7, END]], [[7, 6, END]], [[6, 6, END]]]


def test_learns_to_say_what_is_rewarded():
    torch.manual_seed(0)
    decoder, critic = Placed(8, 4), SelfCritic(PICTURES, count=8, most=4)
    optimizer, rewards = torch.optim.Adam(decoder.parameters(), lr=0.1), []
    for _ in range(60):
        loss, reward = critic(decoder, ANNOTATIONS, TRUTHS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rewards.append(reward.item())
    assert sum(rewards[-10:]) > 3 * sum(rewards[:10])
    said = Greedy(4)(decoder, ANNOTATIONS)
    assert said.tokens[0, 0].tolist() == [4, 5, END, PAD]


def test_the_loss_by_hand(monkeypatch):
    """Two sentences, one right: advantages are the difference of their rewards, the sum of their words divides."""
    decoder, critic = Placed(8, 4), SelfCritic(PICTURES, count=2, most=3)
    scores = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    said = Captions(torch.tensor([[[4, 5, END], [6, END, PAD]]]), scores)
    critic.sampling = lambda *_: said
    loss, reward = critic(decoder, ANNOTATIONS, TRUTHS[:1])
    loss.backward()
    right, wrong = critic.rewards([[4, 5, END], [6, END]], [[4, 5, END]])
    assert reward.item() == torch.tensor([right, wrong]).mean().item()
    difference = right - wrong
    torch.testing.assert_close(scores.grad, torch.tensor([[-difference / 5, difference / 5]]))


def test_equal_sentences_teach_nothing():
    decoder, critic = Placed(8, 4), SelfCritic(PICTURES, count=2, most=3)
    scores = torch.tensor([[-1.0, -1.0]], requires_grad=True)
    critic.sampling = lambda *_: Captions(torch.tensor([[[4, 5, END], [4, 5, END]]]), scores)
    critic(decoder, ANNOTATIONS, TRUTHS[:1])[0].backward()
    assert not scores.grad.any()
