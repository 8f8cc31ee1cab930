"""Captioned pictures as batches: which sentences, how they are numbered and padded, maps instead of pictures, resumption."""

import logging
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI

from sightline.captioning.vocabulary import Vocabulary
from sightline.datasets import caption_data
from sightline.datasets.augment import Augment
from sightline.datasets.batching import Key
from sightline.datasets.caption_data import CaptionData
from sightline.datasets.caption_dataset import CaptionDataset
from sightline.datasets.caption_tokens import Tokens
from sightline.datasets.data_module import Shapes
from sightline.datasets.detection import loader_for
from sightline.datasets.shapes import shapes_table
from sightline.datasets.table import DataError

SMALL = Shapes(train_images=14, val_images=5, size=32)
END, PAD = 2, 0


def letters(sentence):
    """Numbers of a word's letters, from 4; the end."""
    return [4 + ord(letter) - ord("a") for letter in sentence] + [END]


def spelt(tokens):
    """The sentence that `letters` made numbers of; "|" for the end."""
    return "".join({PAD: "", END: "|"}.get(token, chr(token - 4 + ord("a"))) for token in tokens)


def table_of(captions):
    table = shapes_table("train", len(captions), 32)
    return replace(table, captions=captions)


def dataset_of(captions, **options):
    return CaptionDataset(table_of(captions), **{"encode": letters, "resize": (32, 32, True), **options})


def sentences_of(dataset, epoch=0):
    """What a batch of all pictures says of each."""
    batch = dataset.__getitems__([Key(epoch, index, (32, 32)) for index in range(len(dataset))])
    return [[spelt(sentence) for sentence in group] for group in batch.captions.tokens.tolist()]


def make_data(**options):
    data = CaptionData(
        **{"batch_size": 4, "min_size": 32, "max_size": 32, "num_workers": 0, "shapes": SMALL, **options}
    )
    data.encode = letters_of_words
    return data


def letters_of_words(sentence):
    return letters("".join(word[0] for word in sentence.split()))


# -- Sentences as numbers --

GROUPS = [["abc"], ["a", "bcdefg"], ["", "x", "yz"]]


def test_sentences_are_padded_to_one_shape():
    dataset = dataset_of(GROUPS)
    assert sentences_of(dataset) == [["abc|", "", ""], ["a|", "bcdefg|", ""], ["|", "x|", "yz|"]]
    batch = dataset.__getitems__([Key(0, 1, (32, 32))])
    assert batch.captions.tokens.shape == (1, 3, 8)  # S of the data set, T a multiple of 4
    assert batch.captions.tokens.dtype == torch.int64
    assert dataset.__getitems__([Key(0, 0, (32, 32))]).captions.tokens.shape == (1, 3, 4)


@pytest.mark.parametrize("seed", range(3))
def test_packed_is_what_a_loop_makes(seed):
    rng = np.random.default_rng(seed)
    captions = [
        ["".join(rng.choice(list("abcd"), rng.integers(0, 12))) for _ in range(rng.integers(1, 6))] for _ in range(9)
    ]
    tokens = Tokens(table_of(captions), letters, 7)
    rows = rng.permutation(9)[:5]
    chosen = np.stack([rng.permutation(np.r_[np.arange(len(captions[r])), [-1] * 5])[:4] for r in rows])
    found = tokens.batch(rows, chosen).tokens
    for row, group, picks in zip(rows, found, chosen, strict=True):
        for words, pick in zip(group.tolist(), picks, strict=True):
            wanted = [] if pick < 0 else letters(captions[row][pick])
            wanted = wanted[:7] if len(wanted) > 8 else wanted
            assert words == wanted + [PAD] * (found.shape[2] - len(wanted))
    assert tokens.cut == sum(len(sentence) > 7 for group in captions for sentence in group)


def test_a_long_sentence_is_cut_and_does_not_end_there():
    dataset = dataset_of([["abcde", "abcd", "abc"]], longest=4)
    assert sentences_of(dataset) == [["abcd", "abcd|", "abc|"]]
    assert dataset.__getitems__([Key(0, 0, (32, 32))]).captions.tokens.shape == (1, 3, 5)  # no decoder need say more
    assert dataset.tokens.cut == 1


def test_sentences_are_drawn_anew_in_every_epoch():
    group = list("abcdefgh")
    dataset = dataset_of([group, ["k", "l"]], sentences=3, drawn=True, seed=5)
    drawn = [sentences_of(dataset, epoch) for epoch in range(40)]
    for first, second in drawn:
        assert len(set(first)) == 3, "a sentence twice"
        assert second == ["k|", "l|", ""], "all where there are few"
    assert drawn == [sentences_of(dataset, epoch) for epoch in range(40)]
    assert {sentence for first, _ in drawn for sentence in first} == {f"{letter}|" for letter in group}
    alone = dataset.__getitems__([Key(7, 0, (32, 32))]).captions.tokens[0].tolist()
    assert [spelt(sentence) for sentence in alone] == drawn[7][0], "depends on the batch"
    other = dataset_of([group, ["k", "l"]], sentences=3, drawn=True, seed=6)
    assert [sentences_of(other, epoch) for epoch in range(40)] != drawn


