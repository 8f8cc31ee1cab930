"""Mask R-CNN as a whole: torchvision's numbers with its weights, three verbs, no waiting, learning.

No trained one is at hand: weights are random from a seed, with every norm's statistics and the last layers' scale set on
a picture, so that activations stay of the order of one and scores spread over (0, 1). Both run in float64, see
`tests/detectors/test_torchvision_parity.py`.
"""

import pytest
import torch
from torch import nn
from torchvision.models import detection as peers
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.resnet import BasicBlock
from torchvision.ops import box_iou

from sightline.backbone.sources import SOURCES
from sightline.datasets import shapes
from sightline.datasets.masks import from_pixels, to_pixels, whole_pixels
from sightline.datasets.structures import Instances
from sightline.detectors.assignment import Samples
from sightline.segmentation import INSTANCE_SEGMENTERS, load, mask_rcnn, mask_rcnn_v2, save

CLASSES = 3
NAMES = {"loss_objectness", "loss_rpn_box", "loss_cls", "loss_box", "loss_mask"}
# Pictures of 128 pixels are not resized, and few regions are quick. All else is torchvision's default.
SMALL = {
    "min_size": 128,
    "max_size": 256,
    "rpn_pre_nms_top_n_test": 24,
    "rpn_post_nms_top_n_test": 24,
    "rpn_pre_nms_top_n_train": 24,
    "rpn_post_nms_top_n_train": 24,
    "box_batch_size_per_image": 16,
    "box_detections_per_img": 10,
}


def tiny(num_classes=CLASSES, *, norm="batch", samples=64):
    sizes = ((16,), (32,), (64,), (128,))
    small = {"proposals": 40, "detections": 20, "head_width": 128, "mask_width": 32, "mask_layers": 2}
    return mask_rcnn("resnet10_narrow_fpn", num_classes, norm=norm, anchor_sizes=sizes, samples=samples, **small)


FEW = {"norm": "batch", "proposals": 16, "detections": 10, "head_width": 64, "mask_width": 16}
MODELS = {
    "mask_rcnn on a narrow pyramid": tiny,
    "mask_rcnn": lambda: mask_rcnn("resnet18_fpn", CLASSES, **FEW),
    "mask_rcnn on MobileNetV2": lambda: mask_rcnn("mobilenet_v2_lite_fpn", CLASSES, **FEW, mask_layers=1),
    "mask_rcnn_v2": lambda: mask_rcnn_v2("resnet18_fpn", CLASSES, proposals=16, detections=10),
}


@pytest.fixture(params=MODELS)
def model(request):
    built = MODELS[request.param]()
    built.roi_heads.samples = 16
    return built


# torchvision's numbers.


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [(peers.maskrcnn_resnet50_fpn, mask_rcnn), (peers.maskrcnn_resnet50_fpn_v2, mask_rcnn_v2)],
    ids=["mask_rcnn", "mask_rcnn_v2"],
)
def test_state_dicts_are_torchvisions(theirs, ours):
    with torch.device("meta"):
        theirs, ours = theirs(weights=None, weights_backbone=None).state_dict(), ours().state_dict()
    theirs = {key: value.shape for key, value in theirs.items() if "num_batches_tracked" not in key}
    ours = {key: value.shape for key, value in ours.items() if "num_batches_tracked" not in key}
    assert theirs == {key: shape for key, shape in ours.items() if not key.startswith("normalize.")}


def their_model():
    """`maskrcnn_resnet50_fpn` on ResNet-18."""
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d)
    return peers.MaskRCNN(backbone, num_classes=21, **SMALL)


def their_model_v2():
    """`maskrcnn_resnet50_fpn_v2` on ResNet-18; the norms of its pyramid are tested with Faster R-CNN's."""
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d)
    heads = {
        "rpn_head": peers.rpn.RPNHead(256, 3, conv_depth=2),
        "box_head": peers.faster_rcnn.FastRCNNConvFCHead((256, 7, 7), [256] * 4, [1024], norm_layer=nn.BatchNorm2d),
        "mask_head": peers.mask_rcnn.MaskRCNNHeads(256, [256] * 4, 1, norm_layer=nn.BatchNorm2d),
    }
    return peers.MaskRCNN(backbone, num_classes=21, **heads, **SMALL)


