"""Several looks at one picture: every view answers in the picture's own pixels, and the answers become one."""

import pytest
import torch
import torch.nn.functional as F

from sightline.datasets.masks import from_pixels, to_pixels
from sightline.datasets.proposals import Boxes, Proposer
from sightline.datasets.structures import Instances
from sightline.detectors import augmented, autoencoder, classifier, ensemble, faster_rcnn, localization
from sightline.detectors.augmented import View
from sightline.detectors.inference import find
from sightline.detectors.model import Detector
from sightline.segmentation import mask_rcnn


class BrightFinder(Detector):
    """In each channel the box around the bright pixels, with score 0.75; as labels, the channels. Knows no flips."""

    def __init__(self):
        super().__init__(mean=(0.5,) * 3, std=(0.5,) * 3, num_classes=3)
        self.layer, self.resize, self.seen = torch.nn.Linear(1, 1), (64, 96), []

    def forward(self, images, sizes):
        self.seen.append((tuple(images.shape[-2:]), sizes.tolist()))
        rows, columns = torch.arange(images.shape[-2]), torch.arange(images.shape[-1])
        inside = (rows < sizes[:, :1])[:, None, :, None] & (columns < sizes[:, 1:])[:, None, None]
        return (images > 127) & inside

    def decode(self, bright, sizes):
        edges = []
        for along in (bright.any(dim=2), bright.any(dim=3)):  # x, then y
            length = along.shape[-1]
            edges += [along.int().argmax(-1), length - along.flip(-1).int().argmax(-1)]
        boxes = torch.stack([edges[0], edges[2], edges[1], edges[3]], dim=-1).float()
        found = bright.any(dim=(2, 3))
        labels = torch.where(found, torch.arange(3), -1)
        return Instances(torch.where(found[..., None], boxes, 0), labels, torch.where(found, 0.75, 0.0))

    def losses(self, outputs, targets):
        return {"loss_box": (self.decode(outputs, None).boxes - targets.boxes).abs().sum()}


def pictures(frame=(64, 96)):
    """Two pictures of different sizes in one frame, and what is in them: (B, 3), a box in each channel."""
    sizes = torch.tensor([[64, 96], [47, 61]])
    boxes = torch.tensor(
        [[[3, 4, 20, 30], [50, 10, 96, 21], [40, 40, 44, 64]], [[0, 0, 9, 47], [30, 5, 60, 9], [1, 2, 61, 4]]]
    )
    images = torch.full((2, 3, *frame), 255, dtype=torch.uint8)  # bright where it does not count
    for image, size, rows in zip(images, sizes.tolist(), boxes.tolist(), strict=True):
        image[:, : size[0], : size[1]] = 0
        for channel, (x0, y0, x1, y1) in enumerate(rows):
            image[channel, y0:y1, x0:x1] = 255
    return images, sizes, Instances(boxes.float(), torch.arange(3).expand(2, 3).clone())


FLIPS = [(True, False), (False, True), (True, True)]


@pytest.mark.parametrize(("flipped", "upturned"), FLIPS, ids=["flipped", "upturned", "both"])
def test_mirrored_within_each_picture(flipped, upturned):
    """The valid part is that of the mirrored picture, and what is found is where it is."""
    images, sizes, truth = pictures()
    view = View(BrightFinder(), flipped=flipped, upturned=upturned)
    seen, axes = view.picture(images, sizes), [axis for axis, flip in ((-2, upturned), (-1, flipped)) if flip]
    for image, mirrored, (h, w) in zip(images, seen, sizes.tolist(), strict=True):
        assert torch.equal(mirrored[:, :h, :w], image[:, :h, :w].flip(axes))
    found = view.detect(images, sizes)
    assert torch.equal(found.boxes, truth.boxes)
    assert torch.equal(found.labels, truth.labels)


