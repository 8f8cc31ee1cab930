"""`sightline train` of captioners: resumption, maps kept on disk, what stands in place of training, and mistakes."""

import os
import signal

import pytest
import torch

from sightline.captioning import load
from sightline.captioning.decoder import UNKNOWN
from sightline.captioning.model import of_words
from sightline.tools.main import main
from sightline.tools.train_captions import CaptionCLI
from sightline.training.captioning import CaptionTraining

QUICK = [
    "show_attend_tell_lite", "--data.shapes.train_images", "32", "--data.shapes.val_images", "4", "--data.shapes.size", "48",
    "--data.batch_size", "8", "--data.min_size", "32", "--data.max_size", "32", "--data.num_workers", "0",
    "--trainer.max_epochs", "2", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false",
]  # fmt: skip
BUILDER = "--model.captioner.init_args"
KEPT = [f"{BUILDER}.trainable_stages", "0", "--data.cache_maps", "true"]
HARD = [f"{BUILDER}.attention", "hard"]


def train(*arguments):
    os.environ.pop("SIGHTLINE_RUN_FOLDER", None)  # each command is a process of its own; here they share one
    return main(["train", *arguments])


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIGHTLINE_RUN_FOLDER", "")


@pytest.fixture
def unscored(monkeypatch):
    monkeypatch.setattr(CaptionCLI, "finish", lambda *_: None)


def test_a_run_folder_holds_the_words(capsys):
    assert train(*QUICK, *KEPT, f"{BUILDER}.backbone_weights", "null", "--data.longest", "9") == 0
    assert "CIDEr-D" in capsys.readouterr().out
    model = load("runs/show_attend_tell_lite/1/checkpoints/best.ckpt", device="cpu")
    assert {"circle", "left", "below"} <= set(model.vocabulary.words)
    assert model.search.most == 9
    assert len(os.listdir("runs/show_attend_tell_lite/features")) == 3  # of each split


@pytest.mark.slow
def test_stopped_in_the_last_epoch_and_resumed_it_is_an_uninterrupted_run(unscored, monkeypatch):
    """With all that is drawn: cells, expected vectors, guesses, dropout, sentences."""
    run = [*QUICK, *KEPT, *HARD, f"{BUILDER}.dropout", "0.3", "--model.sampling", "0.5", "--run.ema", "0.9"]
    assert train(*run) == 0
    step = CaptionTraining.training_step

    def interrupted(self, batch, index):
        if self.global_step == 6:  # of 8
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(CaptionTraining, "training_step", interrupted)
        with pytest.raises(SystemExit):
            train(*run)
    assert train("--resume", "runs/show_attend_tell_lite/2") == 0
    runs = [torch.load(f"runs/show_attend_tell_lite/{i}/checkpoints/last.ckpt", weights_only=True) for i in (1, 2)]
    for state in ("state_dict", "current_model_state"):
        whole, resumed = (run[state] for run in runs)
        assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []


