"""The types that flow: what they refuse, and that nothing is lost through batches, exports and transforms."""

from dataclasses import replace

import pytest
import torch
from torch.utils import _pytree as pytree
from torchvision import tv_tensors
from torchvision.transforms import v2

from sightline.datasets.structures import Batch, ImageInfo, Instances, Sample

INFO = ImageInfo(1, "one.jpg", (40, 60))


def make_instances(*leading, scores=True, masks=False, crowd=False):
    return Instances(
        boxes=torch.rand(*leading, 4),
        labels=torch.randint(0, 5, leading),
        scores=torch.rand(leading) if scores else None,
        masks=torch.rand(*leading, 7, 7) if masks else None,
        crowd=torch.rand(leading) > 0.5 if crowd else None,
    )


def assert_equal(one, other):
    for name in ("boxes", "labels", "scores", "masks", "crowd"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None), name
        assert a is None or torch.equal(a, b), name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"boxes": torch.zeros(3, 5)}, r"boxes must be \(N, 4\) or \(B, N, 4\), got \(3, 5\)"),
        ({"boxes": torch.zeros(4)}, r"boxes must be .* got \(4,\)"),
        ({"labels": torch.zeros(2)}, r"labels must be \(3,\) to go with boxes \(3, 4\), got \(2,\)"),
        ({"scores": torch.zeros(3, 1)}, r"scores must be \(3,\) .* got \(3, 1\)"),
        ({"crowd": torch.zeros(0)}, r"crowd must be \(3,\) .* got \(0,\)"),
        ({"masks": torch.zeros(3, 7)}, r"masks must be \(3, 'M', 'M'\) .* got \(3, 7\)"),
        ({"masks": torch.zeros(2, 7, 7)}, r"masks must be .* got \(2, 7, 7\)"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_shapes_that_do_not_go_together(fields, message):
    with pytest.raises(ValueError, match=message):
        Instances(**{"boxes": torch.zeros(3, 4), "labels": torch.zeros(3), **fields})


def test_an_image_must_have_three_channels():
    with pytest.raises(ValueError, match=r"\(3, H, W\), got \(1, 4, 4\) for one.jpg"):
        Sample(torch.zeros(1, 4, 4), make_instances(2), INFO)


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("size", [None, 9])
def test_a_batch_gives_back_what_went_in(masks, size):
    images = [make_instances(n, masks=masks, crowd=True) for n in (3, 0, 5)]
    batch = Instances.collate(images, size)
    assert batch.boxes.shape == (3, size or 5, 4)
    assert len(batch) == 3
    for index, image in enumerate(images):
        assert_equal(batch[index], image)


def test_a_batch_without_objects_has_no_empty_tensor():
    batch = Instances.collate([make_instances(0), make_instances(0)])
    assert batch.labels.tolist() == [[-1], [-1]]
    assert len(batch[0]) == 0


def test_images_with_different_fields_do_not_batch():
    with pytest.raises(ValueError, match="some images of the batch have crowd and some have none"):
        Instances.collate([make_instances(2, crowd=True), make_instances(2)])


def test_selecting_objects():
    instances = make_instances(5, masks=True)
    keep = torch.tensor([True, False, True, False, True])
    assert_equal(instances[keep], instances.map(lambda value: value[keep]))
    assert_equal(instances[-1], instances[4:])
    assert_equal(instances[1], instances[1:2])
    assert len(instances[torch.tensor([], dtype=torch.long)]) == 0


def test_a_loop_over_objects_ends():
    instances = make_instances(2)
    assert [len(one) for one in instances] == [1, 1]
    for index in (2, -3):
        with pytest.raises(IndexError, match=f"there is no object {index} of 2"):
            instances[index]
    assert len(instances[2:]) == 0


def test_a_batch_is_indexed_by_image():
    with pytest.raises(TypeError, match="an int"):
        make_instances(2, 3)[0:1]


@pytest.mark.parametrize("flipped", [False, True])
def test_to_original_inverts_scale_and_flip(flipped):
    instances = make_instances(6, masks=True)
    low, extent = torch.rand(6, 2) * 20, torch.rand(6, 2) * 20
    original = torch.cat([low, low + extent], 1)
    info = INFO._replace(scale=(2.5, 1.5), flipped=flipped)
    boxes = original.clone()
    if flipped:
        boxes[:, 0::2] = 60 - original[:, [2, 0]]
    boxes = boxes * torch.tensor([1.5, 2.5, 1.5, 2.5])
    back = replace(instances, boxes=boxes).to_original(info)
    torch.testing.assert_close(back.boxes, original)
    assert torch.equal(back.masks, instances.masks.flip(-1) if flipped else instances.masks)
    assert torch.equal(back.scores, instances.scores)


def test_to_original_clips_to_the_picture():
    outside = Instances(torch.tensor([[-5.0, -5.0, 500.0, 500.0]]), torch.zeros(1, dtype=torch.long))
    assert outside.to_original(INFO).boxes.tolist() == [[0, 0, 60, 40]]


def test_to_original_of_a_batch_is_that_of_its_images():
    batch = Instances(torch.rand(3, 4, 4) * 50, torch.zeros(3, 4, dtype=torch.long), masks=torch.rand(3, 4, 7, 7))
    infos = [INFO, INFO._replace(flipped=True), INFO._replace(scale=(0.5, 0.7), size=(30, 90))]
    together = batch.to_original(infos)
    for index, info in enumerate(infos):
        assert_equal(together[index], batch[index].to_original(info))


@pytest.mark.parametrize(("leading", "infos"), [((2, 3), INFO), ((2, 3), [INFO]), ((3,), [INFO])])
def test_to_original_wants_one_info_for_each_image(leading, infos):
    with pytest.raises(ValueError, match="1 ImageInfo given for boxes"):
        make_instances(*leading).to_original(infos)


def test_pytree_round_trip():
    batch = Batch(torch.zeros(2, 3, 4, 4), torch.ones(2, 2), make_instances(2, 3), [INFO, INFO])
    leaves, spec = pytree.tree_flatten(batch)
    again = pytree.tree_unflatten(leaves, spec)
    assert isinstance(again, Batch)
    assert again.infos == [INFO, INFO]
    assert_equal(again.targets, batch.targets)
    doubled = pytree.tree_map_only(torch.Tensor, lambda value: value * 2, batch)
    assert torch.equal(doubled.targets.boxes, batch.targets.boxes * 2)


def test_export_of_a_module_that_returns_instances(tmp_path):
    class Detector(torch.nn.Module):
        def forward(self, images):
            boxes = images.mean((1, 2))[:, None, None] * torch.ones(1, 3, 4)
            return Instances(boxes, torch.zeros(boxes.shape[:2], dtype=torch.long), scores=boxes[..., 0])

    images = torch.rand(2, 5, 5)
    program = torch.export.export(Detector(), (images,))
    torch.export.save(program, tmp_path / "detector.pt2")
    loaded = torch.export.load(tmp_path / "detector.pt2").module()(images)
    assert isinstance(loaded, Instances)
    assert_equal(loaded, Detector()(images))


def test_torchvisions_transforms_flip_the_boxes_too():
    """Without `register_dataclass` they flip the picture and leave the boxes, silently."""
    boxes = tv_tensors.BoundingBoxes([[1.0, 2.0, 5.0, 8.0]], format="XYXY", canvas_size=(10, 20))
    sample = Sample(
        tv_tensors.Image(torch.arange(600, dtype=torch.float32).view(3, 10, 20)),
        Instances(boxes, torch.zeros(1, dtype=torch.long)),
        INFO,
    )
    flipped = v2.RandomHorizontalFlip(p=1.0)(sample)
    assert torch.equal(flipped.image, sample.image.flip(-1))
    assert flipped.target.boxes.tolist() == [[15, 2, 19, 8]]


def test_devices_keep_everything():
    batch = Batch(torch.zeros(2, 3, 4, 4), torch.ones(2, 2), make_instances(2, 3), [INFO, INFO])
    moved = batch.to("meta")
    assert moved.images.is_meta
    assert moved.targets.scores.is_meta
    assert moved.infos is batch.infos
    assert batch.to("cpu").targets.masks is None
    assert Batch(batch.images, batch.sizes, None, batch.infos).to("meta").targets is None


def make_batch(proposals=True):
    more = [make_instances(2, 9)] if proposals else []
    return Batch(torch.zeros(2, 3, 4, 4), torch.ones(2, 2), make_instances(2, 3), [INFO, INFO], *more)


def test_a_batch_takes_its_proposals_along(monkeypatch):
    batch = make_batch()
    moved = batch.to("meta")
    assert moved.proposals.boxes.is_meta
    assert moved.proposals.labels.shape == (2, 9)
    assert_equal(batch.to("cpu").proposals, batch.proposals)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self + 1)  # pinning itself takes a GPU
    pinned = batch.pin_memory()
    for name in ("targets", "proposals"):
        assert torch.equal(getattr(pinned, name).boxes, getattr(batch, name).boxes + 1)
    assert torch.equal(pinned.sizes, batch.sizes + 1)
    assert make_batch(False).to("meta").proposals is None
    assert make_batch(False).pin_memory().proposals is None


