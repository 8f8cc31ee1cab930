"""Scoring captioners: sentences one can foresee, in batches, of a part, over processes, from maps made before."""

import pickle
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from sightline.captioning import Captioner
from sightline.captioning.decoder import END, Decoder, Step
from sightline.captioning.search import Beam, Greedy
from sightline.captioning.vocabulary import SPECIAL, Vocabulary
from sightline.datasets.caption_dataset import CaptionDataset
from sightline.datasets.detection import loader_for
from sightline.datasets.images import write_image
from sightline.datasets.shapes import shapes_table
from sightline.datasets.structures import Captions
from sightline.datasets.table import DataError
from sightline.evaluation import CaptionCollector, evaluate_captions
from sightline.training.caption_scoring import caption_all, judge_captions, score_captions

COLOURS = ("red", "green", "blue")
WORDS = [*SPECIAL, *COLOURS, "picture"]


class Cells(nn.Module):
    """A backbone: the mean colour of each 8 x 8 pixels."""

    strides, channels, mean, std, stage_prefixes = (8,), (3,), (0.0,) * 3, (1.0,) * 3, {}

    def forward(self, images):
        return [nn.functional.avg_pool2d(images, 8)]


class State(NamedTuple):
    said: torch.Tensor  # (B, S) words so far


class ColourNamer(Decoder):
    """Says the picture's main colour, "picture", and the end."""

    def __init__(self):
        super().__init__(len(WORDS))
        self.layer = nn.Linear(1, 1)  # a model has parameters, which tell its device

    def prepare(self, annotations):
        return annotations

    def begin(self, memory, sentences):
        return State(torch.zeros(len(memory.maps), sentences))

    def step(self, words, state, memory):
        logits = torch.full((*words.shape, self.num_words), -20.0)
        amounts = memory.maps.mean((2, 3))[:, None].expand(-1, words.shape[1], -1)
        logits[..., 4:7] = torch.where(state.said[..., None] == 0, 10 * amounts, -20.0)
        logits[..., 7] = torch.where(state.said == 1, 10.0, -20.0)
        logits[..., END] = torch.where(state.said > 1, 10.0, -20.0)
        return Step(logits, State(state.said + 1), None)


@pytest.fixture
def namer():
    model = Captioner(Cells(), ColourNamer())
    model.vocabulary, model.resize, model.search = Vocabulary(WORDS), (16, 16, True), Greedy(5)
    return model


@pytest.fixture
def table(tmp_path):
    """Five pictures of one colour each, one of which is called by another's name."""
    table = shapes_table("val", 5, 24)
    colours = [0, 1, 2, 1, 0]
    paths = [str(tmp_path / f"{i}.png") for i in range(5)]
    for path, colour in zip(paths, colours, strict=True):
        write_image(path, np.tile(200 * np.eye(3, dtype=np.uint8)[colour], (24, 24, 1)))
    captions = [["A red picture.", "nothing"], ["a wall", "green picture"], ["blue picture"], ["Green picture!"]]
    return replace(table, paths=paths, image_ids=np.array([7, 3, 9, 1, 4]), captions=[*captions, ["blue picture"]])


SAID = {7: "red picture", 3: "green picture", 9: "blue picture", 1: "green picture", 4: "red picture"}


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_scores_are_those_of_what_is_said(namer, table, batch_size):
    scored = score_captions(namer.train(), table, batch_size=batch_size, progress=False)
    assert scored.captions == SAID
    truth = dict(zip(table.image_ids.tolist(), table.captions, strict=True))
    assert scored.result.summary() == evaluate_captions(truth, SAID).summary()
    assert scored.result.exact.tolist() == [False, True, True, True, False]
    assert list(scored.captions) == table.image_ids.tolist()  # a report finds its pictures by row
    assert namer.training
    numbers = scored.to_dict()
    assert numbers["exact"] == 3 / 5
    assert numbers["seconds"] >= 0
    assert len(numbers["per_image"]) == 5


