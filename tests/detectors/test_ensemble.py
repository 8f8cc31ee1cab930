"""Several models as one: averaged probabilities, fused boxes, averaged weights."""

import pytest
import torch
from torchvision.ops import box_iou

from sightline.backbone import WeightsError
from sightline.datasets.structures import Instances
from sightline.detectors import autoencoder, average_weights, classifier, ensemble, faster_rcnn, load, save
from sightline.detectors.ensemble import IOU, fuse
from sightline.detectors.model import Detector


def lenets(count, classes=6):
    return [classifier("lenet", classes).eval() for _ in range(count)]


def detector():
    small = {"norm": "group", "anchor_sizes": ((16,), (32,), (64,), (96,)), "proposals": 20, "head_width": 16}
    return faster_rcnn("resnet10_narrow_fpn", 3, detections=7, **small).eval()


def batch(side=32):
    return torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8), torch.tensor([[side, side], [side - 4, side]])


def test_classifiers_average_their_probabilities():
    models, (images, sizes) = lenets(3), batch()
    together = ensemble(models).eval()
    assert together.task == "classification"
    expected = sum(model(images, sizes).logits.softmax(-1) for model in models) / 3
    found = together.detect(images, sizes)
    torch.testing.assert_close(found.scores, expected.topk(5).values)
    assert torch.equal(found.labels, expected.topk(5).indices)
    assert found.boxes[1, 0].tolist() == [0, 0, 32, 28]


def test_three_verbs():
    models, (images, sizes) = lenets(2), batch()
    together = ensemble(models)
    truth = Instances(torch.zeros(2, 1, 4), torch.tensor([[1], [3]]))
    kinds = []
    for mode in (True, False):
        outputs = together.train(mode)(images, sizes)
        losses = together.losses(outputs, truth)
        each = [model.losses(model(images, sizes), truth)["loss_cls"] for model in models]
        torch.testing.assert_close(losses["loss_cls"], sum(each) / 2)
        losses["loss_cls"].backward()
        kinds.append((type(outputs), together.decode(outputs, sizes).boxes.shape))
    assert kinds[0] == kinds[1]
    assert all(p.grad.abs().sum() > 0 for p in together.parameters())


def test_detectors_pool_what_they_find():
    """A model and another: each image's detections of both, fused one cluster after another."""
    models, (images, sizes) = [detector(), detector()], batch(64)
    with torch.no_grad():
        each, together = [model.detect(images, sizes) for model in models], ensemble(models).detect(images, sizes)
    assert together.labels.shape == each[0].labels.shape
    for i in range(2):
        found = together[i]
        columns = [torch.cat([getattr(one, name)[i] for one in each]) for name in ("boxes", "labels", "scores")]
        members = torch.arange(2).repeat_interleave(each[0].labels.shape[1])
        expected = slow_fusion(*columns, members, 2)[: together.labels.shape[1]]
        torch.testing.assert_close(found.scores, torch.tensor([row[0] for row in expected]))
        assert found.labels.tolist() == [row[1] for row in expected]
        torch.testing.assert_close(found.boxes, torch.stack([row[2] for row in expected]))


def slow_fusion(boxes, labels, scores, members, models):
    """One image, by the definition: greedy heads in order of score, then clusters around them, of each model the best."""
    order = [i for i in scores.argsort(descending=True).tolist() if labels[i] >= 0]
    overlap, clusters = box_iou(boxes, boxes), []
    for i in order:
        for cluster in clusters:
            if labels[i] == labels[cluster[0]] and overlap[i, cluster[0]] > IOU:
                if members[i] not in members[cluster]:
                    cluster.append(i)
                break
        else:
            clusters.append([i])
    found = []
    for cluster in clusters:
        weights = scores[cluster]
        box = (weights[:, None] * boxes[cluster]).sum(0) / weights.sum()
        found.append((float(weights.sum()) / models, int(labels[cluster[0]]), box))
    return sorted(found, key=lambda row: -row[0])


