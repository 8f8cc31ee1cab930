"""Show, Attend and Tell against a loop over single sentences and cells, where it looks, and what it learns from that."""

import math

import pytest
import torch
from torch import nn

from sightline.backbone.spatial_transformer import Attention, sample
from sightline.captioning import show_attend_tell
from sightline.captioning.attending import Attending, coverage_loss
from sightline.captioning.attention import AnnotationVectors, RegionAttention, SoftAttention
from sightline.captioning.decoder import END, PAD, Annotations, shifted
from sightline.captioning.recurrent import CELLS

B, S, T, D, V, WIDTH, EMBEDDING, A = 2, 3, 4, 6, 11, 8, 7, 5
HEIGHT, ACROSS = 3, 4
TORCH_CELLS = {"rnn": nn.RNNCell, "lstm": nn.LSTMCell, "gru": nn.GRUCell}
ATTENTION = {
    "soft": lambda: SoftAttention(AnnotationVectors(D), A),
    "soft, narrow": lambda: SoftAttention(AnnotationVectors(D, 4), A),
    "region": lambda: moved(RegionAttention(AnnotationVectors(D), A)),
    "upright region": lambda: moved(RegionAttention(AnnotationVectors(D), A, transform=Attention(), points=3)),
}


def moved(attention):
    """Regions that differ from word to word, and reach outside the picture."""
    nn.init.normal_(attention.region.localisation.weight)
    return attention


def annotations():
    """The second picture is smaller than its frame."""
    valid = torch.ones(B, HEIGHT, ACROSS, dtype=torch.bool)
    valid[1, 2:] = False
    valid[1, :, 3:] = False
    return Annotations(torch.randn(B, D, HEIGHT, ACROSS).masked_fill(~valid[:, None], torch.nan), valid)


def decoder(attention, cell="lstm"):
    return Attending(V, attention, CELLS[cell], width=WIDTH, embedding=EMBEDDING).eval()


# -- The decoder --


def torch_cell(model, name):
    """torch's cell on [word, context] with the decoder's weights."""
    gates, channels = model.cell.gates * WIDTH, model.attention.channels
    cell = TORCH_CELLS[name](EMBEDDING + channels, WIDTH)
    with torch.no_grad():
        cell.weight_ih.copy_(torch.cat([model.from_words.weight, model.from_context.weight], 1))
        cell.bias_ih.copy_(model.from_words.bias)
        cell.weight_hh.copy_(model.from_hidden.weight[:gates]), cell.bias_hh.copy_(model.from_hidden.bias[:gates])
    return cell


def seen_softly(model, cells, query):
    """Equations 4 to 6 and 13 on one picture's cells, a list of vectors."""
    attention = model.attention
    scores = [attention.score.weight[0] @ torch.tanh(attention.keys(cell) + query) for cell in cells]
    weights = torch.stack(scores).exp() / sum(score.exp() for score in scores)
    return sum(weight * cell for weight, cell in zip(weights, cells, strict=True)), weights


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("channels", [None, 4])
def test_a_loop_over_sentences_and_cells(name, channels):
    """The paper's equations, for one sentence of one picture at a time, on the cells that lie in the picture."""
    model = decoder(SoftAttention(AnnotationVectors(D, channels), A), name)
    looked_at, words = annotations(), shifted(torch.randint(4, V, (B, S, T)))
    unrolled, cell, gates = model.unroll(words, model.prepare(looked_at)), torch_cell(model, name), model.parts[0]
    for b in range(B):
        valid = looked_at.valid[b]
        cells = [model.attention.vectors.projection(vector) for vector in looked_at.maps[b][:, valid].T]
        start = torch.tanh(model.start(sum(cells) / len(cells)))
        for s in range(S):
            hidden, memory = start[None, :WIDTH], start[None, WIDTH:]
            for t in range(T):
                read = model.from_hidden(hidden[0])[gates:]
                context, weights = seen_softly(model, cells, read[:A])
                context = torch.sigmoid(read[A]) * context
                embedded = model.words(words[b, s, t])
                given = torch.cat([embedded, context])[None]
                if name == "lstm":
                    hidden, memory = cell(given, (hidden, memory))
                else:
                    hidden = cell(given, hidden)
                deep = embedded + model.deep(torch.cat([hidden[0], context]))
                torch.testing.assert_close(unrolled.logits[b, s, t], model.output(deep), atol=1e-5, rtol=1e-5)
                torch.testing.assert_close(unrolled.attention[b, s, t][valid.flatten()], weights, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ATTENTION)
def test_weights_sum_to_one_and_never_lie_in_padding(name):
    model, looked_at = decoder(ATTENTION[name]()), annotations()
    words = shifted(torch.randint(4, V, (B, S, T)))
    for context in (torch.autocast("cpu", enabled=False), torch.autocast("cpu", torch.bfloat16)):
        with context:
            weights = model.unroll(words, model.prepare(looked_at)).attention
        assert weights.shape == (B, S, T, HEIGHT * ACROSS)
        assert weights.dtype == torch.float32
        torch.testing.assert_close(weights.sum(-1), torch.ones(B, S, T), atol=1e-6, rtol=0)
        assert (weights >= 0).all()
        assert not weights[1][..., ~looked_at.valid[1].flatten()].any()


