"""`sightline benchmark` of objects with masks, beside torchvision's Mask R-CNN."""

import json
from functools import partial

import pytest
import torch
from torchvision.models.detection.roi_heads import paste_masks_in_image

from sightline.datasets.coco import write_coco
from sightline.datasets.images import write_image
from sightline.datasets.shapes import read_shapes, shapes_table
from sightline.segmentation import load
from sightline.tools.benchmark import text_table
from sightline.tools.benchmark_detection import Row, detect
from sightline.tools.benchmark_models import build
from sightline.tools.main import main
from sightline.tools.timing import pictures
from sightline.training import score


def test_whole_command(mask_detector, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sightline.tools.benchmark_detection._peak_memory", lambda *_: None)
    table = shapes_table("val", 3, 64, masks=True)
    for i, path in enumerate(table.paths):
        write_image(tmp_path / "data" / f"{i}.png", read_shapes(path))
    table.paths = [str(tmp_path / "data" / f"{i}.png") for i in range(3)]
    for split in ("train", "val"):
        write_coco(table, tmp_path / "data" / f"instances_{split}.json")
    options = ["--size", "64", "64", "--repeats", "1", "--device", "cpu", "--json", str(tmp_path / "table.json")]
    assert main(["benchmark", mask_detector, "--data", str(tmp_path / "data"), *options]) == 0
    out = capsys.readouterr().out
    assert "AP  mask AP" in out
    (row,) = json.loads((tmp_path / "table.json").read_text())["rows"]
    expected = score(load(mask_detector, device="cpu"), table, progress=False).result.summary()
    assert (row["AP"], row["mask_AP"]) == pytest.approx((expected["AP"], expected["mask_AP"]))


def test_boxes_alone_have_no_column_of_masks():
    row = Row("a", 1, [1.0], {}, 1, 1.0, None, AP=0.5)
    assert "mask AP" not in text_table([row])
    row.mask_AP = 0.25
    assert text_table([row]).splitlines()[1].split()[2:4] == ["0.500", "0.250"]


def test_torchvision_s_masks_come_within_their_boxes():
    """What its own last step makes whole pictures of."""
    torch.manual_seed(0)
    peer = build("torchvision:maskrcnn_resnet50_fpn", "cpu")
    assert peer.task == "instance_segmentation"
    peer.network.rpn._post_nms_top_n["testing"], peer.network.roi_heads.detections_per_img = 20, 3  # which is quick
    batch = pictures(None, 1, (64, 64))
    found = detect(peer, batch)[0]
    assert found.masks.shape[1:] == (28, 28)
    transform = peer.network.transform
    transform.postprocess = partial(type(transform).postprocess, transform)
    with torch.inference_mode():
        (whole,) = peer.network([batch.images[0] / 255])
    torch.testing.assert_close(found.boxes, whole["boxes"])
    assert torch.equal(found.labels, whole["labels"] - 1)
    torch.testing.assert_close(paste_masks_in_image(found.masks[:, None], found.boxes, (64, 64)), whole["masks"])
    assert whole["masks"].max() > 0
