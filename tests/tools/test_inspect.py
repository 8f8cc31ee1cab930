"""`sightline inspect`: models, data sets, checkpoints, and what is said to those who mistype."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from sightline.captioning import show_attend_tell
from sightline.captioning.vocabulary import SPECIAL, Vocabulary
from sightline.datasets.shapes import draw
from sightline.datasets.statistics import Statistics
from sightline.datasets.structures import Instances
from sightline.detectors import Detector, faster_rcnn, overfeat, save, yolox
from sightline.detectors.classification import classifier
from sightline.detectors.saliency import heat_map
from sightline.tools.inspect_pictures import overlay
from sightline.tools.main import main


@pytest.fixture
def checkpoint(tmp_path):
    """An untrained detector of the shapes' categories, which finds something everywhere."""
    torch.manual_seed(0)
    model = faster_rcnn(
        "resnet10_narrow_fpn", 6, norm="batch", anchor_sizes=((16,), (32,), (64,), (96,)), proposals=20, head_width=16
    )
    model.categories, model.resize = ["circle", "square", "triangle", "star", "cross", "ring"], (64, 64)
    save(model, tmp_path / "model.ckpt")
    return str(tmp_path / "model.ckpt")


@pytest.fixture
def picture(tmp_path):
    Image.fromarray(draw(0, 1, 80).image[:, :60]).save(tmp_path / "shape.png")
    return str(tmp_path / "shape.png")


def test_captioned_pictures(tmp_path, picture, capsys):
    (tmp_path / "captions.csv").write_text(
        'image,caption\nshape.png,"a ring, a star"\nshape.png,a ring\n', encoding="utf-8"
    )
    assert main(["inspect", str(tmp_path / "captions.csv"), "--png", str(tmp_path / "sheet.png")]) == 0
    output = capsys.readouterr().out
    assert "train: 1 image, 2 sentences" in output
    assert "different words     3; 2 2 times or more" in output
    assert "a (3), ring (2), star (1)" in output
    assert np.asarray(Image.open(tmp_path / "sheet.png")).min() < 60
    assert main(["inspect", str(tmp_path / "captions.csv"), "--split", "tran"]) == 2
    assert "did you mean 'train'?" in capsys.readouterr().err


# -- Models --


def test_layers_of_vgg16(capsys):
    assert main(["inspect", "vgg16"]) == 0
    output = capsys.readouterr().out
    assert "138M  (138,357,544)" in output
    assert "15.5G  (15,470,264,320)" in output
    assert output.count("Conv2d") == 13
    assert "input" in output.splitlines()[2]


def test_stages_of_googlenet(capsys):
    assert main(["inspect", "googlenet_2014", "--depth", "1"]) == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert rows["inception3a"][:4] == ["Inception", "256x28x28", "164K", "640K"]
    assert rows["inception5b"][5:7] == ["70.7M", "32"]


MODELS = {
    "a backbone": (["resnet18_fpn", "--size", "64"], "p"),
    "torchvision": (["torchvision:squeezenet1_1", "--size", "96", "64"], "3x96x64"),
    "a detector": (["localization", "--size", "64", "--depth", "1"], "predictor"),
}


@pytest.mark.parametrize("case", MODELS)
def test_models(case, capsys):
    argv, expected = MODELS[case]
    assert main(["inspect", *argv]) == 0
    output = capsys.readouterr().out
    assert expected in output
    assert "multiply-adds" in output


def test_timm(capsys):
    pytest.importorskip("timm")
    assert main(["inspect", "timm:resnet10t", "--size", "64", "--depth", "1"]) == 0
    assert "layer4" in capsys.readouterr().out


def test_a_bad_start_is_seen(tmp_path, capsys):
    png = tmp_path / "start.png"
    argv = ["inspect", "squeezenet1_1", "--activations", "--init", "small_random", "--size", "64", "--png", str(png)]
    assert main(argv) == 0
    output = capsys.readouterr().out
    assert "VANISHING" in output
    assert "squeezenet1_1 with small_random, 4 pictures" in output
    assert Image.open(png).width > 500
    assert main(["inspect", "squeezenet1_1", "--activations", "--init", "he", "--size", "64", "--data", "noise"]) == 0
    assert "All 52 layers are fine" in capsys.readouterr().out


