"""Suppression against torchvision's (https://github.com/pytorch/vision) group by group; the Triton kernels."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from torchvision import ops

from sightline.detectors import nms as module
from sightline.detectors.nms import BLOCK, nms, nms_plain


def boxes(groups, number, spread=100.0):
    """Boxes of 5 to 45 pixels in a square of `spread` pixels."""
    low = torch.rand(groups, number, 2) * spread
    return torch.cat([low, low + 5 + 40 * torch.rand(groups, number, 2)], dim=-1)


def clusters(groups, number):
    centres = boxes(groups, 5, spread=400.0)
    return centres.gather(1, torch.randint(5, (groups, number, 1)).expand(-1, -1, 4)) + 3 * torch.randn(
        groups, number, 4
    )


def twins(groups, number):
    """Every box several times over, and boxes that overlap by exactly the threshold."""
    low = torch.randint(0, 6, (groups, number, 2)) * 10.0
    return torch.cat([low, low + torch.tensor([30.0, 10.0])], dim=-1)


def chain(groups, number):
    """Each overlaps the next by more than half, but not the one after: each second one survives, decided one by one."""
    left = 3.0 * torch.arange(number).expand(groups, -1)
    zero = torch.zeros_like(left)
    return torch.stack([left, zero, left + 10, zero + 10], dim=-1)


def points(groups, number):
    """Without area: they overlap nothing, themselves included."""
    return torch.full((groups, number, 4), 5.0)


# name: boxes, groups, boxes a group
CASES = {
    "random": (boxes, 4, 60),
    "clustered": (clusters, 3, 300),
    "twins": (twins, 3, 50),
    "a chain": (chain, 2, 40),
    "a chain over several blocks": (chain, 2, 2 * BLOCK + 50),
    "one box": (boxes, 3, 1),
    "exactly a block": (clusters, 2, BLOCK),
    "a block and one": (clusters, 2, BLOCK + 1),
    "points": (points, 2, 10),
    "one group": (clusters, 1, 100),
    "no boxes": (boxes, 2, 0),
}


def case(name):
    """boxes (G, K, 4), valid (G, K), labels (G, K); the first group is all valid, the last of many all invalid."""
    make, groups, number = CASES[name]
    valid = torch.rand(groups, number) < 0.8
    valid[0] = True
    if groups > 2:
        valid[-1] = False
    return make(groups, number), valid, torch.randint(0, 3, (groups, number))


@pytest.mark.parametrize("groups", [1, 3])
def test_no_box_is_valid(groups):
    valid = torch.zeros(groups, 20, dtype=torch.bool)
    for labels in (None, torch.zeros(groups, 20, dtype=torch.int64)):
        assert not nms(boxes(groups, 20), valid, 0.5, labels).any()


def torchvisions(boxes, valid, threshold, labels=None):
    """The same by torchvision.ops.nms, a group and a label at a time."""
    kept = torch.zeros_like(valid)
    scores = torch.arange(boxes.shape[1], 0, -1).float()
    for group in range(len(boxes)):
        for label in [None] if labels is None else labels[group].unique():
            chosen = valid[group] if label is None else valid[group] & (labels[group] == label)
            (idxs,) = torch.where(chosen)
            kept[group, idxs[ops.nms(boxes[group, idxs], scores[idxs], threshold)]] = True
    return kept


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("name", CASES)
def test_equal_to_torchvision(name, threshold):
    objects, valid, labels = case(name)
    before = objects.clone(), valid.clone(), labels.clone()
    assert torch.equal(nms(objects, valid, threshold), torchvisions(objects, valid, threshold))
    assert torch.equal(nms(objects, valid, threshold, labels), torchvisions(objects, valid, threshold, labels))
    assert all(torch.equal(a, b) for a, b in zip(before, (objects, valid, labels), strict=True))


def test_equal_to_torchvisions_batched_nms():
    """Which shifts each label's boxes to a place of their own."""
    objects, _, labels = case("clustered")
    scores = torch.rand(3, 300).sort(dim=1, descending=True).values
    ours = nms(objects, torch.ones(3, 300, dtype=torch.bool), 0.5, labels)
    for i in range(3):
        expected = ops.batched_nms(objects[i], scores[i], labels[i], 0.5)
        assert torch.equal(ours[i].nonzero()[:, 0], expected)


@pytest.mark.parametrize("name", CASES)
def test_idempotent_and_never_more_than_before(name):
    objects, valid, labels = case(name)
    once = nms(objects, valid, 0.5, labels)
    assert not (once & ~valid).any()
    assert torch.equal(nms(objects, once, 0.5, labels), once)


def test_a_long_chain_by_hand():
    """Of 0-10, 3-13, 6-16 … at 0.5 every second survives, a thousand decisions deep."""
    number = 1000
    kept = nms(chain(1, number), torch.ones(1, number, dtype=torch.bool), 0.5)
    assert torch.equal(kept[0], torch.arange(number) % 2 == 0)


@pytest.mark.parametrize("size", [1, 7, 64, 4096])
def test_the_size_of_a_block_changes_nothing(size, monkeypatch):
    objects, valid, labels = case("clustered")
    expected = nms_plain(objects, valid, 0.5, labels)
    monkeypatch.setattr(module, "BLOCK", size)
    assert torch.equal(nms_plain(objects, valid, 0.5, labels), expected)


def test_labels_may_be_any_number():
    objects, valid, labels = case("clustered")
    names = torch.tensor([-(2**62), 2**31, 2**62])
    assert torch.equal(nms(objects, valid, 0.5, names[labels]), nms(objects, valid, 0.5, labels))


