"""Recurrent cells against torch's, Show and Tell against a loop over single sentences, and what holds for every such decoder."""

import pytest
import torch
from torch import nn

from sightline import captioning
from sightline.captioning import show_and_tell, show_attend_tell
from sightline.captioning.decoder import PAD, Annotations, Decoder, shifted
from sightline.captioning.recurrent import CELLS, State, cell_named
from sightline.captioning.show_and_tell import ShowAndTell

B, S, T, D, V, WIDTH, EMBEDDING = 3, 2, 5, 6, 11, 8, 7
TORCH_CELLS = {"rnn": nn.RNNCell, "lstm": nn.LSTMCell, "gru": nn.GRUCell}
SMALL = {"width": WIDTH, "embedding": EMBEDDING, "norm": "batch"}
BUILDERS = {
    **{f"tell-{cell}": (show_and_tell, {"cell": cell}) for cell in CELLS},
    **{f"soft-{cell}": (show_attend_tell, {"cell": cell, "attention_width": 5}) for cell in CELLS},
    "soft-narrow": (show_attend_tell, {"attention_width": 5, "channels": 4}),
    "hard-lstm": (show_attend_tell, {"attention": "hard", "attention_width": 5}),
    "hard-gru": (show_attend_tell, {"attention": "hard", "cell": "gru", "attention_width": 5}),
    "region": (show_attend_tell, {"attention": "region", "attention_width": 5}),
}
every_decoder = pytest.mark.parametrize("name", BUILDERS)


def captioner(name, **arguments):
    build, own = BUILDERS[name]
    model = build("resnet10_narrow", V, **(SMALL | own | arguments))
    return model.eval()


def decoder(name, **arguments):
    return captioner(name, **arguments).decoder


def annotations(channels):
    """The second picture is smaller than its frame; what the map holds there is no number at all."""
    valid = torch.ones(B, 3, 4, dtype=torch.bool)
    valid[1, 2:] = False
    valid[1, :, 3:] = False
    maps = torch.randn(B, channels, 3, 4)
    return Annotations(maps.masked_fill(~valid[:, None], torch.nan), valid)


def sentences():
    tokens = torch.randint(4, V, (B, S, T))
    tokens[0, 0, 3:] = PAD
    tokens[2, 1] = PAD  # a sentence that is not there
    return tokens


def channels(model):
    """D of the maps that a decoder takes."""
    vectors = model.vectors if isinstance(model, ShowAndTell) else model.attention.vectors
    projection = model.picture if isinstance(model, ShowAndTell) else vectors.projection
    return projection.in_features if isinstance(projection, nn.Linear) else vectors.channels


def gradients(model, looked_at, tokens, seed=0):
    torch.manual_seed(seed)
    model.zero_grad()
    losses = model.losses(looked_at, tokens)
    sum(losses.values()).backward()
    return losses, {name: p.grad.clone() for name, p in model.named_parameters()}


# -- Cells --


@pytest.mark.parametrize("name", CELLS)
def test_cells_are_torchs(name):
    theirs = TORCH_CELLS[name](EMBEDDING, WIDTH)
    state = State(torch.randn(B, S, WIDTH), torch.randn(B, S, WIDTH * CELLS[name].cells))
    inputs = torch.randn(B, S, EMBEDDING)
    ours = CELLS[name](
        nn.functional.linear(inputs, theirs.weight_ih, theirs.bias_ih),
        nn.functional.linear(state.hidden, theirs.weight_hh, theirs.bias_hh),
        state,
    )
    before = state.hidden.flatten(0, 1)
    after = theirs(inputs.flatten(0, 1), (before, state.cell.flatten(0, 1)) if name == "lstm" else before)
    hidden, cell = after if name == "lstm" else (after, state.cell.flatten(0, 1))
    torch.testing.assert_close(ours.hidden.flatten(0, 1), hidden)
    torch.testing.assert_close(ours.cell.flatten(0, 1), cell)


