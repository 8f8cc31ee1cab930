"""Searches against loops that keep lists of sentences, on a decoder whose probabilities stand in a table."""

import math
from itertools import product
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from sightline.captioning.decoder import END, PAD, START, UNKNOWN, Annotations, Decoder, Step, shifted
from sightline.captioning.search import Beam, Greedy, Sampling

V = 7  # three words beside the special ones
SAYABLE = [END, *range(UNKNOWN + 1, V)]
SEARCHES = {
    "greedy": Greedy(most=6),
    "beam": Beam(width=4, most=6, count=3),
    "beam by sums": Beam(width=3, most=6, length_power=0.0),
    "sampling": Sampling(count=4, most=6),
    "nucleus": Sampling(count=3, temperature=0.8, nucleus=0.7, most=6),
}


class Memory(NamedTuple):
    table: Tensor  # (B, V, V, V) logits of a word by the two before it
    looks: Tensor  # (B, V, L) where each word looks


class State(NamedTuple):
    last: Tensor  # (B, S)


class Table(Decoder):
    """Says a word by the two before it, with the picture's own probabilities."""

    def __init__(self, words=V, attends=True):
        super().__init__(words)
        self.attends = attends

    def prepare(self, annotations):
        words = self.num_words
        table = annotations.maps.mean((2, 3)).view(-1, words, words, words)
        return Memory(2 * table, annotations.maps[:, :words].flatten(2).softmax(-1))

    def begin(self, memory, sentences):
        shape = (len(memory.table), sentences)
        return State(torch.zeros(shape, dtype=torch.int64, device=memory.table.device))

    def step(self, words, state, memory):
        pictures = torch.arange(len(words), device=words.device)[:, None]
        attention = memory.looks[pictures, words] if self.attends else None
        return Step(memory.table[pictures, state.last, words], State(words), attention)


def pictures(count=4, words=V, seed=0):
    generator = torch.Generator().manual_seed(seed)
    maps = 2 * torch.randn(count, words**3, 2, 2, generator=generator)
    return Annotations(maps, torch.ones(count, 2, 2, dtype=torch.bool))


def chances(annotations, picture, said, words=V):
    """Log probabilities of the next word behind those said: {word: log probability} over what may be said."""
    table = Table(words).prepare(annotations).table[picture]
    before, last = [PAD, START, *said][-2:]
    row = table[before, last]
    sayable = [END, *range(UNKNOWN + 1, words)]
    return dict(zip(sayable, row[sayable].double().log_softmax(0).tolist(), strict=True))


def by_unroll(annotations, tokens, decoder):
    """Scores (B, S) and attention (B, S, T, L) of sentences, as the decoder gives them when it knows all words."""
    unrolled = decoder.unroll(shifted(tokens), decoder.prepare(annotations))
    logits = unrolled.logits.clone()
    logits[..., [PAD, START, UNKNOWN]] = -math.inf
    said = (tokens != PAD)[..., None]
    each = logits.log_softmax(-1).gather(-1, tokens[..., None])
    return torch.where(said, each, 0).sum((2, 3)), unrolled.attention * said


def padded(said, most):
    return [*said, *[PAD] * (most - len(said))]


@pytest.mark.parametrize("seed", range(5))
def test_a_beam_of_one_is_greedy(seed):
    annotations = pictures(6, seed=seed)
    greedy, beam = Greedy(most=8)(Table(), annotations), Beam(width=1, most=8)(Table(), annotations)
    assert torch.equal(greedy.tokens, beam.tokens)
    torch.testing.assert_close(greedy.scores, beam.scores)
    assert torch.equal(greedy.attention, beam.attention)


def test_greedy_takes_the_likeliest_word():
    annotations = pictures(20)
    tokens = Greedy(most=5)(Table(), annotations).tokens
    for picture, (sentence,) in enumerate(tokens.tolist()):
        said = []
        while len(said) < 5 and END not in said:
            odds = chances(annotations, picture, said)
            said.append(max(odds, key=odds.get))
        assert sentence == padded(said, 5)
    assert (tokens == END).any()
    assert (tokens[:, 0, -1] > UNKNOWN).any()  # one is cut


@pytest.mark.parametrize("length_power", [0.0, 0.7, 1.0])
def test_a_beam_of_all_beginnings_is_exhaustive(length_power):
    annotations, most = pictures(3), 4
    found = Beam(width=128, most=most, length_power=length_power, count=20)(Table(), annotations)
    endings = [(*words, END) for length in range(most) for words in product(SAYABLE[1:], repeat=length)]
    sentences = endings + list(product(SAYABLE[1:], repeat=most))
    for picture in range(3):
        scored = []
        for sentence in sentences:
            score = sum(chances(annotations, picture, sentence[:t])[word] for t, word in enumerate(sentence))
            scored.append((score / len(sentence) ** length_power, score, sentence))
        best = sorted(scored, reverse=True)[:20]
        assert found.tokens[picture].tolist() == [padded(sentence, most) for *_, sentence in best]
        torch.testing.assert_close(found.scores[picture], torch.tensor([score for _, score, _ in best]))


