"""MobileNetV2 against torchvision's, and real ImageNet weights on real pictures."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torchvision.models._meta import _IMAGENET_CATEGORIES

from sightline.backbone import load_weights
from sightline.backbone.mobilenet_v2 import MobileNetV2, MobileNetV2Classifier, TFPadConv2d


def test_equals_torchvision():
    theirs = torchvision.models.mobilenet_v2(num_classes=10).train()
    with torch.no_grad():
        theirs(torch.randn(4, 3, 64, 64))  # moves the running statistics
    theirs.eval()
    classifier, body = MobileNetV2Classifier(10).eval(), MobileNetV2(out_stages=(1, 2, 3, 4, 5)).eval()
    classifier.load_state_dict(theirs.state_dict())
    body.load_state_dict({k: v for k, v in theirs.state_dict().items() if k.startswith("features.")})
    x = images = torch.randn(2, 3, 63, 96)
    with torch.no_grad():
        torch.testing.assert_close(classifier(images), theirs(images), rtol=1e-5, atol=1e-5)
        expected = [x := layer(x) for layer in theirs.features]
        for ours, i in zip(body(images), (1, 3, 6, 13, 18), strict=True):
            torch.testing.assert_close(ours, expected[i], rtol=1e-5, atol=1e-5)


def test_out_stages_build_no_more_than_they_give():
    model = MobileNetV2(out_stages=(3, 4))
    assert (len(model.features), model.strides, model.channels) == (14, (8, 16), (32, 96))
    assert list(model.stage_prefixes) == ["stem", "stage2", "stage3", "stage4"]
    with pytest.raises(ValueError, match="out_stages must be ascending"):
        MobileNetV2(out_stages=(4, 3))


@pytest.mark.parametrize("tf_padding", [False, True])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilated_as_far_as_strided(output_stride, tf_padding):
    """The dilated network holds, at some of its cells, what the strided one computes from the same pixels."""
    strided = MobileNetV2(tf_padding=tf_padding).eval()
    dilated = MobileNetV2(tf_padding=tf_padding, output_stride=output_stride).eval()
    dilated.load_state_dict(strided.state_dict())
    images = torch.randn(1, 3, 512, 512)
    with torch.no_grad():
        coarse, fine = strided(images)[-1], dilated(images)[-1]
    assert dilated.strides == tuple(min(stride, output_stride) for stride in (4, 8, 16, 32))
    assert fine.shape[-1] == 512 // output_stride
    step = 32 // output_stride
    first = step - 1 if tf_padding else 0  # TensorFlow's windows begin at the first pixel of even sizes
    found, inside = (
        fine[..., first::step, first::step],
        (..., slice(4, -4), slice(4, -4)),
    )  # borders are padded otherwise
    torch.testing.assert_close(found[inside], coarse[inside], rtol=1e-3, atol=1e-4)


def test_output_stride_is_checked():
    with pytest.raises(ValueError, match="output_stride must be 8, 16 or 32, got 4"):
        MobileNetV2(output_stride=4)


@pytest.mark.parametrize("size", [7, 8, 15, 16])
def test_tf_padding(size):
    """TensorFlow's rule, by hand: https://www.tensorflow.org/api_docs/python/tf/nn#notes_on_padding_2"""
    conv = TFPadConv2d(1, 1, 3, stride=2, padding=1, bias=False)
    x = torch.randn(1, 1, size, size + 1)
    out = conv(x)
    for axis, length in ((2, size), (3, size + 1)):
        cells = -(-length // 2)
        total = max((cells - 1) * 2 + 3 - length, 0)
        assert out.shape[axis] == cells
        pad = (total // 2, total - total // 2)
        x = F.pad(x, (0, 0, *pad) if axis == 2 else pad)
    torch.testing.assert_close(out, F.conv2d(x, conv.weight, stride=2))


# What ImageNet's classes say of each picture: sledge dogs, birds of prey, a beach, hoofed animals (of horses it knows
# only the sorrel).
PICTURES = {
    "dog.jpg": {"malamute", "Siberian husky", "Eskimo dog"},
    "eagle.jpg": {"bald eagle", "kite"},
    "kite.jpg": {"seashore", "sandbar"},
    "horses.jpg": {"sorrel", "ox", "water buffalo", "zebra"},
}


def probabilities(model: MobileNetV2Classifier, path) -> torch.Tensor:
    picture = Image.open(path).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
    image = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (model.mean, model.std))
    with torch.no_grad():
        return model(((image - mean) / std)[None]).softmax(-1)[0]


def test_imagenet_weights_know_the_demo_pictures(real_data):
    weights = real_data("weights") / "mobilenet_v2_imagenet_tfpad.pth"
    model = MobileNetV2Classifier(tf_padding=True).eval()
    report = load_weights(model, weights)
    assert (report.missing, report.unexpected, report.mismatched) == ([], [], [])
    for name, expected in PICTURES.items():
        found = [_IMAGENET_CATEGORIES[i] for i in probabilities(model, real_data("demo") / name).topk(5).indices]
        assert found[0] in expected, f"{name}: {found}"

    symmetric = MobileNetV2Classifier().eval()
    load_weights(symmetric, weights)
    symmetric.mean, symmetric.std = model.mean, model.std
    seashore = _IMAGENET_CATEGORIES.index("seashore")
    surer, less_sure = (probabilities(m, real_data("demo") / "kite.jpg")[seashore] for m in (model, symmetric))
    assert surer > 0.7 > 0.5 > less_sure  # 0.87 and 0.36 when this was written