def test_seeds_differ(capsys):
    outputs = []
    for seed in ("1", "1", "2"):
        assert main(["inspect", "lenet", "--activations", "--init", "he", "--size", "32", "--seed", seed]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2]


# -- Checkpoints --


def test_checkpoint(checkpoint, capsys):
    assert main(["inspect", checkpoint, "--size", "64", "--depth", "1"]) == 0
    output = capsys.readouterr().out
    assert "faster_rcnn(backbone='resnet10_narrow_fpn', num_classes=6" in output
    assert "64 pixels, at most 64" in output
    assert "6 categories: circle, square" in output
    assert "roi_heads" in output


def test_a_name_with_weights(tmp_path, capsys):
    weights = tmp_path / "nano.pth"
    torch.save(yolox("nano").state_dict(), weights)
    word = f"yolox_nano@{weights}"
    assert main(["inspect", word, "--size", "64", "--depth", "1"]) == 0
    assert capsys.readouterr().out.startswith(f"{word}: yolox(size='nano', num_classes=80")


@pytest.fixture
def captioner(tmp_path):
    """An untrained captioner of 30 words."""
    small = {"norm": "batch", "width": 16, "embedding": 16, "attention_width": 16}
    model = show_attend_tell("resnet10_narrow", 30, **small)
    model.vocabulary, model.resize = Vocabulary([*SPECIAL, *(f"w{i}" for i in range(26))]), (64, 96, True)
    save(model, tmp_path / "captioner.ckpt")
    return str(tmp_path / "captioner.ckpt")


def test_a_captioner(captioner, capsys):
    """All its weights are used for one word, those of the words too."""
    assert main(["inspect", captioner, "--depth", "2", "--device", "cpu"]) == 0
    output = capsys.readouterr().out
    assert f"{captioner}: show_attend_tell(backbone='resnet10_narrow', num_words=30" in output
    assert "pictures are brought to 64x96 pixels exactly\n30 words, 4 of them special: w0, w1" in output
    assert "layers are shown for one sentence's first word" in output
    rows = [line.split()[:3] for line in output.splitlines()]
    assert ["decoder.output", "Linear", "1x30"] in rows
    assert "not used" not in output


def test_a_captioner_by_name(capsys):
    assert main(["inspect", "show_attend_tell", "--size", "64", "--depth", "1"]) == 0
    output = capsys.readouterr().out
    assert "layers are shown for one sentence's first word" in output
    assert any(line.startswith("decoder") for line in output.splitlines())


def test_activations_of_a_captioner(captioner, capsys):
    assert main(["inspect", captioner, "--activations", "--device", "cpu"]) == 0
    assert "with its own weights, 4 pictures" in capsys.readouterr().out


def test_a_captioner_explains_itself_elsewhere(captioner, picture, capsys):
    assert main(["inspect", captioner, "--picture", picture, "--png", "heat.png", "--device", "cpu"]) == 2
    assert f"sightline predict {captioner} {picture} --attention" in capsys.readouterr().err


def test_activations_of_a_checkpoint(checkpoint, capsys):
    assert main(["inspect", checkpoint, "--activations", "--size", "64"]) == 0
    assert "its own weights" in capsys.readouterr().out


def test_what_a_network_looks_at(checkpoint, picture, tmp_path, capsys):
    png = tmp_path / "heat.png"
    assert main(["inspect", checkpoint, "--picture", picture, "--out", str(png), "--category", "star"]) == 0
    assert "star 0." in capsys.readouterr().out
    assert Image.open(png).size == Image.open(picture).size
    assert not np.array_equal(np.asarray(Image.open(png)), np.asarray(Image.open(picture)))


class Bright(Detector):
    """Its score is how much of channel 1 lies in the right half: what it looks at is known."""

    def __init__(self):
        super().__init__(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), num_classes=2)
        self.backbone = nn.Conv2d(3, 2, 4, 4, bias=False)
        with torch.no_grad():
            self.backbone.weight.zero_()[1, 1] = 1 / 16

    def forward(self, images, sizes):
        return self.backbone(self.normalize(images, sizes))

    def decode(self, outputs, sizes):
        score = outputs[:, 1, :, 4:].mean().sigmoid()
        scores = torch.stack([score, score.detach() * 0.5])[None]
        boxes = torch.tensor([[[1.0, 2, 3, 4], [0, 0, 1, 1]]])
        return Instances(boxes, torch.tensor([[1, 0]]), scores)