def test_another_search(namer, table):
    """The best of several sentences is scored."""
    captions = score_captions(namer, table, search=Beam(3, most=5, count=2), progress=False).captions
    assert captions == SAID
    assert score_captions(namer, table, search=Greedy(1), progress=False).captions[7] == "red"


def test_maps_made_before(namer, table):
    """They are looked at in place of the pictures, which need not be there."""
    maps = np.zeros((5, 3, 2, 2), np.float16)
    maps[:, 2] = 1
    missing = replace(table, paths=["nowhere.png"] * 5)
    assert set(score_captions(namer, missing, maps=maps, progress=False).captions.values()) == {"blue picture"}


def test_no_sentences(namer, table):
    with pytest.raises(DataError, match="5 pictures have no sentences"):
        score_captions(namer, replace(table, captions=None), progress=False)


def tokens(*rows):
    return Captions(torch.tensor(rows)[:, None])


def test_a_part_is_scored_alone(namer, table):
    """As in a sanity check; in the table's order, each picture once, whatever the lengths of the batches."""
    collector = CaptionCollector()
    buffer = tokens([4, 7, END, 0], [5, 7, END, 0])
    collector.update(buffer, [4, 1])
    buffer.tokens.zero_()  # the caller may reuse it
    collector.update(tokens([6, END], [6, END]), [7, 4])
    result = judge_captions(namer.vocabulary, table, collector.gather())
    assert result.image_ids == [7, 1, 4]
    assert result.captions == ["blue", "green picture", "red picture"]


def test_what_cannot_be_judged(namer, table):
    collector = CaptionCollector()
    with pytest.raises(DataError, match="no sentence was written"):
        judge_captions(namer.vocabulary, table, collector)
    collector.update(tokens([END]), [8])
    with pytest.raises(DataError, match="about picture 8, of which the data set of 5 has none"):
        judge_captions(namer.vocabulary, table, collector)


@pytest.mark.parametrize(
    ("captions", "ids", "message"),
    [
        (Captions(torch.zeros(1, 3, dtype=torch.long)), [1], r"must be \(B, S, T\)"),
        (Captions(torch.zeros(1, 0, 3, dtype=torch.long)), [1], "at least one sentence"),
        (Captions(torch.zeros(2, 1, 3, dtype=torch.long)), [1], "about 2 pictures, but 1 image ids"),
    ],
)
def test_collector_refuses(captions, ids, message):
    with pytest.raises(ValueError, match=message):
        CaptionCollector().update(captions, ids)


def test_processes_are_gathered(monkeypatch):
    """Both of two processes saw picture 2, as an evening-out sampler has it; they end with the same."""
    parts = [CaptionCollector(), CaptionCollector()]
    for rank, part in enumerate(parts):
        part.update(tokens([4 + rank, END]), [rank])
        part.update(tokens([6, 7, END] if rank else [5, 7, END]), [2])
    assert parts[0].gather() is parts[0]  # one process

    def all_gather_object(found, own):
        assert pickle.loads(pickle.dumps(own)).sentences() == own.sentences()
        found[:] = [part.cpu() for part in parts]

    for name, value in {
        "is_initialized": lambda: True,
        "get_world_size": lambda: 2,
        "all_gather_object": all_gather_object,
    }.items():
        monkeypatch.setattr(torch.distributed, name, value)
    for part in parts:
        assert part.gather().sentences() == {0: [4, END, 0], 2: [5, 7, END], 1: [5, END, 0]}


def test_the_device_is_not_waited_for(namer, table, monkeypatch):
    """Sentences are copied once, when they are asked for."""
    copies = []
    monkeypatch.setattr(CaptionCollector, "cpu", lambda self, cpu=CaptionCollector.cpu: copies.append(1) or cpu(self))
    loader = loader_for(CaptionDataset(table, encode=namer.vocabulary.encode, resize=namer.resize), 2)
    collector = caption_all(namer, loader, progress=False)
    assert copies == []
    assert len(collector.sentences()) == 5
    assert copies == [1]
