"""R-CNN's second part: features of regions, machines against scikit-learn's (https://scikit-learn.org), regressors, and all."""

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.datasets.detection import DetectionDataset, loader_for
from sightline.datasets.proposals import Boxes, Regions
from sightline.datasets.shapes import shapes_table
from sightline.datasets.table import DataError
from sightline.detectors import faster_rcnn, load, save
from sightline.detectors.rcnn import rcnn
from sightline.training import mining, region_features, ridge, score
from sightline.training.linear import fit_svms
from sightline.training.mining import mine_svms
from sightline.training.region_features import region_features as features_of
from sightline.training.region_machines import fit_region_machines
from sightline.training.ridge import fit_ridge

SIDE = 64


def with_proposals(table, *, near=4, anywhere=15, seed=0):
    """The table with boxes near its objects and boxes anywhere, in a random order."""
    rng = np.random.default_rng(seed)
    pictures = []
    for i, size in enumerate(table.sizes):
        own = table.boxes[table.image == i].repeat(near, axis=0)
        moved = own + rng.normal(0, 0.1, own.shape) * np.tile(own[:, 2:] - own[:, :2], 2)
        corners = np.sort(rng.uniform(0, size[0], (anywhere, 2, 2)), axis=1).reshape(-1, 4)
        boxes = np.concatenate([moved, corners]).clip(0, size[0])
        boxes = rng.permutation(boxes[(boxes[:, 2:] - boxes[:, :2] > 4).all(axis=1)]).astype(np.float32)
        pictures.append(Boxes(boxes, np.linspace(1, 0, len(boxes), dtype=np.float32)))
    return replace(table, regions=Regions.of(pictures))


@pytest.fixture(scope="module")
def table():
    return with_proposals(shapes_table("train", 16, SIDE))


def tiny(table, *, context=3, **changes):
    torch.manual_seed(0)
    arguments = {"norm": "batch", "size": 32, "samples": 24, "proposals": 60, "detections": 20}
    model = rcnn("resnet10_narrow", 6, context=context, proposer="sliding_window", **(arguments | changes)).eval()
    model.resize, model.categories = (SIDE, SIDE), list(table.categories)
    return model


def overlap(a, b):
    """IoU of two boxes, by hand."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(0.0, width) * max(0.0, height)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


# ---- machines


def examples(count=900, width=12, classes=3):
    """Overlapping classes in half precision, most examples of none; each class ignores some."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10 * classes, count)
    centres = rng.normal(size=(classes, width)) * 1.5
    features = rng.normal(size=(count, width)) + np.where((labels < classes)[:, None], centres[labels % classes], 0) + 1
    signs = np.where(labels[:, None] == np.arange(classes), 1, -1)
    signs[(rng.random(signs.shape) < 0.2) & (signs < 0)] = 0
    return features.astype(np.float16), signs


BLOCKS = np.array([0, 100, 100, 350, 600, 900])


