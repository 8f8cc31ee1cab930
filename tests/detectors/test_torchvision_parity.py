"""Our Faster R-CNN against torchvision's with the same weights (https://github.com/pytorch/vision), on photographs.

No trained detector is at hand, so weights are random from a seed. They are scaled on the photographs themselves, so
that activations stay of the order of one and scores spread over (0, 1): otherwise a deep network of random weights
saturates, and nothing would be compared. Both run in float64: in float32 a random network amplifies rounding until a
candidate on the edge of suppression falls on the other side, which says nothing of either implementation.
"""

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import detection as peers
from torchvision.models.resnet import Bottleneck
from torchvision.ops import FrozenBatchNorm2d, box_iou
from torchvision.transforms.functional import pil_to_tensor

from sightline.backbone import OLD_TORCHVISION, load_weights
from sightline.datasets.structures import Instances
from sightline.datasets.transforms import resize_exact
from sightline.detectors import faster_rcnn, faster_rcnn_mobilenet_v3, faster_rcnn_v2
from sightline.detectors.assignment import Samples, gather

MODELS = {
    "fasterrcnn_resnet50_fpn": (peers.fasterrcnn_resnet50_fpn, faster_rcnn, 2.0),
    "fasterrcnn_resnet50_fpn_v2": (peers.fasterrcnn_resnet50_fpn_v2, faster_rcnn_v2, 2.0),
    "fasterrcnn_mobilenet_v3_large_fpn": (peers.fasterrcnn_mobilenet_v3_large_fpn, faster_rcnn_mobilenet_v3, 2.0),
}


# To be quick. All else is torchvision's default.
SMALL = {
    "min_size": 256,
    "max_size": 400,
    "rpn_pre_nms_top_n_test": 200,
    "rpn_post_nms_top_n_test": 200,
    "box_batch_size_per_image": 64,
}


@pytest.fixture(params=MODELS, scope="module")
def pair(request, real_data):
    """torchvision's model, ours with its state dict, and photographs of two shapes (3, H, W) in 0..255."""
    photographs = [photograph(real_data("demo") / name) for name in ("dog.jpg", "horses.jpg")]
    make_peer, make_ours, spread = MODELS[request.param]
    torch.manual_seed(0)
    peer = make_peer(weights=None, weights_backbone=None, **SMALL)
    peer = peer.double().eval()
    calibrate(peer, photographs[0], spread)
    ours = make_ours(proposals=200).double()
    missing, unexpected = ours.load_state_dict(peer.state_dict(), strict=False)
    assert missing == ["normalize.mean", "normalize.std"]
    assert not [key for key in unexpected if "num_batches_tracked" not in key]
    return peer, ours.eval(), photographs


def photograph(path):
    return pil_to_tensor(Image.open(path).convert("RGB")).double()


@torch.no_grad()
def calibrate(model, image, spread):
    """Sets every norm's statistics to those of its input, and the last layers' scale to a given spread of outputs."""

    def standardise(norm, inputs):
        norm.running_mean.copy_(inputs[0].mean((0, 2, 3)))
        norm.running_var.copy_(inputs[0].var((0, 2, 3)))

    def rescale(layer, inputs, output):
        if layer in last:  # at its first call; the RPN's layers are called once a level
            layer.weight.mul_(last.pop(layer) / output.std())

    for module in model.modules():
        if isinstance(module, Bottleneck):
            module.bn3.weight.fill_(0.2)  # tames the residual branches, which amplify rounding from block to block
    last = {
        model.rpn.head.cls_logits: 0.5,
        model.rpn.head.bbox_pred: 0.2,
        model.roi_heads.box_predictor.cls_score: spread,
        model.roi_heads.box_predictor.bbox_pred: 1.0,
    }
    norms = [m for m in model.modules() if isinstance(m, (nn.BatchNorm2d, FrozenBatchNorm2d))]
    hooks = [norm.register_forward_pre_hook(standardise) for norm in norms]
    hooks += [layer.register_forward_hook(rescale) for layer in last]
    model([image / 255])
    for hook in hooks:
        hook.remove()


def our_batch(peer, images):
    """The batch as torchvision's own transform makes it, but still in 0..255, as our models take it."""
    batch, _ = peer.transform([image / 255 for image in images])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (peer.transform.image_mean, peer.transform.image_std))
    return (batch.tensors * std + mean) * 255, torch.tensor(batch.image_sizes)


@torch.inference_mode()
def test_same_boxes_and_scores(pair):
    """Of a batch of two shapes, padding included."""
    peer, ours, photographs = pair
    expected = peer([image / 255 for image in photographs])
    images, sizes = our_batch(peer, photographs)
    found = ours.detect(images, sizes)
    for i, wanted in enumerate(expected):
        assert_same_detections(found[i], wanted, photographs[i].shape[1:], sizes[i])