@pytest.mark.parametrize("labelled", [False, True])
def test_nothing_valid(labelled):
    objects, valid, labels = case("clustered")
    assert not nms(objects, torch.zeros_like(valid), 0.5, labels if labelled else None).any()


def test_a_valid_box_of_nan_is_left_alone():
    objects, valid, labels = case("clustered")
    objects[:, 7], valid[:, 7] = torch.nan, True
    without = valid.clone()
    without[:, 7] = False
    found = nms(objects, valid, 0.5, labels)
    assert found[:, 7].all()
    assert torch.equal(found & without, nms(objects, without, 0.5, labels))


def test_what_is_not_valid_may_be_anything():
    objects, valid, labels = case("clustered")
    expected = nms(objects, valid, 0.5, labels)
    for garbage in (torch.nan, torch.inf, 1e30):
        assert torch.equal(nms(torch.where(valid[..., None], objects, garbage), valid, 0.5, labels), expected)


needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


@needs_triton
def test_triton_kernels_equal_the_plain_version():
    """Interpreted on the CPU. The variable has to be set before Triton is first imported, hence another process."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == [str(2 * len(INTERPRETED)), "equal"]


# Words of 32 boxes: within one, exactly one, one and a box; more than the 128 rows that a program compares with a word.
INTERPRETED = [
    (boxes, 3, 40),
    (clusters, 3, 32),
    (clusters, 2, 33),
    (twins, 2, 64),
    (chain, 1, 140),
    (clusters, 1, 161),
    (boxes, 2, 1),
    (boxes, 2, 0),
    (boxes, 0, 5),
    (points, 1, 8),
]


def interpret():
    """What the other process does: the kernels beside `nms_plain` on small cases."""
    from sightline.detectors.nms_triton import nms_triton

    torch.manual_seed(0)
    count = 0
    for make, groups, number in INTERPRETED:
        objects, valid = make(groups, number), torch.rand(groups, number) < 0.8
        objects = torch.where(valid[..., None], objects, torch.nan)
        for labels in (None, torch.randint(0, 3, (groups, number))):
            found = nms_triton(objects, valid, 0.5, labels)
            assert found.dtype == torch.bool
            assert torch.equal(found, nms_plain(objects, valid, 0.5, labels)), (make.__name__, labels)
            count += 1
    print(count, "equal")


KERNELS = {
    "overlaps": ("_overlaps", {"ROWS": 128}, 4),
    "overlaps, without labels": ("_overlaps", {"ROWS": 128, "labels": None}, 4),
    "survivors of 2048": ("_walk", {"WORDS": 64}, 1),
    "survivors of 16384": ("_walk", {"WORDS": 512}, 8),
}


@needs_triton
@pytest.mark.parametrize("name", KERNELS)
def test_triton_kernels_compile_for_a_gpu(name, monkeypatch, tmp_path):
    """To machine code of an H100, which needs no GPU, without multiply-adds, which round otherwise than PyTorch."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from sightline.detectors import nms_triton

    kernel, constants, warps = KERNELS[name]
    kernel = getattr(nms_triton, kernel)
    types = {"boxes": "*fp32", "labels": "*i64", "mask": "*i32", "threshold": "fp32", "valid": "*u8", "kept": "*u8"}
    types |= dict.fromkeys(("number", "words"), "i32") | dict.fromkeys(constants, "constexpr")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    source = ASTSource(
        kernel,
        {argument: types[argument] for argument in kernel.arg_names},
        constexprs={(kernel.arg_names.index(argument),): value for argument, value in constants.items()},
    )
    options = {"num_warps": warps, "enable_fp_fusion": False}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert len(compiled.asm["cubin"]) > 0
    assert "fma." not in compiled.asm["ptx"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", CASES)
def test_on_a_gpu_without_waiting(name):
    objects, valid, labels = case(name)
    expected = nms_plain(objects, valid, 0.5, labels)
    on_gpu = [value.cuda() for value in (objects, valid, labels)]
    nms(*on_gpu[:2], 0.5, on_gpu[2])  # compiles the kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = nms(*on_gpu[:2], 0.5, on_gpu[2])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found.cpu(), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("groups", "number"), [(1, 0), (5, 1000), (200, 300), (2, 2048), (1, 10_000), (1, 40_000)])
def test_many_boxes_on_a_gpu(groups, number):
    objects, valid, labels = (
        clusters(groups, number),
        torch.rand(groups, number) < 0.9,
        torch.randint(3, (groups, number)),
    )
    for theirs in (None, labels):
        expected = nms_plain(objects, valid, 0.5, theirs)
        found = nms(objects.cuda(), valid.cuda(), 0.5, None if theirs is None else theirs.cuda())
        assert torch.equal(found.cpu(), expected)


def test_one_operator_to_compilers():
    """The plain version's loop depends on the boxes; exported and compiled graphs hold one operator instead."""
    boxes = torch.rand(2, 40, 4) * 30
    boxes[..., 2:] += boxes[..., :2]
    valid, labels = torch.rand(2, 40) > 0.1, torch.randint(2, (2, 40))

    class Kept(torch.nn.Module):
        def forward(self, boxes, valid, labels):
            return nms(boxes, valid, 0.5, labels) | ~valid

    wanted = Kept()(boxes, valid, labels)
    exported = torch.export.export(Kept(), (boxes, valid, labels)).module()
    compiled = torch.compile(Kept(), fullgraph=True, backend="eager")
    assert torch.equal(exported(boxes, valid, labels), wanted)
    assert torch.equal(compiled(boxes, valid, labels), wanted)
    torch.library.opcheck(torch.ops.sightline.nms.default, (boxes, valid, 0.5, labels))


if __name__ == "__main__":
    interpret()