def test_length_power_matters():
    annotations = pictures(8)
    lengths = [
        (Beam(width=5, most=8, length_power=power)(Table(), annotations).tokens != PAD).sum() for power in (0.0, 2.0)
    ]
    assert lengths[0] < lengths[1]


@pytest.mark.parametrize("width", [2, 3, 5])
def test_a_narrow_beam_equals_a_loop(width):
    annotations, most, power = pictures(6), 7, 0.7
    found = Beam(width=width, most=most, length_power=power, count=width)(Table(), annotations)
    for picture in range(6):
        beams = [(0.0, [])]
        for _ in range(most):
            longer = []
            for score, said in beams:
                if END in said:
                    longer.append((score, said))
                    continue
                odds = chances(annotations, picture, said)
                longer += [(score + odds[word], [*said, word]) for word in odds]
            beams = sorted(longer, key=lambda beam: -beam[0] / len(beam[1]) ** power)[:width]
        assert found.tokens[picture].tolist() == [padded(said, most) for _, said in beams]
        torch.testing.assert_close(found.scores[picture], torch.tensor([score for score, _ in beams]))


@pytest.mark.parametrize("name", SEARCHES)
def test_scores_and_attention_are_those_of_the_sentences(name):
    annotations, decoder = pictures(5), Table()
    found = SEARCHES[name](decoder, annotations)
    scores, attention = by_unroll(annotations, found.tokens, decoder)
    torch.testing.assert_close(found.scores, scores)
    torch.testing.assert_close(found.attention, attention)


@pytest.mark.parametrize("name", SEARCHES)
def test_padding_stands_behind_the_end_and_nothing_else_is_said(name):
    tokens = SEARCHES[name](Table(), pictures(20)).tokens
    ended = (tokens == END).long().cumsum(-1) > 0
    assert torch.equal(tokens == PAD, ended & (tokens != END))
    assert set(tokens.unique().tolist()) <= {PAD, *SAYABLE}


@pytest.mark.parametrize("name", ["greedy", "beam", "beam by sums"])
def test_a_batch_is_what_its_pictures_are_alone(name):
    annotations = pictures(5)
    together = SEARCHES[name](Table(), annotations)
    for i in range(5):
        alone = SEARCHES[name](Table(), Annotations(annotations.maps[i : i + 1], annotations.valid[i : i + 1]))
        assert torch.equal(together.tokens[i], alone.tokens[0])
        torch.testing.assert_close(together.scores[i], alone.scores[0])
        torch.testing.assert_close(together.attention[i], alone.attention[0])


@pytest.mark.parametrize("name", SEARCHES)
def test_nothing_asks_for_a_value(name):
    """On the meta device there are shapes alone: they depend on nothing else, and no value can be waited for."""
    annotations = Annotations(*(value.to("meta") for value in pictures(3)))
    found = SEARCHES[name](Table(), annotations)
    count = getattr(SEARCHES[name], "count", 1)
    assert found.tokens.is_meta
    assert found.tokens.shape == (3, count, 6)
    assert found.scores.shape == (3, count)
    assert found.attention.shape == (3, count, 6, 4)


@pytest.mark.parametrize("name", ["beam", "nucleus"])
def test_one_graph(name):
    """A search is compiled without a break, and says the same."""
    annotations = pictures(2)
    compiled = torch.compile(SEARCHES[name], backend="eager", fullgraph=True)
    torch.manual_seed(0)
    expected = SEARCHES[name](Table(), annotations)
    torch.manual_seed(0)
    assert torch.equal(compiled(Table(), annotations).tokens, expected.tokens)


def test_without_attention_there_is_none():
    for search in SEARCHES.values():
        assert search(Table(attends=False), pictures(2)).attention is None


def test_sentences_that_are_not_there():
    """Of a decoder of one word and sentences of one there are two."""
    found = Beam(width=5, most=1, count=4)(Table(5), pictures(3, words=5))
    assert sorted(found.tokens[0, :2, 0].tolist()) == [END, 4]
    assert (found.tokens[:, 2:] == PAD).all()
    assert (found.scores[:, 2:] == -math.inf).all()
    assert (found.attention[:, 2:] == 0).all()
    torch.testing.assert_close(found.scores[:, :2].exp().sum(1), torch.ones(3))


