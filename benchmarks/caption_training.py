"""Times the training and the search of Show, Attend and Tell's decoder beside the plain ways of doing both.

    python benchmarks/caption_training.py                                # 32 pictures with 5 sentences of 12 words
    python benchmarks/caption_training.py --spread 4 --pictures 64 --channels 512

Training: ours takes in all sentences of a picture side by side, and does what does not depend on the state for all words in
one matrix product. Beside it a teacher-forced loop as tutorials write it: `torch.nn.LSTMCell`, a row for each sentence
with its own copy of the annotations, sorted by length so that sentences that have ended are left out, the keys of attention
made anew for each word; and the same with the keys made once. All three have the same weights, and so the same loss, which
is checked. A step is forward, backward and Adam's, from maps that are there already.

Search: a beam of 5 over batches of pictures, and over the same pictures one at a time.

The ways take turns; medians over rounds, after one to warm up. On a CPU all is done by one thread, and its own seconds are
counted, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sightline.captioning.attending import Attending, coverage_loss
from sightline.captioning.attention import AnnotationVectors, SoftAttention
from sightline.captioning.decoder import END, PAD, UNKNOWN, Annotations, Decoder, shifted, word_loss
from sightline.captioning.recurrent import cell_named
from sightline.captioning.search import Beam


def main() -> None:
    arguments = _arguments()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    compare_training(arguments, device)
    compare_search(arguments, device)


def compare_training(arguments: argparse.Namespace, device: str) -> None:
    """Prints captions a second of each way, and how many times as fast ours is."""
    ours = decoder(arguments).to(device)
    ways = {"ours": ours, "plain, keys once": Plain(ours, once=True), "plain": Plain(ours, once=False)}
    annotations, tokens = batch(arguments, device)
    counts = {name: sum(p.numel() for p in way.parameters()) for name, way in ways.items()}
    losses = {name: total_loss(way.eval(), annotations, tokens).item() for name, way in ways.items()}
    assert len(set(counts.values())) == 1, counts
    assert max(losses.values()) - min(losses.values()) < 1e-3, losses
    print(f"{counts['ours'] / 1e6:.1f}M weights each, loss {losses['ours']:.4f}; captions a second in training:")
    steps = {name: training_step(way.train(), annotations, tokens) for name, way in ways.items()}
    seconds = measure(steps, arguments.rounds, device)
    for name, each in seconds.items():
        rate, times = tokens.shape[0] * tokens.shape[1] / each, each / seconds["ours"]
        print(f"  {name:<17} {1e3 * each:9.1f} ms a step {rate:9.1f} a second   ours is {times:.2f} times as fast")


def compare_search(arguments: argparse.Namespace, device: str) -> None:
    """Prints pictures a second of a beam of 5, in batches and one at a time."""
    network = decoder(arguments).to(device).eval()
    find, (annotations, _) = Beam(5), batch(arguments, device, max(arguments.batch))
    print("pictures a second of a beam of 5, at most 20 words:")

    @torch.inference_mode()
    def search(pictures: int, together: int) -> None:
        for first in range(0, pictures, together):
            find(network, Annotations(*(part[first : min(first + together, pictures)] for part in annotations)))

    for size in arguments.batch:
        ways = {"batch": lambda n=size: search(n, n), "loop": lambda n=size: search(n, 1)}
        seconds = measure(ways, arguments.rounds, device)
        rates = {name: size / each for name, each in seconds.items()}
        print(
            f"  batch {size:<4} {rates['batch']:8.1f} together {rates['loop']:8.1f} one at a time   "
            f"{rates['batch'] / rates['loop']:.2f} times as fast"
        )


def decoder(arguments: argparse.Namespace) -> Attending:
    """Show, Attend and Tell's, of the paper's sizes."""
    attention = SoftAttention(AnnotationVectors(arguments.channels), 512)
    return Attending(arguments.words, attention, cell_named("lstm"), width=512, embedding=512)


def batch(arguments: argparse.Namespace, device: str, pictures: int | None = None) -> tuple[Annotations, Tensor]:
    """Maps of noise, and sentences (B, S, T) of random words and lengths."""
    pictures, side = pictures or arguments.pictures, arguments.side
    maps = torch.randn(pictures, arguments.channels, side, side, device=device).relu()
    valid = torch.ones(pictures, side, side, dtype=torch.bool, device=device)
    lengths = arguments.length + arguments.spread * torch.randn(pictures, arguments.sentences, 1)
    lengths = lengths.round().long().clamp(3, 3 * arguments.length)
    places = torch.arange(int(lengths.max()) + 1)
    words = torch.randint(UNKNOWN + 1, arguments.words, (*lengths.shape[:2], len(places)))
    tokens = words.where(places < lengths, torch.where(places == lengths, END, PAD))
    return Annotations(maps, valid), tokens.to(device)


class Plain(nn.Module):
    """The teacher-forced loop of tutorials, with the weights of one of our decoders.

    Letters: R rows, one a sentence; T words; L cells; C channels; H width of the state.

    Args:
        ours: whose weights are copied.
        once: make the keys of attention before the loop, not in it.
    """

    def __init__(self, ours: Attending, *, once: bool) -> None:
        super().__init__()
        width, channels, query = ours.from_hidden.in_features, ours.attention.channels, ours.attention.width
        self.once, self.dropout = once, nn.Dropout(ours.dropout.p)
        self.start, self.words, self.deep, self.output = (
            copy.deepcopy(part) for part in (ours.start, ours.words, ours.deep, ours.output)
        )
        self.keys, self.score = copy.deepcopy(ours.attention.keys), copy.deepcopy(ours.attention.score)
        self.query, self.beta = nn.Linear(width, query), nn.Linear(width, 1)
        self.cell = nn.LSTMCell(self.words.embedding_dim + channels, width)
        self.to(ours.start.weight.device)
        with torch.no_grad():
            self.cell.weight_ih.copy_(torch.cat([ours.from_words.weight, ours.from_context.weight], 1))
            self.cell.bias_ih.copy_(ours.from_words.bias)
            parts = [self.cell.weight_hh, self.query.weight, self.beta.weight]
            biases = [self.cell.bias_hh, self.query.bias, self.beta.bias]
            for name, targets in (("weight", parts), ("bias", biases)):
                for target, value in zip(targets, getattr(ours.from_hidden, name).split(ours.parts), strict=True):
                    target.copy_(value)

    def losses(self, annotations: Annotations, tokens: Tensor) -> dict[str, Tensor]:
        """As those of `Attending`."""
        sentences = tokens.shape[1]
        rows, valid = tokens.flatten(0, 1), annotations.valid.repeat_interleave(sentences, 0)
        logits, weights = self(annotations.maps.flatten(2).mT.repeat_interleave(sentences, 0), rows)
        rows = rows[:, None]
        return {
            "loss_words": word_loss(logits[:, None], rows),
            "loss_attention": coverage_loss(weights[:, None], rows, valid),
        }

    def forward(self, annotations: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (R, T, V) and weights (R, T, L), zero behind the end, of annotations (R, L, C) and words (R, T)."""
        lengths, order = (rows != PAD).sum(1).sort(descending=True)
        annotations, embedded = annotations[order], self.dropout(self.words(shifted(rows[order])))
        hidden, state = self.start(annotations.mean(1)).tanh().chunk(2, 1)
        logits = annotations.new_zeros(*rows.shape, self.output.out_features)
        weights = annotations.new_zeros(*rows.shape, annotations.shape[1])
        keys = self.keys(annotations) if self.once else None
        for t in range(rows.shape[1]):
            n = int((lengths > t).sum())  # sentences that go on
            hidden, state = hidden[:n], state[:n]
            context, weights[:n, t] = self.look(annotations[:n], None if keys is None else keys[:n], hidden)
            context = self.beta(hidden).sigmoid() * context
            hidden, state = self.cell(torch.cat([embedded[:n, t], context], 1), (hidden, state))
            said = self.dropout(embedded[:n, t] + self.deep(torch.cat([hidden, context], 1)))
            logits[:n, t] = self.output(said)
        back = order.argsort()
        return logits[back], weights[back]

    def look(self, annotations: Tensor, keys: Tensor | None, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Contexts (R, C) and weights (R, L)."""
        keys = self.keys(annotations) if keys is None else keys
        weights = self.score((keys + self.query(hidden)[:, None]).tanh()).squeeze(-1).softmax(1)
        return (annotations * weights[..., None]).sum(1), weights


def total_loss(way: Decoder | Plain, annotations: Annotations, tokens: Tensor) -> Tensor:
    """What training minimises."""
    return torch.stack(list(way.losses(annotations, tokens).values())).sum()


def training_step(way: Decoder | Plain, annotations: Annotations, tokens: Tensor) -> Callable[[], None]:
    """Forward, backward and Adam's step."""
    optimizer = torch.optim.Adam(way.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        total_loss(way, annotations, tokens).backward()
        optimizer.step()

    return step


def measure(ways: dict[str, Callable[[], None]], rounds: int, device: str) -> dict[str, float]:
    """Median seconds of each way; the ways take turns, after one round to warm up."""
    seen: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            started = _now(device)
            way()
            seen[name].append(_now(device) - started)
    return {name: statistics.median(times[1:]) for name, times in seen.items()}


def _now(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--pictures", type=int, default=32, help="of a training step")
    add("--sentences", type=int, default=5, help="of a picture")
    add("--length", type=int, default=12, help="words of a sentence")
    add("--spread", type=float, default=0, help="standard deviation of that")
    add("--side", type=int, default=7, help="cells along a side of the map")
    add("--channels", type=int, default=1280, help="of the map")
    add("--words", type=int, default=3000, help="of the vocabulary")
    add("--batch", type=int, nargs="+", default=(1, 8, 32), help="pictures searched at a time")
    add("--rounds", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
