"""The Python of README and docs runs, on small models and pictures."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from sightline import captioning, detectors, segmentation
from sightline.captioning.vocabulary import SPECIAL, Vocabulary
from sightline.datasets.data_module import DetectionData
from sightline.datasets.images import write_image
from sightline.datasets.picture_data import Shapes
from sightline.datasets.structures import Instances
from sightline.tools.main import main

ROOT = Path(__file__).parent.parent

# What needs a network, or more time and memory than a quick test has.
SMALLER = {
    'weights="coco"': "weights=None",
    'weights="imagenet", ': "",
    'weights="vgg16.pth"': "weights=None",
    'weights="yolox_s.pth"': "weights=None",
    '"vgg16"': '"alexnet"',
    "num_workers=8": "num_workers=0",
    "resnet50_fpn": "resnet18_fpn",
    "val_images=1000": "val_images=2",
}
LEFT_OUT = "torch.export"  # held by tests/detectors/test_yolox.py


def detector() -> torch.nn.Module:
    anchor_sizes = ((8,), (16,), (32,), (64,))
    model = detectors.faster_rcnn(
        "resnet10_narrow_fpn", 2, norm="batch", anchor_sizes=anchor_sizes, proposals=8, head_width=8
    )
    model.categories, model.resize = ["dog", "cat"], (64, 64)
    return model


def segmenter() -> torch.nn.Module:
    model = segmentation.fcn8s("resnet10_narrow", 2, head_width=8)
    model.categories, model.resize = ["dog", "cat"], (64, 64)
    return model


def captioner() -> torch.nn.Module:
    model = captioning.show_attend_tell("resnet10_narrow", len(SPECIAL) + 2, width=8, embedding=8, attention_width=8)
    model.vocabulary, model.resize = Vocabulary([*SPECIAL, "dog", "cat"]), (64, 64)
    return model


def classifier() -> torch.nn.Module:
    return detectors.classifier("resnet18", 2)


MODELS = {"captions": captioner, "results": captioner, "segmentation": segmenter, "training": classifier}


def snippets(page: Path) -> list[str]:
    found = re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [code for code in found if LEFT_OUT not in code]


PAGES = [page for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))] if snippets(page)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_pages_snippets_run_one_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = MODELS.get(page.stem, detector)().eval()
    detectors.save(model, "best.ckpt")
    if "best.onnx" in page.read_text("utf-8"):
        assert main(["export", "best.ckpt"]) == 0
    picture = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    for name in ("street.jpg", "photo.jpg"):
        write_image(tmp_path / name, picture)
    clip = cv2.VideoWriter("clip.mp4", cv2.VideoWriter_fourcc(*"mp4v"), 10, (64, 64))
    clip.write(picture)
    clip.release()
    boxes, labels = torch.tensor([[[8.0, 8, 40, 40]]] * 2), torch.zeros(2, 1, dtype=torch.int64)
    given = {
        "model": model,
        "images": torch.zeros(2, 3, 64, 64, dtype=torch.uint8),
        "sizes": torch.tensor([[64, 64]] * 2),
        "targets": Instances(boxes, labels),
        "table": DetectionData(shapes=Shapes(train_images=2, val_images=2, size=64)).tables["val"],
    }
    for code in snippets(page):
        for large, small in SMALLER.items():
            code = code.replace(large, small)
        exec(compile(code, f"{page.name}: {code.splitlines()[0]}", "exec"), given)