@pytest.mark.parametrize(
    ("search", "power", "nucleus"),
    [(Sampling(), 1, 1), (Sampling(temperature=0.5), 2, 1), (Sampling(temperature=2, nucleus=0.8), 0.5, 0.8)],
    ids=["plain", "cold", "nucleus"],
)
def test_words_are_as_frequent_as_likely(search, power, nucleus):
    annotations, drawn = pictures(2), 20_000
    annotations = annotations._replace(maps=annotations.maps / 4)  # no word so rare that it is never drawn
    found = Sampling(drawn, search.temperature, search.nucleus, most=1)(Table(), annotations)
    for picture in range(2):
        odds = chances(annotations, picture, [])
        weights = {word: math.exp(odd) ** power for word, odd in odds.items()}
        weights = {word: weight / sum(weights.values()) for word, weight in weights.items()}
        kept, reached = {}, 0.0
        for word in sorted(weights, key=weights.get, reverse=True):
            if reached < nucleus:
                kept[word] = weights[word]
                reached += weights[word]
        counts = torch.bincount(found.tokens[picture].flatten(), minlength=V).tolist()
        assert {word for word in range(V) if counts[word]} == set(kept)
        expected = {word: drawn * weight / reached for word, weight in kept.items()}
        # A chi-square of three degrees of freedom is above 21 once in ten thousand times.
        assert sum((counts[word] - each) ** 2 / each for word, each in expected.items()) < 21
        # Whatever was made of the chances, scores are the decoder's own.
        own = torch.tensor([odds[word] for word in found.tokens[picture, :, 0].tolist()])
        torch.testing.assert_close(found.scores[picture], own)


@pytest.mark.parametrize("nucleus", [1.0, 0.9])
def test_without_warmth_sampling_is_greedy(nucleus):
    annotations = pictures(6)
    greedy = Greedy(most=6)(Table(), annotations)
    for temperature in (1e-3, 1e-30, 1e-60):
        sampled = Sampling(2, temperature, nucleus, most=6)(Table(), annotations)
        assert torch.equal(sampled.tokens, greedy.tokens.expand(-1, 2, -1))
        torch.testing.assert_close(sampled.scores, greedy.scores.expand(-1, 2))


def test_the_smallest_nucleus_is_one_word():
    annotations = pictures(6)
    sampled = Sampling(3, nucleus=1e-6, most=6)(Table(), annotations)
    assert torch.equal(sampled.tokens, Greedy(most=6)(Table(), annotations).tokens.expand(-1, 3, -1))


def test_sampling_repeats_by_seed_and_gives_the_likeliest_first():
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(Sampling(8, most=6)(Table(), pictures(4)))
    assert torch.equal(runs[0].tokens, runs[1].tokens)
    assert not torch.equal(runs[0].tokens, runs[2].tokens)
    assert (runs[0].scores.diff(dim=1) <= 0).all()
    assert runs[0].tokens[0].unique(dim=0).shape[0] > 1


def test_scores_of_samples_have_a_gradient():
    """What learning from a score of whole sentences asks for."""
    annotations = pictures(2)
    maps = annotations.maps.requires_grad_()
    found = Sampling(3, temperature=0.5, most=4)(Table(), annotations)
    found.scores.sum().backward()
    assert maps.grad.isfinite().all()
    assert maps.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Greedy(most=0), "most must be at least 1, got 0"),
        (lambda: Beam(width=0), "width must be at least 1, got 0"),
        (lambda: Beam(most=-1), "most must be at least 1, got -1"),
        (lambda: Beam(width=3, count=4), "count must be at most the width of 3, got 4; make the beam wider"),
        (lambda: Beam(length_power=-1), "length_power must be 0 or more, got -1"),
        (lambda: Beam(length_power=math.nan), "length_power must be 0 or more, got nan"),
        (lambda: Sampling(count=0), "count must be at least 1, got 0"),
        (
            lambda: Sampling(temperature=0),
            "temperature must be more than 0, got 0; without chance it is Greedy, --beam 1",
        ),
        (lambda: Sampling(nucleus=0), r"nucleus must be in \(0, 1\], got 0; 1 draws from all words"),
        (lambda: Sampling(nucleus=1.5), r"nucleus must be in \(0, 1\], got 1.5"),
    ],
)
def test_arguments_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_more_words_than_the_decoder_says():
    decoder = Table()
    decoder.most_words = 5
    with pytest.raises(ValueError, match="most is 6 words, the decoder says 5 at most"):
        Greedy(most=6)(decoder, pictures(1))
