"""torchvision's FCNs (https://github.com/pytorch/vision, models/segmentation/fcn.py) against ours with their state dicts."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import segmentation as peers
from torchvision.models.segmentation import FCN_ResNet50_Weights, FCN_ResNet101_Weights

from sightline.backbone import WeightsError, building
from sightline.backbone.resnet import Bottleneck, ResNet
from sightline.backbone.sources import SOURCES
from sightline.datasets.structures import LabelMaps
from sightline.segmentation import SEGMENTERS, fcn_resnet50, fcn_resnet101, load, save
from sightline.segmentation.fcn_resnet import VOC_21, FCNResNet

MEAN, STD = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
PEERS = {"fcn_resnet50": peers.fcn_resnet50, "fcn_resnet101": peers.fcn_resnet101}


def random_peer(name="fcn_resnet50", **options):
    """torchvision's model with random weights, scaled so that the signal neither fades nor explodes on the way."""
    peer = PEERS[name](weights=None, weights_backbone=None, **options).eval()
    for key, module in peer.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 1.5)
            module.running_mean.normal_(std=0.1)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.uniform_(module.weight, 0.1, 0.3) if key.endswith("bn3") else None
    for head in (peer.classifier, peer.aux_classifier):
        head[4].weight.data *= 30
    return peer


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """torchvision's model, and ours from its file."""
    torch.manual_seed(0)
    peer, path = random_peer(num_classes=5, aux_loss=True), tmp_path_factory.mktemp("peer") / "fcn.pth"
    torch.save(peer.state_dict(), path)
    return peer, fcn_resnet50(5, weights=str(path)).eval(), path


def frame(height, width, batch=2):
    images = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)
    return images, torch.tensor([[height, width]] * batch)


@pytest.mark.parametrize("size", [(64, 96), (65, 47), (33, 33)])
def test_logits_equal_torchvision(pair, size):
    peer, ours, _ = pair
    images, sizes = frame(*size)
    with torch.no_grad():
        expected, found = peer((images / 255 - MEAN) / STD), ours(images, sizes)
    assert expected["out"].std((2, 3)).mean() > 0.2
    torch.testing.assert_close(found.logits, expected["out"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.auxiliary[0], expected["aux"], rtol=1e-4, atol=1e-4)


def test_losses_equal_torchvisions_recipe(pair):
    """https://github.com/pytorch/vision/blob/main/references/segmentation/train.py: `criterion`, with void as 255."""
    peer, ours, _ = pair
    images, sizes = frame(49, 64)
    labels = torch.randint(-1, 5, (2, 49, 64), dtype=torch.int16)
    void = labels.long().where(labels >= 0, 255)
    with torch.no_grad():
        expected = {
            name: F.cross_entropy(logits, void, ignore_index=255)
            for name, logits in peer((images / 255 - MEAN) / STD).items()
        }
        found = ours.losses(ours(images, sizes), LabelMaps(labels))
    torch.testing.assert_close(found["loss_map"], expected["out"])
    torch.testing.assert_close(found["loss_auxiliary"], 0.5 * expected["aux"])
    assert fcn_resnet50(2, auxiliary_weight=0.25).auxiliary_weight == 0.25


def test_keys_and_shapes_of_both_depths():
    for name, build in (("fcn_resnet50", fcn_resnet50), ("fcn_resnet101", fcn_resnet101)):
        with torch.device("meta"):
            theirs, ours = PEERS[name](weights=None, weights_backbone=None, aux_loss=True), build()
        expected = {key: x.shape for key, x in theirs.state_dict().items()}
        found = {key: x.shape for key, x in ours.state_dict().items() if not key.startswith("normalize.")}
        assert found == expected
        assert SEGMENTERS[name] is build


def test_auxiliary_heads_come_and_go(pair):
    _, ours, path = pair
    without = fcn_resnet50(5, auxiliary=False, weights=str(path)).eval()
    images, sizes = frame(40, 40)
    with torch.no_grad():
        outputs = without(images, sizes)
        assert torch.equal(outputs.logits, ours(images, sizes).logits)
    assert outputs.auxiliary == ()


def test_another_number_of_classes_starts_anew(pair):
    _, ours, path = pair
    other = fcn_resnet50(3, weights=str(path))
    assert torch.equal(other.classifier[0].weight, ours.classifier[0].weight)
    assert other.classifier[4].out_channels == other.aux_classifier[4].out_channels == 3


def test_published_weights_are_torchvisions():
    for name, weights in (("fcn_resnet50", FCN_ResNet50_Weights), ("fcn_resnet101", FCN_ResNet101_Weights)):
        published = weights.COCO_WITH_VOC_LABELS_V1
        assert SOURCES[name]["coco"] == published.url
    assert len(VOC_21) == 21


def test_published_weights_name_their_categories(monkeypatch):
    asked = []
    monkeypatch.setattr(building, "load_weights", lambda model, source, name, **_: asked.append((name, source)))
    with torch.device("meta"):
        model, other = fcn_resnet50(weights="coco"), fcn_resnet101(3, weights="coco")
    assert asked == [("fcn_resnet50", "coco"), ("fcn_resnet101", "coco")]
    assert model.categories[:2] == ["background", "aeroplane"]
    assert other.categories == ["class 0", "class 1", "class 2"]
    assert model.resize[0] == 520


def test_unknown_weights():
    with torch.device("meta"), pytest.raises(WeightsError, match=r"no weights named 'cocoa' .*did you mean 'coco'"):
        fcn_resnet50(weights="cocoa")


def test_gradients_reach_everything():
    body = ResNet(Bottleneck, (1, 1, 1, 1), width=8, out_stages=(4, 5), output_stride=8)
    model = FCNResNet(body, 3).train()
    targets = LabelMaps(torch.randint(0, 3, (2, 33, 40), dtype=torch.int16))
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.losses(model(*frame(33, 40)), targets)
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_checkpoint_round_trip(pair, tmp_path):
    _, ours, _ = pair
    ours.categories = list("abcde")
    save(ours, tmp_path / "best.ckpt")
    again = load(tmp_path / "best.ckpt", device="cpu")
    assert all(torch.equal(x, again.state_dict()[key]) for key, x in ours.state_dict().items())
    assert (again.categories, again.architecture) == (ours.categories, ours.architecture)
