"""What holds for every classifier: three verbs, gradients, labels of whole pictures, learning."""

import copy

import pytest
import torch
import torch.nn.functional as F

from sightline.backbone import build_classifier, freeze_stages
from sightline.datasets import shapes
from sightline.datasets.structures import Instances
from sightline.detectors import Classifier, classifier, load, save
from sightline.detectors.classification import fill_frame, first_labels, whole_pictures
from sightline.detectors.inference import find

CLASSES = 7
# name: side of the frame
NETWORKS = {"lenet": 32, "alexnet": 64, "squeezenet1_1": 64, "googlenet": 64, "resnet18": 32, "mobilenet_v2": 64}


def batch(side=32, sizes=None, count=2):
    """Noise in square frames, zero outside each image's size."""
    sizes = torch.tensor(sizes or [[side, side]] * count)
    images = torch.randint(0, 256, (len(sizes), 3, side, side), dtype=torch.uint8)
    for image, (height, width) in zip(images, sizes.tolist(), strict=True):
        image[:, height:], image[:, :, width:] = 0, 0
    return images, sizes


def targets(*labels, padding=0):
    """One object of each label a picture, with boxes that do not matter."""
    rows = torch.tensor([[label] + [-1] * padding for label in labels])
    return Instances(torch.full((*rows.shape, 4), torch.nan), rows)


def total(losses):
    return torch.stack(list(losses.values())).sum()


@pytest.mark.parametrize("network", NETWORKS)
def test_three_verbs_and_a_gradient_for_every_parameter(network):
    model = classifier(network, CLASSES)
    images, sizes = batch(NETWORKS[network])
    truth, seen = targets(3, 5), []
    before = images.clone()
    for mode in (True, False):
        model.train(mode)
        outputs = model(images, sizes)
        losses, found = model.losses(outputs, truth), model.decode(outputs, sizes)
        assert set(losses) == ({"loss_cls", "loss_aux"} if network == "googlenet" else {"loss_cls"})
        assert all(loss.ndim == 0 and loss.isfinite() and loss > 0 for loss in losses.values())
        seen.append((type(outputs), outputs.logits.shape, len(outputs.auxiliary), found.boxes.shape))
        check_answers(found, sizes)
        model.zero_grad()
        total(losses).backward()
        without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert without == []
    assert seen[0] == seen[1]
    assert torch.equal(images, before)


def check_answers(found, sizes):
    """The five best categories, best first, each box the whole picture."""
    assert found.boxes.shape == (2, 5, 4)
    assert (found.boxes.dtype, found.labels.dtype, found.scores.dtype) == (torch.float32, torch.int64, torch.float32)
    assert (found.scores.diff(dim=1) <= 0).all()
    assert (found.labels >= 0).all()
    assert all(len(set(row)) == 5 for row in found.labels.tolist())
    for boxes, (height, width) in zip(found.boxes, sizes.tolist(), strict=True):
        assert boxes.tolist() == [[0, 0, width, height]] * 5


def test_scores_are_the_networks_own():
    """Nothing lies between a picture that fills its frame and the network but normalisation."""
    model = classifier("resnet18", CLASSES).eval()
    images, sizes = batch()
    with torch.no_grad():
        expected = model.backbone((images / 255 - model.normalize.mean) / model.normalize.std).softmax(-1)
        found = model.detect(images, sizes)
    torch.testing.assert_close(found.scores, expected.topk(5).values)
    assert torch.equal(found.labels, expected.topk(5).indices)


def test_fewer_classes_than_answers():
    model = classifier("lenet", 2).eval()
    found = model.detect(*batch())
    assert found.labels.shape == (2, 2)
    torch.testing.assert_close(found.scores.sum(1), torch.ones(2))


def test_losses_are_cross_entropy():
    model = classifier("lenet", CLASSES, label_smoothing=0.1)
    outputs = model(*batch())
    expected = F.cross_entropy(outputs.logits, torch.tensor([4, 0]), label_smoothing=0.1)
    torch.testing.assert_close(model.losses(outputs, targets(4, 0))["loss_cls"], expected)