@torch.inference_mode()
def test_same_detections_from_the_picture_itself(pair):
    """Our resize, normalisation and padding stand for torchvision's transform."""
    peer, ours, photographs = pair
    image = photographs[0]
    (expected,) = peer([image / 255])
    resized = resize_exact(image, peer.transform.min_size[0], peer.transform.max_size)
    height, width = resized.shape[1:]
    frame = torch.zeros(1, 3, -(-height // 32) * 32, -(-width // 32) * 32, dtype=image.dtype)
    frame[0, :, :height, :width] = resized
    sizes = torch.tensor([[height, width]])
    assert_same_detections(ours.detect(frame, sizes)[0], expected, image.shape[1:], sizes[0])


def assert_same_detections(mine, wanted, original, size):
    """The same detections to 0.01 pixel and 1e-5; those of all but equal scores may have changed places.

    Args:
        mine: Instances in the resized picture's pixels.
        wanted: torchvision's dictionary, in the original picture's pixels.
        original, size: (height, width) of the original and of the resized picture.
    """
    assert len(mine) == len(wanted["boxes"]) >= 20
    assert wanted["scores"].max() < 0.9999  # nothing saturates, so equal scores mean something
    scale = torch.tensor([original[1] / size[1], original[0] / size[0]]).repeat(2)
    away = (mine.boxes[:, None] * scale - wanted["boxes"]).abs().amax(dim=2)
    away += 1e6 * (mine.labels[:, None] + 1 != wanted["labels"])
    distance, partner = away.min(dim=0)
    # The last places of a full list may go to either of two detections of equal score.
    settled = wanted["scores"] > wanted["scores"].min() + 1e-5 if len(mine) == 100 else wanted["scores"] > 0
    assert settled.sum() >= 20
    assert distance[settled].max() < 0.01
    assert (mine.scores[partner] - wanted["scores"])[settled].abs().max() < 1e-5
    assert len(partner[settled].unique()) == settled.sum()


@torch.inference_mode()
def test_same_losses_for_the_same_samples(pair):
    """torchvision draws its samples; we compute our losses from exactly those."""
    peer, ours, photographs = pair
    images, sizes = our_batch(peer, photographs)
    boxes = [  # in the resized pictures
        torch.tensor([[60.0, 80.0, 300.0, 400.0], [200.0, 30.0, 420.0, 200.0]]),
        torch.tensor([[100.0, 100.0, 200.0, 260.0], [0.0, 20.0, 40.0, 60.0], [300.0, 200.0, 500.0, 380.0]]),
    ]
    labels = [torch.tensor([3, 17]), torch.tensor([0, 89, 5])]
    drawn, regions = [], []
    peer.rpn.fg_bg_sampler = spy(peer.rpn.fg_bg_sampler, drawn)
    peer.roi_heads.select_training_samples = spy(peer.roi_heads.select_training_samples, regions)

    # torchvision wants targets in the original picture's pixels, and gives losses only in train(), where its own norms
    # are frozen or, in the v2 model, follow the batch; the latter are put back to eval.
    peer.train()
    for module in peer.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    targets = []
    for image, box, label, size in zip(photographs, boxes, labels, sizes, strict=True):
        scale = torch.tensor([image.shape[2] / size[1], image.shape[1] / size[0]]).repeat(2)
        targets.append({"boxes": (box * scale).double(), "labels": label + 1})
    expected = peer([image / 255 for image in photographs], targets)

    instances = Instances.collate([Instances(b.double(), c) for b, c in zip(boxes, labels, strict=True)])
    outputs = ours(images, sizes)
    sampled = samples_from(zip(*drawn[0], strict=True))
    matched = nearest(outputs.proposals.anchors[sampled.idxs], instances)
    mine = ours.rpn.sampled_losses(outputs.proposals, instances, matched, sampled)
    rois, roi_labels = torch.stack(regions[0][0]), torch.stack(regions[0][2])
    sampled = Samples(torch.zeros_like(roi_labels), roi_labels > 0, roi_labels >= 0)
    mine |= ours.roi_heads.sampled_losses(
        ours._pooled(outputs.features), rois, instances, nearest(rois, instances), sampled
    )
    names = {
        "loss_objectness": "loss_objectness",
        "loss_rpn_box": "loss_rpn_box_reg",
        "loss_cls": "loss_classifier",
        "loss_box": "loss_box_reg",
    }
    for our_name, peer_name in names.items():
        assert expected[peer_name] > 1e-3
        torch.testing.assert_close(mine[our_name], expected[peer_name].double(), rtol=1e-5, atol=1e-5)


def spy(function, into):
    def wrapper(*args):
        result = function(*args)
        into.append(result)
        return result

    return wrapper


def samples_from(masks):
    """Samples from torchvision's pairs of 0/1 masks over an image's anchors."""
    masks = list(masks)
    idxs = [torch.where(foreground | background)[0] for foreground, background in masks]
    foreground = [mask[0].bool()[i] for mask, i in zip(masks, idxs, strict=True)]
    idxs = torch.stack(idxs)
    return Samples(idxs, torch.stack(foreground), torch.ones_like(idxs, dtype=torch.bool))


def nearest(boxes, targets):
    """Each box's object of highest IoU, by torchvision's own function."""
    return torch.stack([box_iou(own, targets[i].boxes).argmax(dim=1) for i, own in enumerate(boxes)])


def test_old_state_dicts_load(tmp_path):
    """torchvision's published file of 2018 has keys of an older style."""
    ours = faster_rcnn("resnet18_fpn", num_classes=5)
    old = {}
    for key, value in ours.state_dict().items():
        if key.startswith("normalize."):
            continue
        key = key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        for block in ("inner_blocks", "layer_blocks"):
            for i in range(4):
                key = key.replace(f"{block}.{i}.0.", f"{block}.{i}.")
        old[key] = value
    torch.save(old, tmp_path / "old.pth")
    report = load_weights(ours, tmp_path / "old.pth", rename=OLD_TORCHVISION, allow_missing=("normalize.",))
    assert report.missing == ["normalize.mean", "normalize.std"]
    assert not report.unexpected


def test_gather_keeps_rows():
    values = torch.arange(24.0).view(2, 3, 4)
    assert torch.equal(gather(values, torch.tensor([[2, 0], [1, 1]]))[1, 0], values[1, 1])