PEERS = {"mask_rcnn": (their_model, mask_rcnn), "mask_rcnn_v2": (their_model_v2, mask_rcnn_v2)}


@pytest.fixture(params=PEERS, scope="module")
def pair(request):
    """torchvision's model, ours with its state dict, and two pictures (3, H, W) in 0..255."""
    pictures = [torch.from_numpy(shapes.draw(0, i, 192).image).permute(2, 0, 1).double() for i in (3, 5)]
    pictures = [pictures[0][:, :128, :], pictures[1][:, :128, :128]]
    make_peer, make_ours = PEERS[request.param]
    torch.manual_seed(0)
    peer = make_peer().double().eval()
    calibrate(peer, pictures[0])
    ours = make_ours("resnet18_fpn", 20, proposals=24, detections=10).double().eval()
    missing, unexpected = ours.load_state_dict(peer.state_dict(), strict=False)
    assert missing == ["normalize.mean", "normalize.std"]
    assert not [key for key in unexpected if "num_batches_tracked" not in key]
    return peer, ours, pictures


@torch.no_grad()
def calibrate(model, image):
    def standardise(norm, inputs):
        norm.running_mean.copy_(inputs[0].mean((0, 2, 3)))
        norm.running_var.copy_(inputs[0].var((0, 2, 3)))

    def rescale(layer, inputs, output):
        if layer in last:  # at its first call; the RPN's layers are called once a level
            layer.weight.mul_(last.pop(layer) / output.std())
            return layer(*inputs)

    for module in model.modules():
        if isinstance(module, BasicBlock):
            module.bn2.weight.fill_(0.2)  # tames the residual branches, which amplify rounding from block to block
    heads = model.roi_heads
    last = {model.rpn.head.cls_logits: 0.5, model.rpn.head.bbox_pred: 0.2, heads.box_predictor.cls_score: 2.0}
    last |= {heads.box_predictor.bbox_pred: 1.0, heads.mask_predictor.mask_fcn_logits: 2.0}
    hooks = [m.register_forward_pre_hook(standardise) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    hooks += [layer.register_forward_hook(rescale) for layer in last]
    model([image / 255])
    assert not last
    for hook in hooks:
        hook.remove()


def our_batch(peer, pictures):
    """The batch as torchvision's own transform makes it, but still in 0..255, as our models take it."""
    batch, _ = peer.transform([picture / 255 for picture in pictures])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (peer.transform.image_mean, peer.transform.image_std))
    return (batch.tensors * std + mean) * 255, torch.tensor(batch.image_sizes)


@torch.inference_mode()
def test_same_boxes_scores_and_masks(pair):
    """Of a batch of two shapes, padding included; masks both compact and in the whole picture."""
    peer, ours, pictures = pair
    compact = []
    hook = peer.roi_heads.register_forward_hook(lambda m, i, output: compact.extend(r["masks"] for r in output[0]))
    expected = peer([picture / 255 for picture in pictures])
    hook.remove()
    images, sizes = our_batch(peer, pictures)
    batch = ours.detect(images, sizes)
    assert batch.masks.shape == (2, 10, 28, 28)
    for i, wanted in enumerate(expected):
        found = batch[i]
        away = (found.boxes[:, None] - wanted["boxes"]).abs().amax(dim=2)
        distance, partner = (away + 1e6 * (found.labels[:, None] + 1 != wanted["labels"])).min(dim=0)
        # The last places of a full list may go to either of two detections of equal score.
        settled = wanted["scores"] > wanted["scores"].min() + 1e-5
        assert settled.sum() >= 5
        assert distance[settled].max() < 1e-4
        assert (found.scores[partner] - wanted["scores"])[settled].abs().max() < 1e-5
        masks, theirs = found.masks[partner][settled], compact[i][settled, 0]
        assert theirs.std() > 0.2  # neither saturated nor flat
        torch.testing.assert_close(masks, theirs, rtol=0, atol=1e-5)
        size = tuple(pictures[i].shape[1:])
        frames = to_pixels(*whole_pixels(masks, wanted["boxes"][settled]), size, threshold=None)
        torch.testing.assert_close(frames, wanted["masks"][settled, 0].float(), rtol=0, atol=1e-4)


