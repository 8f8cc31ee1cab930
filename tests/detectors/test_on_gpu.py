"""On a GPU: nothing between the images and the detections, or the losses' gradients, waits for the device."""

import copy

import pytest
import torch

from sightline.datasets.structures import Instances
from sightline.detectors import (
    augmented,
    autoencoder,
    classifier,
    fast_rcnn,
    faster_rcnn,
    faster_rcnn_c5,
    localization,
    overfeat,
    rcnn,
    yolov1,
    yolox,
)
from sightline.detectors.roi_transformer import RoITransformer, upright_to_rotated

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

MODELS = {
    "pyramid": lambda: faster_rcnn("resnet18_fpn", 3, norm="batch", proposals=200),
    "one map": lambda: faster_rcnn_c5("resnet18", 3, norm="batch", proposals=200, head_width=256),
}

# Which look where they are told to.
TOLD = {
    "regions on one map": lambda: fast_rcnn("resnet18", 3, norm="batch", head_width=256),
    "regions on a pyramid": lambda: fast_rcnn("resnet18_fpn", 3, norm="batch"),
    "regions of the picture": lambda: rcnn("resnet18", 3, norm="batch", size=64, context=4, samples=16),
    "proposals in place of its own": MODELS["pyramid"],
}

# Whose answers are no regions.
OTHERS = {
    "classifier": lambda: classifier("resnet18", 3),
    "localization": lambda: localization("resnet18", 3, norm="batch", objects=2),
    "overfeat": lambda: overfeat(3, network="small"),
    "yolox": lambda: yolox("nano", 3),
    "yolox, one to one": lambda: yolox("nano", 3, one_to_one=True),
    "yolov1": lambda: yolov1("resnet18", 3, size=256, hidden=(64,)),
    "autoencoder": lambda: autoencoder("resnet18"),
    "several looks": lambda: augmented(MODELS["pyramid"](), scales=(1, 1.5), flip=True, upturn=True),
    "tied autoencoder": lambda: autoencoder("vgg11", tied=True),
}
EVERY = MODELS | TOLD | OTHERS


def batch(width=320):
    images = torch.randint(0, 256, (2, 3, 256, width), dtype=torch.uint8)
    sizes = torch.tensor([[256, width], [200, width - 10]])
    boxes = torch.tensor([[[20.0, 30, 120, 200], [100, 10, 300, 90], [0, 0, 0, 0]]] * 2)
    labels = torch.tensor([[0, 2, -1], [1, -1, -1]])
    return images.cuda(), sizes.cuda(), Instances(boxes, labels).to("cuda")


def proposals(name):
    """Given to those that want them: as many as inputs of `forward` after the sizes."""
    if name not in TOLD:
        return ()
    corners = torch.rand(2, 200, 4) * torch.tensor([200.0, 150, 100, 50])
    boxes = torch.cat([corners[..., :2], corners[..., :2] + corners[..., 2:] + 8], dim=-1)
    labels = torch.where(torch.arange(200) < 150, 0, -1).expand(2, -1)
    return (Instances(boxes, labels).to("cuda"),)


@pytest.fixture
def no_waiting():
    """A function after whose call anything that waits for the GPU is an error, until the test ends."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", EVERY)
def test_a_step_does_not_wait(name, no_waiting):
    model = EVERY[name]().cuda()
    images, sizes, targets = batch(256 if name == "yolov1" else 320)
    given = proposals(name)

    def step():
        with torch.autocast("cuda", torch.bfloat16):
            losses = model.losses(model(images, sizes, *given), targets)
        torch.stack(list(losses.values())).sum().backward()
        return losses

    step()  # compiles the kernel, chooses algorithms
    no_waiting()
    losses = step()
    torch.cuda.set_sync_debug_mode("default")
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", EVERY)
def test_detection_does_not_wait(name, no_waiting):
    model = EVERY[name]().cuda().eval()
    images, sizes, _ = batch(256 if name == "yolov1" else 320)
    given = proposals(name)
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        model.detect(images, sizes, *given)
        no_waiting()
        found = model.detect(images, sizes, *given)
    torch.cuda.set_sync_debug_mode("default")
    assert found.boxes.shape == (2, found.labels.shape[1], 4)
    assert name in OTHERS or found.labels.shape[1] == 100


def test_rotated_regions_do_not_wait(no_waiting):
    pool = RoITransformer((8, 16))
    maps = [torch.randn(2, 3, 256 // s, 320 // s, device="cuda", requires_grad=True) for s in (8, 16)]
    rois = upright_to_rotated(batch()[2].boxes).requires_grad_()
    pool(maps, rois).sum().backward()
    no_waiting()
    pool(maps, rois).sum().backward()
    torch.cuda.set_sync_debug_mode("default")
    assert all(x.grad is not None and x.grad.isfinite().all() for x in (*maps, rois))


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_the_same_on_the_cpu(name):
    """In float64 on both, where rounding decides nothing: only suppression is in float32 on the GPU."""
    model = MODELS[name]().double().eval()
    images, sizes, _ = batch()
    expected = model.detect(images.cpu(), sizes.cpu())
    found = model.cuda().detect(images, sizes).to("cpu")
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=1e-4, atol=1e-3)
    assert torch.equal(found.labels, expected.labels)


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_bfloat16_is_near_float32(name):
    """The second stage's word on the same regions; which regions survive may turn on the last bit."""
    model = MODELS[name]().cuda().eval()
    images, sizes, _ = batch()
    outputs = model(images, sizes)
    with torch.autocast("cuda", torch.bfloat16):
        half = model(images, sizes)
        logits, deltas = model.roi_heads(model._pooled(half.features), outputs.proposals.boxes)
        found = model.decode(half, sizes)
    exact_logits, exact_deltas = model.roi_heads(model._pooled(outputs.features), outputs.proposals.boxes)
    assert logits.dtype == deltas.dtype == found.boxes.dtype == found.scores.dtype == torch.float32
    for value, exact in ((logits, exact_logits), (deltas, exact_deltas)):
        assert (value - exact).abs().max() < 0.05 * exact.abs().max()


def test_the_second_gpu():
    """Triton launches on the current GPU, which need not be the model's."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    first = MODELS["pyramid"]().eval()
    second = copy.deepcopy(first).to("cuda:1")
    first = first.to("cuda:0")
    images, sizes, _ = batch()
    with torch.inference_mode():
        expected = first.detect(images, sizes)
        found = second.detect(images.to("cuda:1"), sizes.to("cuda:1"))
    torch.testing.assert_close(found.scores.cpu(), expected.scores.cpu(), rtol=1e-3, atol=1e-3)
