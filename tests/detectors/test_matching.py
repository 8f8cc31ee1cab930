"""The best object of each anchor against all pairs at once (torchvision's box_iou, https://github.com/pytorch/vision); kernels.

Run as a script, this file is what its tests run in processes of their own.
"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchvision.ops import box_iou

from sightline.datasets.structures import Instances
from sightline.detectors.assignment import match
from sightline.detectors.dense_assignment import simota
from sightline.detectors.matching import best_objects, best_objects_plain, covered, covered_plain
from sightline.detectors.yolo_head import Predictions
from sightline.detectors.yolo_head import points as points_of


def boxes(*shape, side=100.0):
    low = torch.rand(*shape, 2) * side
    return torch.cat([low, low + 5 + torch.rand(*shape, 2) * side / 2], dim=-1)


def lattice(*shape):
    """On few places, so that ties abound: equal boxes, equal overlaps, boxes that only touch."""
    low = torch.randint(0, 5, (*shape, 2)) * 10.0
    return torch.cat([low, low + torch.randint(1, 4, (*shape, 2)) * 10.0], dim=-1)


# name: boxes, images, anchors, objects, whether the images share the anchors
CASES = {
    "random": (boxes, 2, 200, 5, False),
    "shared anchors": (boxes, 3, 200, 5, True),
    "one image": (boxes, 1, 60, 3, False),
    "ties": (lattice, 2, 150, 40, True),
    "as many as at once": (boxes, 2, 128, 16, False),
    "one more": (boxes, 2, 129, 17, True),
    "several parts": (lattice, 8, 5000, 20, True),
    "one object": (boxes, 2, 10, 1, True),
    "one anchor": (boxes, 2, 1, 20, True),
    "no objects": (boxes, 2, 30, 0, True),
    "no anchors": (boxes, 2, 0, 4, True),
    "no images": (boxes, 0, 10, 4, True),
}


def case(name):
    """anchors (1 or B, A, 4) and objects (B, N, 4), every fifth of them padding, some of the rest far from all anchors."""
    make, images, anchors, objects, shared = CASES[name]
    found = make(images, objects)
    found[:, ::5] = 0
    found[:, 3::7] += 1000
    return make(1 if shared else images, anchors), found


def of_all_pairs(anchors, objects):
    """`best_objects` of one image, from all IoUs at once."""
    overlaps = box_iou(anchors, objects).nan_to_num(0)  # torchvision's of two boxes of zero is 0 / 0
    best, idxs = overlaps.max(dim=1)
    highest = overlaps.amax(dim=0)
    return best, idxs.where(best > 0, 0), ((overlaps == highest) & (highest > 0)).any(dim=1)


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("no ")])
def test_equal_to_all_pairs(name):
    anchors, objects = case(name)
    ours = best_objects(anchors, objects)
    assert ours[1].dtype == torch.int64
    for i, own in enumerate(anchors.expand(len(objects), -1, -1)):
        for value, expected in zip(ours, of_all_pairs(own, objects[i]), strict=True):
            assert torch.equal(value[i], expected)


@pytest.mark.parametrize("name", CASES)
def test_covered_equals_all_pairs(name):
    anchors, crowds = case(name)
    low = torch.maximum(anchors[:, :, None, :2], crowds[:, None, :, :2])
    high = torch.minimum(anchors[:, :, None, 2:], crowds[:, None, :, 2:])
    common = (high - low).clamp(min=0).prod(dim=-1)
    expected = torch.cat([common, torch.zeros(*common.shape[:2], 1)], dim=2).amax(dim=2)
    expected = expected / (anchors[..., 2:] - anchors[..., :2]).prod(dim=-1)
    torch.testing.assert_close(covered(anchors, crowds), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["no objects", "no anchors", "no images"])
def test_nothing(name):
    anchors, objects = case(name)
    best, idxs, favourite = best_objects(anchors, objects)
    assert best.shape == idxs.shape == favourite.shape == (len(objects), anchors.shape[1])
    assert not best.any()
    assert not idxs.any()
    assert not favourite.any()


@pytest.mark.parametrize("name", CASES)
def test_plain_versions_ask_a_gpu_for_nothing(name):
    """On the meta device any wait for a value is an error."""
    anchors, objects = (boxes.to("meta") for boxes in case(name))
    expected = len(objects), anchors.shape[1]
    assert [found.shape for found in best_objects_plain(anchors, objects)] == [expected] * 3
    assert covered_plain(anchors, objects).shape == expected


@pytest.mark.parametrize("name", ["ties", "several parts", "no objects"])
def test_one_operator_to_compilers(name):
    """The plain version's loop depends on the number of objects; compiled graphs hold one operator instead."""
    anchors, objects = case(name)

    def both(anchors, objects):
        return *best_objects(anchors, objects), covered(anchors, objects)

    compiled = torch.compile(both, fullgraph=True, backend="eager")
    for value, expected in zip(compiled(anchors, objects), both(anchors, objects), strict=True):
        assert torch.equal(value, expected)
    torch.library.opcheck(torch.ops.sightline.best_objects.default, (anchors, objects))
    torch.library.opcheck(torch.ops.sightline.covered.default, (anchors, objects))


