"""One word of the command line to a model."""

import pytest
import torch

from sightline.backbone import WeightsError
from sightline.datasets.table import DataError
from sightline.detectors import classifier, faster_rcnn_mobilenet_v3, save
from sightline.tools.model_names import build, has_weights, kind_of, trained


def test_a_checkpoint_and_a_name_with_the_same_weights(tmp_path):
    path = tmp_path / "best.ckpt"
    model = faster_rcnn_mobilenet_v3()
    save(model, path)
    for word in (str(path), f"faster_rcnn_mobilenet_v3@{path}"):
        again = trained(word, "cpu")
        assert not again.training
        assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("word", "error", "message"),
    [
        ("faster_rcn", DataError, "no checkpoint and no model 'faster_rcn'; did you mean 'faster_rcnn'"),
        ("faster_rcnn", DataError, "faster_rcnn alone has random weights and finds nothing.*faster_rcnn@WEIGHTS"),
        ("nothing.ckpt", WeightsError, "no checkpoint at nothing.ckpt"),
    ],
)
def test_mistakes(word, error, message):
    with pytest.raises(error, match=message):
        trained(word, "cpu")


def test_random_weights_on_purpose():
    assert not has_weights("rcnn")
    assert build("localization", "cpu").task == "localization"


def test_what_a_word_makes(tmp_path, segmenter, mask_detector):
    save(classifier("lenet", 6), tmp_path / "classifier.ckpt")
    torch.save({"weight": torch.ones(1)}, tmp_path / "weights.pth")
    words = {
        segmenter: "segmenter",
        "fcn8s@fcn.pth": "segmenter",
        mask_detector: "detector",
        "mask_rcnn@coco": "detector",
        "show_attend_tell@weights.pth": "captioner",
        str(tmp_path / "classifier.ckpt"): "detector",
        str(tmp_path / "weights.pth"): "detector",
        str(tmp_path / "nowhere.ckpt"): "detector",
        "faster_rcnn@coco": "detector",
    }
    assert {word: kind_of(word) for word in words} == words
