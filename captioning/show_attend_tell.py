"""Show, Attend and Tell (Xu et al. 2015, https://arxiv.org/abs/1502.03044) on any backbone: `show_attend_tell("vgg16", 10_000)`.

Its parts: `attending.py`, the decoder; `attention.py`, where it looks; `hard_attention.py`, looking at one cell at a time;
`recurrent.py`, the recurrence.
"""

from __future__ import annotations

from ..backbone import build_backbone
from ..backbone.building import finish
from .attending import Attending
from .attention import AnnotationVectors, RegionAttention, SoftAttention
from .decoder import at_least_one
from .hard_attention import HardAttending, HardAttention
from .model import Captioner, map_channels, of_words
from .recurrent import cell_named

ATTENTION = {
    "soft": (Attending, SoftAttention),
    "hard": (HardAttending, HardAttention),
    "region": (Attending, RegionAttention),
}


def show_attend_tell(
    backbone: str = "vgg16",
    num_words: int = 10_000,
    *,
    attention: str = "soft",
    cell: str = "lstm",
    width: int = 512,
    embedding: int = 512,
    attention_width: int = 512,
    channels: int | None = None,
    places: bool = False,
    dropout: float = 0.5,
    coverage: float = 1.0,
    truncate: int | None = None,
    smoothing: float = 0.0,
    layer: int = -1,
    norm: str = "frozen",
    trainable_stages: int | None = 0,
    backbone_weights: str | None = None,
    weights: str | None = None,
) -> Captioner:
    """Show, Attend and Tell.

    Args:
        backbone: a name in `BACKBONES`.
        num_words: V.
        attention: "soft", the mean of all cells by weight; "hard", one cell at a time, learnt by REINFORCE; or "region", which
            a spatial transformer lays out.
        cell: "lstm", "gru" or "rnn".
        width: of the recurrent state.
        embedding: width of a word.
        attention_width: of the hidden layer that says where to look.
        channels: of annotation vectors; None for the map's, as in the paper. A wide map, of 1280 channels say, is
            quicker with 512.
        places: tell the decoder where each cell lies; see `AnnotationVectors`.
        dropout: of words and before the last layer, in training.
        coverage: weight of the loss that asks a sentence to look at all cells alike (the paper's lambda). It spreads attention
            out: 0 where words belong to single things. Hard attention has no such loss.
        truncate, smoothing: see `Decoder`.
        layer: which of the backbone's maps is looked at, -1 for the coarsest.
        norm: "frozen", "batch", "sync" or "group", of the backbone.
        trainable_stages: how many stages of the backbone train, counted from the last; None trains all, 0 none.
        backbone_weights: of the backbone alone: None, a path, a URL or "imagenet".
        weights: of the whole model: None, a path or a URL. With other words than the weights', what belongs to a word starts
            at random.

    Raises:
        ValueError: an argument out of range.
        WeightsError: weights that cannot be had or do not fit.
    """
    architecture = {"name": "show_attend_tell", "arguments": dict(locals())}
    if attention not in ATTENTION:
        raise ValueError(f"attention must be one of {', '.join(ATTENTION)}, got {attention!r}")
    at_least_one(attention_width=attention_width, channels=1 if channels is None else channels)
    body = build_backbone(backbone, norm=norm, weights=backbone_weights, trainable_stages=trainable_stages)
    decoder_class, attention_class = ATTENTION[attention]
    decoder = decoder_class(
        num_words,
        attention_class(AnnotationVectors(map_channels(body, layer), channels, places=places), attention_width),
        cell_named(cell),
        width=width,
        embedding=embedding,
        dropout=dropout,
        coverage=coverage,
        truncate=truncate,
        smoothing=smoothing,
    )
    missing = (*of_words(decoder), "decoder.attention.baseline")  # hard attention may start from soft
    return finish(Captioner(body, decoder, layer=layer), architecture, weights, allow_missing=missing)