def test_unknown_cell():
    with pytest.raises(ValueError, match="cell must be one of rnn, lstm, gru, got 'mgu'"):
        cell_named("mgu")


def test_the_forget_gate_is_open_at_first():
    bias = ShowAndTell(V, D, CELLS["lstm"], width=WIDTH).from_inputs.bias
    assert (bias[WIDTH : 2 * WIDTH] == 1).all()
    assert (bias[:WIDTH] < 1).all()
    assert (bias[2 * WIDTH :] < 1).all()


# -- Show and Tell --


@pytest.mark.parametrize("name", CELLS)
def test_show_and_tell_is_a_loop_over_sentences(name):
    """One picture, one sentence and one word at a time, with torch's own cell."""
    model = ShowAndTell(V, D, CELLS[name], width=WIDTH, embedding=EMBEDDING).eval()
    cell = TORCH_CELLS[name](EMBEDDING, WIDTH)
    with torch.no_grad():
        cell.weight_ih.copy_(model.from_inputs.weight), cell.bias_ih.copy_(model.from_inputs.bias)
        cell.weight_hh.copy_(model.from_hidden.weight), cell.bias_hh.copy_(model.from_hidden.bias)
    looked_at, words = annotations(D), shifted(sentences())
    unrolled = model.unroll(words, model.prepare(looked_at))
    assert unrolled.attention is None
    for b in range(B):
        mean = looked_at.maps[b][:, looked_at.valid[b]].mean(1)
        for s in range(S):
            state = cell(model.picture(mean)[None])
            for t in range(T):
                state = cell(model.words(words[b, s, t])[None], state)
                logits = model.output(state[0] if name == "lstm" else state)[0]
                torch.testing.assert_close(unrolled.logits[b, s, t], logits, atol=1e-5, rtol=1e-5)


# -- Every recurrent decoder --


