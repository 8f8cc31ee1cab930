"""YOLO: the paper's layers and shapes, three verbs, decoding against a loop, learning, compiling, files, any body."""

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import nms as suppress

from sightline.backbone.wrap import map_shapes
from sightline.datasets.data_module import DetectionData, Shapes
from sightline.datasets.structures import Instances
from sightline.detectors import load, save, yolov1
from sightline.detectors.yolov1 import Outputs
from sightline.detectors.yolov1_cells import split
from sightline.detectors.yolov1_loss import assign

CLASSES, SIDE, GRID = 3, 64, 4
LOSSES = {"loss_xy", "loss_wh", "loss_confidence", "loss_no_object", "loss_cls"}
VARIANTS = {
    "fully connected": {"backbone": "resnet10_narrow", "extra": (16,), "hidden": (32,)},
    "convolutions alone": {"backbone": "yolo_narrow", "extra": (16, 16), "hidden": ()},
    "nothing between": {"backbone": "yolo_narrow", "extra": (), "hidden": (8, 16), "boxes_per_cell": 3},
}


def tiny(variant="fully connected", num_classes=CLASSES, **options):
    return yolov1(num_classes=num_classes, size=SIDE, grid=GRID, **(VARIANTS[variant] | options))


@pytest.fixture(params=VARIANTS)
def variant(request):
    return request.param


def batch():
    """Noise in square frames; the second picture fills a part of its own."""
    images = torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    images[1, :, 40:], images[1, :, :, 50:] = 0, 0
    return images, torch.tensor([[SIDE, SIDE], [40, 50]])


def targets():
    boxes = torch.tensor(
        [[[4.0, 6, 40, 50], [30, 20, 60, 60], [0, 0, 64, 64]], [[10, 2, 49, 38], [0, 0, 9, 9], [0] * 4]]
    )
    boxes[1, 1:] = torch.nan
    crowd = torch.tensor([[False, False, True], [False, False, False]])
    return Instances(boxes, torch.tensor([[2, 0, 1], [1, -1, -1]]), crowd=crowd)


def total(losses):
    return torch.stack(list(losses.values())).sum()


def test_the_papers_network():
    """Figure 3 from its 21st convolution on: 7 x 7 x 1024 before the fully connected layers, 4096 wide, 7 x 7 x 30 after."""
    with torch.device("meta"):
        model = yolov1()
        features = model.backbone(torch.empty(2, 3, 448, 448))[-1]
    assert (features.shape, model.resize) == ((2, 1024, 14, 14), (448, 448, True))
    convolutions = [layer for layer in model.head.convolutions if isinstance(layer, nn.Conv2d)]
    assert [(c.kernel_size[0], c.out_channels, c.stride[0]) for c in convolutions] == [
        (3, 1024, 1), (3, 1024, 2), (3, 1024, 1), (3, 1024, 1),
    ]  # fmt: skip
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == 24
    assert model.head.convolutions(features).shape == (2, 1024, 7, 7)
    assert model.head(features).shape == (2, 7, 7, 30)
    kinds = [type(layer) for layer in model.head.hidden]
    assert kinds == [nn.Flatten, nn.Linear, nn.LeakyReLU, nn.Dropout]
    assert (model.head.hidden[1].out_features, model.head.hidden[-1].p) == (4096, 0.5)
    # 22,403,136 of the 20 convolutions; four of 3 x 3 x 1024 x 1024 and a bias; 50176 to 4096 to 1470.
    detection = 4 * (9 * 1024**2 + 1024) + (7 * 7 * 1024 + 1) * 4096 + 4097 * 1470
    assert sum(p.numel() for p in model.parameters()) == 22_403_136 + detection == 271_703_550


def test_fast_yolo():
    """As many numbers as the authors' file of weights has (172 MB of float32)."""
    with torch.device("meta"):
        model = yolov1("yolo9", extra=(), hidden=(256, 4096))
        assert model.head(model.backbone(torch.empty(1, 3, 448, 448))[-1]).shape == (1, 7, 7, 30)
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == 9
    assert 171.5 < 4 * sum(p.numel() for p in model.parameters()) / 2**20 < 172.5


