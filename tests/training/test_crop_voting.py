"""The mean over crops equals a slow loop, and scores as pictures do."""

import cv2
import pytest
import torch
from torchvision.transforms.v2 import functional as V

from sightline.datasets.shapes import shapes_table
from sightline.datasets.table import DataError
from sightline.datasets.transforms import resize_image
from sightline.detectors import classifier, ensemble
from sightline.training import Crops, crop_probabilities, crop_voting, score, score_crops


def model(classes=6):
    built = classifier("lenet", classes).eval()
    built.categories, built.resize = ["circle", "square", "triangle", "star", "cross", "ring"][:classes], (32, 32, True)
    return built


def pictures():
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((50, 40), (32, 61), (20, 20))]


@torch.no_grad()
def slow(network, image, crops):
    """One crop after another, cut by torchvision from a picture that our own resizing made."""
    found, (height, width) = [], image.shape[1:]
    for scale in crops.scales:
        factor = scale / min(height, width)
        resized = resize_image(image, (round(height * factor), round(width * factor)))
        cut = V.ten_crop(resized, [32, 32]) if crops.count == 10 else [V.center_crop(resized, [32, 32])]
        for crop in cut:
            found.append(network(crop[None], torch.tensor([[32, 32]])).logits[0].softmax(-1))
    return torch.stack(found).mean(0)


@pytest.mark.parametrize(
    "crops", [Crops(10, (40,), (32, 32)), Crops(10, (32, 48), (32, 32)), Crops(1, (36, 60), (32, 32))]
)
def test_the_mean_over_crops(crops):
    network, images = model(), pictures()
    found = crop_probabilities(network, images, crops, batch_size=7)
    torch.testing.assert_close(found, torch.stack([slow(network, image, crops) for image in images]))
    torch.testing.assert_close(found.sum(1), torch.ones(3))


def test_an_ensemble_over_crops():
    models, images, crops = [model(), model()], pictures(), Crops.of(model())
    mean = sum(crop_probabilities(one, images, crops) for one in models) / 2
    torch.testing.assert_close(crop_probabilities(ensemble(models), images, crops), mean)


def test_crops_follow_the_model():
    assert Crops.of(model()) == Crops(10, (37,), (32, 32))
    other = model()
    other.resize = (256, 480)
    assert Crops.of(other) == Crops(10, (256,), (224, 224))
    assert Crops.of(other, count=1, scales=[100, 90], size=64) == Crops(1, (100, 90), (64, 64))


def test_one_crop_of_the_models_size_scores_as_the_whole_picture():
    """Square pictures of 32 pixels: the only crop is the picture."""
    network, table = model(), shapes_table("val", 12, 32).largest(1)
    whole = score(network, table, progress=False)
    cropped = score_crops(network, table, Crops(1, (32,), (32, 32)), batch_size=5, progress=False)
    assert cropped.result.summary() == whole.result.summary()
    assert len(cropped.detections) == len(whole.detections) == 60
    assert torch.equal(torch.from_numpy(cropped.detections.boxes), torch.from_numpy(whole.detections.boxes))


def test_workers_start_and_fail_as_other_loaders_do(monkeypatch):
    """OpenCV's threads are off, and an error arrives as it was raised."""

    def read(path):
        raise DataError(f"{path}: read with {cv2.getNumThreads()} threads")

    monkeypatch.setattr(crop_voting, "read_picture", read)
    table, threads = shapes_table("val", 2, 32).largest(1), cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        with pytest.raises(DataError, match=r"^shapes:\S+: read with 1 threads$"):
            score_crops(model(), table, Crops(1, (32,), (32, 32)), num_workers=1, progress=False)
    finally:
        cv2.setNumThreads(threads)


def test_mistakes_are_named():
    with pytest.raises(DataError, match="1 or 10 crops"):
        Crops(5)
    with pytest.raises(DataError, match="at least 1 pixel"):
        Crops(10, (0,))
    network = model()
    network.task = "detection"
    with pytest.raises(DataError, match="task is detection"):
        score_crops(network, shapes_table("val", 2, 32).largest(1), Crops())