@pytest.mark.parametrize(("first", "most"), [(2000, 8192), (10, 8192), (5, 20)])
@pytest.mark.parametrize("c", [0.01, 1.0])
def test_mined_machines_are_those_of_all_negatives(first, most, c, monkeypatch):
    LinearSVC = pytest.importorskip("sklearn.svm").LinearSVC
    monkeypatch.setattr(mining, "FIRST", first)
    monkeypatch.setattr(mining, "MOST", most)
    features, signs = examples()
    options = {"c": c, "scale": 0.5, "positive_weight": 2, "progress": False}
    mined = mine_svms(features, BLOCKS, lambda i: signs[BLOCKS[i] : BLOCKS[i + 1]], 3, **options)
    scaled = features.astype(np.float64) * 0.5
    weights = np.where(signs > 0, 2.0, 1.0)
    for k in range(3):
        used = signs[:, k] != 0
        theirs = LinearSVC(C=c, dual=False, tol=1e-10, max_iter=20000)
        theirs.fit(scaled[used], signs[used, k], sample_weight=weights[used, k])
        np.testing.assert_allclose(mined.model.weight[k].numpy(), theirs.coef_[0] * 0.5, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(mined.model.bias[k].numpy(), theirs.intercept_[0], rtol=1e-4, atol=1e-5)
        margins = theirs.decision_function(scaled)
        assert mined.support[k] == ((margins > -1) & (signs[:, k] < 0)).sum()
    assert mined.positives.tolist() == (signs > 0).sum(axis=0).tolist()
    assert mined.negatives.tolist() == (signs < 0).sum(axis=0).tolist()
    assert mined.rounds[-1].tolist() == [0, 0, 0]
    assert (len(mined.rounds) > 1) == (first < 2000)
    assert max(new.max() for new in mined.rounds) <= most


def test_mining_lets_easy_negatives_go_and_holds_few(monkeypatch):
    """Of many easy negatives only those near the margin are ever given to the machine at once."""
    held = []

    def watched(features, *rest, **more):
        held.append(len(features))
        return fit_svms(features, *rest, **more)

    monkeypatch.setattr(mining, "fit_svms", watched)
    monkeypatch.setattr(mining, "FIRST", 60)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(5000, 4)).astype(np.float32)
    features[:, 0] += 6 * (np.arange(5000) % 100 == 0)
    signs = np.where(np.arange(5000) % 100 == 0, 1, -1)[:, None]
    offsets = np.arange(0, 5001, 500)
    mined = mine_svms(features, offsets, lambda i: signs[offsets[i] : offsets[i + 1]], 1, progress=False)
    assert max(held) < 1000
    whole = fit_svms(torch.from_numpy(features), torch.from_numpy(signs))
    torch.testing.assert_close(mined.model.weight, whole.weight, rtol=1e-4, atol=1e-5)


def test_a_category_without_objects_says_no():
    features, signs = examples()
    signs[:, 1] = -1
    mined = mine_svms(features, BLOCKS, lambda i: signs[BLOCKS[i] : BLOCKS[i + 1]], 3, c=1.0, progress=False)
    assert (mined.model.scores(torch.from_numpy(features))[:, 1] < 0).all()
    assert mined.positives[1] == 0


# ---- regressors


@pytest.mark.parametrize("count", [5, 300])
def test_ridge_is_scikit_learns(count, monkeypatch):
    Ridge = pytest.importorskip("sklearn.linear_model").Ridge
    monkeypatch.setattr(ridge, "ROWS", 64)
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(400, 20)) + 3).astype(np.float16)
    rows = np.sort(rng.choice(400, count, replace=False))
    targets = rng.normal(size=(count, 4))
    ours = fit_ridge(features, rows, targets, 7.0, scale=0.3)
    theirs = Ridge(alpha=7.0, solver="svd").fit(features[rows].astype(np.float64) * 0.3, targets)
    np.testing.assert_allclose(ours.weight.numpy(), theirs.coef_ * 0.3, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(ours.bias.numpy(), theirs.intercept_, rtol=1e-6, atol=1e-9)


def test_ridge_of_nothing_is_nothing():
    empty = fit_ridge(np.ones((4, 3), np.float16), np.empty(0, np.int64), np.empty((0, 4)), 1.0)
    assert not empty.weight.any()
    assert not empty.bias.any()


@pytest.mark.parametrize(("targets", "penalty"), [(np.ones((3, 4)), 1.0), (np.ones((2, 4)), 0.0)])
def test_ridge_mistakes(targets, penalty):
    with pytest.raises(ValueError, match="as many targets as rows and a positive penalty"):
        fit_ridge(np.ones((4, 3)), np.array([0, 1]), targets, penalty)


# ---- features


@pytest.mark.parametrize("batch_size", [1, 5])
def test_features_are_what_the_last_layers_see(table, tmp_path, batch_size):
    model = tiny(table)
    found = features_of(model, table, tmp_path, batch_size=batch_size, progress=False)
    assert found.shape == (len(table.regions.boxes), 128)
    assert found.dtype == np.float16
    assert isinstance(found, np.memmap)
    dataset = DetectionDataset(table, resize=model.resize)
    for i in (0, 7, 15):
        image, boxes = dataset[i].image[None], torch.from_numpy(table.regions[i].boxes)[None]
        with torch.no_grad():
            crops = model.roi_heads.pool([model.normalize(image, torch.tensor([[SIDE, SIDE]]))], boxes)
            wanted = model.backbone.describe(crops)
        own = found[table.regions.offsets[i] : table.regions.offsets[i + 1]]
        torch.testing.assert_close(torch.from_numpy(own.astype(np.float32)), wanted, rtol=2e-3, atol=1e-3)


def test_boxes_go_to_the_pictures_size(table, tmp_path):
    """Proposals are in original pixels, the network sees resized pictures."""
    model = tiny(table)
    plain = features_of(model, table, tmp_path, progress=False)
    model.resize = (2 * SIDE, 2 * SIDE)
    larger = features_of(model, table, tmp_path, progress=False)
    likeness = np.corrcoef(plain.ravel(), larger.ravel())[0, 1]
    assert 0.9 < likeness < 1


def test_the_cache_is_read_and_leaves_the_model_as_it_was(table, tmp_path, monkeypatch):
    model = tiny(table).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = features_of(model, table, tmp_path, progress=False)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    (file,) = tmp_path.iterdir()
    assert file.suffix == ".npy"
    monkeypatch.setattr(region_features, "_vectors", None)  # computing again would fail
    torch.nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight)  # it lies above
    assert np.array_equal(features_of(model, table, tmp_path, progress=False), first)