@every_decoder
@pytest.mark.parametrize("truncate", [None, 2])
def test_unroll_is_the_loop_over_steps(name, truncate):
    """The same logits and attention, and through them the same gradients."""
    model = decoder(name, truncate=truncate)
    looked_at, words = annotations(channels(model)), shifted(sentences())
    found = []
    for unroll in (model.unroll, lambda *given: Decoder.unroll(model, *given)):
        model.zero_grad()
        unrolled = unroll(words, model.prepare(looked_at))
        unrolled.logits.square().mean().backward()
        found.append((unrolled, {key: p.grad for key, p in model.named_parameters() if p.grad is not None}))
    (quick, quick_gradients), (slow, slow_gradients) = found
    torch.testing.assert_close(quick, slow, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(quick_gradients, slow_gradients, atol=1e-5, rtol=1e-5)


@every_decoder
def test_every_parameter_gets_a_gradient(name):
    model = decoder(name).train()
    if name == "region":  # starts at the whole picture whatever the keys say
        nn.init.normal_(model.attention.region.localisation.weight, std=0.1)
    _, found = gradients(model, annotations(channels(model)), sentences())
    assert all(g.isfinite().all() for g in found.values())
    assert [key for key, g in found.items() if not g.any()] == []


@every_decoder
def test_padding_changes_nothing(name):
    """More padding of words, of sentences and of cells: the same losses and gradients."""
    model = decoder(name)
    looked_at, tokens = annotations(channels(model)), sentences()
    wider = Annotations(
        nn.functional.pad(looked_at.maps, (0, 2, 0, 1), value=torch.nan),
        nn.functional.pad(looked_at.valid, (0, 2, 0, 1)),
    )
    before = gradients(model, looked_at, tokens)
    after = gradients(model, wider, nn.functional.pad(tokens, (0, 2, 0, 1)))
    torch.testing.assert_close(after, before, atol=1e-6, rtol=1e-5)


@every_decoder
def test_nothing_to_say_costs_nothing(name):
    model = decoder(name).train()
    losses, found = gradients(model, annotations(channels(model)), torch.full((B, S, T), PAD))
    assert all(value == 0 for value in losses.values())
    assert not any(g.any() for g in found.values())


@every_decoder
def test_truncation_cuts(name):
    """What is said after word 3 depends, for the gradient, on words 2 and 3 alone, and not on how it all began."""
    model = decoder(name, truncate=2)
    words = torch.arange(4, 4 + T).expand(B, 1, T)  # every word once
    unrolled = model.unroll(words, model.prepare(annotations(channels(model))))
    first = model.picture if isinstance(model, ShowAndTell) else model.start
    rows, start = torch.autograd.grad(
        unrolled.logits[:, :, 3].square().sum(), (model.words.weight, first.weight), allow_unused=True
    )
    assert rows[4:9].ne(0).any(1).tolist() == [False, False, True, True, False]
    assert start is None or not start.any()
    untruncated = decoder(name)
    unrolled = untruncated.unroll(words, untruncated.prepare(annotations(channels(model))))
    (rows,) = torch.autograd.grad(unrolled.logits[:, :, 3].sum(), untruncated.words.weight)
    assert rows[4:9].ne(0).any(1).tolist() == [True, True, True, True, False]


@every_decoder
def test_a_checkpoint_says_the_same(name, tmp_path):
    model = captioner(name, truncate=3, smoothing=0.1)
    captioning.save(model, tmp_path / "model.ckpt")
    again = captioning.load(tmp_path / "model.ckpt", device="cpu")
    images, sizes, words = torch.rand(2, 3, 64, 96) * 255, torch.tensor([[64, 96], [40, 96]]), shifted(sentences()[:2])
    with torch.inference_mode():
        first, second = (m.decoder.unroll(words, m.decoder.prepare(m(images, sizes))) for m in (model, again))
    torch.testing.assert_close(first, second)
    assert (again.decoder.truncate, again.decoder.smoothing) == (3, 0.1)


@every_decoder
def test_bfloat16(name):
    """Autocast gives about the same losses; the state keeps its type, so that sums over words stay exact."""
    model = decoder(name)
    looked_at, tokens = annotations(channels(model)), sentences()
    with torch.autocast("cpu", torch.bfloat16):
        memory = model.prepare(looked_at)
        state = model.begin(memory, S)
        after = model.step(tokens[..., 0], state, memory).state
        halves, found = gradients(model, looked_at, tokens)
    assert [value.dtype for value in after] == [value.dtype for value in state]
    assert after.hidden.dtype == torch.float32
    torch.testing.assert_close(
        halves["loss_words"], model.losses(looked_at, tokens)["loss_words"], atol=0.05, rtol=0.02
    )
    assert all(g.isfinite().all() for g in found.values())


@every_decoder
def test_guesses_come_from_the_seed(name):
    """Scheduled sampling: the same seed the same guesses, another seed others; none in evaluation."""
    model = decoder(name, dropout=0.0).train()
    words, memory = shifted(sentences()), model.prepare(annotations(channels(model)))
    model.sampling = 1.0

    def logits(seed):
        torch.manual_seed(seed)
        return model.unroll(words, memory).logits

    assert torch.equal(logits(0), logits(0))
    assert not torch.equal(logits(0), logits(1))
    model.eval()
    assert torch.equal(logits(0), logits(1))
    model.sampling = 0.0
    assert torch.equal(logits(0), logits(1))


def test_nothing_is_of_no_width():
    for name in ("width", "embedding"):
        with pytest.raises(ValueError, match=f"^{name} must be at least 1, got 0"):
            show_and_tell("resnet10_narrow", 10, **{name: 0})


@every_decoder
def test_no_such_map(name):
    with pytest.raises(ValueError, match="layer must be one of the backbone's 4 maps, got 4"):
        captioner(name, layer=4)