def run(*arguments, **environment):
    """What this file prints as a script, word by word."""
    done = subprocess.run(
        [sys.executable, __file__, *arguments], env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no figures of a process's memory here")
@pytest.mark.parametrize("assign", ["match", "simota"])
def test_memory_is_not_that_of_all_pairs(assign):
    """5,000 objects with 50,000 anchors would be 1,000 MB in float32, with YOLOX's 8,400 points at 640 pixels 170 MB."""
    (megabytes,) = run(assign, CUDA_VISIBLE_DEVICES="")
    assert float(megabytes) < {"match": 100, "simota": 100}[assign]


def print_memory(assign):
    """Megabytes by which the process grows at its peak. (`resource`'s figure would start from the parent's.)"""
    torch.set_num_threads(1)
    objects = Instances(boxes(1, 5000, side=600.0), torch.randint(80, (1, 5000)))
    points = points_of([torch.empty(1, 640 // stride, 640 // stride) for stride in (8, 16, 32)], (8, 16, 32))
    sizes = (1, len(points), 80), (1, len(points)), (1, len(points), 4)
    predictions = Predictions(*(torch.randn(size) for size in sizes))
    anchors = boxes(50_000, side=600.0)
    before = kilobytes("VmRSS")
    if assign == "match":
        match(anchors, objects, foreground_iou=0.7, background_iou=0.3, low_quality=True)
    else:
        simota(predictions, points, objects)
    print((kilobytes("VmHWM") - before) / 1000)


def kilobytes(name):
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
INTERPRETED = [name for name in CASES if name != "several parts"]


@needs_triton
def test_triton_kernels_equal_the_plain_versions():
    """Interpreted on the CPU. The variable has to be set before Triton is first imported, hence another process."""
    printed = run("interpret", TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")
    assert printed == [str(4 * 2 * len(INTERPRETED)), "equal"]


def interpret():
    """The kernels beside the plain versions on small cases; shared anchors also as expanded ones."""
    from sightline.detectors.match_triton import best_objects_triton, covered_triton

    torch.manual_seed(0)
    count = 0
    for name in INTERPRETED:
        anchors, objects = case(name)
        expected = *best_objects_plain(anchors, objects), covered_plain(anchors, objects)
        for given in (anchors, anchors.expand(len(objects), -1, -1)):
            found = *best_objects_triton(given, objects), covered_triton(given, objects)
            for value, wanted in zip(found, expected, strict=True):
                assert value.dtype == wanted.dtype
                assert torch.equal(value, wanted), name
                count += 1
    print(count, "equal")


@needs_triton
@pytest.mark.parametrize("name", ["_best", "_favourite", "_covered"])
def test_triton_kernels_compile_for_a_gpu(name, monkeypatch, tmp_path):
    """To machine code of an H100, which needs no GPU, without multiply-adds, which round otherwise than PyTorch."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from sightline.detectors import match_triton

    kernel = getattr(match_triton, name)
    names = kernel.arg_names
    types = dict.fromkeys(("anchors", "boxes", "crowds", "best", "share"), "*fp32")
    types |= {"idxs": "*i64", "highest": "*i32", "favourite": "*u8", "ANCHORS": "constexpr", "OBJECTS": "constexpr"}
    types |= dict.fromkeys(("step", "number", "objects"), "i32")
    constants = {(names.index(size),): getattr(match_triton, size) for size in ("ANCHORS", "OBJECTS")}
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    source = ASTSource(kernel, {name: types[name] for name in names}, constexprs=constants)
    options = {"num_warps": match_triton.ANCHORS // 32, "enable_fp_fusion": False}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert len(compiled.asm["cubin"]) > 0
    assert "fma." not in compiled.asm["ptx"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", CASES)
def test_on_a_gpu_without_waiting(name):
    anchors, objects = case(name)
    expected = *best_objects_plain(anchors, objects), covered_plain(anchors, objects)
    anchors, objects = anchors.cuda(), objects.cuda()
    best_objects(anchors, objects), covered(anchors, objects)  # compiles the kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = *best_objects(anchors, objects), covered(anchors, objects)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for value, wanted in zip(found, expected, strict=True):
        assert torch.equal(value.cpu(), wanted)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("objects", [8, 5000])
def test_many_anchors_on_a_gpu(objects):
    """Within 2 GiB at any number of objects; one image's anchors for all."""
    anchors = boxes(250_000, side=1000.0)
    targets = Instances(boxes(2, objects, side=1000.0), torch.zeros(2, objects, dtype=torch.int64))
    settings = {"foreground_iou": 0.7, "background_iou": 0.3, "low_quality": True}
    expected = match(anchors, targets, **settings)
    anchors, targets = anchors.cuda(), targets.to("cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = match(anchors, targets, **settings)
    assert torch.cuda.max_memory_allocated() - before < 100e6
    for value, wanted in zip(found, expected, strict=True):
        assert torch.equal(value.cpu(), wanted)


if __name__ == "__main__":
    interpret() if sys.argv[1] == "interpret" else print_memory(sys.argv[1])