# Of other bodies: cells of the last map at 448 pixels, layers that pool, strides of the four convolutions.
BODIES = {
    "vgg16": (28, [nn.MaxPool2d], [1, 2, 1, 1]),
    "resnet18": (14, [], [1, 2, 1, 1]),
    "mobilenet_v2": (14, [], [1, 2, 1, 1]),
    "yolo9_bn": (7, [], [1, 1, 1, 1]),
    "alexnet": (27, [nn.AdaptiveAvgPool2d], [1, 2, 1, 1]),
}


@pytest.mark.parametrize("name", BODIES)
def test_any_body_is_brought_to_the_grid(name):
    cells, pooling, strides = BODIES[name]
    with torch.device("meta"):
        model = yolov1(name, 5, extra=(64, 64, 64, 64), hidden=(128,))
        prediction = model.head(model.backbone(torch.empty(2, 3, 448, 448))[-1])
    assert map_shapes(model.backbone, 448)[-1][-1] == cells
    assert prediction.shape == (2, 7, 7, 15)
    layers = list(model.head.convolutions)
    assert [type(layer) for layer in layers if "Pool" in type(layer).__name__] == pooling
    assert [layer.stride[0] for layer in layers if isinstance(layer, nn.Conv2d)] == strides
    normed = any(isinstance(module, nn.BatchNorm2d) for module in model.backbone.modules())
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in layers) == normed
    assert model.head.hidden[1].in_features == 7 * 7 * 64


def test_three_verbs_and_a_gradient_for_every_parameter(variant):
    model = tiny(variant)
    images, sizes = batch()
    truth, seen = targets(), []
    for mode in (True, False):
        model.train(mode)
        outputs = model(images, sizes)
        losses, found = model.losses(outputs, truth), model.decode(outputs, sizes)
        assert set(losses) == LOSSES
        assert all(loss.ndim == 0 and loss.isfinite() and loss > 0 for loss in losses.values())
        check_answers(found, sizes)
        seen.append((type(outputs), outputs.prediction.shape, found.boxes.shape))
        model.zero_grad()
        total(losses).backward()
        assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    assert seen[0] == seen[1]


def check_answers(found, sizes):
    """Best first, inside their pictures, padding last."""
    assert (found.boxes.dtype, found.labels.dtype, found.scores.dtype) == (torch.float32, torch.int64, torch.float32)
    assert (found.scores.diff(dim=1) <= 0).all()
    assert ((found.scores >= 0) & (found.scores <= 1)).all()
    assert torch.equal(found.labels >= 0, found.scores > 0)
    assert (found.labels < CLASSES).all()
    assert (found.boxes >= 0).all()
    assert (found.boxes <= sizes.flip(1).repeat(1, 2)[:, None]).all()


def test_predictors_start_in_the_middle_of_their_cells_with_sizes_of_their_own(variant):
    model = tiny(variant)
    with torch.no_grad():
        model.head.prediction.weight.zero_()
        cells = split(model.eval()(*batch()).prediction, model.head.predictors)
    count = model.head.predictors
    assert (cells.places[..., :2] == 0.5).all()
    sizes = [(k + 1) / (count + 1) for k in range(count)]
    torch.testing.assert_close(cells.places[0, 1, 2, :, 2:], torch.tensor(sizes)[:, None].expand(count, 2))
    assert (cells.confidence == 0).all()
    assert (cells.classes == 0).all()


def slow_decode(model, prediction, sizes):
    """Every cell, predictor and category of one image one by one; then suppression category by category."""
    rows, predictors = [], model.head.predictors
    for i, j in np.ndindex(GRID, GRID):
        cell = prediction[i, j].tolist()
        for k in range(predictors):
            x, y, root_w, root_h, confidence = cell[5 * k : 5 * k + 5]
            x, y, w, h = (j + x) * SIDE / GRID, (i + y) * SIDE / GRID, root_w**2 * SIDE, root_h**2 * SIDE
            x0, x1 = (min(max(edge, 0), sizes[1]) for edge in (x - w / 2, x + w / 2))
            y0, y1 = (min(max(edge, 0), sizes[0]) for edge in (y - h / 2, y + h / 2))
            for label, probability in enumerate(cell[5 * predictors :]):
                score = max(confidence, 0) * max(probability, 0)
                if score > model.score_threshold and x1 > x0 and y1 > y0:
                    rows.append([x0, y0, x1, y1, score, label])
    rows = torch.tensor(rows).view(-1, 6)
    kept = []
    for label in range(CLASSES):
        mine = rows[rows[:, 5] == label]
        kept += mine[suppress(mine[:, :4], mine[:, 4], 0.5)].tolist()
    return torch.tensor(sorted(kept, key=lambda row: -row[4])[: model.detections])