def crafted():
    """Boxes of whole cells, of which objects fill halves, and regions: what a compact mask says exactly.

    Returns, picture by picture: boxes, labels from 0, the filled part of the box, regions and which object each goes with.
    """
    first = torch.tensor([[20.0, 24, 104, 80], [8, 36, 64, 120]]), torch.tensor([3, 17]), ["left", "lower"]
    second = torch.tensor([[30.0, 30, 114, 114]]), torch.tensor([9]), ["left"]
    rois = [torch.tensor([[20.0, 24, 104, 80], [24, 20, 80, 76], [90, 60, 118, 88], [8, 36, 64, 120], [6, 40, 62, 96]])]
    rois.append(
        torch.tensor([[30.0, 30, 114, 114], [20, 34, 104, 118], [2, 3, 58, 31], [34, 30, 90, 114], [96, 2, 124, 30]])
    )
    return [(*first, rois[0], torch.tensor([0, 0, -1, 1, 1])), (*second, rois[1], torch.tensor([0, 0, -1, 0, -1]))]


def filled(boxes, parts, size):
    """(N, H, W), the objects that fill the left or the lower half of their boxes."""
    pictures = torch.zeros(len(boxes), *size)
    for picture, (x0, y0, x1, y1), part in zip(pictures, boxes.int().tolist(), parts, strict=True):
        if part == "left":
            picture[y0:y1, x0 : (x0 + x1) // 2] = 1
        else:
            picture[(y0 + y1) // 2 : y1, x0:x1] = 1
    return pictures


def compact_masks(pictures, boxes):
    return torch.stack(
        [torch.from_numpy(from_pixels(p.numpy() > 0, b.numpy(), 28)) for p, b in zip(pictures, boxes, strict=True)]
    )


def test_same_losses_for_the_same_samples(pair):
    peer, ours, pictures = pair
    images, sizes = our_batch(peer, pictures)
    scenes, targets, instances = crafted(), [], []
    for picture, (boxes, labels, parts, _, _) in zip(pictures, scenes, strict=True):
        whole = filled(boxes, parts, picture.shape[1:])
        targets.append({"boxes": boxes.double(), "labels": labels + 1, "masks": whole})
        instances.append(Instances(boxes.double(), labels, masks=compact_masks(whole, boxes).double()))
    instances = Instances.collate(instances)
    rois = torch.stack([scene[3] for scene in scenes]).double()
    matched = torch.stack([scene[4] for scene in scenes])

    def select(proposals, targets):
        labels = [torch.where(m >= 0, t["labels"][m], 0) for m, t in zip(matched, targets, strict=True)]
        boxes = [t["boxes"][m.clamp(min=0)] for m, t in zip(matched, targets, strict=True)]
        return list(rois), list(matched.clamp(min=0)), labels, peer.roi_heads.box_coder.encode(boxes, list(rois))

    peer.roi_heads.select_training_samples = select
    peer.train()
    for module in peer.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    expected = peer([picture / 255 for picture in pictures], targets)
    peer.eval()

    features = ours._pooled(ours(images, sizes).features)
    sampled = Samples(matched, matched >= 0, torch.ones_like(matched, dtype=torch.bool))
    mine = {}
    for shift in (0.0, 0.5):
        ours.roi_heads.truth_shift = shift
        mine[shift] = ours.roi_heads.sampled_losses(features, rois, instances, matched.clamp(min=0), sampled)
    del ours.roi_heads.truth_shift
    for our_name, peer_name in {
        "loss_cls": "loss_classifier",
        "loss_box": "loss_box_reg",
        "loss_mask": "loss_mask",
    }.items():
        assert expected[peer_name] > 1e-3
        torch.testing.assert_close(mine[0.5][our_name], expected[peer_name].double(), rtol=1e-5, atol=1e-5)
    # Half a pixel, of regions of some 60, changes little.
    torch.testing.assert_close(mine[0.0]["loss_mask"], expected["loss_mask"].double(), rtol=0.03, atol=0)


def test_published_weights_are_named_and_old_keys_load(tmp_path):
    assert SOURCES["mask_rcnn:resnet50_fpn"]["coco"].endswith("maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth")
    assert SOURCES["mask_rcnn_v2:resnet50_fpn_v2"]["coco"].endswith("maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth")
    trained = mask_rcnn("resnet18_fpn", 5, head_width=16)
    old = {}
    for key, value in trained.state_dict().items():
        key = key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        for i in range(4):
            key = key.replace(f"inner_blocks.{i}.0.", f"inner_blocks.{i}.").replace(
                f"layer_blocks.{i}.0.", f"layer_blocks.{i}."
            )
            key = key.replace(f"mask_head.{i}.0.", f"mask_head.mask_fcn{i + 1}.")
        old[key] = value
    assert "roi_heads.mask_head.mask_fcn4.bias" in old
    torch.save(old, tmp_path / "old.pth")
    loaded = mask_rcnn("resnet18_fpn", 5, head_width=16, weights=str(tmp_path / "old.pth"))
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in trained.state_dict().items())
    other = mask_rcnn("resnet18_fpn", 2, head_width=16, weights=str(tmp_path / "old.pth"))  # last layers begin anew
    assert torch.equal(
        other.roi_heads.mask_predictor.conv5_mask.weight, trained.roi_heads.mask_predictor.conv5_mask.weight
    )
    assert other.roi_heads.mask_predictor.mask_fcn_logits.weight.shape[0] == 3


# Three verbs.


def batch(frame=(64, 96), sizes=((64, 96), (50, 70))):
    """Noise in frames of (height, width), zero outside each image's size."""
    sizes = torch.tensor(sizes)
    images = torch.randint(0, 256, (len(sizes), 3, *frame), dtype=torch.uint8)
    for image, (height, width) in zip(images, sizes.tolist(), strict=True):
        image[:, height:], image[:, :, width:] = 0, 0
    return images, sizes


def truth(padding=0, garbage=0.0, side=28):
    """Two objects in the first image, one in the second, and padding after them."""
    boxes = [torch.tensor([[4.0, 6.0, 40.0, 50.0], [30.0, 20.0, 90.0, 60.0]]), torch.tensor([[10.0, 2.0, 70.0, 60.0]])]
    labels = [torch.tensor([2, 0]), torch.tensor([1])]
    disc = (torch.linspace(-1, 1, side) ** 2 + torch.linspace(-1, 1, side)[:, None] ** 2 < 0.8).float()
    masks = [disc.expand(len(own), -1, -1) for own in boxes]
    objects = [Instances(b, c, masks=m) for b, c, m in zip(boxes, labels, masks, strict=True)]
    together = Instances.collate(objects, size=2 + padding)
    empty = together.labels < 0
    together.boxes[empty], together.masks[empty] = garbage, garbage
    return together


def total(losses):
    return torch.stack(list(losses.values())).sum()


def test_every_builder_is_listed_and_tested():
    ours = {name for name in INSTANCE_SEGMENTERS if name.startswith("mask_rcnn")}
    assert ours == {name.split(" ")[0] for name in MODELS} == set(PEERS)


def test_three_verbs_and_a_gradient_for_every_parameter(model):
    images, sizes = batch()
    assert model.task == "instance_segmentation"
    for mode in (True, False):
        model.train(mode)
        outputs = model(images, sizes)
        losses = model.losses(outputs, truth())
        assert set(losses) == NAMES
        assert all(loss.ndim == 0 and loss.isfinite() and loss > 0 for loss in losses.values())
        found = model.decode(outputs, sizes)
        assert found.masks.shape == (*found.labels.shape, 28, 28)
        assert found.masks.dtype == torch.float32
        assert (found.masks[found.labels < 0] == 0).all()
        assert (found.labels >= 0).any()
        assert found.masks[found.labels >= 0].std() > 0
        model.zero_grad()
        total(losses).backward()
        without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert without == []


@torch.inference_mode()
def test_a_batch_gives_what_its_images_give_alone(model):
    model.double().eval()
    images, sizes = batch()
    together = model.detect(images, sizes)
    for i in range(2):
        alone = model.detect(images[i : i + 1], sizes[i : i + 1])
        torch.testing.assert_close(together.boxes[i : i + 1], alone.boxes)
        torch.testing.assert_close(together.masks[i : i + 1], alone.masks)


@pytest.mark.parametrize("garbage", [1e30, torch.nan])
def test_padded_objects_change_no_loss_and_no_gradient(garbage):
    model = tiny(samples=10**6).double().eval()
    model.rpn.samples, model.rpn.foreground_share, model.roi_heads.foreground_share = 10**6, 1.0, 1.0
    images, sizes = batch()
    results = []
    for targets in (truth(), truth(padding=30, garbage=garbage)):
        model.zero_grad()
        losses = model.losses(model(images, sizes), targets)
        total(losses).backward()
        results.append([*losses.values(), *(p.grad.clone() for p in model.parameters())])
    for few, many in zip(*results, strict=True):
        torch.testing.assert_close(few, many)


def test_crowds_are_not_learnt(model):
    images, sizes = batch()
    targets = truth()
    targets.crowd = torch.ones_like(targets.labels, dtype=torch.bool)
    losses = model.losses(model(images, sizes), targets)
    assert losses["loss_mask"] == losses["loss_box"] == 0
    total(losses).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_images_without_objects(model):
    images, sizes = batch()
    nothing = Instances(
        torch.full((2, 3, 4), torch.nan), torch.full((2, 3), -1), masks=torch.full((2, 3, 28, 28), torch.nan)
    )
    losses = model.losses(model(images, sizes), nothing)
    assert losses["loss_mask"] == 0
    total(losses).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_masks_of_any_resolution_are_learnt():
    model = tiny(samples=10**6).eval()
    model.roi_heads.foreground_share = 1.0
    images, sizes = batch()
    outputs = model(images, sizes)
    coarse, fine = (model.losses(outputs, truth(side=side))["loss_mask"] for side in (28, 112))
    torch.testing.assert_close(coarse, fine, rtol=0.02, atol=0)


def test_autocast_to_bfloat16():
    model = tiny()
    images, sizes = batch()
    exact = model.losses(model(images, sizes), truth())["loss_mask"]
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(images, sizes)
        losses = model.losses(outputs, truth())
        found = model.decode(outputs, sizes)
    total(losses).backward()
    assert losses["loss_mask"].dtype == found.masks.dtype == torch.float32
    torch.testing.assert_close(losses["loss_mask"], exact, rtol=0.1, atol=0)


# Nothing waits for the device: shapes and branches do not depend on values.


def test_detection_can_be_exported():
    model = tiny().eval()
    images, sizes = batch()

    class Detect(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, images, sizes):
            found = self.model.detect(images, sizes)
            return found.boxes, found.masks

    program = torch.export.export(Detect().eval(), (images, sizes))
    for one, other in zip(program.module()(images, sizes), Detect()(images, sizes), strict=True):
        torch.testing.assert_close(one, other)


def test_losses_compile_in_one_piece():
    torch._dynamo.reset()
    heads = tiny(samples=10**6).eval().roi_heads
    heads.foreground_share = 1.0  # nothing is left to chance
    targets = truth(padding=2)
    features = [torch.randn(2, 64, 64 // stride, 96 // stride) for stride in heads.pool.strides]
    rois = torch.cat([targets.boxes + 3, targets.boxes - 2], dim=1).nan_to_num()
    inputs = features, rois, torch.ones(rois.shape[:2], dtype=torch.bool), targets
    fast = torch.compile(heads.losses, fullgraph=True, backend="eager")(*inputs)
    for name, slow in heads.losses(*inputs).items():
        torch.testing.assert_close(fast[name], slow)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_neither_a_step_nor_detection_waits():
    model = mask_rcnn("resnet18_fpn", CLASSES, norm="batch", proposals=200).cuda()
    images, sizes = (value.cuda() for value in batch(frame=(256, 320), sizes=((256, 320), (200, 310))))
    targets = truth(padding=3).to("cuda")

    def step():
        with torch.autocast("cuda", torch.bfloat16):
            outputs = model(images, sizes)
            losses, found = model.losses(outputs, targets), model.decode(outputs, sizes)
        total(losses).backward()
        return losses, found

    step()  # compiles the kernel, chooses algorithms
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses, found = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(loss.isfinite() for loss in losses.values())
    assert found.masks.shape == (2, 100, 28, 28)


# Use.


def test_a_checkpoint_is_the_same_model(tmp_path):
    model = tiny().eval()
    model.categories = ["a", "b", "c"]
    save(model, tmp_path / "m.ckpt")
    again = load(tmp_path / "m.ckpt", device="cpu").eval()
    images, sizes = batch()
    assert again.categories == ["a", "b", "c"]
    assert torch.equal(model.detect(images, sizes).masks, again.detect(images, sizes).masks)


def test_predict_gives_masks_in_the_pictures_pixels():
    model = tiny().eval()
    model.resize = (64, 96)
    (found,) = model.predict(shapes.draw(0, 0, 100).image, score=0.0)
    assert len(found)
    assert found.masks.shape == (len(found), 28, 28)
    assert to_pixels(found.masks, found.boxes, (100, 100)).shape == (len(found), 100, 100)


@pytest.mark.parametrize("builder", INSTANCE_SEGMENTERS.values())
def test_a_misspelt_argument_is_an_error(builder):
    with pytest.raises(TypeError, match="num_clases"):
        builder(num_clases=3)


@pytest.mark.slow
def test_learns_the_masks_of_a_picture():
    """From nothing to every object's pixels, in seconds."""
    torch.manual_seed(0)
    model = tiny(len(shapes.CATEGORIES), norm="group", samples=64)
    picture = shapes.draw(seed=0, index=6, size=96)
    image, sizes = torch.from_numpy(picture.image).permute(2, 0, 1)[None], torch.tensor([[96, 96]])
    boxes, whole = torch.from_numpy(picture.boxes), torch.from_numpy(picture.masks)
    targets = Instances(boxes, torch.from_numpy(picture.labels), masks=compact_masks(whole, boxes)).map(
        lambda t: t[None]
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    history = []
    for _ in range(100):
        losses = model.losses(model(image, sizes), targets)
        optimizer.zero_grad()
        total(losses).backward()
        optimizer.step()
        history.append(losses["loss_mask"].item())
    assert sum(history[-10:]) / 10 < history[0] / 4
    with torch.no_grad():
        found = model.eval().detect(image, sizes)[0]
    found = found[found.scores > 0.5]
    assert len(found) == len(boxes)
    partner = box_iou(boxes, found.boxes).argmax(dim=1)
    assert torch.equal(found.labels[partner], torch.from_numpy(picture.labels))
    drawn = to_pixels(found.masks, found.boxes, (96, 96))[partner]
    ious = (drawn & whole.bool()).sum((1, 2)) / (drawn | whole.bool()).sum((1, 2))
    assert ious.min() > 0.8
