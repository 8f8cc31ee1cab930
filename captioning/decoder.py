"""What every decoder is: words one after another, from what a backbone made of a picture.

    memory = decoder.prepare(annotations)                       # once a picture: what is looked at in every step
    state = decoder.begin(memory, sentences)                    # before the first word
    step = decoder.step(words, state, memory)                   # one more word of every sentence
    unrolled = decoder.unroll(words, memory)                    # all words of known sentences: what training asks for

`unroll` gives what a loop over `step` gives; it only does more of the work at once. Several sentences of one picture stand
side by side, so that what belongs to the picture is kept once: they are its true sentences while training, and the beams
of a search while decoding.

Letters: B pictures, S sentences of a picture, T words of a sentence, V words of the vocabulary, L = h * w cells, D channels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PAD, START, END, UNKNOWN = range(4)  # the first numbers of every vocabulary


class Annotations(NamedTuple):
    """What a backbone makes of pictures: an annotation vector for each cell of a map (Show, Attend and Tell, section 3.1.1)."""

    maps: Tensor  # (B, D, h, w) float
    valid: Tensor  # (B, h, w) bool: cells that lie in the picture, not in its padding; at least one of each


class Step(NamedTuple):
    """One more word."""

    logits: Tensor  # (B, S, V) of the next word
    state: Any  # a NamedTuple of tensors (B, S, ...), whose shapes depend on nothing but how many words there are
    attention: Tensor | None  # (B, S, L) weights, row by row, of the cells looked at for it; None where nobody attends


class Unrolled(NamedTuple):
    """All words of known sentences."""

    logits: Tensor  # (B, S, T, V) of the word after each of those given
    attention: Tensor | None  # (B, S, T, L)


class Decoder(nn.Module):
    """The base of all decoders: a subclass writes `prepare`, `begin` and `step`, and `unroll` where it can be quicker.

    Attributes:
        num_words: V.
        most_words: T of the longest sentences it can take in or say; None where any length will do.
        sampling: the chance that a word while training is the decoder's own guess in place of the true one (scheduled
            sampling, https://arxiv.org/abs/1506.03099); the trainer sets it.
        dropout: where a subclass says.
        truncate: back-propagation goes through so many words at most; None through all.
        smoothing: share of the word loss that asks for all words alike (label smoothing).
        of_words: what begins the names of the weights that hold a row for each word.
    """

    most_words: int | None = None
    of_words: tuple[str, ...] = ("words.", "output.")

    def __init__(
        self, num_words: int, *, dropout: float = 0.0, truncate: int | None = None, smoothing: float = 0.0
    ) -> None:
        super().__init__()
        if num_words <= UNKNOWN:
            raise ValueError(f"num_words must be more than the {UNKNOWN + 1} special ones, got {num_words}")
        if truncate is not None and truncate < 1:
            raise ValueError(f"truncate must be at least 1 word, or None, got {truncate}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout must be from 0 to 1, got {dropout}")
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing must be in [0, 1), got {smoothing}")
        self.num_words, self.truncate, self.smoothing = num_words, truncate, smoothing
        self.dropout = nn.Dropout(dropout)
        self.sampling = 0.0

    def prepare(self, annotations: Annotations) -> Any:
        """What every step looks at: a NamedTuple of tensors (B, ...)."""
        raise NotImplementedError

    def begin(self, memory: Any, sentences: int) -> Any:
        """The state before the first word of S sentences a picture: a NamedTuple of tensors (B, S, ...)."""
        raise NotImplementedError

    def step(self, words: Tensor, state: Any, memory: Any) -> Step:
        """Takes in one word of each sentence, (B, S) int64, the first of which is START."""
        raise NotImplementedError

    def unroll(self, words: Tensor, memory: Any) -> Unrolled:
        """Takes in all words of known sentences, (B, S, T) int64, each beginning with START: `step`, T times."""
        return stacked(self.steps(words, memory))

    def steps(self, words: Tensor, memory: Any) -> list[Step]:
        """`step` for each of T words, (B, S, T), one after another; guesses in place of some while `guessing`."""
        state, steps = self.begin(memory, words.shape[1]), []
        for t in range(words.shape[2]):
            given = words[..., t] if not steps else self.mixed(words[..., t], steps[-1].logits)
            steps.append(self.step(given, self.carried(state, t), memory))
            state = steps[-1].state
        return steps

    def carried(self, state: Any, t: int) -> Any:
        """The state that word t, counted from 0, is taken in with: cut off from what was before it every `truncate` words."""
        cut = self.truncate is not None and t > 0 and t % self.truncate == 0
        return detached(state) if cut else state

    @property
    def guessing(self) -> bool:
        """Whether words depend on the logits before them, so that they cannot all be taken in at once."""
        return self.training and self.sampling > 0

    def mixed(self, words: Tensor, logits: Tensor) -> Tensor:
        """True words (B, S), some of them, while training, replaced by guesses drawn from the logits (B, S, V) before them."""
        if not self.guessing:
            return words
        guesses = drawn(logits.detach().float().softmax(-1))
        return torch.where(torch.rand(words.shape, device=words.device) < self.sampling, guesses, words)

    def losses(self, annotations: Annotations, tokens: Tensor) -> dict[str, Tensor]:
        """The mean cross-entropy of a word.

        Args:
            annotations: of the pictures.
            tokens: (B, S, T), see `Captions`.
        """
        unrolled = self.unroll(shifted(tokens), self.prepare(annotations))
        return {"loss_words": word_loss(unrolled.logits, tokens, self.smoothing)}


def stacked(steps: list[Step]) -> Unrolled:
    """Steps one after another as one."""
    attention = None if steps[0].attention is None else torch.stack([step.attention for step in steps], 2)
    return Unrolled(torch.stack([step.logits for step in steps], 2), attention)


def drawn(chances: Tensor) -> Tensor:
    """An index (...) drawn from each row of chances (..., N); unlike `torch.multinomial` it does not wait for the device."""
    return (chances / torch.empty_like(chances).exponential_()).argmax(-1)


def shifted(tokens: Tensor) -> Tensor:
    """What a decoder is given where it is to say `tokens` (..., T): START, and then all of them but the last."""
    return F.pad(tokens, (1, 0), value=START)[..., :-1]


def word_loss(logits: Tensor, tokens: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy over the words that are no padding: logits (B, S, T, V) against tokens (B, S, T); 0 of none."""
    return mean_word(word_losses(logits, tokens, smoothing), tokens)


def word_losses(logits: Tensor, tokens: Tensor, smoothing: float = 0.0) -> Tensor:
    """(...) cross-entropy of every word, 0 of padding: logits (..., V) against tokens (...)."""
    each = F.cross_entropy(
        logits.flatten(0, -2).float(), tokens.flatten(), ignore_index=PAD, label_smoothing=smoothing, reduction="none"
    )
    return each.view_as(tokens)


def mean_word(values: Tensor, tokens: Tensor) -> Tensor:
    """The mean over words of values (B, S, T) that are 0 where tokens (B, S, T) are padding; 0 of none."""
    return values.sum() / (tokens != PAD).sum().clamp(min=1)


def at_least_one(**numbers: int) -> None:
    """ValueError when one of the numbers, by name, is less than 1."""
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")


def detached(state: Any) -> Any:
    """A state through which no gradient goes."""
    return type(state)(*(value.detach() for value in state))
