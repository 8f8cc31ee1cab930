"""Our operators in ONNX give what they give in PyTorch, in onnxruntime."""

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import roi_pool

from sightline.detectors.nms import nms
from sightline.detectors.onnx_operators import translations
from sightline.detectors.roi_align import roi_align

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")


def session(module, inputs, path):
    program = torch.export.export(module, inputs)
    table = translations(3)
    torch.onnx.export(program, inputs, dynamo=True, verbose=False, custom_translation_table=table).save(path)
    return onnxruntime.InferenceSession(path)


def answer(session, inputs):
    names = [value.name for value in session.get_inputs()]
    return torch.from_numpy(session.run(None, dict(zip(names, (x.numpy() for x in inputs), strict=True)))[0])


class Suppressed(nn.Module):
    def forward(self, boxes, valid, labels=None):
        return nms(boxes, valid, 0.5, labels)


def crowd(seed, groups=3, boxes=40):
    """Boxes that overlap much; the last group has none that count."""
    generator = torch.Generator().manual_seed(seed)
    corners = 60 * torch.rand(groups, boxes, 2, generator=generator)
    found = torch.cat([corners, corners + 10 + 20 * torch.rand(groups, boxes, 2, generator=generator)], -1)
    valid = torch.rand(groups, boxes, generator=generator) < 0.8
    valid[-1] = False
    return found, valid, torch.randint(3, (groups, boxes), generator=generator)


@pytest.mark.parametrize("labelled", [True, False])
def test_suppression(labelled, tmp_path):
    run = session(Suppressed(), crowd(0)[: 2 + labelled], tmp_path / "nms.onnx")
    for seed in range(20):
        inputs = crowd(seed)[: 2 + labelled]
        expected = Suppressed()(*inputs)
        assert 0 < expected.sum() < inputs[1].sum()
        assert torch.equal(answer(run, inputs), expected)


class Pooled(nn.Module):
    def __init__(self, strides):
        super().__init__()
        self.strides = strides

    def forward(self, rois, levels, *features):
        return roi_align(features, rois, levels, strides=self.strides, output_size=3, sampling_ratio=2)


@pytest.mark.parametrize("strides", [(4, 8, 16), (8,)])
def test_pooling(strides, tmp_path):
    """Regions reach over the picture's edge, are thinner than a cell, and leave a level without any."""
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(2, 5, 64 // stride, 96 // stride, generator=generator) for stride in strides]
    module, run = Pooled(strides), None
    for levels_used in range(len(strides), 0, -1):
        corners = 110 * torch.rand(2, 9, 2, generator=generator) - 20
        rois = torch.cat([corners, corners + 60 * torch.rand(2, 9, 2, generator=generator) ** 3], -1)
        levels = torch.randint(levels_used, (2, 9), generator=generator)
        inputs = (rois, levels, *features)
        run = run or session(module, inputs, tmp_path / "pool.onnx")
        np.testing.assert_allclose(answer(run, inputs), module(*inputs), atol=1e-5)


class LargestPooled(nn.Module):
    def forward(self, features, rois):
        return roi_pool(features, rois, (3, 4), 1 / 8)


def test_largest_pooling(tmp_path):
    """Regions end between cells, are thinner than one, and reach over the picture's edge."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 5, 8, 12, generator=generator)
    corners = 110 * torch.rand(40, 2, generator=generator) - 20
    ends = corners + 60 * torch.rand(40, 2, generator=generator) ** 3
    rois = torch.cat([torch.randint(2, (40, 1), generator=generator).float(), corners, ends], -1)
    run = session(LargestPooled(), (features, rois), tmp_path / "pool.onnx")
    np.testing.assert_array_equal(answer(run, (features, rois)), LargestPooled()(features, rois))