def _other_weight(model, table):
    with torch.no_grad():
        next(model.backbone.parameters())[0] += 1e-3
    return model, table


def _other_boxes(model, table):
    boxes = table.regions.boxes.copy()
    boxes[3, 2] += 1
    return model, replace(table, regions=replace(table.regions, boxes=boxes))


def _other_precision(model, table):
    model.precision = "bfloat16"
    return model, table


def _other_resize(model, table):
    model.resize = (SIDE, SIDE + 1)
    return model, table


OTHERS = {
    "a weight": _other_weight,
    "a proposal": _other_boxes,
    "the pictures' size": _other_resize,
    "the precision": _other_precision,
    "the context": lambda model, table: (tiny(table, context=4), table),
    "the mean": lambda model, table: (model.normalize.adopt((0.4, 0.4, 0.4), (0.2, 0.2, 0.2)), (model, table))[1],
    "the pictures": lambda model, table: (model, replace(table, paths=[p + "1" for p in table.paths])),
}


@pytest.mark.parametrize("name", OTHERS)
def test_features_of_other_settings_are_never_read(name, table):
    key = region_features._key(tiny(table), table)
    assert region_features._key(*OTHERS[name](tiny(table), table)) != key
    assert region_features._key(tiny(table), table) == key


def test_pictures_that_changed_are_read_anew(tmp_path, table):
    paths = [str(tmp_path / f"{i}.png") for i in range(len(table))]
    for path in paths:
        Path(path).touch()
    table = replace(table, paths=paths)
    key = region_features._key(tiny(table), table)
    date = os.stat(paths[2]).st_mtime_ns
    Path(paths[2]).write_bytes(b"another")
    os.utime(paths[2], ns=(date, date))  # as a copy that keeps dates has it
    assert region_features._key(tiny(table), table) != key


def test_an_interrupted_run_goes_on(table, tmp_path, monkeypatch):
    model, plain, batches, seen, again = tiny(table), region_features._vectors, [], [], []

    def interrupted(model, batch):
        if len(batches) == 3:
            raise KeyboardInterrupt
        batches.append(1)
        seen.extend(info.id for info in batch.infos)
        return plain(model, batch)

    monkeypatch.setattr(region_features, "_vectors", interrupted)
    with pytest.raises(KeyboardInterrupt):
        features_of(model, table, tmp_path, batch_size=2, progress=False)
    assert not list(tmp_path.glob("*.npy"))
    monkeypatch.setattr(region_features, "_vectors", lambda m, b: (again.extend(i.id for i in b.infos), plain(m, b))[1])
    found = features_of(model, table, tmp_path, batch_size=2, progress=False)
    assert len(seen) == 6
    assert sorted(seen + again) == sorted(table.image_ids.tolist())
    monkeypatch.setattr(region_features, "_vectors", plain)
    whole = features_of(model, table, tmp_path / "other", batch_size=2, progress=False)
    np.testing.assert_allclose(found, whole, rtol=2e-3, atol=1e-3)
    assert [file.suffix for file in tmp_path.iterdir() if file.is_file()] == [".npy"]


def test_features_too_large_for_half_precision_are_refused(table, tmp_path):
    model = tiny(table)
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.mul_(30)
    with pytest.raises(ValueError, match="not finite in half precision"):
        features_of(model, table, tmp_path, progress=False)


