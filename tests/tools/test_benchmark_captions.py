"""`sightline benchmark` of captioners."""

import json
from typing import NamedTuple

import pytest
import torch
from torch import nn

from sightline.captioning import Captioner, load, save, show_attend_tell
from sightline.captioning.decoder import Decoder, Step
from sightline.captioning.search import Beam, Greedy, Sampling
from sightline.captioning.vocabulary import Vocabulary
from sightline.datasets.shapes import shapes_table
from sightline.detectors import classifier
from sightline.tools.benchmark_captions import (
    caption,
    own_size,
    score_captioners,
    searches,
    text_table,
    time_captioners,
)
from sightline.tools.main import main
from sightline.tools.timing import pictures
from sightline.training.caption_scoring import score_captions

SENTENCES = [sentence for group in shapes_table("val", 20, 32).captions for sentence in group]


@pytest.fixture
def checkpoint(tmp_path):
    """An untrained captioner of little pictures."""
    torch.manual_seed(0)
    vocabulary = Vocabulary.of(SENTENCES, min_count=1)
    model = show_attend_tell(
        "resnet10_narrow", len(vocabulary), width=16, embedding=16, attention_width=16, norm="batch"
    )
    model.vocabulary, model.resize = vocabulary, (32, 48, True)
    save(model, tmp_path / "captioner.ckpt")
    return str(tmp_path / "captioner.ckpt")


class Clock:
    """Time passes only where a test says so."""

    def __init__(self):
        self.ms = 0.0


class Stage(nn.Module):
    """A backbone that takes 40 ms."""

    strides, channels, mean, std, stage_prefixes = (8,), (3,), (0.5,) * 3, (0.5,) * 3, {}

    def __init__(self, clock):
        super().__init__()
        self.clock, self.layer = clock, nn.Conv2d(3, 4, 3)

    def forward(self, images):
        self.clock.ms += 40
        return [nn.functional.avg_pool2d(images, 8)]


class State(NamedTuple):
    words: torch.Tensor


class Slow(Decoder):
    """Takes 1 ms for each sentence and word."""

    def __init__(self, clock):
        super().__init__(8)
        self.clock = clock

    def prepare(self, annotations):
        return annotations

    def begin(self, memory, sentences):
        return State(torch.zeros(len(memory.maps), sentences))

    def step(self, words, state, memory):
        self.clock.ms += words.shape[1]
        return Step(torch.zeros(*words.shape, self.num_words), state, None)


def test_stages_of_both_searches(monkeypatch):
    """20 words of one sentence, or of five; the stages add up."""
    clock = Clock()
    monkeypatch.setattr("sightline.tools.timing.now", lambda _: clock.ms)
    rows = time_captioners({"slow": Captioner(Stage(clock), Slow(clock)).eval()}, None, {"slow": (32, 64)}, 2, 3)
    greedy, beam = rows
    assert [(row.search, row.batch) for row in rows] == [("greedy", 2), ("beam 5", 2)]
    assert (greedy.times, beam.times) == ([60] * 3, [140] * 3)
    assert greedy.stages == {"input": 0, "backbone": 40, "decoder": 20}
    assert beam.stages == {"input": 0, "backbone": 40, "decoder": 100}
    assert beam.rate == pytest.approx(2000 / 140)
    assert beam.parameters == 4 * 3 * 9 + 4


def test_whole_command(checkpoint, tmp_path, capsys):
    path = tmp_path / "deep" / "table.json"
    options = ["--batch", "1", "2", "--repeats", "1", "--device", "cpu", "--json", str(path)]
    assert main(["benchmark", checkpoint, "show_and_tell", *options, "--size", "32", "32"]) == 0
    lines = capsys.readouterr().out.splitlines()
    header = [
        "model",
        "search",
        "batch",
        "BLEU-4",
        "CIDEr-D",
        "images/s",
        "ms",
        "input",
        "backbone",
        "decoder",
        "M",
        "params",
    ]
    assert lines[1].split() == header
    assert [line.split()[0] for line in lines[2:]] == 2 * [checkpoint, checkpoint, "show_and_tell", "show_and_tell"]
    assert all(" - " in line for line in lines[2:])  # nothing was scored
    content = json.loads(path.read_text())
    assert content["size"] == {checkpoint: [32, 32], "show_and_tell": [32, 32]}
    assert [(row["search"], row["batch"]) for row in content["rows"][::2]] == [("greedy", 1)] * 2 + [("greedy", 2)] * 2
    assert all(row["images_per_second"] > 0 for row in content["rows"])


def test_scores_are_the_scorer_s(checkpoint, capsys):
    model, table = load(checkpoint, device="cpu"), shapes_table("val", 6, 32)
    models = {checkpoint: model, "show_and_tell": model}
    rows = time_captioners(models, None, dict.fromkeys(models, (32, 48)), 2, 1)
    score_captioners(models, table, rows)
    for row, search in zip(rows[:2], searches(model).values(), strict=True):
        expected = score_captions(model, table, search=search, progress=False).result.summary()
        assert row.scores == {name: expected[name] for name in ("BLEU-4", "CIDEr-D")}
        assert f"{expected['CIDEr-D']:.3f}" in text_table([row])
    assert "show_and_tell: not scored, its weights are random" in capsys.readouterr().out
    assert rows[2].scores == {}


def test_what_is_timed_is_what_is_scored(checkpoint):
    model, table = load(checkpoint, device="cpu"), shapes_table("val", 2, 32)
    batch = pictures(table, 2, (32, 48))
    for search in searches(model).values():
        said = caption(model, batch, search).tokens[:, 0].tolist()
        expected = score_captions(model, table, search=search, progress=False).captions
        assert [model.vocabulary.decode(row) for row in said] == list(expected.values())


def test_sentences_are_as_long_as_the_model_s_own(checkpoint):
    model = load(checkpoint, device="cpu")
    model.search = Sampling(3, most=7)
    assert searches(model) == {"greedy": Greedy(7), "beam 5": Beam(5, most=7)}


def test_size(checkpoint):
    model = load(checkpoint, device="cpu")
    assert own_size("a", model, None) == (32, 48)
    assert own_size("a", model, [64, 96]) == (64, 96)
    model.resize = (224, 400)
    with pytest.raises(ValueError, match=r"a takes pictures of any shape.*--size 224 224"):
        own_size("a", model, None)


def test_mistakes_are_one_line(checkpoint, tmp_path, capsys):
    save(classifier("lenet", 6), tmp_path / "classifier.ckpt")
    for arguments, message in (
        (
            [str(tmp_path / "classifier.ckpt"), checkpoint],
            f"{tmp_path}/classifier.ckpt gives objects and {checkpoint} sentences",
        ),
        ([checkpoint, "torchvision:fasterrcnn_resnet50_fpn"], "torchvision:fasterrcnn_resnet50_fpn objects: no table"),
        ([checkpoint, "--data", str(tmp_path / "nothing")], "no such file or folder"),
        ([checkpoint, "--data", "shapes", "--split", "tests"], "has no part 'tests'"),
    ):
        assert main(["benchmark", *arguments, "--device", "cpu"]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