def test_what_a_model_is_given():
    batch = make_batch()
    images, sizes, proposals = batch.inputs
    assert images is batch.images
    assert sizes is batch.sizes
    assert proposals is batch.proposals
    assert len(make_batch(False).inputs) == 2


def test_pytree_of_proposals():
    batch = make_batch()
    doubled = pytree.tree_map_only(torch.Tensor, lambda value: value * 2, batch)
    assert torch.equal(doubled.proposals.boxes, batch.proposals.boxes * 2)


def test_a_moved_sample():
    """Objects and proposals are changed alike, and nothing else unless it is said."""
    sample = Sample(torch.zeros(3, 4, 4), make_instances(2), INFO, make_instances(5))
    moved = sample.moved(torch.ones(3, 2, 2), lambda instances: instances[1:])
    assert moved.image.shape == (3, 2, 2)
    assert moved.info is INFO
    assert_equal(moved.target, sample.target[1:])
    assert_equal(moved.proposals, sample.proposals[1:])
    other = INFO._replace(flipped=True)
    assert sample.moved(sample.image, lambda instances: instances, other).info is other
    assert replace(sample, proposals=None).moved(sample.image, lambda instances: instances).proposals is None


def test_concatenate_puts_one_images_objects_after_anothers():
    one = Instances(torch.rand(2, 4), torch.tensor([0, 1]), masks=torch.rand(2, 7, 7))
    none = Instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), masks=torch.zeros(0, 7, 7))
    other = Instances(torch.rand(1, 4), torch.tensor([5]), masks=torch.rand(1, 7, 7))
    whole = Instances.concatenate([one, none, other])
    assert whole.labels.tolist() == [0, 1, 5]
    assert torch.equal(whole.boxes[:2], one.boxes)
    assert torch.equal(whole.masks[2:], other.masks)
    assert whole.scores is None
    with pytest.raises(ValueError, match="masks"):
        Instances.concatenate([one, Instances(torch.rand(1, 4), torch.tensor([5]))])
