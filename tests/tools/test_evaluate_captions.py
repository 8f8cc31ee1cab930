"""`sightline evaluate` of captioners, and of files of captions."""

import json
import math

import pytest
import torch

from sightline.captioning import load, save, show_attend_tell
from sightline.captioning.search import Beam, Greedy
from sightline.captioning.vocabulary import Vocabulary
from sightline.datasets.images import write_image
from sightline.datasets.shapes import read_shapes, shapes_table
from sightline.detectors import classifier
from sightline.evaluation import read_caption_results
from sightline.tools.main import main
from sightline.tools.model_names import kind_of
from sightline.training.caption_scoring import score_captions

TABLE = shapes_table("val", 6, 32)


@pytest.fixture
def checkpoint(tmp_path):
    """An untrained captioner that knows the words of the shapes."""
    torch.manual_seed(0)
    vocabulary = Vocabulary.of([sentence for group in TABLE.captions for sentence in group], min_count=1)
    model = show_attend_tell(
        "resnet10_narrow", len(vocabulary), width=16, embedding=16, attention_width=16, norm="batch"
    )
    model.vocabulary, model.resize, model.search = vocabulary, (32, 32, True), Beam(3, most=8)
    save(model, tmp_path / "model.ckpt")
    return str(tmp_path / "model.ckpt")


@pytest.fixture
def data(tmp_path):
    """Six captioned pictures: `--data` and `--split` of the command."""
    lines = ["picture,sentence,split"]
    for i, (path, captions) in enumerate(zip(TABLE.paths, TABLE.captions, strict=True)):
        write_image(tmp_path / "data" / f"{i}.png", read_shapes(path))
        lines.append(f'{i}.png,"{captions[0]}",{("train", "test")[i > 0]}')
    (tmp_path / "data" / "captions.csv").write_text("\n".join(lines))
    return ["--data", str(tmp_path / "data"), "--split", "test"]


def test_a_captioner_on_data(checkpoint, data, tmp_path, capsys):
    numbers, said, report = (tmp_path / name for name in ("numbers.json", "said.json", "report"))
    files = ["--json", str(numbers), "--save-predictions", str(said), "--report", str(report)]
    assert main(["evaluate", checkpoint, *data, *files, "--device", "cpu", "--batch", "2"]) == 0
    out = capsys.readouterr().out
    content = json.loads(numbers.read_text())
    names = ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr", "CIDEr-D", "exact"]
    assert [line.split()[0] for line in out.splitlines()[:8]] == names == list(content)[:8]
    assert content["BLEU-1 unpenalised"] >= content["BLEU-1"]
    captions = read_caption_results(said, {row["image_id"] for row in content["per_image"]})
    assert captions == {row["image_id"]: row["caption"] for row in content["per_image"]}
    page = (report / "report.html").read_text(encoding="utf-8")
    assert page.count("<figure") == 5
    assert "Beam(width=5, most=8" in page  # how long sentences may be travels with the checkpoint
    assert "/5.png" in page


