"""YOLOX's published weights (https://github.com/Megvii-BaseDetection/YOLOX): both their forms, equal outputs, their AP."""

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.ops import box_iou

from sightline.backbone import WeightsError
from sightline.datasets.coco import read_coco
from sightline.detectors import yolox
from sightline.detectors.coco_names import COCO_80
from sightline.detectors.yolox_weights import STEM, swap_colours
from sightline.training.scoring import score

SIDE = 416


@pytest.fixture(scope="module")
def published(real_data):
    """YOLOX-nano as an ONNX file."""
    pytest.importorskip("onnx", reason="the onnx package reads the published file; pip install onnx")
    return real_data("weights/yolox_nano_coco.onnx")


@pytest.fixture(scope="module")
def nano(published):
    return yolox("nano", weights=str(published), detections=300).eval()


def letterboxed(path):
    """(3, h, w) uint8 RGB with the long side at 416."""
    picture = Image.open(path).convert("RGB")
    scale = SIDE / max(picture.size)
    return np.array(picture.resize([round(side * scale) for side in picture.size])).transpose(2, 0, 1)


@pytest.fixture(scope="module")
def pictures(real_data):
    paths = [real_data("demo") / "dog.jpg", real_data("demo") / "person.jpg"]
    return [letterboxed(path) for path in [*paths, *sorted((real_data("coco") / "images").iterdir())[:2]]]


@torch.inference_mode()
def test_outputs_equal_onnxruntimes(nano, published, pictures):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime runs the published file; pip install onnxruntime")
    session = runtime.InferenceSession(str(published), providers=["CPUExecutionProvider"])
    for picture in pictures:
        height, width = picture.shape[1:]
        grey = np.full((1, 3, SIDE, SIDE), 114, np.float32)
        grey[0, :, :height, :width] = picture[::-1]  # blue first
        expected = torch.from_numpy(session.run(None, {"images": grey})[0])
        frame = F.pad(torch.from_numpy(picture), (0, SIDE - width, 0, SIDE - height))[None]
        ours = nano(frame, torch.tensor([[height, width]])).dense
        ours = torch.cat([ours.deltas, ours.objectness[..., None].sigmoid(), ours.logits.sigmoid()], dim=-1)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-3)


def test_finds_the_dog_the_bicycle_and_the_truck(nano, real_data):
    (found,) = nano.predict(real_data("demo") / "dog.jpg", score=0.25)
    by_eye = {"dog": (131, 220, 312, 542), "bicycle": (110, 125, 568, 425), "truck": (467, 77, 690, 171)}
    for name, box in by_eye.items():
        named = found[found.labels == nano.categories.index(name)]
        assert box_iou(named.boxes[:1], torch.tensor([box])).item() > 0.75, name


# Frames as the data loader makes them, and the published network's own squares; the paper's 25.8 is of all 5000 pictures.
FRAMES = {"tight": (0.295, 0.475), "square": (0.30, 0.475)}


@pytest.mark.parametrize("frames", FRAMES)
def test_ap_on_part_of_coco(nano, real_data, monkeypatch, frames):
    table = read_coco(real_data("coco") / "instances_val2017.json")
    assert len(table) == 128
    if frames == "square":
        detect = nano.detect
        monkeypatch.setattr(nano, "detect", lambda images, sizes: detect(squared(images), sizes))
    summary = score(nano, table, progress=False).result.summary()
    ap, ap50 = FRAMES[frames]
    assert summary["AP"] >= ap
    assert summary["AP50"] >= ap50


def squared(images):
    return F.pad(images, (0, SIDE - images.shape[3], 0, SIDE - images.shape[2]))


def batch():
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    return images, torch.tensor([[64, 96], [50, 70]])


def shaken(**arguments):
    """A small network whose norms, too, are not what they are at first."""
    model = yolox("nano", **arguments).eval()
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not name.startswith("normalize."):
            value.copy_(
                torch.rand_like(value) + 0.5 if "running_var" in name else value + 0.1 * torch.randn_like(value)
            )
    return model


def official(model):
    """A checkpoint such as YOLOX's trainer writes, of the same network."""
    state = {}
    for key, value in model.state_dict().items():
        key = key.replace("backbone.fpn.", "backbone.").replace("backbone.body.", "backbone.backbone.")
        if not key.startswith(("normalize.", "single_head.")):
            state[key] = value
    stem = "backbone.backbone.stem.conv.conv.weight"
    state[stem] = state[stem][:, [2, 1, 0, 5, 4, 3, 8, 7, 6, 11, 10, 9]]
    return {"start_epoch": 300, "model": state, "optimizer": None}


def written(content, path):
    torch.save(content, path)
    return str(path)


def outputs_equal(one, other):
    inputs = batch()
    with torch.inference_mode():
        return all(torch.equal(a, b) for a, b in zip(one(*inputs).dense, other(*inputs).dense, strict=True))