# -- Regions --


def test_a_region_starts_as_the_whole_picture():
    attention, looked_at = RegionAttention(AnnotationVectors(D), A, points=4), annotations()
    memory = attention.prepare(looked_at)
    places = attention.places(torch.randn(B, S, A), memory).view(B, S, 4, 4, 2)
    axis = torch.tensor([-0.75, -0.25, 0.25, 0.75])
    torch.testing.assert_close(places[..., 0], axis.expand(B, S, 4, 4))
    torch.testing.assert_close(places[..., 1], axis[:, None].expand(B, S, 4, 4))


def test_a_region_is_sampled_as_by_a_spatial_transformer():
    """Inside the picture: `sample` on the part of the map that is valid, and the mean of its samples."""
    attention, looked_at, queries = RegionAttention(AnnotationVectors(D), A), annotations(), torch.randn(B, S, A)
    nn.init.normal_(attention.region.localisation.weight, std=0.05)
    attention.region.localisation.bias.data *= 0.4  # small enough to stay inside
    memory = attention.prepare(looked_at)
    contexts, _ = attention(queries, memory)
    places = attention.places(queries, memory)
    assert places.abs().max() < 0.6
    for b in range(B):
        rows, columns = looked_at.valid[b].any(1).sum(), looked_at.valid[b].any(0).sum()
        samples = sample(looked_at.maps[b : b + 1, :, :rows, :columns], places[b : b + 1])  # (1, D, S, N)
        torch.testing.assert_close(contexts[b], samples[0].mean(-1).T)


def test_a_region_outside_counts_as_the_edge():
    attention, looked_at = RegionAttention(AnnotationVectors(D), A), annotations()
    attention.region.localisation.bias.data = torch.tensor([0.1, 0, 50.0, 0, 0.1, 50.0])  # far to the lower right
    _, weights = attention(torch.randn(B, S, A), attention.prepare(looked_at))
    weights = weights.view(B, S, HEIGHT, ACROSS)
    torch.testing.assert_close(weights[0, :, 2, 3], torch.ones(S))
    torch.testing.assert_close(weights[1, :, 1, 2], torch.ones(S))


@pytest.mark.parametrize("side", [1, 4, 5])
def test_a_region_has_a_slope_from_the_start(side):
    """Also where every sample lies on a cell's centre, as on a map of as many cells (4) as places; a single cell has none."""
    attention = RegionAttention(AnnotationVectors(D), A, points=4)
    memory = attention.prepare(Annotations(torch.randn(1, D, side, side), torch.ones(1, side, side, dtype=torch.bool)))
    context, weights = attention(torch.randn(1, 1, A), memory)
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
    (slope,) = torch.autograd.grad(context.square().sum(), attention.region.localisation.bias)
    assert slope.ne(0).all() if side > 1 else not slope.any()


