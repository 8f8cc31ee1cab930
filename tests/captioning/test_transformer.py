"""The transformer decoder against torch's layer, against its own steps, and on two sentences to learn."""

import pytest
import torch

from sightline.captioning import CAPTIONERS
from sightline.captioning.decoder import END, PAD, START, UNKNOWN, Annotations, Decoder, shifted
from sightline.captioning.positions import grid_positions
from sightline.captioning.search import Beam, Greedy, Sampling
from sightline.captioning.transformer import TransformerDecoder, transformer_captioner
from sightline.captioning.transformer_layer import Cells, Layer

B, S, T, V, D = 2, 3, 6, 11, 5
SMALL = {"width": 16, "heads": 4, "layers": 2, "feedforward": 24, "most_words": 9}


def decoder(**arguments):
    return TransformerDecoder(V, D, **(SMALL | arguments))


def pictures(count=B, height=3, width=4):
    valid = torch.ones(count, height, width, dtype=torch.bool)
    valid[0, 2:], valid[0, :, 3:] = False, False
    return Annotations(torch.randn(count, D, height, width), valid)


def words():
    return torch.cat([torch.full((B, S, 1), START), torch.randint(2, V, (B, S, T - 1))], 2)


def test_steps_equal_unroll():
    model, given = decoder().eval(), words()
    memory = model.prepare(pictures())
    state = model.begin(memory, S)
    unrolled = model.unroll(given, memory)
    for t in range(T):
        step = model.step(given[..., t], state, memory)
        state = step.state
        torch.testing.assert_close(step.logits, unrolled.logits[:, :, t], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(step.attention, unrolled.attention[:, :, t], atol=1e-5, rtol=1e-5)


def test_guesses_are_made_word_by_word():
    """With scheduled sampling every word but the first is a guess: what was given in its place does not matter."""
    model, given = decoder(dropout=0.0).train(), words()
    model.sampling = 1.0
    memory = model.prepare(pictures())
    outputs = []
    for each in (given, given.flip(0)):
        torch.manual_seed(0)
        outputs.append(model.unroll(each, memory).logits)
    torch.testing.assert_close(outputs[0], outputs[1])
    model.sampling = 0.0
    assert not torch.allclose(model.unroll(given, memory).logits, outputs[0])


def test_later_words_change_nothing():
    model, given = decoder().eval(), words()
    memory = model.prepare(pictures())
    before = model.unroll(given, memory).logits
    for t in range(1, T):
        changed = given.clone()
        changed[..., t:] = torch.randint(2, V, (B, S, T - t))
        after = model.unroll(changed, memory).logits
        torch.testing.assert_close(after[:, :, :t], before[:, :, :t])
        if not torch.equal(changed[..., t], given[..., t]):
            assert not torch.allclose(after[:, :, t], before[:, :, t])


def test_sentences_of_a_picture_know_nothing_of_each_other():
    model, given = decoder().eval(), words()
    memory = model.prepare(pictures())
    together = model.unroll(given, memory).logits
    for s in range(S):
        torch.testing.assert_close(model.unroll(given[:, s : s + 1], memory).logits[:, 0], together[:, s])


@pytest.mark.parametrize("filling", [1e3, torch.nan])
def test_padding_changes_nothing(filling):
    """Neither what stands in it nor how much of it there is."""
    model, given, annotations = decoder().eval(), words(), pictures()
    expected = model.unroll(given, model.prepare(annotations))
    maps = torch.full((B, D, 5, 7), filling)
    valid = torch.zeros(B, 5, 7, dtype=torch.bool)
    maps[..., :3, :4] = torch.where(annotations.valid[:, None], annotations.maps, filling)
    valid[:, :3, :4] = annotations.valid
    unrolled = model.unroll(given, model.prepare(Annotations(maps, valid)))
    torch.testing.assert_close(unrolled.logits, expected.logits)
    attention = unrolled.attention.unflatten(-1, (5, 7))
    torch.testing.assert_close(attention[..., :3, :4].flatten(3), expected.attention)


def test_attention_sums_to_one_within_the_picture():
    model, annotations = decoder().eval(), pictures()
    attention = model.unroll(words(), model.prepare(annotations)).attention
    torch.testing.assert_close(attention.sum(-1), torch.ones(B, S, T))
    assert (attention.movedim(0, -2)[..., ~annotations.valid.flatten(1)] == 0).all()
    assert (attention.movedim(0, -2)[..., annotations.valid.flatten(1)] > 0).all()


def test_cells_are_told_apart_by_where_they_are():
    model, given = decoder().eval(), words()
    maps = torch.randn(B, D, 3, 4)
    valid = torch.ones(B, 3, 4, dtype=torch.bool)
    logits = [
        model.unroll(given, model.prepare(Annotations(each, valid))).logits
        for each in (maps, maps.flip(3), maps.flip(2))
    ]
    assert not torch.allclose(logits[0], logits[1], atol=1e-3)
    assert not torch.allclose(logits[0], logits[2], atol=1e-3)
    positions = grid_positions(3, 4, 16, torch.device("cpu"))
    assert torch.equal(positions.view(3, 4, 16)[:2, :3].flatten(0, 1), grid_positions(2, 3, 16, torch.device("cpu")))
    assert torch.cdist(positions, positions).add(torch.eye(12)).min() > 0.1


def test_a_layer_is_torchs():
    """https://docs.pytorch.org/docs/stable/generated/torch.nn.TransformerDecoderLayer.html, pre-norm, with our weights."""
    width, heads = 16, 4
    ours = Layer(width, heads, 24, 0.1).eval()
    theirs = torch.nn.TransformerDecoderLayer(
        width, heads, 24, activation="gelu", batch_first=True, norm_first=True, dropout=0.1
    ).eval()
    pairs = [(theirs.linear1, ours.thinks[0]), (theirs.linear2, ours.thinks[3])]
    for i, norm in enumerate((ours.norm_hears, ours.norm_looks, ours.norm_thinks), 1):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
        pairs.append((getattr(theirs, f"norm{i}"), norm))
    for their, our in ((theirs.self_attn, ours.hears), (theirs.multihead_attn, ours.looks)):
        pairs.append((their.out_proj, our.out))
        their.in_proj_weight.data = torch.cat([our.query.weight, our.key_value.weight]).detach()
        their.in_proj_bias.data = torch.cat([our.query.bias, our.key_value.bias]).detach()
    for their, our in pairs:
        their.load_state_dict(our.state_dict())

    x, seen, valid = torch.randn(B, S, T, width), torch.randn(B, 12, width), pictures().valid.flatten(1)
    found, _ = ours(x, ours.heard(x), Cells(*ours.looks.keys_values(seen), valid))
    for s in range(S):
        expected = theirs(
            x[:, s],
            seen,
            tgt_mask=torch.nn.Transformer.generate_square_subsequent_mask(T),
            tgt_is_causal=True,
            memory_key_padding_mask=~valid,
        )
        torch.testing.assert_close(found[:, s], expected)


def test_attention_is_the_mean_of_torchs_heads():
    """https://docs.pytorch.org/docs/stable/generated/torch.nn.MultiheadAttention.html, of the last layer."""
    model, annotations, given = decoder().eval(), pictures(), words()
    seen = {}
    last = model.layers[-1]
    last.looks.query.register_forward_pre_hook(lambda _, inputs: seen.update(words=inputs[0]))
    last.looks.key_value.register_forward_pre_hook(lambda _, inputs: seen.update(cells=inputs[0]))
    attention = model.unroll(given, model.prepare(annotations)).attention
    theirs = torch.nn.MultiheadAttention(16, 4, batch_first=True).eval()
    theirs.in_proj_weight.data = torch.cat([last.looks.query.weight, last.looks.key_value.weight]).detach()
    theirs.in_proj_bias.data = torch.cat([last.looks.query.bias, last.looks.key_value.bias]).detach()
    _, weights = theirs(seen["words"], seen["cells"], seen["cells"], key_padding_mask=~annotations.valid.flatten(1))
    torch.testing.assert_close(attention.flatten(1, 2), weights)


def test_every_parameter_gets_a_gradient():
    model = decoder(smoothing=0.1).train()
    losses = model.losses(pictures(), shifted(words()).roll(-1, -1))
    assert list(losses) == ["loss_words"]
    losses["loss_words"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_it_learns_two_sentences():
    """Each is its picture's: what is said depends on what is seen, and is found by every search."""
    model, annotations = decoder(dropout=0.0), pictures()
    tokens = torch.tensor([[[4, 5, 6, END, PAD]], [[6, 4, 4, 7, END]]])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = model.losses(annotations, tokens)["loss_words"]
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    model.eval()
    for search in (Greedy(most=5), Beam(width=3, most=5), Sampling(temperature=0.1, most=5)):
        with torch.inference_mode():
            found = search(model, annotations)
        assert torch.equal(found.tokens, tokens)
        assert found.attention.shape == (B, 1, 5, 12)
        torch.testing.assert_close(found.attention.sum(-1), (tokens != PAD).float())


@pytest.mark.parametrize("search", [Greedy(most=7), Beam(width=3, most=7, count=2), Sampling(2, nucleus=0.9, most=7)])
def test_searching_asks_for_no_value(search):
    found = search(decoder().eval().to("meta"), Annotations(*(value.to("meta") for value in pictures())))
    count = getattr(search, "count", 1)
    assert found.tokens.shape == (B, count, 7)
    assert found.attention.shape == (B, count, 7, 12)


def test_beams_take_their_words_along():
    """Scores of sentences that changed places while they were looked for are those of the sentences read as a whole."""
    model, annotations = decoder().eval(), pictures()
    model.words.weight.data *= 4  # clear opinions
    with torch.inference_mode():
        found = Beam(width=5, most=9, count=5)(model, annotations)
        logits = model.unroll(shifted(found.tokens), model.prepare(annotations)).logits.clone()
        logits[..., [PAD, START, UNKNOWN]] = -torch.inf
    said = logits.log_softmax(-1).gather(-1, found.tokens[..., None])[..., 0]
    scores = torch.where(found.tokens == PAD, 0, said).sum(-1)
    torch.testing.assert_close(found.scores, scores, atol=1e-4, rtol=1e-5)


def test_sentences_too_long():
    model = decoder(most_words=4)
    memory = model.prepare(pictures())
    message = "sentences of 6 words for a decoder of most_words=4; cut them, or build it with most_words=6"
    with pytest.raises(ValueError, match=message):
        model.unroll(words(), memory)
    with pytest.raises(ValueError, match="sentences of 5 words for a decoder of most_words=4"):
        Decoder.unroll(model, words(), memory)
    with pytest.raises(ValueError, match="most is 20 words, the decoder says 4 at most"):
        Greedy()(model, pictures())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 18, "heads": 2}, "width must be a multiple of 4 and of its 2 heads, got 18"),
        ({"width": 16, "heads": 3}, "width must be a multiple of 4 and of its 3 heads, got 16"),
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"heads": 0}, "heads must be at least 1, got 0"),
        ({"most_words": 0}, "most_words must be at least 1, got 0"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"feedforward": 0}, "feedforward must be at least 1, got 0"),
        ({"dropout": 1.5}, "dropout must be from 0 to 1, got 1.5"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        decoder(**arguments)


def test_the_captioner_is_made_anew_from_what_it_says_of_itself():
    model = transformer_captioner("resnet10_narrow", V, **SMALL).eval()
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())
    again = CAPTIONERS[model.architecture["name"]](**model.architecture["arguments"]).eval()
    again.load_state_dict(model.state_dict())
    images, sizes = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8), torch.tensor([[64, 96], [40, 64]])
    model.search = again.search = Beam(width=2, most=6)
    with torch.inference_mode():
        assert torch.equal(model.caption(images, sizes).tokens, again.caption(images, sizes).tokens)