@pytest.mark.parametrize("classes", [80, 3])
def test_an_official_checkpoint_loads_with_equal_outputs(tmp_path, classes):
    model = shaken(num_classes=classes)
    file = official(model)
    assert "backbone.C3_p4.conv1.bn.running_mean" in file["model"]
    assert "backbone.backbone.dark5.1.conv1.conv.weight" in file["model"]
    loaded = yolox("nano", classes, weights=written(file, tmp_path / "yolox_nano.pth")).eval()
    assert outputs_equal(loaded, model)
    assert loaded.categories == (list(COCO_80) if classes == 80 else model.categories)


def test_our_own_files_load_as_they_are(tmp_path):
    model = shaken(num_classes=4)
    state = model.state_dict()
    files = {
        "plain.pth": state,
        "run.ckpt": {"state_dict": {f"detector.{key}": value for key, value in state.items()}},
    }
    for name, content in files.items():
        loaded = yolox("nano", 4, weights=written(content, tmp_path / name)).eval()
        assert outputs_equal(loaded, model)
        assert loaded.categories == model.categories


def test_another_number_of_categories_starts_their_layers_at_random(tmp_path):
    model = shaken()
    loaded = yolox("nano", 5, weights=written(official(model), tmp_path / "yolox_nano.pth"))
    ours, theirs = loaded.state_dict(), model.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours if "cls_preds" not in key)
    assert ours["head.cls_preds.0.weight"].shape[0] == len(loaded.categories) == 5
    assert loaded.categories[0] == "class 0"


def test_another_number_of_categories_than_the_onnx_files(published, nano):
    loaded = yolox("nano", 5, weights=str(published)).state_dict()
    theirs = nano.state_dict()
    assert all(torch.equal(loaded[key], theirs[key]) for key in loaded if "cls_preds" not in key)


def test_a_second_head_starts_as_a_copy_of_the_first(tmp_path):
    path = written(official(shaken()), tmp_path / "yolox_nano.pth")
    model = yolox("nano", weights=path, one_to_one=True).eval()
    with torch.inference_mode():
        said = model(*batch())
    assert all(torch.equal(a, b) for a, b in zip(said.dense, said.single, strict=True))


def test_a_second_head_that_the_file_has_is_kept(tmp_path):
    model = shaken(num_classes=3, one_to_one=True)
    loaded = yolox("nano", 3, weights=written(model.state_dict(), tmp_path / "two.pth"), one_to_one=True).eval()
    with torch.inference_mode():
        inputs = batch()
        said, expected = loaded(*inputs), model(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(said.single, expected.single, strict=True))


def test_colours_swap_pixel_by_pixel():
    weight = torch.arange(24.0).view(2, 12, 1, 1)
    assert swap_colours(weight)[0].flatten().tolist() == [2, 1, 0, 5, 4, 3, 8, 7, 6, 11, 10, 9]
    assert torch.equal(swap_colours(swap_colours(weight)), weight)


def test_a_folded_norm_does_nothing_but_add(nano):
    norms = [m for m in nano.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        x = torch.randn(1, norm.num_features, 2, 2)
        torch.testing.assert_close(norm(x), x + norm.bias[:, None, None], rtol=1e-6, atol=1e-6)
    assert nano.state_dict()[STEM].shape == (16, 12, 3, 3)


def test_a_file_of_another_size(published, tmp_path):
    where = r"0.Conv_41 has weights 16x12x3x3, the model's backbone.body.stem.conv.conv in that place 24x12x3x3"
    with pytest.raises(
        WeightsError, match=rf"yolox_nano_coco.onnx is of another network or size: its convolution {where}"
    ):
        yolox("tiny", weights=str(published))
    with pytest.raises(WeightsError, match="do not fit YOLOX"):
        yolox("tiny", weights=written(official(shaken()), tmp_path / "yolox_nano.pth"))


def test_an_onnx_file_of_a_network_that_stops_early(published, tmp_path):
    import onnx

    model = onnx.load(published)
    last = [node for node in model.graph.node if node.op_type == "Conv"][-1]
    model.graph.node.remove(last)
    onnx.save(model, tmp_path / "short.onnx")
    with pytest.raises(WeightsError, match=r"short.onnx is of another network or size: it has 112 .*, the model 113"):
        yolox("nano", weights=str(tmp_path / "short.onnx"))


def test_an_onnx_file_that_is_none(tmp_path):
    pytest.importorskip("onnx")
    path = tmp_path / "damaged.onnx"
    path.write_bytes(b"no such thing")
    with pytest.raises(WeightsError, match=r"damaged.onnx is damaged, or no ONNX file"):
        yolox("nano", weights=str(path))


def test_without_the_onnx_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    path = tmp_path / "yolox_nano.onnx"
    path.write_bytes(b"")
    with pytest.raises(WeightsError, match=r'needs the onnx package: pip install "sightline\[export\]"'):
        yolox("nano", weights=str(path))