def test_the_mean_of_several(checkpoint, data, tmp_path, capsys):
    model = load(checkpoint)
    weights = {key: value.clone() for key, value in model.state_dict().items()}

    def scores_of(factor, *options):
        """Of the model with all that it learns multiplied, alone or averaged."""
        model.load_state_dict({key: v * factor if v.is_floating_point() else v for key, v in weights.items()})
        save(model, tmp_path / "other.ckpt")
        assert main(["evaluate", str(tmp_path / "other.ckpt"), *data, *options, "--device", "cpu"]) == 0
        return capsys.readouterr().out

    assert scores_of(3.0, "--average", checkpoint) == scores_of(2.0)
    model.vocabulary = Vocabulary([*model.vocabulary.words[:-1], "zebra"])
    save(model, tmp_path / "zebra.ckpt")
    assert main(["evaluate", checkpoint, *data, "--average", str(tmp_path / "zebra.ckpt"), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert "cannot be averaged with" in error
    assert "its words is" in error
    assert len(error) < 1000


def test_the_width_of_the_beam(checkpoint, data, tmp_path, monkeypatch):
    """Of the search that the model brings, the width alone is changed."""
    searches = []

    def score(model, table, *, search, **options):
        searches.append(search)
        return score_captions(model, table, search=search, progress=False, **options)

    monkeypatch.setattr("sightline.tools.evaluate_captions.score_captions", score)
    monkeypatch.setattr("sightline.tools.evaluate_captions.load_mean", lambda *_: model)
    model = load(checkpoint, device="cpu")
    for own in (Beam(3, most=8, length_power=0.5), Greedy(7)):
        model.search = own
        for options in ([], ["--beam", "1"], ["--beam", "5"]):
            assert main(["evaluate", checkpoint, *data, "--device", "cpu", *options]) == 0
    assert searches[:3] == [None, Beam(1, most=8, length_power=0.5), Beam(5, most=8, length_power=0.5)]
    assert searches[3:] == [None, Beam(1, most=7), Beam(5, most=7)]


def test_a_checkpoint_says_that_it_is_a_captioner(checkpoint):
    assert kind_of(checkpoint) == "captioner"


MISTAKES = {
    "boxes' scores": (["--voc", "2007"], "is a captioner: leave out --voc"),
    "tiles": (["--tiles", "64"], "leave out --tiles"),
    "crops": (["--crops", "10", "--scales", "36"], "leave out --crops, --scales"),
    "proposals": (["--proposals", "boxes.json"], "leave out --proposals"),
    "largest": (["--largest", "1"], "leave out --largest"),
    "limits": (["--max-dets", "10"], "leave out --max-dets"),
    "several models": (["--ensemble", "CHECKPOINT", "--flip"], "leave out --ensemble, --flip"),
    "a part of results": (["--partial"], "leave out --partial"),
    "no such part": (["--split", "tests"], "has no part 'tests'; there are train, val, test; did you mean 'test'?"),
    "no such data": (["--data", "nowhere"], "nowhere: no such file or folder"),
}


@pytest.mark.parametrize(("options", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes(options, message, checkpoint, capsys):
    options = [checkpoint if option == "CHECKPOINT" else option for option in options]
    assert main(["evaluate", checkpoint, "--device", "cpu", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_fewer_than_no_workers(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "best.ckpt", "--workers", "-1"])
    assert "argument --workers: must be a whole number from 0, got '-1'" in capsys.readouterr().err


def test_beams_are_for_captioners(tmp_path, capsys):
    save(classifier("lenet", 6), tmp_path / "classifier.ckpt")
    assert main(["evaluate", str(tmp_path / "classifier.ckpt"), "--beam", "5"]) == 2
    assert "--beam is for captioners, and" in capsys.readouterr().err


def test_random_weights_are_refused(capsys):
    assert main(["evaluate", "show_attend_tell", "--device", "cpu"]) == 2
    assert "show_attend_tell alone has random weights" in capsys.readouterr().err


# -- Files of captions --


@pytest.fixture
def captions(tmp_path):
    """A function that writes caption results and truth, and gives the command's arguments."""
    truth = {1: ["a dog runs", "the dog"], 2: ["two cats sleep on a mat"], 3: ["a car"]}
    rows = [{"image_id": image, "caption": text} for image, group in truth.items() for text in group]
    (tmp_path / "truth.json").write_text(json.dumps({"images": [], "annotations": rows}))

    def write(said):
        results = [{"image_id": image, "caption": text} for image, text in said.items()]
        (tmp_path / "results.json").write_text(json.dumps(results))
        files = {"--captions": "results.json", "--truth": "truth.json", "--json": "out.json"}
        return ["evaluate", *(part for name, file in files.items() for part in (name, str(tmp_path / file)))]

    return write


def test_captions(captions, tmp_path, capsys):
    assert main([*captions({1: "A dog runs.", 2: "two cats", 3: "a bus"}), "--report", str(tmp_path / "report")]) == 0
    numbers = json.loads((tmp_path / "out.json").read_text())
    assert numbers["BLEU-1"] == pytest.approx(6 / 7 * math.exp(1 - 11 / 7))
    assert numbers["BLEU-1 unpenalised"] == pytest.approx(6 / 7)
    assert numbers["exact"] == pytest.approx(1 / 3)
    assert [row["image_id"] for row in numbers["per_image"]][-1] == 1
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[:8]] == list(numbers)[:8]
    assert "3: a bus" in out
    assert "two cats sleep on a mat" in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")


def test_captions_of_a_part(captions, tmp_path, capsys):
    arguments = captions({1: "a dog runs"})
    assert main(arguments) == 2
    assert "2 of the truth's 3 pictures have no caption, 2 for one" in capsys.readouterr().err
    assert main([*arguments, "--partial"]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["ROUGE-L"] == 1


def test_the_folder_of_the_numbers_is_made(captions, tmp_path):
    made = tmp_path / "scores" / "of captions" / "out.json"
    assert main([*captions({1: "a dog", 2: "a cat", 3: "a bus"}), "--json", str(made)]) == 0
    assert json.loads(made.read_text())["ROUGE-L"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--captions", "a.json"], "--captions needs --truth"),
        (["--captions", "a.json", "--predictions", "b.json", "--truth", "c.json"], "name either a checkpoint"),
        (
            ["--captions", "a.json", "--truth", "c.json", "--voc"],
            "has no boxes and no model, only sentences: leave out --voc",
        ),
        (["--captions", "a.json", "--truth", "c.json", "--beam", "3"], "leave out --beam"),
        (["--captions", "a.json", "--truth", "c.json"], "c.json: cannot be read"),
        (["--predictions", "a.json", "--truth", "c.json", "--partial"], "--partial is for --captions"),
    ],
)
def test_captions_refused(arguments, message, capsys):
    assert main(["evaluate", *arguments]) == 2
    assert message in capsys.readouterr().err