def test_heat_lies_where_the_evidence_is():
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    image[:, 1, 8:16, :] = 255  # green, in both halves
    image[:, 0, :, 24:] = 255  # red does not matter
    model = Bright()
    found = heat_map(model, image, torch.tensor([[32, 30]]))
    assert (found.label, tuple(found.heat.shape)) == (1, (32, 30))
    assert found.box.tolist() == [1, 2, 3, 4]
    assert found.heat.max() == 1
    rows, columns = (found.heat > 0.5).nonzero().unbind(1)
    assert 7 <= rows.min() <= rows.max() <= 16
    assert columns.min() >= 15
    seen = 2 / 8 * 3.5 / 4  # two of eight rows of cells; the last column of four is half padding
    assert found.score == pytest.approx(torch.sigmoid(torch.tensor(seen)).item())


def test_heat_is_grad_cam_after_global_pooling():
    """Selvaraju et al. 2017, equations 1 and 2, by hand."""
    torch.manual_seed(0)
    model = classifier("resnet18", 3).eval()
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    sizes = torch.tensor([[64, 64]])
    found = heat_map(model, image, sizes)
    double = classifier("resnet18", 3).eval().double()
    double.load_state_dict(model.state_dict())
    maps = []
    double.backbone.layer4.register_forward_hook(lambda m, i, output: maps.append(output))
    score = double.detect(image.double().requires_grad_(), sizes).scores.max()
    (gradient,) = torch.autograd.grad(score, maps[0])
    weights = gradient.mean((2, 3), keepdim=True)
    heat = (weights * maps[0].detach()).sum(1, keepdim=True).relu()
    heat = F.interpolate(heat, size=(64, 64), mode="bilinear")[0, 0]
    torch.testing.assert_close(found.heat, (heat / heat.max()).float(), atol=1e-5, rtol=1e-4)


def test_heat_leaves_the_model_as_it_was():
    model, images = Bright().train(), torch.full((1, 3, 32, 32), 9, dtype=torch.float64)
    heat_map(model, images, torch.tensor([[32, 32]]))
    assert not images.requires_grad
    assert model.training
    assert model.backbone.weight.dtype == torch.float32
    assert model.backbone.weight.grad is None


def test_heat_of_merged_boxes():
    """OverFeat's answers are gathered from many windows."""
    torch.manual_seed(0)
    image = torch.randint(0, 256, (1, 3, 96, 96), dtype=torch.uint8)
    found = heat_map(overfeat(3, network="small", scales=(1.0,)), image, torch.tensor([[96, 96]]))
    assert tuple(found.heat.shape) == (96, 96)
    assert found.heat.max() == 1


def test_heat_comes_from_the_cpu(monkeypatch):
    """A GPU may have no double precision: the copy leaves it first."""
    calls = []
    for name in ("cpu", "double"):
        original = getattr(nn.Module, name)
        monkeypatch.setattr(nn.Module, name, lambda self, f=original, name=name: calls.append(name) or f(self))
    heat_map(Bright(), torch.full((1, 3, 32, 32), 9, dtype=torch.uint8), torch.tensor([[32, 32]]))
    assert calls == ["cpu", "double"]


class Blind(Bright):
    """Its answers have no gradient."""

    @torch.no_grad()
    def detect(self, images, sizes):
        return super().detect(images, sizes)


def test_heat_refusals():
    image, sizes = torch.zeros(1, 3, 32, 32), torch.tensor([[32, 32]])
    with pytest.raises(ValueError, match="finds nothing of label 7"):
        heat_map(Bright(), image, sizes, label=7)
    model = Bright()
    del model.backbone
    with pytest.raises(ValueError, match="the scores of Blind have none"):
        heat_map(Blind(), image, sizes)
    with pytest.raises(ValueError, match="Bright has none"):
        heat_map(model, image, sizes)