def test_fusion_equals_a_slow_loop():
    count = 80
    corner = 40 * torch.rand(2, count, 2)
    boxes = torch.cat([corner, corner + 20 + 20 * torch.rand(2, count, 2)], dim=-1)
    labels, scores, members = torch.randint(-1, 2, (2, count)), torch.rand(2, count), torch.randint(0, 3, (2, count))
    fused = fuse(Instances(boxes, labels, scores), members, models=3, most=count)
    assert (fused.scores.diff(dim=1) <= 0).all()
    for i in range(2):
        expected, found = slow_fusion(boxes[i], labels[i], scores[i], members[i], 3), fused[i]
        assert 10 < len(expected) == len(found) < 0.7 * count
        torch.testing.assert_close(found.scores, torch.tensor([row[0] for row in expected]))
        assert found.labels.tolist() == [row[1] for row in expected]
        torch.testing.assert_close(found.boxes, torch.stack([row[2] for row in expected]))


def test_fusion_by_hand():
    """Two of three models find one object, the first twice, a third something else; landmarks move as boxes do."""
    boxes = torch.tensor([[[0.0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60], [0, 0, 0, 0], [0, 1, 10, 11]]])
    pooled = Instances(
        boxes,
        torch.tensor([[2, 2, 2, -1, 2]]),
        torch.tensor([[0.9, 0.3, 0.6, 0.0, 0.7]]),
        landmarks=torch.tensor([[[[5.0, 5]], [[6, 5]], [[55, 55]], [[torch.nan, torch.nan]], [[5, 6]]]]),
    )
    fused = fuse(pooled, torch.tensor([[0, 1, 2, 2, 0]]), models=3, most=3)
    assert fused.labels.tolist() == [[2, 2, -1]]
    torch.testing.assert_close(fused.scores, torch.tensor([[0.4, 0.2, 0.0]]))
    torch.testing.assert_close(fused.boxes[0, 0], torch.tensor([0.25, 0, 10.25, 10]))
    torch.testing.assert_close(fused.landmarks[0, :2, 0], torch.tensor([[5.25, 5], [55, 55]]))


def test_masks_are_averaged_where_they_lie():
    """Each in its own box of the picture: of boxes half a width apart, the cells between agree, the others are one's alone."""
    boxes = torch.tensor([[[0.0, 0, 16, 8], [2, 0, 18, 8], [0, 0, 0, 0], [40, 40, 44, 44]]])
    masks = torch.ones(1, 4, 16, 16)
    masks[0, 1, :8], masks[0, 2] = 0, torch.nan
    pooled = Instances(boxes, torch.tensor([[1, 1, -1, 1]]), torch.tensor([[0.6, 0.3, 0, 0.1]]), masks)
    fused = fuse(pooled, torch.tensor([[0, 1, 1, 0]]), models=2, most=4)
    assert fused.labels.tolist() == [[1, 1, -1, -1]]
    torch.testing.assert_close(fused.boxes[0, 0], torch.tensor([2 / 3, 0, 16 + 2 / 3, 8]))
    # The upper half is the first's alone, of two thirds of the weight; the lower is both's, but for what one box lacks.
    upper, lower = fused.masks[0, 0, :8], fused.masks[0, 0, 8:]
    torch.testing.assert_close(upper[:7, :15], torch.full((7, 15), 2 / 3))
    assert (upper[:, 15] == 0).all()
    torch.testing.assert_close(lower[1:, 2:15], torch.ones(7, 13))
    torch.testing.assert_close(lower[1:, 0], torch.full((7,), 2 / 3))
    torch.testing.assert_close(lower[1:, 15], torch.full((7,), 1 / 3))
    torch.testing.assert_close(fused.masks[0, 1], torch.ones(16, 16))
    assert not fused.masks.isnan().any()


def test_masks_of_several_sizes():
    """Models may have masks of other sides; the finest counts."""
    boxes, labels, scores = torch.tensor([[[0.0, 0, 8, 8]]]), torch.tensor([[0]]), torch.tensor([[0.5]])
    half = torch.tensor([[1.0, 0], [1, 0]])
    found = [
        Instances(boxes, labels, scores, half.repeat_interleave(k, 0).repeat_interleave(k, 1)[None, None])
        for k in (1, 4)
    ]
    models = [Given(one) for one in found]
    fused = ensemble(models).detect(*batch(8))
    assert fused.masks.shape == (1, 1, 8, 8)
    assert (fused.masks[0, 0, :, :4] >= 0.5).all()
    assert (fused.masks[0, 0, :, 4:] < 0.5).all()