def test_a_region_learns_to_move():
    """On a map of places, told to bring the place of its upper left cell, it goes there and grows small."""
    attention = RegionAttention(AnnotationVectors(2), A)
    places = torch.stack(torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij"))[None]
    memory = attention.prepare(Annotations(places, torch.ones(1, 4, 4, dtype=torch.bool)))
    optimizer = torch.optim.Adam(attention.region.parameters(), 0.05)
    for _ in range(100):
        context, weights = attention(torch.ones(1, 1, A), memory)
        optimizer.zero_grad()
        context.square().sum().backward(retain_graph=True)
        optimizer.step()
    assert weights[0, 0, 0] > 0.95


# -- Doubly stochastic attention --


def test_coverage_by_hand():
    weights = torch.tensor([[[[0.5, 0.5, 0.0], [0.25, 0.75, 0.0], [0.9, 0.1, 0.0]]] * 2])
    tokens = torch.tensor([[[5, END, PAD], [PAD, PAD, PAD]]])
    valid = torch.tensor([[[True, True, False]]])
    # sums over the two words: 0.75 and 1.25, so (0.25^2 + 0.25^2) / 2, of the one sentence that is there
    assert coverage_loss(weights, tokens, valid).item() == pytest.approx(0.0625)
    assert coverage_loss(weights, torch.zeros_like(tokens), valid).item() == 0


def test_coverage_is_of_the_weights():
    model, looked_at, tokens = decoder(ATTENTION["soft"]()), annotations(), torch.randint(4, V, (B, S, T))
    tokens[0, 0, 2:] = PAD
    weights = model.unroll(shifted(tokens), model.prepare(looked_at)).attention
    expected = []
    for b in range(B):
        for s in range(S):
            words = (tokens[b, s] != PAD).sum()
            sums = weights[b, s, :words].sum(0)[looked_at.valid[b].flatten()]
            expected.append((1 - sums).square().mean())
    torch.testing.assert_close(model.losses(looked_at, tokens)["loss_attention"], sum(expected) / len(expected))


# -- The captioner --


def test_wrong_arguments():
    with pytest.raises(ValueError, match="attention must be one of soft, hard, region, got 'firm'"):
        show_attend_tell("resnet10_narrow", V, attention="firm")
    with pytest.raises(ValueError, match="cell must be one of"):
        show_attend_tell("resnet10_narrow", V, cell="LSTM")
    with pytest.raises(ValueError, match="no backbone 'vgg61'"):
        show_attend_tell("vgg61", V)
    for name in ("width", "embedding", "attention_width", "channels"):
        with pytest.raises(ValueError, match=f"^{name} must be at least 1, got 0"):
            show_attend_tell("resnet10_narrow", V, **{name: 0})
    with pytest.raises(ValueError, match="dropout must be from 0 to 1, got 2"):
        show_attend_tell("resnet10_narrow", V, dropout=2)


def test_the_encoder_is_frozen_at_first():
    model = show_attend_tell("resnet10_narrow", V, norm="batch")
    assert not any(p.requires_grad for p in model.backbone.parameters())
    assert all(p.requires_grad for p in model.decoder.parameters())
    model = show_attend_tell("resnet10_narrow", V, norm="batch", trainable_stages=None)
    assert all(p.requires_grad for p in model.backbone.parameters())


@pytest.mark.parametrize("layer", [-1, 1])
def test_it_looks_at_any_layer(layer):
    model = show_attend_tell("resnet10_narrow", V, norm="batch", layer=layer, width=WIDTH).eval()
    looked_at = model(torch.rand(1, 3, 64, 64) * 255, torch.tensor([[64, 64]]))
    cells = (64 // model.backbone.strides[layer]) ** 2
    assert model.decoder.prepare(looked_at).vectors.shape == (1, cells, model.backbone.channels[layer])


@pytest.mark.parametrize("name", ["soft", "hard", "region"])
def test_it_learns_which_picture_is_which(name):
    """Two pictures that differ in one cell each; what is to be said is there and nowhere else."""
    torch.manual_seed(1)
    model = show_attend_tell("resnet10_narrow", V, attention=name, norm="batch", width=32, embedding=16, dropout=0.0)
    maps = torch.zeros(2, 128, 3, 3)
    maps[0, :4, 0, 0], maps[1, 4:8, 2, 1] = 3.0, 3.0
    looked_at = Annotations(maps, torch.ones(2, 3, 3, dtype=torch.bool))
    tokens = torch.tensor([[[4, 5, 6, END]], [[7, 5, 8, END]]])
    model.decoder.train()
    optimizer = torch.optim.Adam(model.decoder.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        sum(model.decoder.losses(looked_at, tokens).values()).backward()
        optimizer.step()
    model.decoder.eval()
    words = model.decoder.unroll(shifted(tokens), model.decoder.prepare(looked_at)).logits.argmax(-1)
    assert words.tolist() == tokens.tolist()
    assert model.decoder.losses(looked_at, tokens)["loss_words"] < math.log(2) / 4


def test_places_tell_cells_apart():
    """Cells that look alike are told apart by where they lie; padding stays 0, and what lies there is nowhere to be seen."""
    valid = torch.tensor([[[True, True, True], [True, True, False]]])
    maps = torch.ones(1, D, 2, 3)
    plain, placed = (AnnotationVectors(D, places=places)(Annotations(maps, valid)) for places in (False, True))
    assert plain.shape[-1] + 32 == placed.shape[-1] == AnnotationVectors(D, places=True).channels
    torch.testing.assert_close(placed[..., :D], plain)
    assert len(plain[0, :5].unique(dim=0)) == 1
    assert len(placed[0, :5].unique(dim=0)) == 5
    assert not placed[0, 5].any()
    # Half of the channels tell the row, half the column: the same in every row.
    row, column = placed[0, :, D : D + 16], placed[0, :, D + 16 :]
    torch.testing.assert_close(row[0], row[2])
    torch.testing.assert_close(column[0], column[3])


def test_what_lies_behind_the_map_is_not_trained():
    """Otherwise a run in several processes waits for gradients that never come."""
    model = show_attend_tell("resnet10_narrow", V, layer=2, norm="batch", trainable_stages=None)
    trained = {name.split(".")[0] for name, value in model.backbone.named_parameters() if value.requires_grad}
    assert trained == {"conv1", "bn1", "layer1", "layer2", "layer3"}
    assert model.backbone.training
    none = show_attend_tell("resnet10_narrow", V, layer=2, norm="batch", trainable_stages=1)  # the stage behind alone
    assert not any(value.requires_grad for value in none.backbone.parameters())
    last = show_attend_tell("resnet10_narrow", V, norm="batch", trainable_stages=None)
    assert all(value.requires_grad for value in last.backbone.parameters())
