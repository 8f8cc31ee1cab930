"""Self-critical training (Rennie et al. 2017, https://arxiv.org/abs/1612.00563): a captioner says sentences by chance, and those
that score better than its others about the same picture become likelier.

For the last stretch of a training, from weights that already write. The score is CIDEr-D; what it is measured by is the mean
of the picture's other sentences (Luo 2020, https://arxiv.org/abs/2003.09971), not the greedy one, which would have to be found
first. The end counts as a word, or sentences would learn to stop in the middle.

Letters: B pictures, S sentences of a picture, T words.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..captioning.decoder import END, PAD, Annotations, Decoder
from ..captioning.search import Sampling
from ..evaluation.caption_rewards import CiderRewards


class SelfCritic:
    """The loss whose gradient is that of the expected reward (REINFORCE).

    Args:
        pictures: the sentences of every training picture, each the numbers of its words and END.
        count: S drawn for each picture, at least 2.
        most: T.
    """

    def __init__(self, pictures: Sequence[Sequence[Sequence[int]]], *, count: int = 5, most: int = 20) -> None:
        self.rewards, self.sampling = CiderRewards(pictures), Sampling(count, most=most)

    def __call__(self, decoder: Decoder, annotations: Annotations, truths: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, a mean over words, and the mean reward, from 0 to 10.

        Args:
            decoder: that is trained.
            annotations: of the pictures.
            truths: (B, S, T), their sentences, see `Captions`.
        """
        said = self.sampling(decoder, annotations)
        rewards = self._rewards(said.tokens, truths)
        others = (rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)
        loss = -((rewards - others) * said.scores).sum() / (said.tokens != PAD).sum()
        return loss, rewards.mean()

    def _rewards(self, said: Tensor, truths: Tensor) -> Tensor:
        """(B, S), computed on the host: one synchronisation a step."""
        pairs = zip(_sentences(said), _sentences(truths), strict=True)
        rewards = [self.rewards(sentences, [words for words in true if words]) for sentences, true in pairs]
        return torch.tensor(rewards, device=said.device)


def _sentences(tokens: Tensor) -> list[list[list[int]]]:
    """(B, S, T) as lists of words up to and with END, empty where a sentence is padding."""
    return [[_words(row) for row in picture] for picture in tokens.tolist()]


def _words(row: list[int]) -> list[int]:
    end = row.index(END) + 1 if END in row else row.index(PAD) if PAD in row else len(row)
    return row[:end]