def test_a_disk_without_room(table, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 10**4})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(DataError, match="GB free: name another folder, or take fewer proposals"):
        features_of(tiny(table), table, tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


# ---- all together


@pytest.fixture(scope="module")
def fitted(table, tmp_path_factory):
    model = tiny(table)
    report = fit_region_machines(model, table, cache=tmp_path_factory.mktemp("cache"), batch_size=4, progress=False)
    folder = tmp_path_factory.mktemp("again")
    regions = Regions.of([Boxes(np.concatenate([table.regions[i].boxes, table.boxes[table.image == i]]),
                                np.zeros(len(table.regions[i].boxes) + int((table.image == i).sum()), np.float32))
                          for i in range(len(table))])  # fmt: skip
    return model, report, regions, features_of(tiny(table), replace(table, regions=regions), folder, progress=False)


def roles(table, regions):
    """By slow loops: signs (P, 6) of regions, and for each category the rows and offsets that its regressors learn."""
    signs, pairs = np.zeros((len(regions.boxes), 6), int), [[] for _ in range(6)]
    for i in range(len(table)):
        objects = [(table.boxes[k].tolist(), int(table.labels[k])) for k in np.flatnonzero(table.image == i)]
        proposals = len(table.regions[i].boxes)
        for r, box in enumerate(regions[i].boxes.tolist()):
            row = regions.offsets[i] + r
            for label in range(6):
                if max((overlap(box, other) for other, own in objects if own == label), default=0.0) < 0.3:
                    signs[row, label] = -1
            if r >= proposals:
                signs[row, objects[r - proposals][1]] = 1
            elif objects:
                value, (other, label) = max(((overlap(box, o), (o, k)) for o, k in objects), key=lambda pair: pair[0])
                if value >= 0.6:
                    pairs[label].append((row, eq_6_to_9(box, other)))
    return signs, pairs


def eq_6_to_9(proposal, truth):
    (px, py, pw, ph), (gx, gy, gw, gh) = ((x0 + (x1 - x0) / 2, y0 + (y1 - y0) / 2, x1 - x0, y1 - y0)
                                          for x0, y0, x1, y1 in (proposal, truth))  # fmt: skip
    return [(gx - px) / pw, (gy - py) / ph, math.log(gw / pw), math.log(gh / ph)]


def test_the_last_layers_are_scikit_learns(table, fitted):
    LinearSVC = pytest.importorskip("sklearn.svm").LinearSVC
    Ridge = pytest.importorskip("sklearn.linear_model").Ridge
    model, report, regions, features = fitted
    signs, pairs = roles(table, regions)
    features = features.astype(np.float64)
    scale = 20 / np.linalg.norm(features, axis=1).mean()
    predictor, weights = model.roi_heads.box_predictor, model.roi_heads.delta_weights
    inputs = torch.from_numpy(features).float()
    with torch.no_grad():
        logits, deltas = predictor(inputs)
    assert not predictor.cls_score.weight[0].any()
    assert not predictor.bbox_pred.weight[:4].any()
    for k in range(6):
        used = signs[:, k] != 0
        machine = LinearSVC(C=1e-3, intercept_scaling=10, dual=False, tol=1e-10, max_iter=20000)
        machine.fit(scale * features[used], signs[used, k], sample_weight=np.where(signs[used, k] > 0, 2.0, 1.0))
        np.testing.assert_allclose(logits[:, k + 1], machine.decision_function(scale * features), rtol=0, atol=1e-4)
        rows = np.array([row for row, _ in pairs[k]])
        regressor = Ridge(alpha=1000, solver="svd").fit(scale * features[rows], np.array([t for _, t in pairs[k]]))
        wanted = regressor.predict(scale * features) * np.array(weights)
        np.testing.assert_allclose(deltas[:, 4 * k + 4 : 4 * k + 8], wanted, rtol=0, atol=2e-5)
        assert report.pairs[k] == len(rows)
        assert report.mined.positives[k] == (signs[:, k] > 0).sum()
        assert report.mined.negatives[k] == (signs[:, k] < 0).sum()


def test_the_report_has_a_line_a_category(table, fitted):
    lines = str(fitted[1]).splitlines()
    assert [line.split()[0] for line in lines] == ["category", *table.categories]
    assert lines[1].split()[1:5] == [str(n[0]) for n in (fitted[1].mined.positives, fitted[1].mined.negatives,
                                                        fitted[1].mined.support, fitted[1].pairs)]  # fmt: skip


def test_saved_with_its_machines(table, fitted, tmp_path):
    model = fitted[0]
    save(model, tmp_path / "rcnn.ckpt")
    again = load(tmp_path / "rcnn.ckpt", device="cpu")
    assert again.roi_heads.machines
    batch = next(iter(loader_for(DetectionDataset(table, resize=(SIDE, SIDE)), 4)))
    with torch.no_grad():
        one, other = model.detect(*batch.inputs), again.detect(*batch.inputs)
    assert torch.equal(one.boxes, other.boxes)
    assert torch.equal(one.scores, other.scores)


def test_fitting_again_gives_the_same(table, tmp_path):
    weights = []
    model = tiny(table)
    for _ in range(2):
        fit_region_machines(model, table, cache=tmp_path, batch_size=4, progress=False)
        weights.append([p.clone() for p in model.roi_heads.box_predictor.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))
    assert len(list(tmp_path.glob("*.npy"))) == 1


def test_crowds_teach_nothing(table, tmp_path):
    """A crowd is no positive and no pair, and what lies in it no negative; a picture may have no objects, or no proposals."""
    crowd = np.zeros_like(table.crowd)
    crowd[table.image == 0] = True
    counts = np.diff(table.regions.offsets)
    regions = Regions.of([table.regions[i] if i != 1 else Boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
                          for i in range(len(table))])  # fmt: skip
    report = fit_region_machines(
        tiny(table), replace(table, crowd=crowd, regions=regions), cache=tmp_path, progress=False
    )
    assert report.mined.positives.sum() == (~crowd).sum()
    others = len(regions.boxes) + (~crowd).sum() - counts[0]
    inside = sum(
        max((_share_inside(box, own) for own in table.boxes[table.image == 0]), default=0) >= 0.5
        for box in table.regions[0].boxes
    )
    assert inside > 0
    assert (report.mined.negatives <= others + counts[0] - inside - report.mined.positives).all()
    none = replace(table, crowd=np.ones_like(table.crowd))
    with pytest.raises(DataError, match="no objects to learn from"):
        fit_region_machines(tiny(table), none, cache=tmp_path, progress=False)


def _share_inside(box, crowd):
    width, height = min(box[2], crowd[2]) - max(box[0], crowd[0]), min(box[3], crowd[3]) - max(box[1], crowd[1])
    return max(0, width) * max(0, height) / ((box[2] - box[0]) * (box[3] - box[1]))


MISTAKES = {
    "no proposals": (lambda t: (tiny(t), replace(t, regions=None)), "no proposals to learn from"),
    "other categories": (
        lambda t: (tiny(t), replace(t, categories=[*t.categories[:5], "egg"])),
        "not those of the pictures .*egg",
    ),
    "another detector": (
        lambda t: (faster_rcnn("resnet10_narrow_fpn", 6, anchor_sizes=((16,), (32,), (64,), (96,)), head_width=16), t),
        "regions of an R-CNN.*FasterRCNN learns",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name, table, tmp_path):
    build, message = MISTAKES[name]
    with pytest.raises(DataError, match=message):
        fit_region_machines(*build(table), cache=tmp_path, progress=False)


@pytest.mark.slow
def test_learns(table, tmp_path):
    """The whole pipeline: a few steps of fine-tuning, then machines and regressors, which know objects and place boxes better."""
    model = tiny(table).train()
    batch = next(iter(loader_for(DetectionDataset(table, resize=(SIDE, SIDE)), 16)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(20):
        loss = torch.stack(list(model.losses(model(*batch.inputs), batch.targets).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    before = score(model, table, progress=False).result.summary()
    report = fit_region_machines(model, table, cache=tmp_path, batch_size=4, progress=False)
    after = score(model, table, progress=False).result.summary()
    assert report.mined.positives.sum() == len(table.image)
    assert before["AP50"] > 0.7
    assert after["AP50"] > 0.95
    assert after["AP"] > before["AP"] + 0.05