def test_evaluation_takes_the_first_ones():
    dataset = dataset_of([list("abcdefgh")], sentences=3)
    assert sentences_of(dataset, 0) == sentences_of(dataset, 1) == [["a|", "b|", "c|"]]
    assert sentences_of(dataset_of([list("abcdefgh")], sentences=None))[0] == [f"{letter}|" for letter in "abcdefgh"]


@pytest.mark.parametrize("captions", [[["a"], []], None], ids=["one", "all"])
def test_a_picture_without_sentences_is_refused(captions):
    table = replace(shapes_table("train", 2, 32), captions=captions)
    with pytest.raises(DataError, match="no sentence about this picture"):
        CaptionDataset(table, encode=letters, resize=(32, 32, True))


def test_pictures_are_those_of_detection():
    """Augmented and cached as they are there; a batch holds no objects."""
    data = make_data(augment=Augment(flip=0, scale=(1, 1), colour=0.3), cache=True)
    batches = [batch for _ in range(2) for batch in data.train_dataloader()]
    assert all(batch.targets is None and batch.images.shape == (4, 3, 32, 32) for batch in batches)
    plain = {
        info.id: image for b in make_data().train_dataloader() for info, image in zip(b.infos, b.images, strict=True)
    }
    assert any(not torch.equal(batch.images[0], plain[batch.infos[0].id]) for batch in batches)


# -- Maps instead of pictures --


@pytest.fixture
def maps(tmp_path):
    """Split to maps on the disk, a picture's number in all cells."""
    for split, count in (("train", 14), ("val", 5), ("test", 5)):
        ramp = np.broadcast_to(np.arange(count, dtype=np.float16)[:, None, None, None], (count, 6, 2, 2))
        np.save(tmp_path / f"{split}.npy", ramp)
    return {split: np.load(tmp_path / f"{split}.npy", mmap_mode="r") for split in ("train", "val", "test")}


@pytest.mark.parametrize("workers", [0, 2])
def test_maps_come_instead_of_pictures(maps, workers, monkeypatch):
    data, whole = make_data(num_workers=workers), list(make_data().train_dataloader())
    data.maps = maps
    monkeypatch.setattr("sightline.datasets.detection.annotated_picture", None)  # reading one would fail
    for mine, theirs in zip(data.train_dataloader(), whole, strict=True):
        assert mine.images.shape == (4, 3, 0, 0)
        assert mine.maps.dtype == torch.float16
        assert mine.maps[:, 3, 1, 0].tolist() == [info.id - 1 for info in mine.infos]
        assert mine.infos == theirs.infos
        assert torch.equal(mine.sizes, theirs.sizes)
        assert torch.equal(mine.captions.tokens, theirs.captions.tokens)


def test_mapped_files_are_not_copied_to_workers(maps):
    table = table_of([["a"]] * 14)
    for given in (maps["train"], np.array(maps["train"])):
        dataset = CaptionDataset(table, encode=letters, resize=(32, 32, True), maps=given)
        again = pickle.loads(pickle.dumps(dataset))
        assert isinstance(again.maps, np.memmap) == isinstance(given, np.memmap)
        assert np.array_equal(again.maps, given)
        assert isinstance(dataset.maps, type(given))
    part = replace(table.select(np.arange(3, 9)), captions=[["a"]] * 6)
    dataset = CaptionDataset(part, encode=letters, resize=(32, 32, True), maps=maps["train"][3:9])
    assert np.array_equal(pickle.loads(pickle.dumps(dataset)).maps, maps["train"][3:9])


def test_maps_that_do_not_go_with_the_pictures(maps):
    data = make_data(augment=Augment(flip=0, scale=(1, 1)))
    data.maps = maps
    with pytest.raises(DataError, match=r"--data\.augment null"):
        data.train_dataloader()
    data = make_data(exact=False)
    data.maps = maps
    with pytest.raises(DataError, match=r"--data\.exact true"):
        data.train_dataloader()
    data = make_data()
    data.maps = {"train": maps["val"]}
    with pytest.raises(DataError, match="maps of 5 pictures do not go with 14"):
        data.train_dataloader()
    with pytest.raises(DataError, match='no maps of split "val" were made, only of train'):
        data.val_dataloader()


# -- For Lightning --