class Given(Detector):
    """Finds what it is given."""

    task = "instance_segmentation"

    def __init__(self, found):
        super().__init__(mean=(0.5,) * 3, std=(0.5,) * 3, num_classes=3)
        self.found = found

    def forward(self, images, sizes):
        return self.found

    def decode(self, found, sizes):
        return found


def test_places_are_exact_in_half_precision():
    boxes = torch.tensor([[[1001.0, 1003, 1101, 1303]]])
    pooled = Instances(boxes, torch.tensor([[0]]), torch.tensor([[0.9]]), landmarks=boxes.reshape(1, 1, 2, 2))
    with torch.autocast("cpu", torch.bfloat16):
        fused = fuse(pooled, torch.tensor([[0]]), models=1, most=1)
    torch.testing.assert_close(fused.boxes, boxes)
    torch.testing.assert_close(fused.landmarks, pooled.landmarks)


def test_nothing_found():
    nothing = Instances(torch.zeros(2, 4, 4), torch.full((2, 4), -1), torch.zeros(2, 4))
    fused = fuse(nothing, torch.tensor([[0, 0, 1, 1]] * 2), models=2, most=2)
    assert (fused.labels == -1).all()
    assert fused.boxes.shape == (2, 2, 4)


def other_names():
    model = lenets(1)[0]
    model.categories = list("abcdef")
    return model


def other_size():
    model = lenets(1)[0]
    model.resize = (64, 64)
    return model


# name: the models, what the message says
MISTAKES = {
    "none": (list, "at least one"),
    "categories": (lambda: [*lenets(1), other_names()], "model 2 of the ensemble has categories"),
    "size": (lambda: [*lenets(1), other_size()], r"has resize \(64, 64\)"),
    "task": (lambda: [classifier("lenet", 3), detector()], "has task detection"),
    "autoencoders": (lambda: [autoencoder("lenet")] * 2, "find nothing"),
}


@pytest.mark.parametrize(("models", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_named(models, message):
    with pytest.raises(ValueError, match=message):
        ensemble(models())


# -- Averaged weights --


def saved(tmp_path, *models):
    paths = [tmp_path / f"{i}.ckpt" for i in range(len(models))]
    for model, path in zip(models, paths, strict=True):
        save(model, path)
    return paths


def test_weights_are_averaged(tmp_path):
    models = [classifier("resnet18", 3, trainable_stages=stages) for stages in (None, 1, 2)]
    for i, model in enumerate(models):
        model.backbone.bn1.num_batches_tracked.fill_(10 * i)
        model.backbone.bn1.running_var.fill_(float(i))
        model.categories = ["a", "b", "c"]
    mean = average_weights(saved(tmp_path, *models), device="cpu")
    states, found = [model.state_dict() for model in models], mean.state_dict()
    for key in ("backbone.conv1.weight", "backbone.bn1.running_var", "backbone.fc.bias"):
        expected = torch.stack([state[key].double() for state in states]).mean(0)
        torch.testing.assert_close(found[key], expected.float(), rtol=0, atol=0)
    assert found["backbone.bn1.num_batches_tracked"] == 20
    assert mean.categories == ["a", "b", "c"]
    assert not mean.training


def test_the_mean_of_one_checkpoint_is_itself(tmp_path):
    paths = saved(tmp_path, *lenets(1))
    images, sizes = batch()
    for paths_twice in (paths, paths * 2):
        mean = average_weights(paths_twice, device="cpu")
        assert torch.equal(mean.detect(images, sizes).scores, load(paths[0], device="cpu").detect(images, sizes).scores)


def test_what_cannot_be_averaged_is_named(tmp_path):
    first, second = saved(tmp_path, *lenets(1, 3), *lenets(1, 4))
    with pytest.raises(WeightsError, match=rf"{second} cannot be averaged with {first}: its argument num_classes is 4"):
        average_weights([first, second], device="cpu")
    with pytest.raises(ValueError, match="no checkpoints"):
        average_weights([])