@pytest.mark.parametrize("options", [{"flip": True}, {"upturn": True}, {"flip": True, "upturn": True}], ids=str)
def test_a_detector_that_flips_do_not_matter_to(options):
    images, sizes, truth = pictures()
    model = BrightFinder()
    plain, found = model.detect(images, sizes), augmented(model, **options).detect(images, sizes)
    order = found.labels.argsort(dim=1)
    torch.testing.assert_close(found.boxes.gather(1, order[..., None].expand(-1, -1, 4)), plain.boxes)
    torch.testing.assert_close(found.scores, plain.scores)
    assert torch.equal(plain.boxes, truth.boxes)


@pytest.mark.parametrize("scale", [0.5, 0.8, 1.3, 2.0])
@pytest.mark.parametrize("flipped", [False, True])
def test_scaled(scale, flipped):
    """Frames are multiples of 32 that hold the scaled picture; boxes come back to within a pixel of the view."""
    images, sizes, truth = pictures()
    model = BrightFinder()
    found = View(model, scale=scale, flipped=flipped).detect(images, sizes)
    assert (found.boxes - truth.boxes).abs().max() <= 1 / scale + 1
    (frame, valid), exact = model.seen[0], sizes * scale
    assert all(side % 32 == 0 for side in frame)
    assert (torch.tensor(valid) - exact >= -1e-4).all()
    assert (torch.tensor(valid) - exact < 1).all()
    assert (torch.tensor(frame) - torch.tensor(valid).amax(0) < 32).all()