def test_overlay():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    cold = overlay(image, np.zeros((5, 5)))
    assert np.array_equal(cold, image.mean(2, keepdims=True).repeat(3, 2).round().astype(np.uint8))
    warm = overlay(image, np.pad(np.ones((5, 2)), ((0, 0), (0, 3))))
    assert np.abs(warm[:, :8].astype(int) - cold[:, :8]).mean() > 50
    assert np.array_equal(warm[:, 20:], cold[:, 20:])


# -- Data sets --


def test_data(real_data, tmp_path, capsys):
    png, stored = tmp_path / "examples.png", tmp_path / "statistics.npz"
    argv = ["inspect", str(real_data("raccoon")), "--png", str(png), "--statistics", str(stored), "--size", "8", "12"]
    assert main(argv) == 0
    output = capsys.readouterr().out
    assert "200 images, 217 objects, 1 category" in output
    assert ["raccoon", "217", "200"] in [line.split() for line in output.splitlines()]
    assert Image.open(png).size == (4 * 328 + 8, 3 * 328 + 8)
    assert tuple(Statistics.load(stored).mean_image.shape) == (3, 8, 12)
    assert "200 pictures at 8x12" in output


def test_numbers_of_data(real_data, capsys):
    assert main(["inspect", "--data", str(real_data("coco")), "--split", "val"]) == 0
    output = capsys.readouterr().out
    assert output.startswith("val: 128 images, 987 objects, 80 categories")
    assert "0 to 26, median 5; none in 2 pictures" in output
    assert "person              243        61" in output
    assert "… and 60 more with" in output


def test_built_in_data(tmp_path, capsys):
    assert main(["inspect", "shapes", "--split", "val", "--png", str(tmp_path / "s.png")]) == 0
    output = capsys.readouterr().out
    assert "val: 200 images" in output
    assert "train:" not in output
    assert (tmp_path / "s.png").exists()


MISTAKES = {
    "nothing": ([], "name a model, a data set or a checkpoint"),
    "a mistyped model": (["vgg61"], "'vgg61' is no model, and no file or folder; did you mean 'vgg1"),
    "a mistyped model of torchvision's": (["torchvision:resnet81"], "did you mean 'resnet18'?"),
    "no such checkpoint": (["nowhere.ckpt"], "no checkpoint at nowhere.ckpt"),
    "a broken checkpoint": (["BROKEN"], "damaged"),
    "no such data": (["--data", "nowhere"], "nowhere: no such file or folder"),
    "a picture": (["PICTURE"], "is a picture; name a checkpoint first"),
    # before the model is looked for
    "a mistyped initialiser": (["nowhere.ckpt", "--activations", "--init", "hee"], "did you mean 'he'?"),
    "an untrained network": (["lenet", "--picture", "PICTURE", "--png", "x.png"], "lenet has not been trained"),
    "nowhere to draw": (["CHECKPOINT", "--picture", "PICTURE"], "--png heat.png"),
    "no such picture": (["CHECKPOINT", "--picture", "no.png", "--png", "x.png"], "no.png"),
    "a mistyped category": (
        ["CHECKPOINT", "--picture", "PICTURE", "--png", "x.png", "--category", "sqare"],
        "'square'",
    ),
    "an idle option": (["vgg16", "--png", "x.png"], "--png does nothing for the table of layers"),
    "an idle option of data": (["shapes", "--depth", "1"], "--depth does nothing for a data set"),
    "no such split": (["shapes", "--split", "tarin"], "the splits train, val, test; got 'tarin'"),
    "three sizes": (["vgg16", "--size", "1", "2", "3"], "--size takes one number or height and width"),
    "too small": (["vgg16", "--size", "8"], "at least 32x32 pixels, got 8x8"),
    "no depth": (["lenet", "--depth", "0"], "at least 1"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(case, checkpoint, picture, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.ckpt").write_text("abc")
    names = {"CHECKPOINT": checkpoint, "PICTURE": picture, "BROKEN": "broken.ckpt"}
    argv, message = MISTAKES[case]
    assert main(["inspect", *(names.get(word, word) for word in argv)]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "x.png").exists()
