import copy

import pytest
import torch
import torchvision
from torch import nn

from sightline.backbone import build_backbone, norm_layer
from sightline.backbone.norms import FrozenBatchNorm2d


def trained_batch_norm() -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(6)
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean):
        tensor.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm


@pytest.mark.parametrize("eps", [0.0, 1e-5, 1e-3])
def test_frozen_equals_torchvision_and_batch_norm(eps):
    batch = trained_batch_norm().eval()
    batch.eps = eps
    ours, theirs = norm_layer("frozen", eps=eps)(6), torchvision.ops.FrozenBatchNorm2d(6, eps=eps)
    for norm in (ours, theirs):
        norm.load_state_dict(batch.state_dict())  # strict: num_batches_tracked is dropped
    x = torch.randn(2, 6, 5, 7)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours(x), batch(x), rtol=1e-5, atol=1e-5)


def test_frozen_does_not_change_in_training():
    norm = norm_layer("frozen")(6)
    norm.load_state_dict(trained_batch_norm().state_dict())
    before, x = copy.deepcopy(norm.state_dict()), torch.randn(4, 6, 5, 5, requires_grad=True)
    norm.eval()
    expected = norm(x)
    norm.train()
    out = norm(x)
    out.sum().backward()
    assert torch.equal(out, expected)
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())
    assert not list(norm.parameters())
    torch.testing.assert_close(x.grad[:, 0], (norm.weight / (norm.running_var + norm.eps).sqrt())[0].expand(4, 5, 5))


def test_frozen_keeps_the_dtype_and_layout():
    norm = FrozenBatchNorm2d(6)
    x = torch.randn(2, 6, 4, 4).to(torch.bfloat16, memory_format=torch.channels_last)
    assert norm(x).dtype == torch.bfloat16
    assert norm(x).is_contiguous(memory_format=torch.channels_last)


def test_group_norm():
    assert norm_layer("group")(64).num_groups == 32
    assert norm_layer("group")(24).num_groups == 8
    x = torch.randn(2, 64, 8, 8)
    groups = norm_layer("group")(64)(x).view(2, 32, -1)
    torch.testing.assert_close(groups.mean(-1), torch.zeros(2, 32), atol=1e-5, rtol=0)
    torch.testing.assert_close(groups.var(-1, unbiased=False), torch.ones(2, 32), atol=1e-3, rtol=0)


def test_group_norm_gives_an_image_the_same_maps_alone_and_in_a_batch():
    model = build_backbone("resnet10_narrow_fpn", norm="group").train()
    images = torch.randn(3, 3, 64, 64)
    for batch, alone in zip(model(images), model(images[1:2]), strict=True):
        torch.testing.assert_close(batch[1:2], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("frozen", FrozenBatchNorm2d), ("batch", nn.BatchNorm2d), ("sync", nn.SyncBatchNorm), ("group", nn.GroupNorm)],
)
def test_names(name, kind):
    model = build_backbone("resnet10_narrow_fpn", norm=name)
    assert type(model.body.bn1) is kind
    assert norm_layer(name, eps=0.25)(32).eps == 0.25


def test_a_factory_passes_through_and_an_unknown_name_does_not():
    assert norm_layer(nn.BatchNorm2d) is nn.BatchNorm2d
    with pytest.raises(ValueError, match=r"norm must be one of frozen, batch, sync, group .* got 'bach'"):
        norm_layer("bach")