@pytest.mark.parametrize("recipe", ["show_attend_tell_lite", "transformer_captioner"])
def test_weights_of_other_words(recipe, unscored, monkeypatch):
    """Each word goes on with what was learnt of it, wherever it stands; new ones begin as unknown ones were."""
    run = [
        recipe,
        *QUICK[1:],
        "--data",
        "shapes",
        "--data.cache_maps",
        "false",
        f"{BUILDER}.backbone",
        "resnet10_narrow",
    ]
    run += [f"{BUILDER}.backbone_weights", "null", "--trainer.max_epochs", "1", "--trainer.limit_val_batches", "0"]
    assert train(*run, "--data.min_count", "12") == 0
    weights = f"runs/{recipe}/1/checkpoints/best.ckpt"
    before = load(weights, device="cpu")
    words = {word: row for row, word in enumerate(before.vocabulary.words)}
    started = []
    monkeypatch.setattr(CaptionCLI, "fit", lambda self, **options: (self.start(False), started.append(self.network)))
    assert train(*run, "--data.min_count", "1", f"{BUILDER}.weights", weights) == 0
    (after,) = started
    assert set(words) < set(after.vocabulary.words)
    names = of_words(after.decoder)
    assert len(names) == 2
    for name, value in after.state_dict().items():
        if name.startswith(names):
            rows = [words.get(word, UNKNOWN) for word in after.vocabulary.words]
            assert torch.equal(value, before.state_dict()[name][rows]), name
        else:
            assert torch.equal(value, before.state_dict()[name]), name


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (["--trainer.max_epochs", "3"], [0, 0.2, 0.4]),
        (["--trainer.max_epochs", "-1", "--trainer.max_steps", "12"], [0, 0.2, 0.4]),
        (["--trainer.max_epochs", "9", "--trainer.max_steps", "8"], [0, 0.4]),
        (["--trainer.max_epochs", "1"], [0]),
    ],
)
def test_guesses_grow_to_the_last_epoch(limits, expected, unscored, monkeypatch):
    """4 batches an epoch."""
    chances, begin = [], CaptionTraining.on_train_epoch_start

    def watched(self):
        begin(self)
        chances.append(self.captioner.decoder.sampling)

    monkeypatch.setattr(CaptionTraining, "on_train_epoch_start", watched)
    assert train(*QUICK, "--trainer.limit_val_batches", "0", "--model.sampling", "0.4", *limits) == 0
    assert chances[1:] == pytest.approx(expected)  # the first is for runs resumed within an epoch


def test_a_batch_is_learnt_by_heart_whatever_is_punished(capsys):
    """Hard attention's losses are of any sign, and blurred words are never learnt to the tenth."""
    blurred = [f"{BUILDER}.smoothing", "0.2", "--model.sampling", "0.9", "--model.optimizer.lr", "0.003"]
    assert train(*QUICK, *HARD, *blurred, "--run.overfit", "true") == 0
    assert "the model can learn this batch" in capsys.readouterr().out


def test_maps_of_another_backbone_are_refused(unscored, capsys):
    assert train(*QUICK, *KEPT) == 0
    last = "runs/show_attend_tell_lite/1/checkpoints/last.ckpt"
    content = torch.load(last, weights_only=True)
    name = next(name for name in content["state_dict"] if name.startswith("captioner.backbone."))
    content["state_dict"][name] += 1
    torch.save(content, last)
    resumed = ["--resume", "runs/show_attend_tell_lite/1", "--trainer.max_epochs", "3"]
    assert train(*resumed) == 2
    assert f"the backbone's maps on disk do not go with the run ({name} differs)" in capsys.readouterr().err
    assert train(*resumed, "--data.cache_maps", "false") == 0


def test_other_words_are_refused(unscored, capsys):
    assert train(*QUICK) == 0
    assert train("--resume", "runs/show_attend_tell_lite/1", "--data.min_count", "9") == 2
    assert "the run began with another of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.cache_maps", "true"], "keeps what a frozen backbone makes"),
        ([*KEPT, "--data.augment.flip", "0", "--data.augment.scale", "[1,1]"], "which --data.augment changes"),
        (["--alternating"], "makes another kind of model: leave --alternating out"),
        ([*KEPT, "--run.unfreeze", "plateau"], "keeps what a frozen backbone makes"),
        (["--run.machines", "true"], "--run.machines is for detectors"),
        (["--run.overfit", "true", "--model.self_critical", "true"], "--run.overfit watches the loss of true words"),
        (["--data.min_count", "9999"], "set --data.min_count"),
        (["--model.sampling", "1.5"], "sampling must be from 0 to 1"),
    ],
)
def test_mistakes(arguments, message, capsys):
    assert train(*QUICK, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not os.path.exists("runs")


def test_sentences_longer_than_the_decoders(capsys):
    quick = [
        "transformer_captioner",
        *QUICK[1:],
        "--data",
        "shapes",
        "--data.min_count",
        "1",
        "--data.cache_maps",
        "false",
    ]
    quick += [f"{BUILDER}.backbone", "resnet10_narrow", f"{BUILDER}.backbone_weights", "null"]
    assert train(*quick, f"{BUILDER}.most_words", "30", "--data.longest", "30") == 2
    assert "set --data.longest 29 or less, or --model.captioner.init_args.most_words 31" in capsys.readouterr().err