class Recorder(LightningModule):
    """A network of one number that writes down what it is given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen, self.validated = [], []

    def training_step(self, batch, batch_idx):
        ids = tuple(info.id for info in batch.infos)
        self.seen.append((self.current_epoch, ids, batch.images.long().sum().item(), batch.captions.tokens.tolist()))
        return self.weight * 1.0

    def validation_step(self, batch, batch_idx):
        self.validated += [info.id for info in batch.infos]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAndStop(Callback):
    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def fit(data, checkpoint=None, callbacks=(), **options):
    model = Recorder()
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = Trainer(accelerator="cpu", **{"max_epochs": 3, **quiet, **options}, callbacks=list(callbacks))
    trainer.fit(model, data, ckpt_path=checkpoint, weights_only=None if checkpoint is None else False)
    return model


def drawing(**options):
    """Pictures with more sentences than are drawn, and changed colours."""
    data = make_data(sentences=2, augment=Augment(flip=0, scale=(1, 1)), **options)
    for split, table in data.tables.items():
        groups = [[text[k:] for k in range(4)] for (text,) in table.captions]
        data.tables[split] = replace(table, captions=groups)
    return data


@pytest.mark.parametrize(("step", "workers"), [(2, 0), (4, 0), (6, 2)], ids=["mid 0", "end 0", "mid 1, workers"])
def test_a_resumed_run_sees_exactly_what_was_left(tmp_path, step, workers):
    expected = fit(drawing()).seen
    assert len(expected) == 12
    path = tmp_path / "stopped.ckpt"
    fit(drawing(num_workers=workers), callbacks=[SaveAndStop(step, path)])
    assert fit(drawing(num_workers=workers), path).seen == expected[step:]


def test_validation_sees_every_picture_once():
    assert sorted(fit(make_data(), max_epochs=1, num_sanity_val_steps=0).validated) == [1, 2, 3, 4, 5]


def test_overfitting_sees_the_same_sentences():
    first, second = fit(drawing(), max_epochs=2, overfit_batches=1).seen
    assert first[1:] == second[1:]


def test_batches_of_training_and_evaluation():
    data = drawing()
    assert next(iter(data.train_dataloader())).captions.tokens.shape[1] == 2
    assert next(iter(data.val_dataloader())).captions.tokens.shape[1] == 4
    assert data.train_dataloader().dataset.augment is data.augment
    assert data.val_dataloader().dataset.augment is None
    assert data.proposed("train") is data.tables["train"]
    assert data.plain(0) is False


def test_built_in_shapes():
    data = make_data()
    table = data.tables["train"]
    assert [[text] for text in data.texts("train")] == shapes_table("train", 14, 32).captions
    assert (table.categories, len(table.image), table.landmarks) == ([], 0, None)
    words = Vocabulary.of(data.texts("train"), 1)
    data.encode = words.encode
    batch = next(iter(data.train_dataloader()))
    for info, tokens in zip(batch.infos, batch.captions.tokens, strict=True):
        assert [words.decode(tokens[0].tolist())] == table.captions[info.id - 1]
    assert data.frames.tolist() == [[32, 32]]


@pytest.mark.parametrize(
    "augment", [Augment(scale=(1, 1)), Augment(flip=0), Augment(flip=0, scale=(1, 1), vertical_flip=0.1)]
)
def test_shapes_are_neither_mirrored_nor_resized(augment):
    with pytest.raises(DataError, match="tell left from right"):
        make_data(augment=augment)


def test_a_loader_needs_a_vocabulary():
    data = make_data()
    data.encode = None
    with pytest.raises(DataError, match="set `encode`"):
        data.train_dataloader()


@pytest.mark.parametrize(
    "bad", [{"sentences": 0}, {"longest": 0}, {"min_count": 0}, {"batch_size": 0}, {"min_size": 0}, {"num_workers": -1}]
)
def test_impossible_options_are_named(bad):
    with pytest.raises(DataError, match=next(iter(bad))):
        make_data(**bad)


def test_it_tells_what_was_read_and_cut(caplog):
    data = make_data(longest=4)
    with caplog.at_level(logging.INFO):
        data.setup("fit")
        data.setup("fit")
        data.train_dataloader()
    assert caplog.text.count("train: 14 images, 14 sentences") == 1
    long = sum(len(text.split()) > 4 for text in data.texts("train"))
    assert f"train: {long} of 14 sentences are longer than 4 words" in caplog.text


def test_options_from_the_command_line():
    options = ["--data.shapes.train_images=3", "--data.sentences=null", "--data.augment.flip=0.1", "--data.path=x"]
    data = LightningCLI(Recorder, CaptionData, run=False, args=options, save_config_callback=None).datamodule
    assert (data.shapes.train_images, data.sentences, data.augment.flip, data.path) == (3, None, 0.1, "x")
    assert data.resize == (224, 224, True)


def test_real_flickr8k(real_data):
    data = make_data(path=str(real_data("flickr8k")), batch_size=8, min_size=64, max_size=64)
    assert len(data.texts("train")) == 30000
    words = Vocabulary.of(data.texts("train"), 5)
    data.encode = words.encode
    batch = next(iter(data.train_dataloader()))
    assert batch.images.shape == (8, 3, 64, 64)
    assert batch.captions.tokens.shape[:2] == (8, 5)
    table = data.tables["train"]
    said = table.captions[table.image_ids.tolist().index(batch.infos[0].id)]
    known = [words.decode(words.encode(text)) for text in said]
    assert [words.decode(tokens.tolist()) for tokens in batch.captions.tokens[0]] == known
    assert next(iter(data.val_dataloader())).captions.tokens.shape[1] == caption_data.VALIDATED
    assert len(loader_for(data.val_dataloader().dataset, 8).dataset) == 1000