def test_auxiliary_logits_count_for_less():
    model = classifier("googlenet", CLASSES).eval()
    outputs = model(*batch(64))
    labels = torch.tensor([4, 0])
    expected = 0.3 * sum(F.cross_entropy(logits, labels) for logits in outputs.auxiliary)
    assert len(outputs.auxiliary) == 2
    torch.testing.assert_close(model.losses(outputs, targets(4, 0))["loss_aux"], expected)


def test_pictures_without_objects_teach_nothing():
    model = classifier("lenet", CLASSES)
    images, sizes = batch(count=3)
    some = total(model.losses(model(images, sizes), targets(4, -1, 0, padding=2)))
    torch.testing.assert_close(some, total(model.losses(model(images[[0, 2]], sizes[:2]), targets(4, 0))))
    none = total(model.losses(model(images, sizes), targets(-1, -1, -1)))
    assert none == 0
    none.backward()
    assert all((p.grad == 0).all() for p in model.parameters())


def test_the_first_object_gives_the_label():
    rows = torch.tensor([[3, 5, -1], [-1, 2, 4], [6, 1, -1], [-1, -1, -1]])
    crowd = torch.tensor([[0, 0, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]], dtype=torch.bool)
    instances = Instances(torch.zeros(4, 3, 4), rows, crowd=crowd)
    assert first_labels(instances).tolist() == [3, 2, 1, -1]


