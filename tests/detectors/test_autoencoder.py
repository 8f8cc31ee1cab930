"""Autoencoders: three verbs, decoders that mirror their encoders, and the backbone handed on to other models."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sightline.datasets import shapes
from sightline.detectors import autoencoder, classifier, faster_rcnn_c5, load, save
from sightline.detectors.autoencoder import gaussian, masking
from sightline.detectors.autoencoder_parts import MirrorDecoder, StrideDecoder

# name: arguments, side of the frame
MODELS = {
    "lenet": ({"backbone": "lenet"}, 32),
    "lenet tied": ({"backbone": "lenet", "tied": True}, 32),
    "alexnet": ({"backbone": "alexnet"}, 64),
    "two towers tied": ({"backbone": "alexnet_2012", "tied": True}, 80),
    "zfnet": ({"backbone": "zfnet"}, 64),
    "vgg11 tied": ({"backbone": "vgg11", "tied": True}, 32),
    "vgg11_bn": ({"backbone": "vgg11_bn"}, 32),
    "vgg11_bn tied": ({"backbone": "vgg11_bn", "tied": True, "norm": "group"}, 32),
    "resnet18": ({"backbone": "resnet18", "noise": "gaussian"}, 64),
    "fire modules": ({"backbone": "squeezenet1_1"}, 64),
    "mobilenet_v2": ({"backbone": "mobilenet_v2", "norm": "group"}, 64),
}


def batch(side=32, sizes=None):
    sizes = torch.tensor(sizes or [[side, side]] * 2)
    images = torch.randint(0, 256, (len(sizes), 3, side, side), dtype=torch.uint8)
    for image, (height, width) in zip(images, sizes.tolist(), strict=True):
        image[:, height:], image[:, :, width:] = 0, 0
    return images, sizes


@pytest.mark.parametrize("name", MODELS)
def test_three_verbs_and_a_gradient_for_every_parameter(name):
    arguments, side = MODELS[name]
    model = autoencoder(**arguments)
    images, sizes = batch(side, [[side, side], [side - 5, side - 9]])
    seen = []
    for mode in (True, False):
        model.train(mode)
        outputs = model(images, sizes)
        losses, found = model.losses(outputs, None), model.decode(outputs, sizes)
        assert set(losses) == {"loss_reconstruction"}
        assert losses["loss_reconstruction"].isfinite()
        assert (found.labels == -1).all()
        assert (found.scores == 0).all()
        seen.append((type(outputs), outputs.restored.shape, found.boxes.shape))
        model.zero_grad()
        losses["loss_reconstruction"].backward()
        without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert without == []
    assert seen[0] == seen[1] == (type(outputs), (2, 3, side, side), (2, 1, 4))


def test_corruption_is_the_same_in_both_modes():
    """The seed alone decides; nothing in LeNet depends on the mode."""
    model, (images, sizes) = autoencoder("lenet"), batch()
    results = []
    for mode, seed in ((True, 1), (False, 1), (False, 2)):
        torch.manual_seed(seed)
        results.append(model.train(mode)(images, sizes).restored)
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_masking_and_noise():
    images = torch.ones(4, 3, 100, 100)
    masked = masking(images, 0.3)
    assert set(masked.unique().tolist()) == {0, 1}
    assert (masked[:, :1] == masked).all()  # a pixel with all its channels
    assert (masked == 0).float().mean() == pytest.approx(0.3, abs=0.02)
    assert gaussian(images, 0.5).std() == pytest.approx(0.5, abs=0.02)
    assert torch.equal(masking(images, 0), images)


def test_the_loss_is_of_the_pictures_pixels():
    """Against the mean over all pixels of both pictures, one after another; whatever comes out in the padding."""
    model, sizes = autoencoder("lenet"), [[32, 32], [20, 27]]
    images, _ = batch(sizes=sizes)
    outputs = model(images, torch.tensor(sizes))
    squares = [
        ((outputs.restored[i] - outputs.images[i]) ** 2)[:, :height, :width].flatten()
        for i, (height, width) in enumerate(sizes)
    ]
    loss = model.losses(outputs, None)["loss_reconstruction"]
    torch.testing.assert_close(loss, torch.cat(squares).mean())
    garbage = outputs._replace(restored=torch.where(outputs.inside > 0, outputs.restored, 1e4))
    torch.testing.assert_close(model.losses(garbage, None)["loss_reconstruction"], loss)


def test_what_lies_in_the_padding_is_not_seen():
    model = autoencoder("lenet", noise="gaussian")
    images, sizes = batch(sizes=[[32, 32], [20, 27]])
    other = images.clone()
    other[1, :, 20:], other[1, :, :, 27:] = 255, 77
    results = []
    for pictures in (images, other):
        torch.manual_seed(0)
        results.append(model(pictures, sizes).restored)
    assert torch.equal(*results)


@pytest.mark.parametrize("side", [32, 33, 61])
def test_a_mirrored_layer_is_the_adjoint_of_its_convolution(side):
    """<conv(x), y> = <x, conv_transposed(y)> with tied weights: what "transposed" means."""
    layer = nn.Conv2d(3, 8, 5, stride=2, padding=1, bias=False).double()
    mirror = MirrorDecoder([layer], norm=nn.BatchNorm2d, tied=True).double()  # its bias is zero
    x = torch.randn(1, 3, side, side, dtype=torch.float64)
    forth = layer(x)
    y = torch.randn_like(forth)
    torch.testing.assert_close((forth * y).sum(), (x * mirror(y, (side, side))).sum())


def test_tied_lenet_decodes_with_its_table():
    """Connections that C3 does not have, its mirror image does not have either."""
    model = autoencoder("lenet", tied=True)
    layer = model.backbone.features[5]
    y = torch.randn(1, 16, 4, 4)
    back = model.decoder.steps[2](y, (8, 8))
    _, expected = torch.autograd.functional.vjp(layer, torch.zeros(1, 6, 8, 8), y)
    torch.testing.assert_close(back, model.decoder.steps[2].after(expected))


def test_tied_weights_are_the_encoders():
    own = dict(autoencoder("vgg11", tied=True).decoder.named_parameters())
    assert all(name.endswith("bias") for name in own)
    untied = dict(autoencoder("vgg11").decoder.named_parameters())
    assert sum(p.numel() for p in untied.values()) > 100 * sum(p.numel() for p in own.values())


def test_the_widths_of_a_bodys_decoder():
    decoder = StrideDecoder((8, 32), (40, 100), norm=nn.BatchNorm2d)
    layers = [layer for layer in decoder.steps if isinstance(layer, nn.ConvTranspose2d)]
    assert [layer.out_channels for layer in layers] == [50, 40, 20, 16, 3]
    assert decoder(torch.zeros(1, 100, 2, 3), (61, 96)).shape == (1, 3, 61, 96)
    with pytest.raises(ValueError, match="last stride is 2, 4, 8"):
        StrideDecoder((12,), (40,), norm=nn.BatchNorm2d)


@pytest.mark.parametrize("tied", [False, True])
def test_learns_pictures(tied):
    """In grey, for LeNet sees no colours."""
    pictures = [torch.from_numpy(shapes.draw(seed=0, index=i, size=32).image) for i in range(4)]
    images = torch.stack([picture.float().mean(2).byte().expand(3, -1, -1) for picture in pictures])
    sizes, model = torch.tensor([[32, 32]] * 4), autoencoder("lenet", corruption=0.05, tied=tied)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(200):
        loss = model.losses(model(images, sizes), None)["loss_reconstruction"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.35 * model.normalize(images, sizes).var()
    restored = model.reconstruct(images, sizes)
    assert (restored.dtype, restored.shape) == (torch.uint8, images.shape)
    assert F.l1_loss(restored.float(), images.float()) < 0.7 * (images.float() - images.float().mean()).abs().mean()


def test_reconstructed_padding_is_black():
    restored = autoencoder("lenet").reconstruct(*batch(sizes=[[32, 32], [20, 27]]))
    assert (restored[1, :, 20:] == 0).all()
    assert (restored[1, :, :, 27:] == 0).all()


@pytest.mark.parametrize("tied", [False, True])
def test_to_a_file_and_back(tied, tmp_path):
    model = autoencoder("lenet", tied=tied)
    model.categories, model.resize = ["cat", "dog"], (32, 32, True)  # as training leaves them
    save(model, tmp_path / "m.ckpt")
    again = load(tmp_path / "m.ckpt", device="cpu")
    images, sizes = batch()
    assert torch.equal(again.reconstruct(images, sizes), model.reconstruct(images, sizes))
    third = autoencoder("lenet", tied=tied, weights=str(tmp_path / "m.ckpt"))
    assert torch.equal(third.reconstruct(images, sizes), model.reconstruct(images, sizes))
    assert str(tmp_path) not in str(third.description())


def test_the_backbone_goes_on_to_other_models(tmp_path):
    """From a checkpoint of ours and from one of a training run, to a classifier and to a detector."""
    model = autoencoder("vgg11")
    save(model, tmp_path / "saved.ckpt")
    state = {f"detector.{key}": value for key, value in model.state_dict().items()}
    torch.save({"sightline": model.description(), "state_dict": state, "epoch": 3}, tmp_path / "trained.ckpt")
    for file in ("saved.ckpt", "trained.ckpt"):
        path = str(tmp_path / file)
        heir = classifier("vgg11", 3, weights=path)
        for name, value in model.backbone.state_dict().items():
            assert torch.equal(heir.backbone.state_dict()[name], value)
    detector = faster_rcnn_c5("vgg11", 2, backbone_weights=path, norm="batch", proposals=5, head_width=16)
    assert torch.equal(detector.backbone.body.features[0].weight, model.backbone.features[0].weight)


# name: arguments, what the message says
MISTAKES = {
    "tied": ({"backbone": "resnet18", "tied": True}, "lenet, alexnet.*'resnet18' branches"),
    "tied fire modules": ({"backbone": "squeezenet1_1", "tied": True}, "'squeezenet1_1' branches"),
    "pyramid": ({"backbone": "resnet18_fpn"}, "take 'resnet18'"),
    "noise": ({"noise": "salt"}, "masking, gaussian"),
    "share": ({"corruption": 1.0}, "share in"),
    "deviation": ({"corruption": -1.0, "noise": "gaussian"}, "deviation of at least 0"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        autoencoder(**{"backbone": "lenet"} | arguments)
