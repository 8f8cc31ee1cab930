"""Hypercolumns: the sum of upsampled classifiers against explicit hypercolumns and slow loops, and learning."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sightline.datasets.batching import collate
from sightline.datasets.detection import DetectionDataset
from sightline.datasets.shapes import shapes_table
from sightline.datasets.structures import Instances
from sightline.segmentation import INSTANCE_SEGMENTERS, hypercolumn, load, save
from sightline.segmentation.hypercolumn import CERTAIN, ClassifierGrid, interpolation
from sightline.segmentation.region_masks import overlap

CLASSES, M = 3, 14
NAMES = {"loss_objectness", "loss_rpn_box", "loss_cls", "loss_box", "loss_mask"}
SMALL = {
    "num_classes": CLASSES,
    "proposals": 16,
    "detections": 10,
    "samples": 16,
    "head_width": 32,
    "size": M,
    "grid": 3,
}
MODELS = {
    "all maps": lambda: hypercolumn("resnet10_narrow", norm="batch", **SMALL),
    "a pyramid": lambda: hypercolumn(
        "resnet10_narrow_fpn", norm="batch", anchor_sizes=((16,), (32,), (64,), (128,)), **SMALL
    ),
    "a pyramid with an extra level": lambda: hypercolumn("mobilenet_v2_lite_fpn", norm="batch", **SMALL),
    "VGG-16": lambda: hypercolumn("vgg16", **SMALL),
    "AlexNet": lambda: hypercolumn("alexnet", **SMALL),
}


def batch():
    sizes = torch.tensor([[64, 96], [50, 70]])
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    images[1, :, 50:], images[1, :, :, 70:] = 0, 0
    return images, sizes


def targets():
    """Two objects in the first image, one in the second; discs of 20 x 20 cells."""
    at = torch.arange(20) - 9.5
    disc = (at.square() + at[:, None].square() <= 100).float().expand(2, 20, 20)
    objects = [
        Instances(torch.tensor([[4.0, 6.0, 40.0, 50.0], [30.0, 20.0, 90.0, 60.0]]), torch.tensor([2, 0]), masks=disc),
        Instances(torch.tensor([[10.0, 2.0, 60.0, 45.0]]), torch.tensor([1]), masks=disc[:1]),
    ]
    return Instances.collate(objects)


def total(losses):
    return torch.stack(list(losses.values())).sum()


@pytest.mark.parametrize("name", ["all maps", "a pyramid", "a pyramid with an extra level", "VGG-16"])
def test_three_verbs_and_a_gradient_for_every_parameter(name):
    model, (images, sizes), truth = MODELS[name](), batch(), targets()
    for mode in (True, False):
        model.train(mode).zero_grad()
        outputs = model(images, sizes)
        losses = model.losses(outputs, truth)
        assert set(losses) == NAMES
        assert all(loss.ndim == 0 and loss.isfinite() and loss >= 0 for loss in losses.values())
        total(losses).backward()
        assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
        unlearnt = [name for name, p in model.named_parameters() if not p.grad.abs().sum() > 0]
        assert [name for name in unlearnt if "mask_predictor" in name] == []
        found = model.decode(outputs, sizes)
        assert found.boxes.shape == (2, 10, 4)
        assert found.masks.shape == (2, 10, M, M)
        present = found.labels >= 0
        assert present.any()
        assert ((found.masks[present] > 0) & (found.masks[present] < 1)).all()
        assert (found.masks[~present] == 0).all()


@torch.inference_mode()
def test_a_batch_gives_what_its_images_give_alone():
    model = MODELS["all maps"]().double().eval()
    images, sizes = batch()
    found = model.detect(images, sizes)
    for i in range(2):
        one = slice(i, i + 1)
        own = model.detect(images[one], sizes[one])
        for name in ("boxes", "scores", "masks"):
            torch.testing.assert_close(getattr(found, name)[one], getattr(own, name))


# name: (strides of the hypercolumn's maps, of those that propose, sides on which they are read)
LAYERS = {
    "all maps": ((4, 8, 16, 32), 1, (7, 7, 7, 7)),
    "a pyramid": ((4, 8, 16, 32), 4, (7, 7, 7, 7)),
    "a pyramid with an extra level": ((4, 8, 16, 32), 5, (7, 7, 7, 7)),
    "VGG-16": ((4, 8, 16), 1, (7, 7, 7)),
    "AlexNet": ((8, 16, 16), 1, (7, 7, 7)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_which_maps_are_used(name):
    model, (strides, levels, sides) = MODELS[name](), LAYERS[name]
    readers = model.roi_heads.mask_pool
    assert tuple(stride for read in readers for stride in read.strides) == strides
    assert model.rpn.anchors.num_levels == levels
    assert tuple(read.output_size for read in readers) == sides
    weights = model.roi_heads.mask_predictor.weights
    widths = (*model.backbone.channels[: len(strides)], SMALL["head_width"])
    assert tuple(weight.shape for weight in weights) == tuple((CLASSES, 9, width) for width in widths)


def test_finer_masks_read_layers_more_finely():
    model = hypercolumn("vgg16", **(SMALL | {"size": 50}))
    assert [read.output_size for read in model.roi_heads.mask_pool] == [25, 12, 7]
    assert model.roi_heads.mask_predictor.size == 50


def triangle(distance):
    return max(0.0, 1.0 - abs(distance))


@pytest.mark.parametrize(("grid", "size"), [(1, 5), (2, 6), (3, 14), (5, 28), (5, 50)])
def test_shares_are_bilinear_between_the_centres_of_the_grid(grid, size):
    shares = interpolation(grid, size)
    torch.testing.assert_close(shares.sum(0), torch.ones(size, size))
    for i in range(size):
        y = min(max((i + 0.5) * grid / size - 0.5, 0), grid - 1)  # beyond the outermost centres they alone count
        for j in range(0, size, 3):
            x = min(max((j + 0.5) * grid / size - 0.5, 0), grid - 1)
            wanted = [triangle(y - row) * triangle(x - column) for row in range(grid) for column in range(grid)]
            torch.testing.assert_close(shares[:, i, j], torch.tensor(wanted))


def test_answers_are_those_of_explicit_hypercolumns():
    """Layers upsampled and concatenated; at each cell every classifier of the region's category, one after another, mixed by
    its distance."""
    grid, size, labels = 3, 8, torch.tensor([2, 0])
    layers = [torch.randn(2, 4, 4, 4), torch.randn(2, 3, 2, 2), torch.randn(2, 5, 1, 1)]
    layers = [layer.double() for layer in layers]
    classifiers = ClassifierGrid((4, 3, 5), CLASSES, size=size, grid=grid).double()
    for parameter in classifiers.parameters():
        nn.init.normal_(parameter)
    found = classifiers(layers, labels)
    columns = torch.cat([F.interpolate(layer, size=(size, size), mode="bilinear") for layer in layers], dim=1)
    weights, shares = torch.cat(list(classifiers.weights), dim=-1), classifiers.shares
    for k, label in enumerate(labels):
        for i in range(size):
            for j in range(size):
                answer = 0.0
                for place in range(grid**2):
                    score = weights[label, place] @ columns[k, :, i, j] + classifiers.bias[label, place]
                    answer = answer + shares[place, i, j] * score.sigmoid()
                torch.testing.assert_close(found[k, i, j].sigmoid(), answer)


def test_a_grid_of_one_is_plain_logistic_regression():
    classifiers = ClassifierGrid((4,), CLASSES, size=6, grid=1).double()
    layer = torch.randn(3, 4, 6, 6).double()
    labels = torch.tensor([0, 2, 1])
    wanted = torch.einsum("rc,rcij->rij", classifiers.weights[0][labels][:, 0], layer)
    torch.testing.assert_close(classifiers([layer], labels), wanted, atol=1e-6, rtol=1e-4)  # shares are float32's


def test_certain_answers_stay_finite():
    classifiers = ClassifierGrid((1,), 1, size=4, grid=2)
    nn.init.constant_(classifiers.bias, 1e4)
    logits = classifiers([torch.zeros(1, 1, 2, 2)], torch.tensor([0]))
    assert logits.isfinite().all()
    torch.testing.assert_close(logits.sigmoid().min().item(), 1 - CERTAIN, atol=1e-6, rtol=0)
    F.binary_cross_entropy_with_logits(logits, torch.zeros(1, 4, 4)).backward()
    assert classifiers.bias.grad.isfinite().all()


def test_a_location_may_have_its_own_classifier():
    """On features that are the same everywhere a grid tells left from right, and a single classifier cannot."""
    layer, wanted = torch.ones(1, 1, 1, 1), (torch.arange(8) < 4).float().expand(1, 8, 8)
    losses = {}
    for grid in (1, 2):
        classifiers = ClassifierGrid((1,), 1, size=8, grid=grid)
        optimizer = torch.optim.Adam(classifiers.parameters(), lr=0.3)
        for _ in range(40):
            loss = F.binary_cross_entropy_with_logits(classifiers([layer], torch.tensor([0])), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[grid] = loss.item()
    assert losses[1] > 0.69
    assert losses[2] < 0.35


def test_targets_without_masks_are_refused():
    model, truth = MODELS["all maps"](), targets()
    truth.masks = None
    with pytest.raises(ValueError, match="the targets have none"):
        model.losses(model(*batch()), truth)


def test_images_without_objects():
    model = MODELS["all maps"]()
    empty = Instances(
        torch.full((2, 3, 4), torch.nan), torch.full((2, 3), -1), masks=torch.full((2, 3, 8, 8), torch.nan)
    )
    losses = model.losses(model(*batch()), empty)
    assert losses["loss_mask"] == 0
    total(losses).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_a_checkpoint_gives_the_same(tmp_path):
    model = MODELS["all maps"]().eval()
    save(model, tmp_path / "hypercolumn.ckpt")
    again = load(tmp_path / "hypercolumn.ckpt", device="cpu")
    with torch.inference_mode():
        one, other = (each.detect(*batch_of_seed()) for each in (model, again))
    assert torch.equal(one.masks, other.masks)
    assert INSTANCE_SEGMENTERS["hypercolumn"] is hypercolumn


def batch_of_seed():
    torch.manual_seed(1)
    return batch()


@pytest.mark.slow
def test_learns_a_picture():
    """From nothing to the masks of all objects of a picture."""
    table = shapes_table("train", 2, 96, masks=True)
    data = collate([DetectionDataset(table, resize=(96, 96, True), masks=28)[1]], (96, 96))
    model = hypercolumn(
        "resnet10_narrow_fpn", len(table.categories), norm="group", anchor_sizes=((16,), (32,), (64,), (128,)),
        proposals=20, samples=24, head_width=64, size=28, grid=3,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(60):
        loss = total(model.losses(model(*data.inputs), data.targets))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found, truth = model.eval().detect(*data.inputs)[0], data.targets[0]
    for mask, box, label in zip(truth.masks, truth.boxes, truth.labels, strict=True):
        own = found[(found.labels == label) & (found.scores > 0.5)]
        assert overlap((own.masks >= 0.5).float(), own.boxes, mask[None], box[None]).max() > 0.55