@pytest.mark.parametrize("scale", [0.75, 1.5])
def test_scaled_pixels(scale):
    """As F.interpolate scales the picture alone; of a smaller picture the padding stays outside."""
    images, sizes, _ = pictures()
    images = torch.where(torch.rand(images.shape) < 0.5, images, 100).to(torch.uint8)
    seen = View(BrightFinder(), scale=scale).picture(images, sizes)
    for image, found, (h, w) in zip(images, seen, sizes.tolist(), strict=True):
        alone = F.interpolate(image[None, :, :h, :w].float(), scale_factor=scale, mode="bilinear", antialias=True)[0]
        rows, columns = alone.shape[1] - 2, alone.shape[2] - 2  # the border repeats in one, and ends in the other
        torch.testing.assert_close(found[:, 2:rows, 2:columns], alone[:, 2:rows, 2:columns], rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "options", [{"flip": True}, {"scales": (0.7, 1.0, 1.3), "flip": True, "upturn": True}], ids=str
)
def test_a_batch_is_its_pictures(options):
    """Pictures in a common frame, with bright padding, and each alone in its own."""
    images, sizes, _ = pictures((96, 128))
    images = torch.where(torch.rand(images.shape) < 0.2, images.roll(5, dims=-1), images)
    together = augmented(BrightFinder(), **options).detect(images, sizes)
    for i, (h, w) in enumerate(sizes.tolist()):
        frame = [-(-h // 32) * 32, -(-w // 32) * 32]
        alone = augmented(BrightFinder(), **options).detect(
            images[i : i + 1, :, : frame[0], : frame[1]], sizes[i : i + 1]
        )
        torch.testing.assert_close(alone.boxes[0], together.boxes[i])
        assert torch.equal(alone.labels[0], together.labels[i])


@pytest.mark.parametrize("scale", [1.0, 0.6])
@pytest.mark.parametrize(("flipped", "upturned"), [(False, False), *FLIPS])
def test_there_and_back(scale, flipped, upturned):
    sizes = torch.tensor([[50, 80], [33, 64]])
    corner = torch.rand(2, 9, 2) * 20
    boxes = torch.cat([corner, corner + 1 + 10 * torch.rand(2, 9, 2)], dim=-1)
    masks = torch.rand(2, 9, 4, 4)
    view = View(BrightFinder(), scale=scale, flipped=flipped, upturned=upturned)
    there = view.there(Instances(boxes, torch.zeros(2, 9, dtype=torch.int64), masks=masks), sizes)
    assert (there.boxes[..., 2:] > there.boxes[..., :2]).all()
    assert torch.equal(there.masks, masks.flip([axis for axis, flip in ((-2, upturned), (-1, flipped)) if flip]))
    back = view.back(there, sizes)
    torch.testing.assert_close(back.boxes, boxes, rtol=0, atol=1e-4)
    assert torch.equal(back.masks, masks)


@pytest.mark.parametrize("options", [{"flip": True}, {"flip": True, "upturn": True}], ids=str)
@torch.inference_mode()
def test_a_mirrored_picture_has_mirrored_masks(options):
    """Both are among the looks, so what is found of the one is what is found of the other, mirrored."""
    model = mask_rcnn(
        "resnet10_narrow_fpn", 3, norm="group", anchor_sizes=((16,), (32,), (64,), (96,)), proposals=20,
        detections=7, head_width=16, mask_width=8, mask_layers=1,
    ).eval()  # fmt: skip
    together, mirror, (images, sizes, _) = augmented(model, **options), View(model, flipped=True), pictures()
    plain, other = together.detect(images, sizes), together.detect(mirror.picture(images, sizes), sizes)
    assert (plain.labels >= 0).any()
    assert plain.masks.shape == (2, 7, 28, 28)
    other = mirror.back(other, sizes)
    for column in ("labels", "scores", "masks"):
        torch.testing.assert_close(getattr(other, column), getattr(plain, column), rtol=0, atol=1e-4)
    present = plain.labels >= 0
    torch.testing.assert_close(other.boxes[present], plain.boxes[present], rtol=0, atol=1e-3)
    assert not torch.allclose(plain.masks[present], plain.masks[present].flip(-1), atol=1e-2)


def test_masks_are_where_the_objects_are():
    """Every look sees the same slopes, which are no mirror images of themselves."""
    images, sizes, _ = pictures()
    images = torch.where(torch.ones(64, 96).tril().bool(), images, 0).to(torch.uint8)
    plain = ShapeFinder().detect(images, sizes)
    found = augmented(ShapeFinder(), flip=True, upturn=True).detect(images, sizes)
    for i, size in enumerate(sizes.tolist()):
        one, several = plain[i], found[i]
        several = several[several.labels.argsort()]
        shown, expected = (to_pixels(each.masks, each.boxes, size) for each in (several, one))
        assert len(shown) == len(expected) > 0
        assert ((shown & expected).sum((1, 2)) / (shown | expected).sum((1, 2))).min() > 0.99


class ShapeFinder(BrightFinder):
    """A `BrightFinder` that gives masks: which pixels of the box are bright."""

    task = "instance_segmentation"

    def decode(self, bright, sizes):
        found = super().decode(bright, sizes)
        masks = torch.zeros(*found.labels.shape, 32, 32)
        for i, k in (found.labels >= 0).nonzero().tolist():
            masks[i, k] = torch.from_numpy(from_pixels(bright[i, k].numpy(), found.boxes[i, k].numpy(), 32))
        found.masks = masks
        return found


def small_detector():
    sizes = {"norm": "group", "anchor_sizes": ((16,), (32,), (64,), (96,)), "proposals": 20, "head_width": 16}
    return faster_rcnn("resnet10_narrow_fpn", 3, detections=7, **sizes).eval()


@torch.inference_mode()
def test_one_look_is_the_model():
    model, (images, sizes, _) = small_detector(), pictures()
    plain, found = model.detect(images, sizes), augmented(model).detect(images, sizes)
    assert (plain.labels >= 0).any()
    for column in ("boxes", "labels", "scores"):
        torch.testing.assert_close(getattr(found, column), getattr(plain, column))


def test_pictures_come_at_the_largest_scale():
    """So that an enlarged view has more to show; boxes are the original picture's all the same."""
    model = BrightFinder()
    together = augmented(model, scales=(0.5, 1, 1.5), flip=True)
    assert together.resize == (96, 144)
    image = torch.zeros(3, 200, 300, dtype=torch.uint8)
    image[1, 40:90, 60:250] = 255
    found = find(together, image)
    assert [frame for frame, _ in model.seen] == [(32, 64)] * 2 + [(64, 128)] * 2 + [(96, 160)] * 2
    assert found.labels.tolist() == [1]
    torch.testing.assert_close(found.boxes, torch.tensor([[60.0, 40, 250, 90]]), rtol=0, atol=4)


def test_losses_are_those_of_moved_targets():
    images, sizes, truth = pictures()
    together = augmented(BrightFinder(), flip=True, upturn=True)
    assert together.losses(together(images, sizes), truth)["loss_box"] == 0
    shifted = Instances(truth.boxes + 1, truth.labels)
    assert together.losses(together(images, sizes), shifted)["loss_box"] == 2 * 3 * 4


class Anywhere(Proposer):
    limit = 5

    def __call__(self, image):
        return Boxes(torch.zeros(0, 4).numpy(), torch.zeros(0).numpy())


class Echo(BrightFinder):
    """Finds its proposals."""

    def __init__(self):
        super().__init__()
        self.proposer = Anywhere()

    def forward(self, images, sizes, proposals=None):
        self.seen.append(proposals)
        return proposals

    def decode(self, proposals, sizes):
        return proposals


def test_proposals_move_as_the_picture_does():
    images, sizes, truth = pictures()
    proposals = Instances(truth.boxes, truth.labels, torch.tensor([[0.9, 0.8, 0.7]] * 2))
    model = Echo()
    found = augmented(model, scales=(0.5, 1), flip=True).detect(images, sizes, proposals)
    torch.testing.assert_close(found.boxes, truth.boxes)
    torch.testing.assert_close(found.scores, proposals.scores)
    torch.testing.assert_close(model.seen[1].boxes[1, 0], torch.tensor([61.0 - 9, 0, 61, 47]) / 2)


@torch.inference_mode()
def test_classifiers_average_their_probabilities():
    model = classifier("lenet", 6).eval()
    model.resize = (32, 32, True)
    images, sizes = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8), torch.tensor([[32, 32]] * 2)
    together = augmented(model, flip=True)
    expected = sum(model(each, sizes).logits.softmax(-1) for each in (images, images.flip(-1))) / 2
    torch.testing.assert_close(together.probabilities(together(images, sizes)), expected)
    assert together.task == "classification"
    assert together.resize == (32, 32, True)


@torch.inference_mode()
def test_an_ensemble_looks_several_times():
    members, (images, sizes, _) = [small_detector(), small_detector()], pictures()
    found = augmented(ensemble(members), flip=True).detect(images, sizes)
    assert (found.labels >= 0).any()
    assert found.boxes.shape == (2, 7, 4)


class Traceable(BrightFinder):
    def forward(self, images, sizes):
        return images > 127


@torch.inference_mode()
def test_compiles_whole():
    model, (images, sizes, _) = augmented(Traceable(), scales=(1, 1.5), flip=True, upturn=True), pictures()
    compiled = torch.compile(model.detect, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images, sizes).boxes, model.detect(images, sizes).boxes)