def test_decoding_equals_a_loop(variant):
    model = tiny(variant, detections=15).eval()
    images, sizes = batch()
    shape = model(images, sizes).prediction.shape
    prediction = torch.rand(shape) * 1.4 - 0.3  # some scores are above one: ranked by their size, and told as one
    found = model.decode(Outputs(prediction), sizes)
    check_answers(found, sizes)
    for i in range(2):
        expected, one = slow_decode(model, prediction[i], sizes[i].tolist()), found[i]
        assert len(expected) == len(one) == 15
        torch.testing.assert_close(one.boxes, expected[:, :4], rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(one.scores, expected[:, 4].clamp(max=1))
        assert one.labels.tolist() == expected[:, 5].tolist()


def test_the_truth_written_into_the_output_comes_back():
    model, sizes = tiny(), torch.tensor([[SIDE, SIDE]])
    truth = Instances(
        torch.tensor([[[2.0, 3, 20, 25], [30, 5, 63, 14], [0, 40, 64, 60], [8, 6, 9, 62]]]),
        torch.tensor([[2, 0, 1, 1]]),
    )
    wanted = assign(truth, GRID, SIDE)
    prediction = torch.zeros(1, GRID, GRID, 10 + CLASSES)
    prediction[..., 5:9], prediction[..., 9] = wanted.places, wanted.present.float()
    prediction[..., 10:] = nn.functional.one_hot(wanted.labels, CLASSES)
    assert total(model.losses(Outputs(prediction), truth)) < 1e-9
    found = model.decode(Outputs(prediction), sizes)[0]
    assert found.scores.tolist() == [1] * 4
    for box, label in zip(truth.boxes[0], truth.labels[0], strict=True):
        (match,) = ((found.boxes - box).abs().amax(dim=1) < 1e-4).nonzero().flatten().tolist()
        assert found.labels[match] == label


def test_negative_numbers_and_none_are_nothing_found():
    """Two negatives would make a positive product; numbers that are none must not come out either."""
    model, sizes = tiny(), torch.tensor([[SIDE, SIDE]])
    for value in (-1.0, torch.nan):
        found = model.decode(Outputs(torch.full((1, GRID, GRID, 10 + CLASSES), value)), sizes)
        assert (found.labels == -1).all()
        assert (found.scores == 0).all()
        assert (found.boxes == 0).all()


@torch.inference_mode()
def test_a_batch_gives_what_its_images_give_alone(variant):
    model = tiny(variant).double().eval()
    images, sizes = batch()
    together = model(images, sizes).prediction
    for i in range(2):
        alone = model(images[i : i + 1], sizes[i : i + 1]).prediction
        torch.testing.assert_close(together[i : i + 1], alone)


@torch.inference_mode()
def test_what_lies_in_the_padding_is_not_seen():
    model = tiny().eval()
    images, sizes = batch()
    other = images.clone()
    other[1, :, 40:], other[1, :, :, 50:] = 255, 77
    assert torch.equal(model(images, sizes).prediction, model(other, sizes).prediction)


def test_a_frame_of_another_size_is_refused_with_the_fix():
    with pytest.raises(
        ValueError, match=r"takes pictures of 64x64 pixels, got a frame of 64x96.*--data.exact true.*size"
    ):
        tiny()(torch.zeros(1, 3, 64, 96), torch.tensor([[64, 96]]))


MISTAKES = {
    "a pyramid": ({"backbone": "resnet10_narrow_fpn"}, "instead of 'resnet10_narrow_fpn' take 'resnet10_narrow'"),
    "no grid": ({"grid": 0}, "grid must be at least 1, got 0"),
    "no predictors": ({"boxes_per_cell": 0}, "boxes_per_cell must be at least 1, got 0"),
    "no pixels": ({"size": 0}, "size must be at least 1, got 0"),
    "pictures too small": ({"backbone": "vgg16", "size": 8}, "at least 16x16 pixels, got 8x8"),
    "a map too coarse": (
        {"backbone": "resnet10_narrow", "hidden": (), "size": 128, "grid": 8, "extra": ()},
        r"resnet10_narrow makes of 128 pixels with 4 cells a side: set grid to 4, size to 256, or hidden to \[4096\]",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_named(case):
    options, message = MISTAKES[case]
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        yolov1(**options)


@pytest.mark.parametrize("mode", ["compiled", "exported"])
def test_one_graph_from_pixels_to_detections(variant, mode):
    model = tiny(variant, norm="frozen").eval()
    images, sizes = batch()
    detect = Detect(model).eval()
    with torch.no_grad():
        if mode == "compiled":
            fast = torch.compile(detect, fullgraph=True, backend="eager")
        else:
            fast = torch.export.export(detect, (images, sizes)).module()
        ours, expected = fast(images, sizes), detect(images, sizes)
    assert (expected[1] >= 0).any()
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other)


class Detect(nn.Module):
    """The graph that is exported, its results as plain tensors; in half of the cells something is found."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        model.head.prediction.bias.data.add_(0.5)

    def forward(self, images, sizes):
        found = self.model.detect(images, sizes)
        return found.boxes, found.labels, found.scores


def test_half_precision(variant):
    """Under autocast the outputs and losses are float32, and every gradient is a number."""
    model = tiny(variant).train()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(*batch())
        losses = model.losses(outputs, targets())
    assert outputs.prediction.dtype == torch.float32
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    total(losses).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.slow
def test_twenty_pictures_learnt_by_heart():
    """Loss near zero, and every object found again that was to be learnt."""
    data = DetectionData(batch_size=20, num_workers=0, exact=True, augment=None, shapes=Shapes(20, 1, 64), min_size=64,
                         max_size=64)  # fmt: skip
    batch = next(iter(data.train_dataloader()))
    model = yolov1("resnet10_narrow", 6, size=64, grid=8, extra=(64,), hidden=(256,), dropout=0.0, norm="group")
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=120)
    losses = []
    for _ in range(120):
        loss = total(model.losses(model(*batch.inputs), batch.targets))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
    assert losses[0] > 3
    assert losses[-1] < 0.01
    found, wanted = model.eval().detect(*batch.inputs), assign(batch.targets, 8, 64)
    for i in range(20):
        good = found[i][found[i].scores > 0.5]
        learnt = wanted.boxes[i][wanted.present[i]]
        assert len(good) == len(learnt)
        assert ((learnt[:, None] - good.boxes).abs().amax(dim=2) < 3).any(dim=1).all()


def test_saved_and_loaded(variant, tmp_path):
    model = tiny(variant).eval()
    model.categories = ["a", "b", "c"]
    save(model, tmp_path / "yolo.ckpt")
    again = load(tmp_path / "yolo.ckpt", device="cpu")
    assert (again.categories, again.resize, again.side) == (["a", "b", "c"], (SIDE, SIDE, True), SIDE)
    pictures = batch()
    with torch.no_grad():
        assert torch.equal(again(*pictures).prediction, model(*pictures).prediction)


def test_weights_of_another_number_of_classes(tmp_path):
    model = tiny()
    save(model, tmp_path / "yolo.ckpt")
    other = yolov1(
        num_classes=7, size=SIDE, grid=GRID, weights=str(tmp_path / "yolo.ckpt"), **VARIANTS["fully connected"]
    )
    assert torch.equal(other.head.hidden[1].weight, model.head.hidden[1].weight)
    assert other.head.prediction.out_features == GRID**2 * 17


def test_predictions_are_in_the_pictures_own_pixels():
    """A picture of 100 x 200 is squeezed to 64 x 64; one object written into the output comes back in its own pixels."""
    model = tiny().eval()
    truth = torch.tensor([[20.0, 10, 120, 80]])  # in the picture
    squeezed = Instances((truth * torch.tensor([64 / 200, 64 / 100] * 2))[None], torch.tensor([[1]]))
    wanted = assign(squeezed, GRID, SIDE)
    bias = torch.zeros(GRID, GRID, 10 + CLASSES)
    bias[..., :4], bias[..., 4] = wanted.places[0], 0.9 * wanted.present[0]
    bias[..., 10:] = nn.functional.one_hot(wanted.labels[0], CLASSES)
    with torch.no_grad():
        model.head.prediction.weight.zero_()
        model.head.prediction.bias.copy_(bias.flatten())
    (found,) = model.predict(np.zeros((100, 200, 3), np.uint8))
    assert found.labels.tolist() == [1]
    torch.testing.assert_close(found.boxes, truth, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found.scores, torch.tensor([0.9]))
