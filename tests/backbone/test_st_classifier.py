"""The spatial transformer's CNN behind the classifiers' interface."""

import torch

from sightline.backbone import build_classifier, freeze_stages


def test_every_part_learns_and_freezes():
    network = build_classifier("st_cnn", 7)
    logits = network(torch.rand(3, 3, 42, 42))
    assert logits.shape == (3, 7)
    logits.square().sum().backward()
    # The transformer's hidden layers wait for its last one, which starts at zero.
    still = {name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()}
    assert all(name.startswith("transformer.localisation") for name in still)
    assert network.get_submodule(network.head_name).out_features == 7
    freeze_stages(network, 0)
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {f"{network.head_name}.weight", f"{network.head_name}.bias"}


def test_colour_is_read_as_grey():
    network = build_classifier("st_cnn", 4).eval()
    images = torch.rand(2, 3, 42, 42)
    torch.testing.assert_close(network(images), network(images.mean(1, keepdim=True).expand(-1, 3, -1, -1)))


def test_other_sizes_are_brought_to_its_own():
    network, images = build_classifier("st_cnn", 4).eval(), torch.rand(2, 3, 42, 42)
    larger = images.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(network(larger), network(images))
    assert network(torch.rand(1, 3, 30, 90)).shape == (1, 4)
