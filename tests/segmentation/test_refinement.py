"""Pinheiro and Collobert's network: what each step is given, that all steps are learnt, and that later ones see farther."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sightline.backbone import WeightsError
from sightline.datasets.structures import LabelMaps
from sightline.segmentation import load, recurrent_labeling, save
from sightline.segmentation.refinement import RecurrentLabeling


class Recorder(nn.Module):
    """Notes what it is given; says category `step` everywhere."""

    def __init__(self, num_classes):
        super().__init__()
        self.layer, self.num_classes, self.given = nn.Linear(1, 1), num_classes, []

    def forward(self, planes):
        self.given.append(planes)
        height, width = planes.shape[-2:]
        logits = torch.zeros(len(planes), self.num_classes, height // 2, width // 2)
        logits[:, len(self.given) - 1] = 3
        return logits


def test_each_step_is_given_the_picture_and_the_last_answer():
    network = Recorder(4)
    model = RecurrentLabeling(network, 4, steps=3)
    images, sizes = torch.randint(0, 256, (2, 3, 45, 70), dtype=torch.uint8), torch.tensor([[45, 70], [33, 50]])
    outputs = model(images, sizes)
    picture = F.pad(model.normalize(images, sizes), (0, 2, 0, 3))
    for step, given in enumerate(network.given):
        scaled = picture if step == 0 else F.interpolate(picture, scale_factor=0.5, mode="bilinear", antialias=True)
        picture = scaled
        assert given.shape == (2, 7, 48 // 2**step, 72 // 2**step)
        torch.testing.assert_close(given[:, :3], scaled)
        said = torch.zeros(4) if step == 0 else 3 * F.one_hot(torch.tensor(step - 1), 4).float()
        said = said if step == 0 else said.softmax(0)
        torch.testing.assert_close(given[:, 3:], said.view(1, 4, 1, 1).expand(2, 4, *given.shape[-2:]))
    labels = [logits.argmax(1) for logits in (*outputs.auxiliary, outputs.logits)]
    assert [label.unique().tolist() for label in labels] == [[0], [1], [2]]
    assert all(label.shape == (2, 45, 70) for label in labels)


def test_all_steps_are_learnt_alike():
    model = recurrent_labeling(4, steps=3, widths=(5, 6))
    images, sizes = torch.randint(0, 256, (1, 3, 40, 40), dtype=torch.uint8), torch.tensor([[40, 40]])
    outputs, labels = model(images, sizes), torch.randint(-1, 4, (1, 40, 40), dtype=torch.int16)
    losses = model.losses(outputs, LabelMaps(labels))
    each = [F.cross_entropy(x, labels.long(), ignore_index=-1) for x in (*outputs.auxiliary, outputs.logits)]
    torch.testing.assert_close(sum(losses.values()), sum(each))
    assert len(each) == 3


@pytest.mark.parametrize(("steps", "seen"), [(1, 20), (2, 58), (3, 134)])
def test_later_steps_see_farther(steps, seen):
    """At most so many pixels, and nearly all of them, as pooling and resizing pass something of all but the outermost."""
    model = recurrent_labeling(2, steps=steps, widths=(8, 8)).eval()
    picture = torch.rand(1, 3, 256, 256, requires_grad=True)
    cell = 128 // 2**steps
    model._answers(picture)[-1][0, :, cell, cell].sum().backward()
    rows = picture.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    extent = (rows.max() - rows.min() + 1).item()
    blur = 2 * (2 ** (steps - 1) - 1)  # the smoothing before the picture is halved adds this
    assert 0.8 * seen <= extent <= seen + blur


def test_answers_are_as_large_as_the_picture():
    """Every size from 33 to 257."""
    model = recurrent_labeling(5, steps=3, widths=(2, 2)).eval()
    with torch.inference_mode():
        for size in range(33, 258):
            shape = (size, 33 + size % 32)
            outputs = model(torch.zeros(1, 3, *shape, dtype=torch.uint8), torch.tensor([shape]))
            assert [x.shape for x in (outputs.logits, *outputs.auxiliary)] == [(1, 5, *shape)] * 3


@pytest.mark.parametrize("size", [(1, 1), (5, 40), (33, 34)], ids=str)
def test_answers_of_small_pictures(size):
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    logits = recurrent_labeling(5).eval()(images, torch.tensor([size] * 2)).logits
    assert logits.shape == (2, 5, *size)
    assert logits.isfinite().all()


def test_checkpoint(tmp_path):
    model = recurrent_labeling(3, steps=2, widths=(4, 5)).eval()
    model.categories = ["a", "b", "c"]
    save(model, tmp_path / "model.ckpt")
    again = load(tmp_path / "model.ckpt", device="cpu")
    assert (again.categories, again.steps) == (["a", "b", "c"], 2)
    images, sizes = torch.randint(0, 256, (1, 3, 40, 50), dtype=torch.uint8), torch.tensor([[40, 50]])
    assert torch.equal(again(images, sizes).logits, model(images, sizes).logits)
    other = recurrent_labeling(7, steps=4, widths=(4, 5), weights=tmp_path / "model.ckpt")  # more of both
    assert torch.equal(other.network[3].weight, model.network[3].weight)
    with pytest.raises(WeightsError, match="do not fit"):
        recurrent_labeling(3, widths=(4, 6), weights=tmp_path / "model.ckpt")


@pytest.mark.parametrize(
    ("options", "message"), [({"steps": 0}, "1 to 8 steps"), ({"steps": 9}, "got 9"), ({"widths": (4,)}, "two widths")]
)
def test_what_cannot_be_built(options, message):
    with pytest.raises(ValueError, match=message):
        recurrent_labeling(**options)


def test_it_learns_two_pictures():
    """Stripes across against stripes along; every weight has a part in it, and the last step is no worse than the first."""
    stripes = (torch.arange(48) // 3 % 2 * 200).to(torch.uint8).expand(48, 48)
    along = torch.where(torch.arange(48) < 24, stripes, stripes.T)
    images = torch.stack([along, along.flip(1)])[:, None].repeat(1, 3, 1, 1)
    labels = (torch.arange(48) < 24).to(torch.int16).expand(48, 48)
    labels = torch.stack([labels, labels.flip(1)])
    sizes = torch.tensor([[48, 48]] * 2)
    model = recurrent_labeling(2, steps=2, widths=(8, 12)).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        sum(model.losses(model(images, sizes), LabelMaps(labels)).values()).backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
    outputs = model.eval()(images, sizes)
    first, last = ((x.argmax(1) == labels).float().mean().item() for x in (outputs.auxiliary[0], outputs.logits))
    assert last > 0.9
    assert last > first - 0.03