def test_pictures_fill_their_frame():
    """Against torch's own resizing; where nothing is to be done, nothing is, to the last bit."""
    images = torch.rand(3, 3, 24, 40)
    sizes = torch.tensor([[24, 40], [13, 40], [24, 29]])
    filled = fill_frame(images, sizes)
    assert torch.equal(filled[0], images[0])
    for image, result, (height, width) in zip(images, filled, sizes.tolist(), strict=True):
        expected = F.interpolate(image[None, :, :height, :width], (24, 40), mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(result, expected)
    assert fill_frame(images[:1], torch.tensor([[1, 1]])).std(dim=(2, 3)).max() < 1e-6


def test_what_lies_in_the_padding_is_not_seen():
    model = classifier("resnet18", CLASSES).eval()
    images, sizes = batch(sizes=[[32, 32], [20, 27]])
    other = images.clone()
    other[1, :, 20:], other[1, :, :, 27:] = 255, 77
    with torch.no_grad():
        assert torch.equal(model(images, sizes).logits, model(other, sizes).logits)
        alone = model(images[1:], sizes[1:]).logits
    torch.testing.assert_close(model(images, sizes).logits[1:], alone, rtol=1e-4, atol=1e-5)


def test_outputs_that_are_no_numbers_are_no_answers():
    sizes = torch.tensor([[8, 9], [8, 9]])
    found = whole_pictures(torch.tensor([[0.2, 0.8], [torch.nan, torch.nan]]), sizes)
    assert found.labels.tolist() == [[1, 0], [-1, -1]]
    assert (found.scores[1] == 0).all()
    assert (found.boxes[1] == 0).all()


def test_autocast_to_bfloat16():
    model = classifier("resnet18", CLASSES)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(*batch())
        losses, found = model.losses(outputs, targets(1, 2)), model.decode(outputs, batch()[1])
    total(losses).backward()
    assert losses["loss_cls"].dtype == found.scores.dtype == torch.float32


def test_learns_a_few_pictures():
    pictures = [shapes.draw(seed=0, index=i, size=32) for i in range(8)]
    images = torch.stack([torch.from_numpy(picture.image).permute(2, 0, 1) for picture in pictures])
    sizes, labels = torch.tensor([[32, 32]] * 8), [int(picture.labels[0]) for picture in pictures]
    model = classifier("lenet", len(shapes.CATEGORIES))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = total(model.losses(model(images, sizes), targets(*labels)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = model.eval().detect(images, sizes)
    assert found.labels[:, 0].tolist() == labels
    assert found.scores[:, 0].min() > 0.9


@pytest.mark.parametrize("network", ["lenet", "googlenet"])
def test_to_a_file_and_back(network, tmp_path):
    model = classifier(network, 3, label_smoothing=0.1, init="he")
    model.categories, model.resize = ["cat", "dog", "mouse"], (64, 64, True)
    save(model, tmp_path / "m.ckpt")
    again = load(tmp_path / "m.ckpt", device="cpu")
    assert isinstance(again, Classifier)
    assert (again.categories, again.resize, again.label_smoothing) == (model.categories, (64, 64, True), 0.1)
    images, sizes = batch(64)
    assert torch.equal(again.detect(images, sizes).scores, model.eval().detect(images, sizes).scores)


def test_weights_of_another_number_of_classes(tmp_path):
    """All but the last layer comes along, from a checkpoint of training and from a plain state dict."""
    model = classifier("resnet18", 3)
    save(model, tmp_path / "ours.ckpt")
    torch.save(model.backbone.state_dict(), tmp_path / "plain.pth")
    for name in ("ours.ckpt", "plain.pth"):
        other = classifier("resnet18", 5, weights=str(tmp_path / name))
        assert torch.equal(other.backbone.layer4[1].conv2.weight, model.backbone.layer4[1].conv2.weight)
        assert other.backbone.fc.out_features == 5
        assert str(tmp_path) not in str(other.description())


def test_arguments_reach_the_network():
    model = classifier("mobilenet_v2", 2, dropout=0.3)
    assert {layer.p for layer in model.modules() if isinstance(layer, torch.nn.Dropout)} == {0.3}
    frozen = classifier("resnet18", 2, norm="frozen", trainable_stages=0)
    learning = {name for name, p in frozen.named_parameters() if p.requires_grad}
    assert learning == {"backbone.fc.weight", "backbone.fc.bias"}
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(classifier("lenet", 2, init="he").backbone.classifier[0].weight)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    zero = classifier("lenet", 2, init="zero")
    assert zero.backbone.classifier[0].weight.abs().sum() == 0


def test_a_frozen_body_is_held_still():
    """By the norm's statistics: at once, after `train`, and no longer once it is thawed."""
    model = classifier("resnet18", 2, norm="batch", trainable_stages=0)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    images, sizes = batch(64)
    for mode in (model, model.eval().train()):
        mode(images, sizes)
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    freeze_stages(model.backbone, 1)
    model(images, sizes)
    changed = {name.split(".")[1] for name, value in model.state_dict().items() if not torch.equal(value, state[name])}
    assert changed == {"layer4"}


# name: arguments, what the message says
MISTAKES = {
    "network": ({"network": "resnet81"}, "did you mean 'resnet18'"),
    "init": ({"network": "lenet", "init": "hee"}, "did you mean 'he'"),
    "init and weights": ({"init": "he", "weights": "x.pth"}, "give one of the two"),
    "no dropout": ({"dropout": 0.5}, "resnet18 has no dropout layers"),
    "dropout": ({"network": "mobilenet_v2", "dropout": 1.5}, "dropout must be in"),
    "label smoothing": ({"network": "lenet", "label_smoothing": 1.0}, "label_smoothing must be in"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        classifier(**{"num_classes": 2} | arguments)


def test_prediction_always_has_the_best_answer():
    """However unsure; further ones only from the score on."""
    model = Classifier(build_classifier("lenet", 3), 3)
    model.resize = (32, 32, True)
    last = model.backbone.classifier[-1]
    torch.nn.init.zeros_(last.weight)
    image = torch.randint(0, 256, (3, 50, 80), dtype=torch.uint8)
    with torch.no_grad():
        last.bias.copy_(torch.tensor([0.3, 0.45, 0.25]).log())
    found = find(model, image)
    assert found.labels.tolist() == [1]
    assert found.boxes.tolist() == [[0, 0, 80, 50]]
    assert found.scores.tolist() == pytest.approx([0.45])
    assert find(model, image, score=0.28).labels.tolist() == [1, 0]


def test_copies_are_independent():
    """As an average of weights is kept beside the model in training."""
    model = classifier("lenet", 3)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        next(twin.parameters()).add_(1)
    assert not torch.equal(next(twin.parameters()), next(model.parameters()))
