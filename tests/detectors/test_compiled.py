"""Every detector is one graph: from pictures to detections, and from pictures and objects to losses."""

import copy
from functools import partial

import pytest
import torch

from sightline.datasets.structures import Instances
from sightline.detectors import (
    augmented,
    autoencoder,
    classifier,
    compiled,
    fast_rcnn,
    faster_rcnn,
    faster_rcnn_c5,
    localization,
    overfeat,
    rcnn,
    yolov1,
    yolox,
)
from sightline.detectors.compiled import compile_detect
from sightline.segmentation import mask_rcnn

MODELS = {
    "faster_rcnn": lambda: faster_rcnn("resnet18_fpn", 3, norm="batch", proposals=50, head_width=64),
    "faster_rcnn_c5": lambda: faster_rcnn_c5("resnet18", 3, norm="batch", proposals=50, head_width=64),
    "mask_rcnn": lambda: mask_rcnn("resnet18_fpn", 3, norm="batch", proposals=50, head_width=64),
    "fast_rcnn": lambda: fast_rcnn("resnet18", 3, norm="batch", head_width=64),
    "rcnn": lambda: rcnn("resnet18", 3, norm="batch", size=64, context=4, samples=16),
    "yolox": lambda: yolox("nano", 3),
    "yolox, one to one": lambda: yolox("nano", 3, one_to_one=True),
    "yolov1": lambda: yolov1("resnet18", 3, size=128, hidden=(64,)),
    "classifier": lambda: classifier("resnet18", 3),
    "localization": lambda: localization("resnet18", 3, norm="batch", objects=2),
    "overfeat": lambda: overfeat(3, network="small"),
    "autoencoder": lambda: autoencoder("resnet18"),
}
GUIDED = {"fast_rcnn", "rcnn"}  # look where they are told to
NAMES = ["faster_rcnn", *(pytest.param(name, marks=pytest.mark.slow) for name in MODELS if name != "faster_rcnn")]


def batch(name):
    images = torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8)
    sizes = torch.tensor([[128, 128], [100, 118]])
    boxes = torch.tensor([[[20.0, 30, 120, 100], [10, 10, 60, 90]]] * 2)
    masks = torch.rand(2, 2, 28, 28) if name == "mask_rcnn" else None
    targets = Instances(boxes, torch.tensor([[0, 2], [1, -1]]), masks=masks)
    inputs = (images, sizes)
    if name in GUIDED:
        corners = torch.rand(2, 40, 2) * 60
        boxes = torch.cat([corners, corners + 20 + 30 * torch.rand(2, 40, 2)], dim=-1)
        inputs = (*inputs, Instances(boxes, torch.zeros(2, 40, dtype=torch.int64)))
    return inputs, targets


@pytest.fixture
def one_graph(monkeypatch):
    """`torch.compile` as it is called, but without generating code: what cannot be one graph raises all the same."""
    monkeypatch.setattr(compiled.torch, "compile", partial(_traced, torch.compile))
    yield
    torch.compiler.reset()


def _traced(real, function, *, mode=None, **options):
    return real(function, backend="eager", **options)


@pytest.mark.parametrize("name", [*NAMES, pytest.param("several looks", marks=pytest.mark.slow)])
def test_detections(name, one_graph):
    model = (
        augmented(MODELS["yolox"](), scales=(1, 1.5), flip=True) if name == "several looks" else MODELS[name]()
    ).eval()
    inputs, _ = batch(name)
    with torch.inference_mode():
        expected = model.detect(*inputs)
        compile_detect(model)
        found = model.detect(*inputs)
    for ours, theirs in zip(vars(found).values(), vars(expected).values(), strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients(name, one_graph):
    from sightline.training.module import learn

    model = MODELS[name]()
    twin, (inputs, targets) = copy.deepcopy(model), batch(name)
    one_graph_of = torch.compile(learn, fullgraph=True)
    for network, function in ((model, learn), (twin, one_graph_of)):
        torch.manual_seed(1)
        losses, _ = function(network, inputs, targets)
        torch.stack(list(losses.values())).sum().backward()
    wanted = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    found = {key: p.grad for key, p in twin.named_parameters() if p.grad is not None}
    assert wanted
    assert found.keys() == wanted.keys()
    torch.testing.assert_close(found, wanted)


def test_without_a_compiler(monkeypatch):
    def failing(*_):
        raise OSError("no g++")

    real = torch.compile
    monkeypatch.setattr(compiled.torch, "compile", lambda function, **_: real(function, backend=failing))
    with pytest.raises(ValueError, match=r"no g.*a CPU needs a C.. compiler"):
        compiled.one_graph(lambda x: 2 * x)(torch.ones(3))


@torch._dynamo.config.patch(recompile_limit=1)
def test_too_many_sizes_are_not_compiled(one_graph, caplog):
    function = compiled.one_graph(lambda x: 2 * x)
    for size in (3, 4, 5, 3):
        assert torch.equal(function(torch.ones(size)), torch.full((size,), 2.0))
    assert caplog.text.count("so many sizes") == 1


@pytest.mark.slow
def test_generated_code_gives_the_same():
    model = MODELS["faster_rcnn"]().eval()
    inputs, _ = batch("faster_rcnn")
    with torch.inference_mode():
        expected = model.detect(*inputs)
        compile_detect(model)
        found = model.detect(*inputs)
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-4)
