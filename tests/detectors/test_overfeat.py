"""OverFeat: dense equals sliding, offset pooling, which window learns what, three verbs, learning."""

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import box_iou

from sightline.backbone import WeightsError
from sightline.backbone.chain import Chain, Stage
from sightline.datasets import shapes
from sightline.datasets.structures import Instances
from sightline.detectors import load, overfeat, save
from sightline.detectors.overfeat import NETWORKS, OverFeat, Windows, decode, encode

CLASSES = 3
SCALES = (0.75, 1.0, 1.3)
# name: window and stride in pixels, sides of each layer's output at the window's size, pooling included but for the last
GEOMETRY = {
    "fast": (231, 16, [28, 12, 10, 8, 6]),
    "accurate": (245, 12, [40, 17, 15, 13, 11, 9]),
    "small": (80, 8, [19, 8, 6, 4]),
}
MODELS = {
    "one box for all classes": lambda: small(),
    "a box for each class": lambda: small(class_specific=True),
}


def small(num_classes=CLASSES, **arguments):
    return overfeat(num_classes, network="small", **{"scales": SCALES} | arguments)


def thin(name, monkeypatch, weights=None):
    """That network with a sixteenth of its channels."""
    plan = NETWORKS[name]
    layers = tuple(layer._replace(channels=layer.channels // 16) for layer in plan.layers)
    plan = plan._replace(layers=layers, classifier=(32, 24), regressor=(24, 16))
    monkeypatch.setitem(NETWORKS, "thin", plan)
    return overfeat(CLASSES, network="thin", weights=weights, scales=(1.0,))


def randomised(model):
    """Every tensor other than a fresh model's, statistics included."""
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not name.startswith("normalize"):
            value.add_(0.02 * torch.rand_like(value) if "running" in name else 0.02 * torch.randn_like(value))
    return model


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


def batch(frame=(96, 128), sizes=((96, 128), (96, 128))):
    """Noise in frames of (height, width), zero outside each image's size."""
    sizes = torch.tensor(sizes)
    images = torch.randint(0, 256, (len(sizes), 3, *frame), dtype=torch.uint8)
    for image, (height, width) in zip(images, sizes.tolist(), strict=True):
        image[:, height:], image[:, :, width:] = 0, 0
    return images, sizes


def targets(dtype=torch.float32, padding=0, garbage=0.0):
    """Two objects in the first image, one in the second, and padding after them."""
    objects = [
        Instances(torch.tensor([[4.0, 6.0, 40.0, 50.0], [60.0, 50.0, 120.0, 90.0]]), torch.tensor([2, 0])),
        Instances(torch.tensor([[50.0, 22.0, 110.0, 80.0]]), torch.tensor([1])),
    ]
    together = Instances.collate(objects, size=2 + padding)
    boxes = torch.where(together.labels[..., None] >= 0, together.boxes, garbage)
    return Instances(boxes.to(dtype), together.labels)


def total(losses):
    return torch.stack(list(losses.values())).sum()


# -- Geometry --


@pytest.mark.parametrize("name", GEOMETRY)
def test_layers_are_those_of_the_papers_tables_without_padding(name):
    window, stride, sides = GEOMETRY[name]
    with torch.device("meta"):
        model = overfeat(1000, network=name).eval()
        x, seen = torch.zeros(1, 3, window, window), []
        for layer in model.backbone.features:
            x = layer(x)
            if isinstance(layer, torch.nn.ReLU):
                seen.append(x.shape[-1])
            elif isinstance(layer, torch.nn.MaxPool2d):
                seen[-1] = x.shape[-1]
        assert (model.window, model.stride, seen) == (window, stride, sides)
        # One window gives one answer, one pixel less gives none, and `stride` more give the next.
        for side, cells in ((window, 1), (window + stride - 1, 1), (window + stride, 2)):
            logits, deltas = model.dense(torch.zeros(1, 3, side, side))
            assert logits.shape == (1, 1001, cells, cells)
            assert deltas.shape == (1, 4, cells, cells)
        with pytest.raises(RuntimeError, match=r"[Kk]ernel size"):
            model.dense(torch.zeros(1, 3, window - 1, window - 1))


@pytest.mark.parametrize("name", GEOMETRY)
@torch.inference_mode()
def test_dense_equals_the_network_at_every_window(name, monkeypatch):
    """Every one, those at the border too, for nothing is padded; to the last digits of float64."""
    model = randomised(thin(name, monkeypatch)).double().eval()
    height, width = model.window + 3 * model.stride + 5, model.window + 2 * model.stride + 1
    image = torch.randn(1, 3, height, width, dtype=torch.float64)
    logits, deltas = model.dense(image)
    assert logits.abs().max() < 100
    assert logits.shape[-2:] == deltas.shape[-2:] == (4, 3)
    for row in range(4):
        for column in range(3):
            y, x = row * model.stride, column * model.stride
            own = model.dense(image[:, :, y : y + model.window, x : x + model.window])
            torch.testing.assert_close(own[0][..., 0, 0], logits[..., row, column])
            torch.testing.assert_close(own[1][..., 0, 0], deltas[..., row, column])
    assert logits.flatten(2).std(dim=2).min() > 1e-3  # windows do differ


@pytest.mark.parametrize("name", GEOMETRY)
@torch.inference_mode()
def test_offset_pooling_equals_the_papers(name, monkeypatch):
    """Figure 3 as it is drawn: pool at each of the k x k offsets, slide the plain head over each result, interleave."""
    model = randomised(thin(name, monkeypatch)).double().eval()
    k = NETWORKS[name].pool
    side = model.window + 4 * model.stride + 3
    features = model.backbone(torch.randn(2, 3, side, side, dtype=torch.float64))[-1]
    for head in (model.classifier, model.regressor):
        expected = head(model.pool(features))
        first, maps = head.fc1[0], torch.full_like(expected, torch.nan)
        first.dilation = (1, 1)
        for dy in range(k):
            for dx in range(k):
                pooled = F.max_pool2d(features[:, :, dy:, dx:], k)
                answers = head(pooled)
                maps[:, :, dy::k, dx::k] = answers
        first.dilation = (k, k)
        torch.testing.assert_close(maps, expected)


@torch.inference_mode()
def test_every_scale_is_the_network_at_windows_of_the_resized_picture():
    """By a plain loop over the windows that `forward` names, cut out of the picture resized and filled up with zeros."""
    model = randomised(small(class_specific=True)).eval()
    images, sizes = batch(frame=(100, 130), sizes=((100, 130),))
    normalized = model.normalize(images, sizes)
    for windows, scale in zip(model(images, sizes).scales, SCALES, strict=True):
        resized = F.interpolate(normalized, scale_factor=scale, mode="bilinear")
        canvas = F.pad(resized, (0, 100, 0, 100))
        assert windows.valid.all()
        assert windows.deltas.shape == (1, len(windows.boxes), CLASSES, 4)
        for i, box in enumerate((windows.boxes * scale).round().int().tolist()):
            assert box[2] - box[0] == box[3] - box[1] == model.window
            logits, deltas = model.dense(canvas[:, :, box[1] : box[3], box[0] : box[2]])
            torch.testing.assert_close(windows.logits[:, i], logits[..., 0, 0], atol=1e-4, rtol=0)
            torch.testing.assert_close(windows.deltas[:, i].flatten(1), deltas[..., 0, 0], atol=1e-4, rtol=0)
        # They leave no pixel out, and none of them begins where its neighbour had reached the end.
        for axis, side in enumerate(reversed(resized.shape[-2:])):
            low, high = ((windows.boxes[:, end] * scale).round() for end in (axis, axis + 2))
            assert high.max() >= side
            assert low.max() <= max(0, side - model.window) + model.stride - 1


@torch.inference_mode()
def test_windows_in_the_padding_do_not_count():
    """Those that count are those of the picture without padding, and what lies in the padding is not seen."""
    model = randomised(small()).double().eval()
    images, sizes = batch(frame=(160, 192), sizes=((160, 192), (104, 90)))
    outputs = model(images, sizes)
    alone = model(images[1:, :, :104, :96], sizes[1:])
    for windows, own in zip(outputs.scales, alone.scales, strict=True):
        assert windows.valid[0].all()
        counted = windows.valid[1]
        assert 0 < counted.sum() < len(counted)
        torch.testing.assert_close(windows.boxes[counted], own.boxes[own.valid[0]])
    images[1, :, 104:], images[1, :, :, 90:] = 255, 77
    again = model.decode(model(images, sizes), sizes)
    for field in ("boxes", "labels", "scores"):
        assert torch.equal(getattr(again, field), getattr(model.decode(outputs, sizes), field))


# -- Losses --


def windows_of(boxes, class_specific=False):
    """One image's windows, with random answers."""
    boxes = torch.tensor(boxes, dtype=torch.float64)
    shape = 1, len(boxes), CLASSES if class_specific else 1, 4
    logits = torch.randn(1, len(boxes), CLASSES + 1, dtype=torch.float64)
    return Windows(logits, torch.randn(shape, dtype=torch.float64), boxes, torch.ones(1, len(boxes), dtype=torch.bool))


# windows of 10 x 10 at these corners, objects (box, label), and each window's label: C background, None neither
MATCHES = {
    "held": ([(0, 0)], [((2, 2, 8, 8), 1)], [1]),
    "held by half": ([(0, 0)], [((5, 0, 15, 10), 1)], [1]),
    "held by a third": ([(0, 0)], [((7, 0, 16, 10), 1)], [None]),
    "touched": ([(0, 0)], [((9, 0, 19, 10), 1)], [CLASSES]),
    "the larger part wins": ([(0, 0)], [((0, 0, 3, 3), 0), ((4, 4, 10, 10), 2)], [2]),
    "a whole one before a large piece": ([(0, 0)], [((0, 0, 3, 3), 0), ((4, 0, 40, 40), 2)], [0]),
    "larger than the window": ([(5, 5)], [((0, 0, 20, 20), 1)], [None]),
    "nothing there": ([(0, 0), (5, 5)], [], [CLASSES, CLASSES]),
    "several windows": ([(0, 0), (5, 0), (30, 0)], [((2, 2, 10, 10), 0)], [0, 0, CLASSES]),
    "no area": ([(0, 0)], [((4, 4, 4, 8), 0)], [CLASSES]),
}


def loss_by_hand(windows, objects, wanted, unit):
    """The losses of one image by a loop over its windows; `wanted` are the labels, the object is the first of that label."""
    cls, box = {True: [], False: []}, []
    for i, label in enumerate(wanted):
        if label is None:
            continue
        cls[label < CLASSES].append(-windows.logits[0, i].log_softmax(0)[label])
        if label < CLASSES:
            x0, y0, x1, y1 = windows.boxes[i].tolist()
            target = next(torch.tensor(b, dtype=torch.float64) for b, k in objects if k == label)
            edges = (target - torch.tensor([x0, y0, x1, y1])) / (x1 - x0)
            deltas = windows.deltas[0, i, min(label, windows.deltas.shape[2] - 1)]
            box.append((0.5 * ((deltas - edges) / unit) ** 2).mean())
    means = [sum(part) / len(part) for part in cls.values() if part]
    zero = torch.zeros((), dtype=torch.float64)
    return {"loss_cls": sum(means) / len(means) if means else zero, "loss_box": sum(box) / len(box) if box else zero}


@pytest.mark.parametrize("class_specific", [False, True])
@pytest.mark.parametrize("name", MATCHES)
def test_losses_by_hand(name, class_specific):
    corners, objects, wanted = MATCHES[name]
    model = small()
    windows = windows_of([(x, y, x + 10, y + 10) for x, y in corners], class_specific)
    boxes = torch.tensor([b for b, _ in objects] + [(0, 0, 0, 0)], dtype=torch.float64)
    truth = Instances(boxes[None], torch.tensor([[k for _, k in objects] + [-1]]))
    losses = model._losses_at_scale(windows, truth)
    for key, value in loss_by_hand(windows, objects, wanted, model.unit).items():
        torch.testing.assert_close(losses[key], value)


def test_windows_that_do_not_count_teach_nothing():
    model, objects = small(), [((2, 2, 8, 8), 1)]
    truth = Instances(torch.tensor([[objects[0][0]]], dtype=torch.float64), torch.tensor([[1]]))
    windows = windows_of([(0, 0, 10, 10), (1, 1, 11, 11), (30, 0, 40, 10)])
    windows = windows._replace(valid=torch.tensor([[True, False, True]]))
    losses = model._losses_at_scale(windows, truth)
    for key, value in loss_by_hand(windows, objects, [1, None, CLASSES], model.unit).items():
        torch.testing.assert_close(losses[key], value)


def test_encode_and_decode_are_inverse():
    windows = torch.tensor([[0.0, 0, 80, 80], [16, 8, 96, 88]])
    boxes = torch.tensor([[10.0, 20, 30, 90], [16, 8, 96, 88]])
    assert torch.equal(encode(boxes, windows)[1], torch.zeros(4))
    torch.testing.assert_close(encode(boxes, windows)[0], torch.tensor([0.125, 0.25, -0.625, 0.125]))
    torch.testing.assert_close(decode(encode(boxes, windows), windows), boxes)


@pytest.mark.parametrize("garbage", [0.0, -1e4, 1e30, torch.inf, torch.nan])
def test_padded_objects_change_no_loss_and_no_gradient(garbage):
    model = small().double().eval()
    images, sizes = batch()
    results = []
    for truth in (targets(torch.float64), targets(torch.float64, padding=6, garbage=garbage)):
        model.zero_grad()
        losses = model.losses(model(images, sizes), truth)
        total(losses).backward()
        results.append([*losses.values(), *(p.grad.clone() for p in model.parameters())])
    for few, many in zip(*results, strict=True):
        torch.testing.assert_close(few, many)


def test_images_without_objects(model):
    """A legal negative: everything is background, no box is learnt."""
    empty = Instances(torch.full((2, 3, 4), torch.nan), torch.full((2, 3), -1))
    losses = model.losses(model(*batch()), empty)
    assert losses["loss_box"] == 0
    assert losses["loss_cls"] > 0
    total(losses).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_crowds_are_not_learnt():
    """Only a crowd, everywhere: no class and no box to learn, and no background."""
    everywhere = torch.tensor([[[0.0, 0.0, 260.0, 260.0]]] * 2)
    labels = torch.zeros(2, 1, dtype=torch.int64)
    crowd = Instances(everywhere, labels, crowd=torch.ones(2, 1, dtype=torch.bool))
    model = small()
    outputs = model(*batch())
    assert total(model.losses(outputs, crowd)) == 0
    assert total(model.losses(outputs, Instances(everywhere, labels - 1))) > 0
    corner = Instances(everywhere / 20, labels, crowd=crowd.crowd)  # held by windows, but still none to learn
    assert model.losses(outputs, corner)["loss_box"] == 0


# -- Three verbs --


def test_three_verbs_and_a_gradient_for_every_parameter(model):
    images, sizes = batch(sizes=((96, 128), (90, 100)))
    truth = targets()
    given = [value.clone() for value in (images, sizes, truth.boxes, truth.labels)]
    seen = []
    for mode in (True, False):
        model.train(mode)
        outputs = model(images, sizes)
        losses = model.losses(outputs, truth)
        found = model.decode(outputs, sizes)
        assert set(losses) == {"loss_cls", "loss_box"}
        assert all(loss.ndim == 0 and loss.isfinite() and loss > 0 for loss in losses.values())
        check_answers(found, sizes)
        seen.append([type(outputs), found.boxes.shape, *(windows.logits.shape for windows in outputs.scales)])
        model.zero_grad()
        total(losses).backward()
        without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert without == []
    assert seen[0] == seen[1]  # train() and eval() return the same
    for before, after in zip(given, (images, sizes, truth.boxes, truth.labels), strict=True):
        assert torch.equal(before, after)


def check_answers(found, sizes):
    """Best first, padding last, boxes inside their image and not empty, of the right types."""
    assert found.boxes.shape == (2, 10, 4)
    assert (found.boxes.dtype, found.labels.dtype, found.scores.dtype) == (torch.float32, torch.int64, torch.float32)
    assert (found.scores.diff(dim=1) <= 0).all()
    valid = found.labels >= 0
    assert valid[:, 0].all()
    assert found.labels.max() < CLASSES
    assert torch.equal(found.scores > 0, valid)
    assert (found.scores < 1).all()
    assert (found.boxes[~valid] == 0).all()
    boxes, limits = found.boxes, sizes.flip(1)[:, None]
    assert (boxes >= 0).all()
    assert (boxes[..., 2:] <= limits).all()
    assert (boxes[valid][:, 2:] > boxes[valid][:, :2]).all()


@torch.inference_mode()
def test_a_batch_gives_what_its_images_give_alone(model):
    randomised(model).double().eval()
    images, sizes = batch(sizes=((96, 128), (90, 100)))
    found = model.detect(images, sizes)
    for i in range(2):
        own = model.detect(images[i : i + 1], sizes[i : i + 1])
        torch.testing.assert_close(found.boxes[i], own.boxes[0])
        torch.testing.assert_close(found.scores[i], own.scores[0])
        assert torch.equal(found.labels[i], own.labels[0])


@torch.inference_mode()
def test_detect_is_decode_after_forward_and_bytes_equal_floats(model):
    model.eval()
    images, sizes = batch()
    found, again = model.detect(images, sizes), model.decode(model(images.float(), sizes), sizes)
    for field in ("boxes", "labels", "scores"):
        assert torch.equal(getattr(found, field), getattr(again, field))


@torch.inference_mode()
def test_outputs_that_are_no_numbers_are_no_answers():
    model = small().eval()
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, torch.nan)
    found = model.detect(*batch())
    assert (found.labels == -1).all()
    assert (found.boxes == 0).all()
    assert (found.scores == 0).all()


@torch.inference_mode()
def test_pictures_far_smaller_than_the_window():
    model = small().eval()
    images, sizes = batch(frame=(32, 32), sizes=((9, 5), (1, 1)))
    outputs = model(images, sizes)
    assert [windows.logits.shape[1] for windows in outputs.scales] == [1, 1, 1]
    found = model.decode(outputs, sizes)
    assert (found.boxes[..., 2:] <= sizes.flip(1)[:, None]).all()


def test_only_the_likeliest_classes_of_a_scale_are_looked_at():
    model = small()
    model.top_classes = 1
    windows = windows_of([(0, 0, 10, 10), (5, 5, 15, 15)])
    windows.logits[0] = torch.tensor([[9.0, 8.5, 0, 0], [5.0, 0, 0, 0]])
    scores = model._scores(windows)[0]
    assert (scores[:, 0] > 0).all()  # its best is the scale's best
    assert (scores[:, 1:] == 0).all()


def test_the_score_is_the_confidence_gathered():
    """Two windows sure of one class and box: a confidence of 2, a score of 2 / 3."""
    model = small()
    windows = windows_of([(0, 0, 10, 10), (4, 0, 14, 10)])
    windows.logits[:] = torch.tensor([0.0, 50, 0, 0])
    windows.deltas[0, :, 0] = encode(torch.tensor([[2.0, 3, 9, 8]]), windows.boxes)
    found = model.decode(type(model(*batch()))([windows]), torch.tensor([[20, 20]]))[0]
    assert found.labels.tolist() == [1]
    assert found.scores.tolist() == pytest.approx([2 / 3])
    assert found.boxes[0].tolist() == pytest.approx([2, 3, 9, 8])


def test_autocast_to_bfloat16():
    model = small()
    images, sizes = batch()
    exact = total(model.losses(model(images, sizes), targets()))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(images, sizes)
        losses = model.losses(outputs, targets())
        found = model.decode(outputs, sizes)
    total(losses).backward()
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    assert found.boxes.dtype == found.scores.dtype == torch.float32
    torch.testing.assert_close(total(losses), exact, rtol=0.1, atol=0)


# -- Files, learning, mistakes --


@pytest.mark.parametrize("name", MODELS)
def test_round_trip(name, tmp_path):
    model = randomised(MODELS[name]())
    model.categories, model.resize = ["cat", "dog", "mouse"], (128, 128, True)
    save(model.train(), tmp_path / "m.ckpt")
    again = load(tmp_path / "m.ckpt", device="cpu")
    assert isinstance(again, OverFeat)
    assert again.task == "localization"
    assert again.description() == model.description()
    images, sizes = batch()
    with torch.inference_mode():
        expected, found = model.eval().detect(images, sizes), again.detect(images, sizes)
    for field in ("boxes", "labels", "scores"):
        assert torch.equal(getattr(found, field), getattr(expected, field))


def test_weights_of_another_model(tmp_path, monkeypatch):
    """Another number of classes starts the last layers anew; the features alone can be taken, too."""
    model = randomised(small())
    save(model, tmp_path / "m.ckpt")
    other = small(5, weights=str(tmp_path / "m.ckpt"))
    assert torch.equal(other.classifier.fc2[0].weight, model.classifier.fc2[0].weight)
    assert other.classifier.last.out_channels == 6
    features = small(backbone_weights=str(tmp_path / "m.ckpt"))
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(features.backbone.state_dict()[key], value)
    assert not torch.equal(features.classifier.fc2[0].weight, model.classifier.fc2[0].weight)
    assert str(tmp_path) not in str([other.description(), features.description()])
    with pytest.raises(WeightsError, match="OverFeat"):
        thin("fast", monkeypatch, weights=str(tmp_path / "m.ckpt"))


def test_learns_four_pictures():
    """From nothing to class and box of the largest object of four pictures, in seconds."""
    torch.manual_seed(0)
    model = overfeat(len(shapes.CATEGORIES), network="small", scales=(0.625, 0.8125))
    pictures = [shapes.draw(seed=0, index=i, size=128) for i in range(4)]
    images = torch.stack([torch.from_numpy(p.image).permute(2, 0, 1) for p in pictures])
    sizes = torch.tensor([[128, 128]] * 4)
    largest = [p.masks.sum(axis=(1, 2)).argmax() for p in pictures]
    boxes = torch.stack([torch.from_numpy(p.boxes[i : i + 1]) for p, i in zip(pictures, largest, strict=True)])
    labels = torch.tensor([[int(p.labels[i])] for p, i in zip(pictures, largest, strict=True)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    history = []
    for _ in range(60):
        loss = total(model.losses(model(images, sizes), Instances(boxes, labels)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < history[0] / 5
    with torch.no_grad():
        found = model.eval().detect(images, sizes)
    assert torch.equal(found.labels[:, :1], labels)
    for box, wanted in zip(found.boxes[:, :1], boxes, strict=True):
        assert box_iou(box, wanted) > 0.7


def test_same_seed_same_loss():
    images, sizes = batch()
    losses = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        model = small()
        losses.append(total(model.losses(model(images, sizes), targets())).item())
    assert losses[0] == losses[1] != losses[2]


def padded_backbone():
    stage = Stage("conv1", [torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU()], 4, 1)
    head = torch.nn.Conv2d(4, 4, 1)
    return OverFeat(Chain([stage], ["conv1"]), head, head, pool=1, cells=1, num_classes=3)


# name: what is built, what the message says
MISTAKES = {
    "network": (lambda: overfeat(3, network="slow"), "fast, accurate, small, got 'slow'"),
    "no scales": (lambda: small(scales=()), "one or more positive factors"),
    "a scale of zero": (lambda: small(scales=(1.0, 0.0)), "positive factors.*0.0"),
    "no number": (lambda: small(scales=(float("nan"),)), "positive factors"),
    "padding": (padded_backbone, "without padding.*Conv2d"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name):
    build, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        build()
