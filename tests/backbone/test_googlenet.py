"""GoogLeNet against torchvision's, its auxiliary classifiers, and the paper's table 1 (https://arxiv.org/abs/1409.4842)."""

import pytest
import torch
import torchvision
from torch import nn

from sightline.backbone import build_backbone, build_classifier
from sightline.backbone.googlenet import GoogLeNet, GoogLeNetClassifier


@pytest.fixture(scope="module")
def pair():
    """torchvision's network with statistics away from their start, and ours with its state dict."""
    theirs = torchvision.models.googlenet(num_classes=7, aux_logits=True, init_weights=False)
    for name, tensor in theirs.state_dict().items():
        if "running_var" in name or name.endswith("bn.weight"):
            tensor.uniform_(0.5, 1.5)
        elif "running_mean" in name or name.endswith("bn.bias"):
            tensor.normal_(std=0.1)
    ours = build_classifier("googlenet", 7)
    ours.load_state_dict(theirs.state_dict())  # strict
    return theirs.eval(), ours.eval()


def test_all_logits_equal_torchvisions(pair):
    theirs, ours = pair
    images = torch.randn(2, 3, 65, 97)
    theirs.training = True  # of the whole alone: no layer below drops out or follows its batch
    with torch.no_grad():
        expected = theirs(images)
        logits = ours.all_logits(images)
        torch.testing.assert_close(ours(images), logits[0])
    theirs.training = False
    named = (expected.logits, expected.aux_logits1, expected.aux_logits2)
    for our_logits, their_logits in zip(logits, named, strict=True):
        torch.testing.assert_close(our_logits, their_logits, rtol=1e-5, atol=1e-5)
    assert len({tuple(x.flatten().tolist()) for x in logits}) == 3
    assert ours.aux_weight == 0.3


def test_our_normalisation_is_torchvisions_transform_of_the_input(pair):
    """Its published weights come with `transform_input`: ImageNet's constants taken back, and pixels put into -1..1."""
    theirs, ours = pair
    pixels = torch.rand(1, 3, 64, 64)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (ours.mean, ours.std))
    their_mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    their_std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    theirs.transform_input = True
    with torch.no_grad():
        expected = theirs((pixels - their_mean) / their_std)
        torch.testing.assert_close(ours((pixels - mean) / std), expected, rtol=1e-5, atol=1e-5)
    theirs.transform_input = False


def test_maps_equal_torchvisions(pair):
    theirs, ours = pair
    names = ("conv1", "conv3", "inception3a", "inception4e", "inception5b")
    body = GoogLeNet(out_stages=names).eval()
    body.load_state_dict({k: v for k, v in ours.state_dict().items() if not k.startswith(("fc", "aux"))})
    expected = []
    hooks = [getattr(theirs, name).register_forward_hook(lambda m, i, out: expected.append(out)) for name in names]
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        theirs(images)
        maps = body(images)
    for hook in hooks:
        hook.remove()
    for our_map, their_map, stride, channels in zip(maps, expected, body.strides, body.channels, strict=True):
        torch.testing.assert_close(our_map, their_map, rtol=1e-5, atol=1e-5)
        assert our_map.shape == (1, channels, 64 // stride, 96 // stride)
    assert body.strides == (2, 4, 8, 16, 32)


def test_the_file_of_a_classifier_loads_into_the_body(pair, tmp_path):
    theirs, _ = pair
    torch.save(theirs.state_dict(), tmp_path / "g.pth")
    body = build_backbone("googlenet", weights=tmp_path / "g.pth")
    assert torch.equal(body.inception5b.branch3[1].conv.weight, theirs.inception5b.branch3[1].conv.weight)
    assert (body.strides, body.channels) == ((8, 16, 32), (480, 832, 1024))


# The form of table 1: weights without biases, multiply-adds at 224 pixels as the table prints them (in millions), cells.
# Weights follow from the table's own widths. The table prints 159, 380, 364, 437, 463, 580, 840, 1072 and 1388 thousand;
# only the first is exactly that (159.5 of 1024), and its 463 and 1388 contradict its own 100M and 71M operations.
STAGES = {
    "inception3a": (163_328, 128, 28),
    "inception3b": (388_096, 304, 28),
    "inception4a": (375_552, 73, 14),
    "inception4b": (448_512, 88, 14),
    "inception4c": (509_440, 100, 14),
    "inception4d": (604_672, 119, 14),
    "inception4e": (867_328, 170, 14),
    "inception5a": (1_042_432, 51, 7),  # printed: 54, which 48 channels before the 5x5 would give, not the 32 printed
    "inception5b": (1_442_816, 71, 7),
}


def weights_in(module: nn.Module) -> int:
    return sum(p.numel() for name, p in module.named_parameters() if name.endswith("weight"))


@pytest.mark.parametrize("stage", STAGES)
def test_the_papers_form_has_the_papers_stages(stage):
    weights, operations, cells = STAGES[stage]
    with torch.device("meta"):
        body = GoogLeNet(norm=None, out_stages=(stage,))
        (last,) = body(torch.empty(1, 3, 224, 224))
    assert last.shape[-2:] == (cells, cells)
    assert weights_in(getattr(body, stage)) == weights
    assert abs(weights * cells**2 / 1e6 - operations) < 0.7


def test_the_papers_totals():
    with torch.device("meta"):
        model = build_classifier("googlenet_2014", 1000)
        alexnet = build_classifier("alexnet_2012", 1000)
    main = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("aux"))
    assert main == 6_998_552
    assert 8.7 < sum(p.numel() for p in alexnet.parameters()) / main < 8.8  # the paper says 12, of 60 and 5 million
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())
    assert model.inception3a.branch3[1].conv.kernel_size == (5, 5)
    assert [type(layer) for layer in model.children()].count(nn.LocalResponseNorm) == 2


@pytest.mark.parametrize("norm", [None, nn.BatchNorm2d])
def test_gradient_reaches_every_parameter(norm):
    model = GoogLeNetClassifier(5, norm=norm).train()
    main, *auxiliary = model.all_logits(torch.randn(2, 3, 64, 64))
    assert main.shape == (2, 5)
    labels = torch.tensor([1, 4])
    loss = nn.functional.cross_entropy(main, labels)
    loss = loss + model.aux_weight * sum(nn.functional.cross_entropy(logits, labels) for logits in auxiliary)
    loss.backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []


def test_the_signal_lives_in_the_plain_form():
    maps = GoogLeNet(norm=None, out_stages=("conv3", "inception4a", "inception5b"))(torch.randn(1, 3, 64, 64))
    assert all(0.05 < x.std() < 20 for x in maps)


def test_out_stages_build_no_more_than_they_give():
    body = GoogLeNet(out_stages="inception3b")
    assert list(body.stage_prefixes) == ["stem", "inception3"]
    assert [name for name, _ in body.named_children()][-1] == "inception3b"
    with pytest.raises(ValueError, match=r"out_stages must be some of conv1, conv3, inception3a, .* got"):
        GoogLeNet(out_stages=("inception5b", "inception3a"))
