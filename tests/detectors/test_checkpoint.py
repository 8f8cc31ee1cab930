"""Detectors to files and back."""

import pytest
import torch

from sightline.backbone import WeightsError
from sightline.detectors import faster_rcnn, faster_rcnn_c4, faster_rcnn_c5, load, save

MODELS = {
    "faster_rcnn": lambda: faster_rcnn(
        "resnet10_narrow_fpn",
        3,
        norm="group",
        anchor_sizes=[[16], [32], [64], [128]],
        proposals=20,
        proposal_score=0.1,
        samples=32,
        detections=7,
        head_width=16,
    ),
    "faster_rcnn_c4": lambda: faster_rcnn_c4("resnet18", 2, anchor_sizes=(32, 64), proposals=5, trainable_stages=2),
    "faster_rcnn_c5": lambda: faster_rcnn_c5("resnet18", 2, norm="batch", proposals=5, head_width=16),
}


def tiny():
    return MODELS["faster_rcnn"]()


def randomised(model):
    """Every tensor other than a fresh model's, statistics included."""
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.add_(0.1 * torch.rand_like(value))
    return model


@pytest.mark.parametrize("name", MODELS)
def test_round_trip(name, tmp_path):
    model = randomised(MODELS[name]())
    model.categories = ["cat", "dog", "mouse"][: len(model.categories)]
    model.resize = (200, 300)
    save(model.train(), tmp_path / "m.ckpt")
    again = load(str(tmp_path / "m.ckpt"), device="cpu")
    assert not again.training
    assert (again.categories, again.resize) == (model.categories, model.resize)
    assert again.description() == model.description()
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in model.parameters()]
    images, sizes = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8), torch.tensor([[64, 64]])
    with torch.inference_mode():
        expected, found = model.eval().detect(images, sizes), again.detect(images, sizes)
    for field in ("boxes", "labels", "scores"):
        assert torch.equal(getattr(found, field), getattr(expected, field))


def test_a_failed_save_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(content, path):
        path.write_bytes(b"some")
        raise OSError("no space left on device")

    (tmp_path / "m.ckpt").write_bytes(b"the last one")
    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="no space"):
        save(tiny(), tmp_path / "m.ckpt")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("m.ckpt", b"the last one")]


def test_a_training_runs_checkpoint(tmp_path):
    """Which holds the detector under its name in the training module, and much besides."""
    model = randomised(tiny())
    state = {f"detector.{key}": value for key, value in model.state_dict().items()}
    content = {"sightline": model.description(), "state_dict": state, "epoch": 3, "optimizer_states": [{}]}
    torch.save(content, tmp_path / "last.ckpt")
    again = load(tmp_path / "last.ckpt", device="cpu")
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)


def test_the_way_to_the_first_weights_is_not_kept(tmp_path):
    """The file they came from need not exist where the checkpoint is read, nor is a `Path` a plain value."""
    save(randomised(tiny()), tmp_path / "first.ckpt")
    arguments = tiny().architecture["arguments"]
    model = faster_rcnn(**arguments | {"weights": tmp_path / "first.ckpt"})
    save(model, tmp_path / "second.ckpt")
    (tmp_path / "first.ckpt").unlink()
    again = load(tmp_path / "second.ckpt", device="cpu")
    assert torch.equal(again.roi_heads.box_head.fc6.weight, model.roi_heads.box_head.fc6.weight)
    assert str(tmp_path) not in str(again.description())


def test_another_number_of_classes_starts_the_last_layer_anew(tmp_path):
    model = randomised(tiny())
    save(model, tmp_path / "m.ckpt")
    arguments = tiny().architecture["arguments"] | {"num_classes": 5, "weights": str(tmp_path / "m.ckpt")}
    other = faster_rcnn(**arguments)
    assert len(other.categories) == 5
    assert other.roi_heads.box_predictor.cls_score.out_features == 6
    assert torch.equal(other.roi_heads.box_head.fc6.weight, model.roi_heads.box_head.fc6.weight)
    assert torch.equal(other.rpn.head.bbox_pred.weight, model.rpn.head.bbox_pred.weight)


def missing(path):
    """No file is made."""


def plain_weights(path):
    torch.save(tiny().state_dict(), path)


def no_dictionary(path):
    torch.save([1, 2, 3], path)


def pickled_code(path):
    torch.save(tiny(), path)


def truncated(path):
    save(tiny(), path)
    path.write_bytes(path.read_bytes()[:-5000])


def text(path):
    path.write_text("not a checkpoint\n" * 100)


def empty(path):
    path.write_bytes(b"")


def folder(path):
    path.mkdir()


def described_otherwise(path, **changes):
    about = tiny().description()
    about["architecture"] = changes.pop("architecture", about["architecture"])
    torch.save({"sightline": about, "state_dict": changes.pop("state_dict", tiny().state_dict())}, path)


def unknown_architecture(path):
    described_otherwise(path, architecture={"name": "fastest_rcnn", "arguments": {}})


def built_by_hand(path):
    described_otherwise(path, architecture=None)


def unknown_argument(path):
    architecture = tiny().architecture
    architecture["arguments"]["invented_later"] = 1
    described_otherwise(path, architecture=architecture)


def other_classes(path):
    architecture = tiny().architecture
    architecture["arguments"]["num_classes"] = 8
    described_otherwise(path, architecture=architecture)


def missing_tensors(path):
    state = tiny().state_dict()
    state.pop("rpn.head.cls_logits.weight")
    described_otherwise(path, state_dict=state)


def too_few_names(path):
    save(tiny(), path)
    content = torch.load(path)
    content["sightline"]["categories"] = ["cat"]
    torch.save(content, path)


def no_tensors(path):
    described_otherwise(path, state_dict={})


# how the file is made, what the message says besides the file's name
DAMAGES = [
    (missing, "no checkpoint"),
    (folder, "no checkpoint"),
    (plain_weights, "not which model.*@"),
    (no_dictionary, "not which model"),
    (pickled_code, "pickled Python objects .*FasterRCNN"),
    (truncated, "truncated|damaged"),
    (text, "truncated|damaged"),
    (empty, "truncated|damaged"),
    (unknown_architecture, "fastest_rcnn.*known are faster_rcnn"),
    (built_by_hand, "built by hand.*load_weights"),
    (unknown_argument, "another version.*invented_later"),
    (other_classes, "of another shape: roi_heads.box_predictor"),
    (missing_tensors, "missing from the file: rpn.head.cls_logits.weight"),
    (too_few_names, "names 1 categories for a model of"),
    (no_tensors, "no dictionary of tensors"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=[damage.__name__ for damage, _ in DAMAGES])
def test_what_is_wrong_with_a_file_is_said(damage, message, tmp_path):
    path = tmp_path / "best.ckpt"
    damage(path)
    with pytest.raises(WeightsError, match=f"(?s){message}") as caught:
        load(path, device="cpu")
    assert str(path) in str(caught.value)
