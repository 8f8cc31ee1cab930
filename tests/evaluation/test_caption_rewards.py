"""CIDEr-D as a reward is the CIDEr-D that captions are scored by."""

import numpy as np
import pytest

from sightline.evaluation import evaluate_captions
from sightline.evaluation.caption_rewards import CiderRewards

WORDS = ["a", "dog", "runs", "on", "the", "grass", "black", "and", "white", "cat"]


def sentence(rng):
    return rng.integers(0, len(WORDS), rng.integers(1, 12)).tolist()


def text(words):
    return " ".join(WORDS[word] for word in words)


def test_rewards_are_the_scores():
    rng = np.random.default_rng(0)
    truths = [[sentence(rng) for _ in range(1 + i % 5)] for i in range(20)]
    said = [sentence(rng) for _ in truths]
    said[3] = truths[3][0]  # one of the picture's own
    expected = evaluate_captions(
        {i: [text(words) for words in group] for i, group in enumerate(truths)},
        {i: text(words) for i, words in enumerate(said)},
    ).cider_d
    rewards = CiderRewards(truths)
    found = [rewards([words], group)[0] for words, group in zip(said, truths, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert expected[3] > 1


def test_several_sentences_of_one_picture():
    rewards = CiderRewards([[[1, 2, 3, 4]], [[5, 6, 7, 8]], [[1, 5, 9]]])
    same, part, other, empty = rewards([[1, 2, 3, 4], [1, 2, 9], [5, 6], []], [[1, 2, 3, 4]])
    assert same == pytest.approx(10.0)
    assert same > part > other == empty == 0.0


def test_a_word_in_every_picture_is_worth_nothing():
    rewards = CiderRewards([[[1, 2]], [[1, 3]]])
    assert rewards([[1]], [[1, 2]]) == [0.0]
