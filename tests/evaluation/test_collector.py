"""Gathering detections from batches."""

import pickle

import numpy as np
import pytest
import torch

from sightline.datasets.structures import Instances
from sightline.evaluation import DetectionCollector, Truth

EMPTY = np.zeros(0, int)
TRUTH = Truth([10, 20, 30, 40], EMPTY, np.zeros((0, 4)), EMPTY, EMPTY, EMPTY, EMPTY)


def image(count, label=0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(count, 4, generator=generator) * 50
    return Instances(boxes, torch.full((count,), label), torch.rand(count, generator=generator))


def test_padded_batches_and_lists_give_the_same():
    images = [image(3, 1, 1), image(0), image(2, 2, 2)]
    one, other = DetectionCollector(), DetectionCollector()
    one.update(Instances.collate(images), [30, 10, 20])
    other.update(images[:1], [30])
    other.update(images[1:], torch.tensor([10, 20]))
    found = one.detections(TRUTH)
    assert found.image.tolist() == [2, 2, 2, 1, 1]
    assert found.labels.tolist() == [1, 1, 1, 2, 2]
    np.testing.assert_array_equal(found.boxes[3:], images[2].boxes.numpy())
    np.testing.assert_array_equal(found.scores[:3], images[0].scores.numpy())
    for name in ("image", "boxes", "labels", "scores"):
        np.testing.assert_array_equal(getattr(found, name), getattr(other.detections(TRUTH), name))
    assert one.image_ids.tolist() == [30, 10, 20]


def test_a_repeated_image_counts_once():
    collector = DetectionCollector()
    collector.update([image(2), image(1), image(5)], [10, 20, 10])
    collector.update([image(4), image(3)], [20, 30])
    assert collector.detections(TRUTH).image.tolist() == [0, 0, 1, 2, 2, 2]


def test_processes_are_merged():
    parts = [DetectionCollector() for _ in range(3)]
    parts[0].update([image(2), image(0)], [10, 20])
    parts[1].update([image(1), image(4)], [30, 10])  # 10 again, to even out the processes
    parts[2].update([image(3)], [20])  # 20 had no detections the first time
    parts = pickle.loads(pickle.dumps(parts))
    merged = parts[0].merge(parts[1:])
    assert merged.detections(TRUTH).image.tolist() == [0, 0, 2]
    assert merged.image_ids.tolist() == [10, 20, 30]
    assert merged.merge([]).detections(TRUTH).image.tolist() == [0, 0, 2]
    assert merged.gather() is merged  # one process


def test_the_callers_buffers_are_copied():
    """Compiled models with CUDA graphs write every batch into the same memory."""
    found = image(2)
    boxes = found.boxes.clone()
    collector = DetectionCollector()
    collector.update([found], [10])
    found.boxes.zero_()
    np.testing.assert_array_equal(collector.detections(TRUTH).boxes, boxes.numpy())


def test_nothing():
    collector = DetectionCollector()
    assert len(collector.detections(TRUTH)) == 0
    collector.update(image(0), [10])
    assert len(collector.detections(TRUTH)) == 0
    assert collector.image_ids.tolist() == [10]


def test_refuses():
    collector = DetectionCollector()
    with pytest.raises(ValueError, match="2 images of detections, but 1 image ids"):
        collector.update([image(1), image(1)], [10])
    with pytest.raises(ValueError, match="detections need scores"):
        collector.update([Instances(torch.zeros(1, 4), torch.zeros(1, dtype=torch.long))], [10])
    collector.update([image(1)], [99])
    with pytest.raises(ValueError, match="image id 99, which is not in the truth"):
        collector.detections(TRUTH)


def test_landmarks_are_gathered():
    images = [image(2, seed=3), image(0), image(1, seed=4)]
    points = [torch.rand(len(one), 3, 2) for one in images]
    points[0][1, 2] = torch.nan
    for one, own in zip(images, points, strict=True):
        one.landmarks = own
    padded, listed = DetectionCollector(), DetectionCollector()
    padded.update(Instances.collate(images), [30, 10, 20])
    listed.update(images, [30, 10, 20])
    for collector in (padded, listed, padded.merge([])):
        found = collector.detections(TRUTH)
        np.testing.assert_array_equal(found.landmarks, torch.cat(points).numpy())
        np.testing.assert_array_equal(found.select(found.image == 1).landmarks, points[2].numpy())
    assert DetectionCollector().detections(TRUTH).landmarks is None
