"""Hard attention: its gradient against the exact one over all paths, its baseline, and what it does when not training."""

import itertools
import math

import pytest
import torch

from sightline.captioning import hard_attention
from sightline.captioning.attending import Attending
from sightline.captioning.attention import AnnotationVectors
from sightline.captioning.decoder import PAD, Annotations, shifted, word_loss
from sightline.captioning.hard_attention import HardAttending, HardAttention
from sightline.captioning.recurrent import CELLS

T, L, D, V = 2, 3, 4, 7
SIZES = {"width": 5, "embedding": 3, "dropout": 0.0}


def hard_decoder(**arguments):
    """Sharp enough for paths to differ."""
    model = HardAttending(V, HardAttention(AnnotationVectors(D), 6), CELLS["lstm"], **SIZES, **arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    return model.train()


def pictures(count=1):
    return Annotations(torch.randn(1, D, 1, L).expand(count, -1, -1, -1), torch.ones(count, 1, L, dtype=torch.bool))


@pytest.fixture
def drawn_only(monkeypatch):
    """No sentence is given expected vectors."""
    monkeypatch.setattr(hard_attention, "EXPECTED", 0.0)


def along(model, path, monkeypatch):
    """Makes the decoder look at the cells of a path."""
    cells = iter(path)
    monkeypatch.setattr(model.attention, "draw", lambda weights: torch.full(weights.shape[:2], next(cells)))


def gradient(model, loss):
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
    return dict(zip(names, found, strict=True))


def every_path(model, looked_at, tokens, monkeypatch):
    """Of each of the L^T paths its chance, a tensor with a gradient, and the losses along it."""
    baseline = model.attention.baseline.clone()
    for path in itertools.product(range(L), repeat=T):
        along(model, path, monkeypatch)
        weights = model.unroll(shifted(tokens), model.prepare(looked_at)).attention[0, 0]
        along(model, path, monkeypatch)
        losses = model.losses(looked_at, tokens)
        model.attention.baseline.copy_(baseline)
        yield math.prod(weights[t, cell] for t, cell in enumerate(path)), losses


def exact(model, looked_at, tokens, monkeypatch):
    """The gradient of the expected loss."""
    paths = every_path(model, looked_at, tokens, monkeypatch)
    return gradient(model, sum(chance * losses["loss_words"] for chance, losses in paths))


# -- The gradient --


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("baseline", [0.0, -3.7])
def test_the_estimate_is_right_on_average(drawn_only, monkeypatch, baseline, smoothing):
    """The chance of each path times the gradient estimated along it sums up to that of the expected loss, for any baseline."""
    model, looked_at, tokens = hard_decoder(smoothing=smoothing), pictures(), torch.tensor([[[4, 5]]])
    model.attention.baseline.fill_(baseline)
    truth = exact(model, looked_at, tokens, monkeypatch)
    paths = list(every_path(model, looked_at, tokens, monkeypatch))
    assert sum(chance for chance, _ in paths).item() == pytest.approx(1, abs=1e-6)
    mean = gradient(model, sum(p.detach() * (one["loss_words"] + one["loss_reinforce"]) for p, one in paths))
    torch.testing.assert_close(mean, truth, atol=1e-6, rtol=1e-4)
    without = gradient(model, sum(p.detach() * one["loss_words"] for p, one in paths))
    assert not torch.allclose(without["attention.keys.weight"], truth["attention.keys.weight"], atol=1e-4)


def test_the_mean_of_many_draws(drawn_only, monkeypatch):
    """20 times 500 sentences: the mean is within four standard errors of the exact gradient."""
    model, tokens = hard_decoder(), torch.tensor([[[4, 5]]])
    looked_at = pictures()
    with monkeypatch.context() as patch:
        truth = exact(model, looked_at, tokens, patch)["attention.keys.weight"]
    estimates = []
    for _ in range(20):
        model.attention.baseline.fill_(-3.0)
        losses = model.losses(looked_at, tokens.expand(1, 500, -1))
        estimates.append(gradient(model, losses["loss_words"] + losses["loss_reinforce"])["attention.keys.weight"])
    estimates = torch.stack(estimates)
    error = estimates.std(0) / len(estimates) ** 0.5
    assert ((estimates.mean(0) - truth).abs() < 4 * error + 1e-6).all()
    assert (error < 0.2 * truth.abs().max()).all()  # else the test would say nothing


def test_cells_are_drawn_by_their_weights():
    attention = HardAttention(AnnotationVectors(D), 6)
    weights = torch.tensor([0.0, 0.1, 0.6, 0.3])
    counts = attention.draw(weights.expand(1, 20_000, -1)).flatten().bincount(minlength=4)
    assert counts[0] == 0
    torch.testing.assert_close(counts / 20_000, weights, atol=0.015, rtol=0)


def test_one_cell_is_seen(drawn_only, monkeypatch):
    """Along a path the contexts are the cells' own vectors."""
    model, looked_at = hard_decoder(), pictures()
    memory = model.prepare(looked_at)
    along(model, [2], monkeypatch)
    state, seen, weights = model.look(torch.randn(1, 1, 6), model.begin(memory, 1), memory)
    assert torch.equal(seen[0, 0], looked_at.maps[0, :, 0, 2])
    torch.testing.assert_close(state.score[0, 0], weights[0, 0, 2].log())


# -- Expected vectors --


def test_half_of_the_sentences_are_given_expected_vectors():
    model = hard_decoder()
    state = model.begin(model.prepare(pictures(20)), 50)
    assert 400 < state.expected.sum() < 600
    # one draw for a whole sentence, not one a word
    assert torch.equal(
        model.step(torch.ones(20, 50).long(), state, model.prepare(pictures(20))).state.expected, state.expected
    )


def test_with_expected_vectors_it_is_soft(monkeypatch):
    """The same words' loss and gradient as soft attention, and nothing for REINFORCE to learn."""
    monkeypatch.setattr(hard_attention, "EXPECTED", 1.0)
    model, looked_at, tokens = hard_decoder(), pictures(), torch.tensor([[[4, 5], [6, PAD]]])
    soft = Attending(V, model.attention, CELLS["lstm"], **SIZES)
    soft.load_state_dict(model.state_dict())
    losses = model.losses(looked_at, tokens)
    theirs = soft.losses(looked_at, tokens)["loss_words"]
    torch.testing.assert_close(losses["loss_words"], theirs)
    torch.testing.assert_close(gradient(model, losses["loss_words"]), gradient(soft, theirs))
    assert losses["loss_reinforce"] == 0


# -- Losses --


def test_losses_by_hand(drawn_only, monkeypatch):
    model, looked_at, tokens = hard_decoder(), pictures(), torch.tensor([[[4, 5], [6, PAD]]])
    model.attention.baseline.fill_(-2.0)
    along(model, [1, 2], monkeypatch)
    unrolled = model.unroll(shifted(tokens), model.prepare(looked_at))
    along(model, [1, 2], monkeypatch)
    losses = model.losses(looked_at, tokens)
    logs, weights = unrolled.logits.log_softmax(-1), unrolled.attention
    said = [logs[0, 0, 0, 4] + logs[0, 0, 1, 5], logs[0, 1, 0, 6]]
    first, second, only = weights[0, 0, 0, 1].log(), weights[0, 0, 1, 2].log(), weights[0, 1, 0, 1].log()
    later = logs[0, 0, 1, 5] + 2  # what the second look can be praised for; the first can be for both words
    praised = (said[0] + 4) * first + later * second + (said[1] + 2) * only
    looks = torch.stack([weights[0, 0, 0], weights[0, 0, 1], weights[0, 1, 0]])
    torch.testing.assert_close(losses["loss_words"], -(said[0] + said[1]) / 3)
    torch.testing.assert_close(losses["loss_reinforce"], -praised / 3)
    torch.testing.assert_close(losses["loss_entropy"], hard_attention.ENTROPY * (looks * looks.log()).sum() / 3)


def test_padding_changes_nothing_in_training(drawn_only, monkeypatch):
    """Neither losses nor gradients nor the baseline, along the same path."""
    model, looked_at, tokens = hard_decoder(), pictures(), torch.tensor([[[4, 5], [6, PAD]]])
    wider = Annotations(
        torch.nn.functional.pad(looked_at.maps, (0, 0, 0, 2), value=torch.nan),
        torch.nn.functional.pad(looked_at.valid, (0, 0, 0, 2)),
    )
    found = []
    for given, words in ((looked_at, tokens), (wider, torch.nn.functional.pad(tokens, (0, 1, 0, 1)))):
        model.attention.baseline.fill_(-2.0)
        along(model, [1, 2, 0], monkeypatch)
        losses = model.losses(given, words)
        found.append((losses, gradient(model, sum(losses.values())), model.attention.baseline.clone()))
    torch.testing.assert_close(found[1], found[0], atol=1e-6, rtol=1e-5)


def test_the_baseline_follows_in_training_only():
    model, looked_at = hard_decoder(), pictures()
    tokens = torch.tensor([[[4, 5], [6, PAD], [PAD, PAD]]])
    model.attention.baseline.fill_(-1.0)
    said = -model.losses(looked_at, tokens)["loss_words"].item()  # of the mean word
    assert model.attention.baseline.item() == pytest.approx(0.9 * -1.0 + 0.1 * said, abs=1e-5)
    assert "attention.baseline" in model.state_dict()
    before = model.attention.baseline.clone()
    model.losses(looked_at, torch.full_like(tokens, PAD))  # nothing was said
    model.eval().losses(looked_at, tokens)
    assert torch.equal(model.attention.baseline, before)


# -- Evaluation --


def test_the_most_probable_cell_in_evaluation():
    model, looked_at, tokens = hard_decoder().eval(), pictures(4), torch.randint(4, V, (4, 3, T))
    memory = model.prepare(looked_at)
    state = torch.get_rng_state()
    first, second = model.losses(looked_at, tokens), model.losses(looked_at, tokens)
    unrolled = model.unroll(shifted(tokens), memory)
    assert torch.equal(torch.get_rng_state(), state)  # nothing was drawn
    assert first == second
    assert first["loss_reinforce"] == 0
    torch.testing.assert_close(first["loss_words"], word_loss(unrolled.logits, tokens))
    _, seen, weights = model.look(torch.randn(4, 3, 6), model.begin(memory, 3), memory)
    best = weights.argmax(-1)
    for b, s in itertools.product(range(4), range(3)):
        assert torch.equal(seen[b, s], memory.vectors[b, best[b, s]])