def test_landmarks_take_scales_and_no_flips():
    model = localization("resnet10_narrow", 3, norm="batch", landmarks=2, head_width=16).eval()
    images, sizes, _ = pictures()
    assert augmented(model, scales=(1, 1.5)).detect(images, sizes).landmarks.shape[-2:] == (2, 2)
    with pytest.raises(ValueError, match="leave out flips"):
        augmented(model, flip=True).detect(images, sizes)


def exact():
    model = BrightFinder()
    model.resize = (64, 48, True)
    return model


# name: model, options, what the message says
MISTAKES = {
    "no scales": (BrightFinder, {"scales": ()}, "one or more factors"),
    "zero": (BrightFinder, {"scales": (1, 0)}, r"got \[1, 0\]"),
    "no number": (BrightFinder, {"scales": (float("nan"),)}, "above 0"),
    "too large": (BrightFinder, {"scales": (11,)}, "up to 10"),
    "twice": (BrightFinder, {"scales": (1, 1.0)}, "counts once"),
    "one size": (exact, {"scales": (1, 2)}, "one input size, 64x48, takes flips and no scales"),
    "one size, one scale": (exact, {"scales": (2,)}, "takes flips and no scales"),
    "nothing found": (lambda: autoencoder("lenet"), {"flip": True}, "find nothing"),
}


@pytest.mark.parametrize(("model", "options", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_named(model, options, message):
    with pytest.raises(ValueError, match=message):
        augmented(model(), **options)
